"""What the page without code shows: a folder's gallery, or the pocket's three widgets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from dclip_kit.config import get_profile
from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket import facets, world
from dclip_kit.evaluation.arms import Arm, Candidate, load_arm, read_origin
from dclip_kit.evaluation.seen import TRAINING
from dclip_kit.features.extract import load_or_extract_features
from dclip_kit.features.store import digest_record
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.detector import load_detector
from dclip_kit.models.encode import Pictures, encode_images, encode_texts, read_pixels
from dclip_kit.models.teacher import load_teacher
from dclip_kit.models.weights import interpolate, same_text_tower
from dclip_kit.runtime.files import asset_path, cache_path, load_tensors, save_tensors
from dclip_kit.search.folder_index import index_pictures
from dclip_kit.widgets.gallery import QueryGallery
from dclip_kit.widgets.host import Tab, Tell
from dclip_kit.widgets.inspector import RegionInspector
from dclip_kit.widgets.playground import ZeroShotPlayground

_REFERENCES = 300  # training scenes whose captions rescore


def load_pair(model: str, device: str = "cpu", before: str = "") -> tuple[ClipBundle, Arm]:
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
    advice = ", or give its new place with --before"
    clip = origin.load_base(device, before, advice) if origin else load_clip(before, device=device)
    if (folder / TRAINING).is_file():
        arm = load_arm(folder, device)
    else:
        arm = Arm(load_clip(folder, device=device))
    if clip.model_config != arm.clip.model_config or not same_text_tower(clip, arm.clip):
        raise ValueError(
            f"Expected an arm with the text tower of {clip.name}, got {model}, whose text tower is "
            "another or was trained too; take an arm of another recipe, or use search."
        )
    return clip, arm


def describe_cost(arm: Arm) -> str:
    """What fine-tuning gained and cost, as its run measured it; empty where nothing is known."""
    measured: dict[float | None, Candidate] = {each.alpha: each for each in arm.candidates}
    before, after = measured.get(0.0), measured.get(arm.alpha)
    if before is None or after is None:  # a run without validation data, or another tool's
        return ""
    if before.recall_at_1:
        gain = after.recall_at_1 / before.recall_at_1 - 1
        ranks = f"{abs(gain):.0%} {'more' if gain >= 0 else 'fewer'} right pictures first"
    else:  # of nothing there is no share
        ranks = f"{after.recall_at_1:.0%} of the right pictures first, where CLIP ranks none,"
    return (
        f"On its validation data the fine-tuned model ranks {ranks} and keeps "
        f"{after.retention:.0%} of the untouched CLIP's zero-shot accuracy."
    )


def open_folder(
    tell: Tell, folder: Path, model: str, device: str = "cpu", before: str = ""
) -> Iterator[Tab]:
    """A gallery of a folder's pictures, searched by an arm and by the CLIP that it comes from.

    Args:
        tell: called with the progress of embedding.
        folder: of pictures, which need no captions.
        model, before: as in `load_pair`.
        device: where to embed.

    Raises:
        FileNotFoundError, ValueError: as `load_pair` and `index_pictures`.
    """
    tell("Loading the models …", None)
    clip, arm = load_pair(model, device, before)
    names, indexes = ("the untouched CLIP", Path(model).name), []
    for name, embedder in zip(names, (clip, arm.clip), strict=True):

        def on_batch(done: int, total: int, name: str = name) -> None:
            tell(f"{name}: {done:,} of {total:,} new pictures", done / total)

        indexes.append(index_pictures(embedder, folder, on_batch=on_batch))
    # Only pictures that both models have embedded: files may have come or gone meanwhile.
    rows = [{path: row for row, path in enumerate(index.paths)} for index in indexes]
    paths = tuple(path for path in indexes[0].paths if path in rows[1])
    features = {
        share: index.vectors[[row_of[path] for path in paths]]
        for share, index, row_of in zip((0.0, 1.0), indexes, rows, strict=True)
    }
    source = CaptionedImages(paths, ((),) * len(paths), "all", str(folder))
    lines = [f"{len(paths):,} pictures of {folder}."]
    if unreadable := len(indexes[0].unreadable):
        lines.append(f"Left out, since they cannot be read: {unreadable:,}.")
    lines.append(describe_cost(arm))
    make = partial(QueryGallery, clip, source, features, fine_tuned=arm.clip, names=names)
    yield Tab("Search", [*filter(None, lines)], "gallery", make)


def build_pocket(tell: Tell, device: str = "cpu") -> Iterator[Tab]:
    """Gallery, playground and inspector over the pocket's test pictures, one after another."""
    tell("Loading the models …", None)
    settings, saved = get_profile("pocket"), asset_path("pocket_arms")
    (clip, arm), names = load_pair("pocket", device), ("the untouched CLIP", "fine-tuned")
    taught = arm.clip
    mixtures = {share: interpolate(clip, taught, share) for share in (0.0, 0.5, 1.0)}
    data, scenes = world.load_captioned("test"), world.load_scenes("test")
    features = _encode_by(mixtures, "pictures", data.paths, tell, 0)
    tell("Embedding captions", 3 / 8)
    texts = _remember([clip.digest, *data.texts], partial(encode_texts, clip, data.texts))
    # Drawn only if they are not remembered.
    reference_features = _remember(
        [clip.digest, world.cache_folder().name, f"train {_REFERENCES}"],
        lambda: encode_texts(clip, world.load_captioned("train", _REFERENCES).texts),
    )
    detector = load_detector(
        settings.regions.detector, confidence=settings.regions.confidence, device=device
    )
    lines = [
        f"{len(data):,} drawn scenes that no model here was trained on.",
        describe_cost(arm),
    ]
    gallery = partial(
        QueryGallery,
        clip,
        data,
        features,
        fine_tuned=taught,
        detector=detector,
        things=facets.things_in(scenes),
        text_features=texts,
        facets=facets.query_facets(data.texts, data.image_of_text, scenes),
        references=reference_features,
        examples=data.texts[::171],
        names=names,
    )
    yield Tab("Search", lines, "gallery", gallery)
    labelled = world.load_labelled("zero_shot", 6)
    recalls = {
        share: retrieval_metrics(vectors, texts, data.image_of_text).text_to_image.recall_at[1]
        for share, vectors in features.items()
    }
    labelled_features = _encode_by(mixtures, "labelled pictures", labelled.paths, tell, 4)
    lines = ["Name a picture with classes that you type: what was forgotten, and what was learned?"]
    playground = partial(
        ZeroShotPlayground, clip, taught, labelled, labelled_features, recalls, names=names
    )
    yield Tab("Name", lines, "playground", playground)
    tell("Looking at regions", 7 / 8)
    regions = load_or_extract_features(clip, data, settings.regions, cache_path("app"))
    published, region_teacher = (load_teacher(saved / x)[0] for x in ("teacher", "region_teacher"))
    inspector = partial(
        RegionInspector,
        clip,
        data,
        regions,
        detector.names,
        teacher=published,
        region_teacher=region_teacher,
        picture=7,
    )
    lines = ["What the detector finds, and which regions each teacher relies on."]
    yield Tab("Regions", lines, "inspector", inspector)


def _encode_by(
    mixtures: Mapping[float, ClipBundle], name: str, paths: Sequence[Path], tell: Tell, first: int
) -> dict[float, Tensor]:
    """Pictures' features by each mixture; they are read once, if at all."""
    pixels = cache(partial(read_pixels, mixtures[0.0], paths))
    features = {}
    for done, (share, mixture) in enumerate(mixtures.items(), start=first):
        tell(f"Embedding {name}: the model at {share:.0%}", done / 8)
        made_from = [mixture.digest, *("/".join(path.parts[-3:]) for path in paths)]
        features[share] = _remember(made_from, partial(_encode, mixture, pixels))
    return features


def _encode(bundle: ClipBundle, read: Callable[[], Pictures]) -> Tensor:
    return encode_images(bundle, read(), progress=False)


def _remember(made_from: Sequence[str], make: Callable[[], Tensor]) -> Tensor:
    """Features out of the user's cache folder, made now if they are not there.

    Args:
        made_from: what they depend on.
        make: makes them.
    """
    path = cache_path("app") / f"{digest_record({'made_from': [*made_from]})}.safetensors"
    try:
        return load_tensors(path)["features"]
    except (FileNotFoundError, ValueError):  # damaged ones, too, can be made again
        save_tensors({"features": make()}, path)
    return load_tensors(path)["features"]
