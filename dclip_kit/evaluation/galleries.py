"""Retrieval in galleries: many pictures in groups of one size, so that figures can be compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dclip_kit.config import CONTROL
from dclip_kit.data import CaptionedImages
from dclip_kit.data.pocket import world as pocket
from dclip_kit.evaluation.arms import Arm
from dclip_kit.evaluation.evaluate import RetrievalSet, prepare_retrieval
from dclip_kit.evaluation.report import describe_gain
from dclip_kit.metrics import DirectionMetrics, retrieval_metrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.search.index import add_bias, nnn_bias

WAYS = ("text_to_image", "image_to_text")


def prepare_galleries(
    clip: ClipBundle, dataset: CaptionedImages, size: int
) -> tuple[RetrievalSet, ...]:
    """Reads pictures and encodes captions, in groups of `size` pictures; the last may have fewer.

    Raises:
        ValueError: the size is below 1.
    """
    if size < 1:
        raise ValueError(f"Expected a gallery of 1 picture or more, got {size}; give another size.")
    starts = range(0, len(dataset), size)
    parts = (dataset.select(range(start, min(start + size, len(dataset)))) for start in starts)
    return tuple(prepare_retrieval(clip, part) for part in parts)


@dataclass(frozen=True, eq=False)
class GalleryMetrics:
    """One direction in all galleries.

    Attributes:
        hits: for each query whether a right answer is found first.
        image: the picture that each query belongs to, counted over all galleries.
        figures: means over all queries: recall_at_1, recall_at_5, recall_at_10,
            mean_average_precision.
    """

    hits: Bool[Tensor, "query"]
    image: Int[Tensor, "query"]
    figures: dict[str, float]


def measure_galleries(
    clip: ClipBundle,
    galleries: tuple[RetrievalSet, ...],
    references: tuple[Float[Tensor, "text embed"], Float[Tensor, "image embed"]] | None = None,
) -> dict[str, GalleryMetrics]:
    """Retrieval both ways: in each gallery its own captions and pictures search for each other.

    Args:
        clip: the model.
        galleries: from `prepare_galleries`.
        references: training captions' and pictures' features, to rescore candidates by
            (`rescore`); None leaves scores as they are.
    """
    found: dict[str, list[DirectionMetrics]] = {way: [] for way in WAYS}
    images: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    first = 0
    for gallery in galleries:
        image = encode_images(clip, gallery.pictures, progress=False)
        text, own = gallery.features_for(clip), gallery.image_of_text
        plain = retrieval_metrics(image, text, own)
        both = [plain.text_to_image, plain.image_to_text]
        if references:
            captions, pictures = references
            queries, candidates = add_bias(text, image, nnn_bias(captions @ image.T))
            both[0] = retrieval_metrics(candidates, queries, own).text_to_image
            queries, candidates = add_bias(image, text, nnn_bias(pictures @ text.T))
            both[1] = retrieval_metrics(queries, candidates, own).image_to_text
        for way, one in zip(WAYS, both, strict=True):
            found[way].append(one)
            images[way].append(first + one.image_of_query)
        first += len(image)
    return {way: _join(found[way], torch.cat(images[way])) for way in WAYS}


def _join(found: list[DirectionMetrics], image: Tensor) -> GalleryMetrics:
    values = {f"recall_at_{k}": torch.cat([each.hits(k) for each in found]) for k in (1, 5, 10)}
    values["mean_average_precision"] = torch.cat([each.average_precision for each in found])
    figures = {name: float(value.double().mean()) for name, value in values.items()}
    return GalleryMetrics(values["recall_at_1"], image, figures)


def measure_fresh(
    arms: Mapping[str, Arm], recipe: str, count: int = 2000, size: int = 1000
) -> dict[str, Any]:
    """What an arm gains on further pocket scenes, that decided nothing: a report's "fresh".

    Args:
        arms: "clip", the control and the recipe's among them.
        recipe: whose gain is asked for.
        count: scenes, drawn on first use.
        size: of a gallery.
    """
    clip = arms["clip"].clip
    galleries = prepare_galleries(clip, pocket.load_further("further_test", count), size)
    names = ("clip", CONTROL, recipe)
    found = {name: measure_galleries(arms[name].clip, galleries)[WAYS[0]] for name in names}

    def gain(before: str) -> dict[str, Any]:
        pair = found[before].hits, found[recipe].hits
        return {"text_to_image_recall_at_1": describe_gain(*pair, found[recipe].image)}

    recalls = {name: each.figures["recall_at_1"] for name, each in found.items()}
    more = {"pictures": count, "gallery": size, "recall_at_1": recalls}
    return {**more, "gain": gain("clip"), "gain_over_control": gain(CONTROL)}
