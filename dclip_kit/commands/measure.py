"""Commands on models: measuring them, probing them, searching with them."""

import json as json_format
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from dclip_kit.commands.terminal import choose_device, require_writable
from dclip_kit.config import PROFILES, Profile
from dclip_kit.runtime.packages import require_packages
from dclip_kit.runtime.printing import printable

if TYPE_CHECKING:
    from dclip_kit.models.clip import ClipBundle

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

    Pictures that any of the models has trained on, in whatever data set, are left out for all of
    them, and so are labelled pictures that any was trained or chosen on; the output counts both.
    A model's folder records what the model has seen, also when it is copied.

    Args:
        model: one or more; the others are compared with the first. "pocket" or "pocket_vit", an
            architecture of open_clip, or a folder that open_clip loads, such as an arm of distill
            (runs/x/dclip).
        pretrained: for architectures: a tag of open_clip, such as openai, or a file.
        data: captioned pictures, as in inspect, or "pocket"; if left out, those that the first
            arm's run measured on, or the profile's if no model is an arm.
        zero_shot: labelled pictures: "pocket", imagenet:FOLDER, cifar10:FOLDER, cifar100:FOLDER, or
            a folder with a subfolder for each class; "" skips zero-shot. Same default as data.
        templates: the texts that class names are put into: auto is CLIP's 80 (the pocket's own for
            the pocket), paper is a single one. Same default as data.
        images: the folder that the pictures' names are relative to; searched for if left out.
        split: "test" is what distill measures on, a tenth where the data has no splits; "all" is
            everything, but not of the pocket, which has train, val and test; formats with splits
            have more (val, test_1k_0, …).
        seed: for drawing splits where the data has none; if left out, that of the first arm's run,
            or 0.
        rescore: also measures each model with rescored scores, which allow for how each candidate
            scores with the data's training split; nothing is trained. Of a few settings, those that
            find most on val are used.
        json: a file to write all figures to.
        device: auto, cpu, cuda:0, …
    """
    if json:
        require_writable(json)
    from dclip_kit.evaluation import measuring
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    choices: dict[str, Any] = {
        "data": data,
        "images": images and str(images),
        "zero_shot": zero_shot,
    }
    choices |= {"templates": templates, "seed": seed}
    measured_on = measuring.choose_measured_on(model, PROFILES[profile], split, **choices)
    parts = measuring.load_rescoring_parts(measured_on) if rescore else None
    results = {}
    for name in model:
        clip = load_clip(name, tag_for(name, pretrained), choose_device(device))
        results[name] = measuring.measure_model(clip, measured_on, rescore, parts)
    if is_main_process():
        if json:
            write_record(measuring.describe_results(results, measured_on, rescore), json)
        print(measuring.format_results(results, measured_on, rescore))


def probe(
    *,
    model: tuple[str, ...] = (),
    teacher: tuple[str, ...] = (),
    pretrained: str | None,
    items: int = 1000,
    json: Path | None = None,
    device: str = "auto",
) -> None:
    """Tests whether models understand order and relations, and whether teachers use the regions.

    Models and teachers must tell apart pairs of pocket scenes and captions that differ only in
    order, relation, size, number or attribute. Teachers are also measured with another picture's
    regions and with none: one that finds as much with these does not use the picture's own.

    Args:
        model: as in evaluate.
        teacher: the folder of a teacher (runs/x/region_teacher), of a run with one, or "pocket" for
            the two that come with the kit. It is tested with the CLIP that its features came from,
            on those test pictures of its run that it has not trained on.
        pretrained: for architectures: a tag of open_clip, such as openai, or a file.
        items: the number of pairs of each kind.
        json: a file to write all figures to.
        device: auto, cpu, cuda:0, …
    """
    if json:
        require_writable(json)
    if not model and not teacher:
        raise ValueError(
            "Expected models or teachers to probe, got none; name some with --model or --teacher."
        )
    if items < 1:
        raise ValueError(f"Expected --items from 1, got {items}; ask for more.")
    from dclip_kit.evaluation import probing
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.runtime.files import write_record

    torch_device = choose_device(device)
    folders = {
        name: teacher_folder
        for reference in teacher
        for name, teacher_folder in probing.find_teachers(reference).items()
    }
    results = {}
    for name in model:
        clip = load_clip(name, tag_for(name, pretrained), torch_device)
        results[name] = probing.probe_model(clip, items)
    for name, folder in folders.items():
        results[name] = probing.probe_saved_teacher(folder, items, torch_device)
    if json:
        write_record(probing.describe_probes(results, items), json)
    print(probing.format_probes(results, items))


def search(
    asked: Annotated[Positional[tuple[str, ...]], arg(metavar="[FOLDER] QUERY")],
    *,
    model: str,
    pretrained: str | None,
    index: Path | None = None,
    top_k: int = 5,
    rescore: Method | None = None,
    references: str = "",
    json: FlagCreatePairsOff[bool] = False,
    device: str = "auto",
) -> None:
    """Searches a folder's pictures by a text; the pictures need no captions.

    The first search embeds the pictures and saves the embeddings in the user's cache folder (or in
    DCLIP_CACHE); later ones embed only pictures that are new or have changed. With --index, all
    that embed-shards wrote is read once instead, and no picture.

    Args:
        asked: a folder of pictures, with its subfolders, if there is no --index; and what to look
            for, such as "a dog on a beach".
        model: "pocket" or "pocket_vit" (which know 139 drawn things), an architecture of
            open_clip, or a folder that open_clip loads, such as an arm of distill (runs/x/dclip).
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        index: a folder that embed-shards wrote, or clip-retrieval; hits are paths as it has them.
        top_k: the number of pictures to find.
        rescore: corrects each picture's score for how it scores with captions of other pictures.
        references: the data with these captions, in its training split, as in inspect, or "pocket";
            if left out, the data that the arm was trained on.
        json: prints a JSON list of paths and scores. A score is a cosine; with --rescore it is the
            rescored one, and the cosine is given, too.
        device: auto, cpu, cuda:0, …
    """
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.models.encode import encode_texts
    from dclip_kit.search.embeddings import search_embeddings
    from dclip_kit.search.folder_index import find_pictures

    *folders, query = asked or ("",)
    if len(folders) != (index is None) or (index and rescore):
        raise ValueError(
            "Expected a folder and a query, or, with --index and without --rescore, a query alone, "
            f"got {', '.join(map(ascii, asked)) or 'none'}; put the query into quotes."
        )
    for folder in folders:
        find_pictures(Path(folder))  # refuses an empty folder before the model loads
    if top_k < 1 or not query.strip():
        raise ValueError(
            f"Expected a query with some text and a --top-k from 1, got {query!r} and {top_k}."
        )
    if references and not rescore:
        raise ValueError(
            f"Expected no --references without --rescore, got {references}; give both or neither."
        )
    reference_profile = _choose_references(model, references) if rescore else None
    clip = load_clip(model, tag_for(model, pretrained), choose_device(device))
    if index:
        found = search_embeddings(clip, index, encode_texts(clip, [query]), top_k)
        hits: list[dict[str, Any]] = [
            {"path": x, "score": y} for x, y in zip(found.ids, found.scores, strict=True)
        ]
    else:
        hits = _search_folder(clip, Path(*folders), query, top_k, rescore, reference_profile)
    if json:
        print(json_format.dumps(hits, indent=1))
    else:
        for hit in hits:
            print(f"{hit['score']:.3f}  {printable(hit['path'])}")


def _search_folder(
    clip: "ClipBundle",
    folder: Path,
    query: str,
    top_k: int,
    rescore: Method | None,
    reference_profile: Profile | None,
) -> list[dict[str, Any]]:
    """Embeds what is new in a folder, and finds in it."""
    from dclip_kit.evaluation.profile_data import read_references
    from dclip_kit.models.encode import encode_texts
    from dclip_kit.search.folder_index import index_pictures
    from dclip_kit.search.rescoring import Rescoring

    with redirect_stdout(sys.stderr):  # a message about waiting for another process is no hit
        index = index_pictures(clip, folder)
    if index.embedded or index.unreadable:
        print(
            f"Embedded {index.embedded:,} pictures now, {len(index.paths) - index.embedded:,} were "
            f"known, {len(index.unreadable):,} cannot be read."
            + (f" Links out of the folder led to {index.linked:,}." if index.linked else ""),
            file=sys.stderr,
        )
    query_features, reference_features, rescoring = (
        encode_texts(clip, [query]),
        None,
        Rescoring(rescore or "nnn"),
    )
    if reference_profile:
        reference_features = encode_texts(clip, read_references(reference_profile))
    ranking = index.search(query_features, top_k, reference_features, rescoring)
    hits: list[dict[str, Any]] = [
        {"path": str(index.paths[i]), "score": score}
        for i, score in zip(ranking.images, ranking.scores, strict=True)
    ]
    if rescore:
        cosines = index.search(query_features, len(index.paths))
        cosine_of = dict(zip(cosines.images, cosines.scores, strict=True))
        hits = [hit | {"cosine": cosine_of[i]} for hit, i in zip(hits, ranking.images, strict=True)]
    return hits


def _choose_references(model: str, references: str) -> Profile:
    """The profile whose captions rescore: the references', or that of the model's training."""
    from dclip_kit.evaluation.arms import read_origin
    from dclip_kit.models.clip import POCKET

    origin = read_origin(model)
    profile = origin.profile if origin else PROFILES["pocket"]
    if references:
        return replace(profile, data=references, images="", test="")
    if not origin and model not in POCKET:
        raise ValueError(
            f"Expected captions to rescore by, but {model} comes with none; name their data with "
            "--references."
        )
    return profile


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

    The page is served only to this machine, at 127.0.0.1, and only to those who have the whole
    address that is printed: it ends with a token, a new one each time. The page shows reduced
    copies of the pictures and gives no access to the folder. Embeddings are saved as search saves
    them. One process serves all pages, with one set of models.

    Known limit: the browser also sends the cookie that lets it in here to every other server at
    127.0.0.1 that it visits: visit none that you do not trust while the app runs.

    Args:
        folder: of pictures, with its subfolders; they need no captions. If left out, the pocket's
            pictures, for which there is more to see.
        model: an arm that distill wrote (runs/x/region_taught), to search with beside the CLIP that
            it comes from; "pocket" is the arm that comes with the kit.
        before: that CLIP, if the arm does not name it or it has moved.
        port: where to serve, from 1 to 65535.
        browser: whether to open a browser, too.
        device: auto, cpu, cuda:0, …
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"Expected a --port from 1 to 65535, got {port}; name another.")
    require_packages("app", "anywidget", "uvicorn", "websockets")
    from dclip_kit.search.folder_index import find_pictures
    from dclip_kit.widgets.app import build_pocket, open_folder
    from dclip_kit.widgets.host import SharedPage, Tab, Tell, serve

    if folder:
        place = Path(folder).absolute()
        find_pictures(place)  # refuses an empty folder before the server starts
        name, device = place.name, choose_device(device)

        def build(tell: Tell) -> Iterator[Tab]:
            return open_folder(tell, place, model, device, before)

    elif model != "pocket":
        raise ValueError(f"Expected a folder to search with {model}, got none; name one.")
    elif before:
        raise ValueError(f"Expected no --before without a folder, got {before}; leave it out.")
    else:
        require_packages("detect", "ultralytics")  # the pocket's detector
        name, build = "the pocket's pictures", partial(build_pocket, device=choose_device(device))
    serve(SharedPage(f"Search {name}, before and after fine-tuning", build), port, browser)
