"""The gallery, the playground and the inspector as a page without code, shown by `app.ipynb`."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import ipywidgets
import torch
from IPython.display import display

from dclip_kit.config import get_profile
from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket import facets, world
from dclip_kit.evaluation.arms import read_origin
from dclip_kit.evaluation.evaluate import prepare_retrieval
from dclip_kit.features.extract import choose_detector, extract_features
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.encode import Pictures, encode_images, encode_texts
from dclip_kit.models.teacher import load_teacher
from dclip_kit.models.weights import interpolate, same_text_tower
from dclip_kit.runtime.files import asset_path
from dclip_kit.search.folder_index import index_pictures
from dclip_kit.widgets.gallery import QueryGallery
from dclip_kit.widgets.inspector import RegionInspector
from dclip_kit.widgets.live import Background
from dclip_kit.widgets.playground import ZeroShotPlayground

SETTINGS = "DCLIP_APP"  # the environment variable that says what to show, as JSON
NOTEBOOK = Path(__file__).with_name("app.ipynb")


def show_app() -> None:
    """Displays a folder's gallery, or all three widgets on the pocket's test pictures.

    The environment says which: `{"folder": …, "model": …, "device": …}` in SETTINGS.
    """
    settings = json.loads(os.environ.get(SETTINGS, "{}"))
    if settings.get("folder"):
        folder = Path(settings["folder"])
        display(open_folder(folder, settings["model"], settings["device"], settings["before"]))
    else:
        display(show_tabs(build_pocket))


def load_pair(model: str, device: str = "cpu", before: str = "") -> tuple[ClipBundle, ClipBundle]:
    """The untouched CLIP, and an arm that was fine-tuned from it.

    Args:
        model: a folder that `distill` wrote, such as runs/mine/region_taught, or "pocket" for the
            arm that comes with the kit.
        device: where to put both.
        before: the untouched CLIP, if the arm's training.json does not name it, or it has moved.

    Raises:
        FileNotFoundError: one of them does not exist.
        ValueError: the folder is not an arm and `before` is empty, or its text tower was trained
            too, so that one query vector cannot serve both.
    """
    folder = asset_path("pocket_arms", "region_taught") if model == "pocket" else Path(model)
    origin = read_origin(folder)
    if origin is None and not before:
        raise ValueError(
            f"Expected an arm that distill wrote, such as runs/mine/region_taught, got {model}; "
            "name one, or give the CLIP that it was fine-tuned from with --before."
        )
    clip = origin.load_base(device, before) if origin else load_clip(before, device=device)
    arm = load_clip(folder, device=device)
    if clip.model_config != arm.model_config or not same_text_tower(clip, arm):
        raise ValueError(
            f"Expected an arm with the text tower of {clip.name}, got {model}, whose text tower is "
            "another or was trained too; take an arm of another recipe, or use search."
        )
    return clip, arm


# A tab's title, the lines above its widget, and the widget.
Tab = tuple[str, list[str], ipywidgets.DOMWidget]


def show_tabs(build: Callable[[Background], Iterator[Tab]]) -> ipywidgets.VBox:
    """Tabs that appear as they are built, below the progress of the rest."""
    tabs = ipywidgets.Tab(layout={"display": "none"})

    def work(background: Background) -> None:
        tabs.children = []  # drops tabs of a stopped start
        for title, lines, widget in build(background):
            tab = ipywidgets.VBox([*map(ipywidgets.Label, lines), widget])
            tabs.children = [*tabs.children, tab]
            tabs.set_title(len(tabs.children) - 1, title)
            tabs.layout.display = None
        background.box.layout.display = "none"

    background = Background(work)
    background.start()
    return ipywidgets.VBox([background.box, tabs])


def open_folder(
    folder: Path, model: str, device: str = "cpu", before: str = "", cache: Path | None = None
) -> ipywidgets.VBox:
    """A gallery of a folder's pictures, searched by an arm and by the CLIP that it comes from.

    Args:
        folder: of pictures, which need no captions.
        model, before: as in `load_pair`.
        device: where to embed.
        cache: where to keep vectors; as in `index_pictures`.

    Returns:
        The progress of embedding, with a button that stops it; then the gallery. Errors are shown
        there.
    """

    def build(background: Background) -> Iterator[Tab]:
        background.tell("Loading the models …")
        pair = load_pair(model, device, before)
        names, indexes = ("the untouched CLIP", Path(model).name), []
        for name, clip in zip(names, pair, strict=True):

            def tell(done: int, total: int, name: str = name) -> None:
                background.tell(f"{name}: {done:,} of {total:,} new pictures", done / total)

            indexes.append(index_pictures(clip, folder, cache, on_batch=tell))
        # Only pictures that both models have embedded: files may have come or gone meanwhile.
        rows = [{path: row for row, path in enumerate(index.paths)} for index in indexes]
        paths = tuple(path for path in indexes[0].paths if path in rows[1])
        features = {
            share: torch.cat([*index.vectors.shards.values()])[[row_of[path] for path in paths]]
            for share, index, row_of in zip((0.0, 1.0), indexes, rows, strict=True)
        }
        source = CaptionedImages(paths, ((),) * len(paths), "all", str(folder))
        gallery = QueryGallery(pair[0], source, features, fine_tuned=pair[1], names=names)
        lines = [f"{len(paths):,} pictures of {folder}"]
        if unreadable := len(indexes[0].unreadable):
            lines.append(f"Left out, since they cannot be read: {unreadable:,}.")
        yield "Search", lines, gallery

    return show_tabs(build)


def build_pocket(background: Background) -> Iterator[Tab]:
    """Gallery, playground and inspector over the pocket's test pictures, one after another."""
    background.tell("Loading the models …")
    settings, saved = get_profile("pocket"), asset_path("pocket_arms")
    clip, taught = load_pair("pocket")
    mixtures = {share: interpolate(clip, taught, share) for share in (0.0, 0.5, 1.0)}
    detector = choose_detector(settings.regions, clip)
    data, scenes = world.load_captioned("test"), world.load_scenes("test")
    sets = prepare_retrieval(clip, data)

    def encode(pictures: Pictures, stage: str, before: int) -> dict[float, torch.Tensor]:
        features = {}
        for done, (share, mixture) in enumerate(mixtures.items()):
            background.tell(f"{stage}: the model at {share:.0%}", (before + done) / 7)
            features[share] = encode_images(mixture, pictures, progress=False)
        return features

    features = encode(sets.pictures, "Embedding test pictures", 0)
    gallery = QueryGallery(
        clip,
        data,
        features,
        fine_tuned=taught,
        detector=detector,
        things=facets.things_in(scenes),
        text_features=sets.text_features,
        facets=facets.query_facets(data.texts, sets.image_of_text, scenes),
        # Every seventh, to have all five kinds of captions; every fifth or tenth is of one kind.
        references=encode_texts(clip, world.load_captioned("train").texts[::7]),
        examples=data.texts[::171],
    )
    yield "Search", ["Ask in words or with a picture, before and after fine-tuning."], gallery
    labelled = world.load_labelled("zero_shot").take_per_class(6)
    recalls = {
        share: retrieval_metrics(
            vectors, sets.text_features, sets.image_of_text
        ).text_to_image.recall_at[1]
        for share, vectors in features.items()
    }
    label_features = encode(labelled.paths, "Embedding labelled pictures", 3)
    playground = ZeroShotPlayground(clip, taught, labelled, label_features, recalls)
    yield "Name", ["Type class names: what was forgotten, and what learned?"], playground
    background.tell("Looking at regions", 6 / 7)
    regions = extract_features(clip, detector, data, settings.regions)
    published, region_teacher = (load_teacher(saved / x)[0] for x in ("teacher", "region_teacher"))
    inspector = RegionInspector(
        clip, data, regions, detector.names, published, region_teacher, picture=7
    )
    yield "Regions", ["What the detector finds, and whom the teachers listen to."], inspector
