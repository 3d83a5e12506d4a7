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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from dclip_kit.commands.terminal import (
    choose_device,
    require_own_folder,
    require_writable,
    warn_of_few,
)
from dclip_kit.config import PROFILES
from dclip_kit.runtime.printing import printable

Method = Literal["nnn", "inverted_softmax", "dual_softmax", "bsap", "bsap_h"]


def export(arm: Positional[str], *, out: Path, pretrained: str | None, device: str = "cpu") -> None:
    """Writes a model as a folder that plain open_clip loads, without this kit.

    Args:
        arm: what distill wrote (runs/x/dclip), or any other model that evaluate takes.
        out: the folder to write.
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        device: auto, cpu, cuda:0, …
    """
    require_own_folder(out, "open_clip_config.json")
    from dclip_kit.evaluation.runs import load_model
    from dclip_kit.models.clip import MERGES_FILE, export_clip

    clip = load_model(arm, pretrained, choose_device(device))
    export_clip(clip, out)
    place = printable(out)
    more = f', bpe_path="{place}/{MERGES_FILE}"' if clip.merges else ""
    print(
        f"Written to {place}. Load it without this kit:",
        f'  open_clip.create_model_and_transforms("local-dir:{place}")',
        f'  open_clip.get_tokenizer("local-dir:{place}"{more})',
        sep="\n",
    )


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
    compositional: FlagCreatePairsOff[bool] = False,
    items: int = 1000,
    teachers: str = "",
    json: Path | None = None,
    device: str = "auto",
    profile: str = "pocket",
) -> None:
    """Measures models: retrieval both ways with 95 % intervals, and zero-shot classification.

    Pictures that one of the models has trained on, whatever data set they come from, are left out
    for all of them, and so are labelled pictures that one was trained or chosen on; both are
    counted.

    Args:
        model: one or more, the first of which the others are compared with: "pocket", an
            architecture of open_clip, a folder that export wrote, or an arm that distill wrote
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
        compositional: asks each model also for pairs of pocket scenes and captions that differ in
            order, relation, size, number or attribute alone.
        items: how many such pairs of each kind.
        teachers: asks teachers for these pairs, too, each with its own run's untouched CLIP: the
            folder of a run that train-teacher or distill left them in, or "pocket". Their rows are
            called by folder and file.
        json: file for all figures.
        device: auto, cpu, cuda:0, …
    """
    if teachers and not compositional:
        raise ValueError(
            f"Expected --compositional beside --teachers {teachers}, since teachers are asked for "
            "nothing else, got none; add it, or leave --teachers out."
        )
    if json:
        require_writable(json)
    from dclip_kit.evaluation import compare, experiment, profile_data, runs
    from dclip_kit.evaluation import evaluate as measuring
    from dclip_kit.metrics import COMPOSITION_CHANCE, retrieval_metrics
    from dclip_kit.models.encode import encode_images, encode_texts
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    taught = runs.load_teachers(teachers, choose_device(device)) if teachers else None
    came_from = {name: run for name in model if (run := runs.find_run(name))}
    place = profile_data.choose_measured(
        [run.profile for run in came_from.values()],
        PROFILES[profile],
        data=data,
        images=images and str(images),
        zero_shot=zero_shot,
        templates=templates,
        seed=seed,
    )
    seen = {name: run.seen for name, run in came_from.items()}
    unseen = runs.leave_out_trained(profile_data.read_measured(place, split), seen)
    captioned = unseen.dataset
    digests = frozenset[str]().union(*(each.files for each in seen.values()))
    every = profile_data.read_zero_shot(place.zero_shot) if place.zero_shot else ()
    labelled = {each.source: runs.leave_out_labelled(each, digests) for each in every}
    without = {each.source: len(each) - len(labelled[each.source]) for each in every}
    prompts = profile_data.choose_templates(place.zero_shot, place.templates)
    if rescore:
        parts = profile_data.load_splits(place)
        if both := {*parts.train.paths, *parts.val.paths} & {*captioned.paths}:
            raise ValueError(
                "Expected a split without pictures of train and val, which rescoring works with, "
                f"got {split!r} with {len(both):,} of them; measure another with --split."
            )
    found, composed, tried, hubness, cut = {}, {}, {}, {}, {}
    known: dict[str, dict[str, measuring.ZeroShot]] = {source: {} for source in labelled}
    for name in model:
        clip = runs.load_model(name, pretrained, choose_device(device))
        if compositional:
            composed[name] = measuring.evaluate_compositions(
                measuring.score_compositions(clip, items)
            )
        vectors, texts = encode_images(clip, captioned.paths), encode_texts(clip, captioned.texts)
        features = vectors, texts, captioned.image_of_text
        found[name], cut[name] = (
            retrieval_metrics(*features),
            compare.warn_of_captions(captioned, clip),
        )
        if rescore:
            references = measuring.prepare_references(clip, parts.train)
            val = encode_images(clip, parts.val.paths), encode_texts(clip, parts.val.texts)
            tried[name] = measuring.try_rescoring(
                rescore, *val, parts.val.image_of_text, references
            )
            best = [next(iter(each)) for each in tried[name].values()]
            hubness[name] = measuring.measure_hubness(vectors, texts, references, *best)
            found[f"{name} by {rescore}"] = measuring.rescored_metrics(*features, references, *best)
        for source, each in labelled.items():
            known[source][name] = measuring.evaluate_zero_shot(
                clip, measuring.prepare_zero_shot(clip, each, False, prompts)
            )
    if taught:
        for name, cosines in experiment.score_teachers(*taught, items).items():
            composed[f"{teachers}/{name}"] = measuring.evaluate_compositions(cosines)
    if not is_main_process():
        return
    gains = {name: compare.compare(found[model[0]], found[name]) for name in [*found][1:]}
    measured = place.test if place.test and split == "test" else place.data
    unknown = [name for name, each in seen.items() if not each.complete]
    folders = [name for name in model if Path(name.removeprefix("local-dir:")).is_dir()]
    notes = [
        unseen.describe(measured),
        warn_of_few(len(captioned), captioned.source),
        *dict.fromkeys(cut.values()),
        *(
            f"What {x} has trained on is not all known: its run, or its teacher's, left no record."
            for x in unknown
        ),
        *(
            f"What {x} has trained on is not known: if on these pictures, its figures are too good."
            for x in folders
        ),
    ]
    if json:
        write_record(
            {
                "data": place.data,
                "test": place.test if split == "test" else "",
                "split": split,
                "seed": place.seed,
                "pictures": len(captioned),
                "captions": len(captioned.texts),
                "retrieval": {name: each.as_dict() for name, each in found.items()},
                "gains": {
                    name: {way: [asdict(gain) for gain in each] for way, each in own.items()}
                    for name, own in gains.items()
                },
                "zero_shot": {
                    source: {name: {"top1": x.top1, "top5": x.top5} for name, x in results.items()}
                    for source, results in known.items()
                },
                "rescoring_on_val": {
                    name: {
                        way: [how.settings | {"recall_at_1": x} for how, x in each.items()]
                        for way, each in ways.items()
                    }
                    for name, ways in tried.items()
                },
                "skewness_of_k_occurrence": hubness,
                "compositions": composed
                and {
                    "items": items,
                    "chance": COMPOSITION_CHANCE,
                    "found": {
                        name: {
                            kind: {score: asdict(x) for score, x in scores.items()}
                            for kind, scores in kinds.items()
                        }
                        for name, kinds in composed.items()
                    },
                },
                "left_out": {
                    "trained_on": {
                        name: [
                            {"picture": str(x.picture), "trained": str(x.evaluation), "by": x.by}
                            for x in leaks
                        ]
                        for name, leaks in unseen.trained.items()
                    },
                    "zero_shot_chosen_on": without,
                },
                "chosen_on": unseen.chosen,
                "no_record": unknown,
            },
            json,
        )
    counts = f"{len(captioned):,} pictures, {len(captioned.texts):,} captions"
    print(f"{counts}: {printable(measured)} ({printable(split)})")
    for note in filter(None, notes):
        print(printable(note))
    print("\n" + compare.format_retrieval({printable(name): each for name, each in found.items()}))
    for name, own in gains.items():
        print(f"\n{printable(name)} beside {printable(model[0])}")
        for way, (first, *_) in own.items():
            print(f"  {compare.say_gain(first, f'{way} Recall@1')}")
    for name, ways in tried.items():
        print(f"\n{printable(name)}: the best of {rescore} on val, by Recall@1")
        for way, recalls in ways.items():
            how, recall = next(iter(recalls.items()))
            chosen = ", ".join(f"{x} {value:g}" for x, value in how.settings.items())
            skew = "skewness of k-occurrence {before:.2f} → {after:.2f}".format(
                **hubness[name][way]
            )
            print(f"  {measuring.WAYS[way]}: {chosen} ({100 * recall:.1f} %); {skew}")
    for source, results in known.items():
        rest, gone = len(labelled[source]), without[source]
        others = f", without the {gone:,} that a model was trained or chosen on" if gone else ""
        print(f"\nZero-shot top-1, {printable(source)}: {rest:,} pictures{others}")
        table = compare.format_zero_shot({printable(name): x for name, x in results.items()})
        print(*filter(None, [table, warn_of_few(rest, source)]), sep="\n")
    if composed:
        print(f"\nCompositions: {items:,} pairs of pocket scenes a kind")
        print(compare.format_compositions({printable(name): x for name, x in composed.items()}))


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
        model: "pocket" (which knows a hundred drawn things), an architecture of open_clip, a folder
            that export wrote, or an arm that distill wrote (runs/x/dclip).
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
    from dclip_kit.evaluation.runs import find_run, load_model
    from dclip_kit.models.encode import encode_texts
    from dclip_kit.search.folder_index import find_pictures, index_pictures
    from dclip_kit.search.rescoring import Rescoring

    find_pictures(folder)  # an empty folder is told before a model is loaded
    if top_k < 1 or not query.strip():
        raise ValueError(
            f"Expected a query that says something and a --top-k from 1, got {query!r} and {top_k}."
        )
    run = find_run(model)
    place = run.profile if run else PROFILES["pocket"]
    if references and not rescore:
        raise ValueError(
            f"Expected no --references without --rescore, got {references}; give both or neither."
        )
    if references:
        place = replace(place, data=references, images="", test="")
    elif rescore and not run and model != "pocket":
        raise ValueError(
            f"Expected captions to rescore by, got none with {model}; name their data with "
            "--references."
        )
    clip = load_model(model, pretrained, choose_device(device))
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
    if rescore:
        captions = encode_texts(clip, read_references(place))
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


def app(
    folder: Positional[str] = "",
    *,
    model: str = "pocket",
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
        "device": choose_device(device),
    }
    os.environ |= {
        SETTINGS: json_format.dumps(asked),
        "TQDM_DISABLE": "1",
    }  # which the kernel inherits
    for name in ("JUPYTER_TOKEN", "JUPYTER_TOKEN_FILE"):
        os.environ.pop(name, None)  # else the token would be another server's
    from voila.app import Voila

    with tempfile.TemporaryDirectory() as root:  # all that the server can see
        shutil.copy(NOTEBOOK, root)
        options = [
            *(str(Path(root, NOTEBOOK.name)), f"--port={port}", "--Voila.ip=127.0.0.1"),
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
            # Voilà would leave out the token. By way of a file that only this account can read:
            # others can see what programs are called with.
            page = Path(root, "open.html")
            page.write_text(f'<meta http-equiv="refresh" content="0; url={voila.display_url}">')
            threading.Thread(target=webbrowser.open, args=(page.as_uri(),)).start()

        if browser:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)  # runs once the server listens
            loop.call_soon(open_page)
        voila.start()  # until Ctrl-C
