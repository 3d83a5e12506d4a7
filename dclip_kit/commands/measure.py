"""Commands on models: measuring them, handing them on, searching with them."""

import asyncio
import importlib.util
import json as json_format
import os
import shutil
import sys
import tempfile
import threading
import webbrowser
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from dclip_kit.commands.terminal import choose_device, require_writable
from dclip_kit.config import PROFILES, Profile
from dclip_kit.runtime.printing import printable

Method = Literal["nnn", "inverted_softmax", "dual_softmax", "bsap", "bsap_h"]


def evaluate(
    *,
    model: tuple[str, ...],
    pretrained: str | None,
    data: str | None = None,
    zero_shot: str | None = None,
    templates: Literal["auto", "pocket", "imagenet", "paper"] | None = None,
    images: Path | None = None,
    split: str = "test",
    seed: int | None = None,
    rescore: Method | None = None,
    json: Path | None = None,
    device: str = "auto",
    profile: str = "pocket",
) -> None:
    """Measures models: retrieval both ways with 95 % intervals, and zero-shot classification.

    Pictures that one of the models has trained on, whatever data set they come from, are left out
    for all of them, and so are labelled pictures that one was trained or chosen on; both are
    counted. Each model's folder says what it has seen, wherever it was copied to.

    Args:
        model: one or more, the first of which the others are compared with: "pocket", an
            architecture of open_clip, or a folder that open_clip loads, such as an arm of distill
            (runs/x/dclip).
        pretrained: for architectures: a tag of open_clip, such as openai, or a file.
        data: captioned pictures, as inspect takes them, or "pocket"; left out, those of the first
            arm's run, which it measured on, and where there is no arm, the profile's.
        zero_shot: labelled pictures: "pocket", imagenet:FOLDER, cifar10:FOLDER, cifar100:FOLDER, or
            a folder with a folder a class; "" leaves this out. Left out, as for data.
        templates: what classes are put into: auto is CLIP's 80 except for the pocket, paper is one.
            Left out, as for data.
        images: the folder that the pictures' names are below; else it is looked for.
        split: "test" is what distill measures on, a tenth where the data has no splits; "all" is
            everything; formats with splits have more (val, test_1k_0, …).
        seed: of drawing splits that data has not; left out, that of the first arm's run, else 0.
        rescore: measures each model once more, with scores rescored by what the data's training
            split makes of each candidate; nothing is trained for it. Its settings are those of a
            few that find most on val.
        json: file for all figures.
        device: auto, cpu, cuda:0, …
    """
    if json:
        require_writable(json)
    from dclip_kit.evaluation import measuring
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    asked: dict[str, Any] = {"data": data, "images": images and str(images), "zero_shot": zero_shot}
    asked |= {"templates": templates, "seed": seed}
    on = measuring.choose_measured_on(model, PROFILES[profile], split, **asked)
    parts = measuring.load_rescoring_parts(on) if rescore else None
    results = {}
    for name in model:
        clip = load_clip(name, tag_for(name, pretrained), choose_device(device))
        results[name] = measuring.measure_model(clip, on, rescore, parts)
    if is_main_process():
        if json:
            write_record(measuring.describe_results(results, on, rescore), json)
        print(measuring.format_results(results, on, rescore))


def probe(
    *,
    model: tuple[str, ...] = (),
    teacher: tuple[str, ...] = (),
    pretrained: str | None,
    items: int = 1000,
    json: Path | None = None,
    device: str = "auto",
) -> None:
    """Asks models what they know of order and relations, and teachers whether they look.

    Models and teachers are asked for pairs of pocket scenes and captions that differ in order,
    relation, size, number or attribute alone. Teachers are also given another picture's regions,
    and none: one that finds as much by these does not use its own.

    Args:
        model: as in evaluate.
        teacher: the folder of a teacher (runs/x/region_teacher), of a run with one, or "pocket" for
            both that come with the kit. It is asked with the CLIP that its features came from, on
            the test pictures of its run that it has not trained on.
        pretrained: for architectures: a tag of open_clip, such as openai, or a file.
        items: how many pairs of each kind.
        json: file for all figures.
        device: auto, cpu, cuda:0, …
    """
    if json:
        require_writable(json)
    if not model and not teacher:
        raise ValueError(
            "Expected models or teachers to ask, got none; name some with --model and --teacher."
        )
    if items < 1:
        raise ValueError(f"Expected --items from 1, got {items}; ask for more.")
    from dclip_kit.evaluation import probing
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    where = choose_device(device)
    folders = {name: each for x in teacher for name, each in probing.find_teachers(x).items()}
    results = {}
    for name in model:
        clip = load_clip(name, tag_for(name, pretrained), where)
        results[name] = probing.probe_model(clip, items)
    for name, folder in folders.items():
        results[name] = probing.probe_saved_teacher(folder, items, where)
    if is_main_process():
        if json:
            write_record(probing.describe_probes(results, items), json)
        print(probing.format_probes(results, items))


def search(
    folder: Positional[Path],
    query: Positional[str],
    *,
    model: str,
    pretrained: str | None,
    top_k: int = 5,
    rescore: Method | None = None,
    references: str = "",
    json: FlagCreatePairsOff[bool] = False,
    device: str = "auto",
) -> None:
    """Searches a folder's pictures by a text; captions are not needed.

    The first search embeds the pictures and keeps that in the user's cache folder (or in
    DCLIP_CACHE); later ones embed what is new or has changed.

    Args:
        folder: of pictures; folders in it count too.
        query: what to look for, such as "a dog on a beach".
        model: "pocket" (which knows a hundred drawn things), an architecture of open_clip, or a
            folder that open_clip loads, such as an arm of distill (runs/x/dclip).
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        top_k: how many to find.
        rescore: takes from each picture's score what it gets from captions of other pictures.
        references: the data whose training captions these are, as inspect takes it, or "pocket";
            left out, those that the arm was trained on.
        json: prints JSON, a list of path and score, which is a cosine; with --rescore it is what
            the method makes of one, and the cosine stands beside it.
        device: auto, cpu, cuda:0, …
    """
    from dclip_kit.evaluation.profile_data import read_references
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.models.encode import encode_texts
    from dclip_kit.search.folder_index import find_pictures, index_pictures
    from dclip_kit.search.rescoring import Rescoring

    find_pictures(folder)  # an empty folder is told before a model is loaded
    if top_k < 1 or not query.strip():
        raise ValueError(
            f"Expected a query that says something and a --top-k from 1, got {query!r} and {top_k}."
        )
    if references and not rescore:
        raise ValueError(
            f"Expected no --references without --rescore, got {references}; give both or neither."
        )
    captions_of = _choose_references(model, references) if rescore else None
    clip = load_clip(model, tag_for(model, pretrained), choose_device(device))
    with redirect_stdout(sys.stderr):  # that another process is waited for is no hit
        index = index_pictures(clip, folder)
    if index.embedded or index.unreadable:
        print(
            f"Embedded {index.embedded:,} pictures now, {len(index.paths) - index.embedded:,} were "
            f"known, {len(index.unreadable):,} cannot be read."
            + (f" Links out of the folder led to {index.linked:,}." if index.linked else ""),
            file=sys.stderr,
        )
    asked, captions, how = encode_texts(clip, [query]), None, Rescoring(rescore or "nnn")
    if captions_of:
        captions = encode_texts(clip, read_references(captions_of))
    found = index.search(asked, top_k, captions, how)
    hits: list[dict[str, Any]] = [
        {"path": str(index.paths[i]), "score": score}
        for i, score in zip(found.images, found.scores, strict=True)
    ]
    if rescore:
        cosines = index.search(asked, len(index.paths))
        cosine_of = dict(zip(cosines.images, cosines.scores, strict=True))
        hits = [hit | {"cosine": cosine_of[i]} for hit, i in zip(hits, found.images, strict=True)]
    if json:
        print(json_format.dumps(hits, indent=1))
    else:
        for hit in hits:
            print(f"{hit['score']:.3f}  {printable(hit['path'])}")


def _choose_references(model: str, references: str) -> Profile:
    """Where captions to rescore by are: as named, else those that the model was trained on."""
    from dclip_kit.evaluation.arms import read_origin

    origin = read_origin(model)
    place = origin.profile if origin else PROFILES["pocket"]
    if references:
        return replace(place, data=references, images="", test="")
    if not origin and model != "pocket":
        raise ValueError(
            f"Expected captions to rescore by, got none with {model}; name their data with "
            "--references."
        )
    return place


def app(
    folder: Positional[str] = "",
    *,
    model: str = "pocket",
    before: str = "",
    port: int = 8866,
    browser: bool = True,
    device: str = "auto",
) -> None:
    """Opens a page that searches a folder's pictures, before and after fine-tuning; no code needed.

    The page is served to this machine alone, at 127.0.0.1, and only to whoever has the whole
    address that is printed: it ends with a token, a new one each time. The page gives out pictures
    that were made smaller, and never the folder. Vectors of pictures are kept, as search keeps
    them.

    What remains open: each tab takes about 600 MB of memory, and nothing limits how many are
    opened; it is freed when the tab is closed, or five minutes after its connection is lost. And
    the browser tells every other server at 127.0.0.1 that it visits what lets it in here: visit
    none that you do not trust while the app runs.

    Args:
        folder: of pictures, which need no captions; folders in it count too. Left out, the pocket's
            pictures, with all that can be seen of them.
        model: an arm that distill wrote (runs/x/region_taught), searched with beside the CLIP that
            it comes from; "pocket" is the arm that comes with the kit.
        before: that CLIP, where the arm does not say it or it has moved.
        port: where to serve, from 1 to 65535.
        browser: whether to open a browser, too.
        device: auto, cpu, cuda:0, …
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"Expected a --port from 1 to 65535, got {port}; name another.")
    if importlib.util.find_spec("voila") is None:
        raise ImportError(
            "Expected Voilà, which serves the page, got none; run pip install 'dclip-kit[app]'."
        )
    from dclip_kit.search.folder_index import find_pictures
    from dclip_kit.widgets.app import NOTEBOOK, SETTINGS

    if folder:
        find_pictures(Path(folder))  # an empty folder is told before anything is served
    elif model != "pocket":
        raise ValueError(f"Expected a folder to search with {model}, got none; name one.")
    asked = {
        "folder": folder and str(Path(folder).absolute()),
        "model": model if model == "pocket" else str(Path(model).absolute()),
        "before": str(Path(before).absolute()) if Path(before or "none").is_dir() else before,
        "device": choose_device(device),
    }
    os.environ |= {
        SETTINGS: json_format.dumps(asked),
        "TQDM_DISABLE": "1",
    }  # which the kernel inherits
    for name in ("JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE"):
        os.environ.pop(name, None)  # else the token would be another server's
    with tempfile.TemporaryDirectory() as root:  # all that the server can see
        shutil.copy(NOTEBOOK, root)
        _serve(Path(root, NOTEBOOK.name), port, browser)


def _serve(notebook: Path, port: int, browser: bool) -> None:
    """Serves a notebook's page until Ctrl-C, to this machine and whoever has its token."""
    from voila.app import Voila

    options = [
        *(str(notebook), f"--port={port}", "--Voila.ip=127.0.0.1"),
        *("--Voila.port_retries=0", "--VoilaConfiguration.file_allowlist=[]"),
        *("--show_tracebacks=False", "--no-browser", "--Voila.auto_token=True"),
        # Empty is False: no Host but localhost and loopback addresses.
        "--Voila.tornado_settings=allow_remote_access=",
        # A tab that is closed asks for the end of its kernel without the token against forged
        # requests. Other sites cannot forge one: they have no cookie, and another origin.
        "--Voila.tornado_settings=disable_check_xsrf=1",
        "--IdentityProvider.cookie_options=samesite=Strict",
        # Kernels without a connection end; a page that is only looked at has one.
        "--MappingKernelManager.cull_idle_timeout=300",
        "--MappingKernelManager.cull_interval=60",
        f"--MappingKernelManager.root_dir={Path.cwd()}",  # to which paths are relative
    ]
    voila = Voila.instance()
    voila.initialize(options)

    def open_page() -> None:
        # Voilà would leave out the token. By way of a file that only this account can read: others
        # can see what programs are called with.
        page = notebook.with_name("open.html")
        page.write_text(f'<meta http-equiv="refresh" content="0; url={voila.display_url}">')
        threading.Thread(target=webbrowser.open, args=(page.as_uri(),)).start()

    if browser:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)  # runs once the server listens
        loop.call_soon(open_page)
    voila.start()
