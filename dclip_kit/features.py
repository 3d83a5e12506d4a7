"""Frozen features, encoded once: pictures, their regions, their captions and caption tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.checkpoint import load_tensors, save_tensors
from dclip_kit.config import RegionSettings
from dclip_kit.datasets import CaptionedImages, open_picture
from dclip_kit.detectors import Detector
from dclip_kit.embedding import encode_images, encode_texts, encode_tokens
from dclip_kit.encoders import ClipBundle
from dclip_kit.padding import PaddedFeatures, pad_features, pad_values
from dclip_kit.regions import crop_regions


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """What the frozen CLIP and the detector say of a data set; ragged ones lie end to end.

    Attributes:
        image: of the whole pictures.
        region: of all crops, picture by picture.
        region_count: regions of each picture, at least 1.
        area: each region's share of its picture.
        confidence: each region's, 0 to 1.
        text: of the captions.
        token: of all captions' real tokens, caption by caption, in half precision.
        token_count: tokens of each caption.
        image_of_text: each caption's picture.
        without_detections: how many pictures have themselves as their one region (one number).
    """

    image: Float[Tensor, "image embed"]
    region: Float[Tensor, "region embed"]
    region_count: Int[Tensor, "image"]
    area: Float[Tensor, "region"]
    confidence: Float[Tensor, "region"]
    text: Float[Tensor, "text embed"]
    token: Float[Tensor, "token embed"]
    token_count: Int[Tensor, "text"]
    image_of_text: Int[Tensor, "text"]
    without_detections: Int[Tensor, ""]

    def __len__(self) -> int:
        return len(self.image)

    def regions_of(self, images: Int[Tensor, "chosen"]) -> PaddedFeatures:
        """The regions of some pictures, padded."""
        return pad_features(_gather(self.region, self.region_count, images))

    def areas_of(self, images: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen item"]:
        """The regions' areas of some pictures, padded with 0."""
        return pad_values(_gather(self.area, self.region_count, images))

    def confidences_of(self, images: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen item"]:
        """The regions' confidences of some pictures, padded with 0."""
        return pad_values(_gather(self.confidence, self.region_count, images))

    def tokens_of(self, texts: Int[Tensor, "chosen"]) -> PaddedFeatures:
        """The tokens of some captions, padded, in single precision."""
        return pad_features([t.float() for t in _gather(self.token, self.token_count, texts)])

    def texts_of(self, image: int) -> Int[Tensor, "own"]:
        """Indices of a picture's captions."""
        return (self.image_of_text == image).nonzero().flatten()

    def first_texts(self) -> Int[Tensor, "captioned"]:
        """The index of one caption, the first, of each picture that has any, in their order."""
        return torch.stack([self.texts_of(i)[0] for i in self.image_of_text.unique().tolist()])

    def save(self, path: Path) -> None:
        """Writes one safetensors file, atomically."""
        save_tensors({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "FrozenFeatures":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is damaged or of other content.
        """
        tensors, names = load_tensors(path), {field.name for field in fields(cls)}
        if tensors.keys() != names:
            raise ValueError(
                f"Expected frozen features in {path}, got {sorted(tensors)[:5]}; "
                "extract them again."
            )
        return cls(**tensors)


def _gather(values: Tensor, counts: Tensor, chosen: Tensor) -> list[Tensor]:
    ends = counts.cumsum(0)
    return [
        values[end - count : end]
        for end, count in zip(ends[chosen].tolist(), counts[chosen].tolist(), strict=True)
    ]


def extract_features(
    bundle: ClipBundle,
    detector: Detector,
    dataset: CaptionedImages,
    settings: RegionSettings,
    batch_size: int = 64,
) -> FrozenFeatures:
    """Detects, crops and encodes a data set once, each picture opened once.

    Args:
        bundle: the frozen CLIP.
        detector: from `load_detector(settings.detector, …)`.
        dataset: pictures with captions.
        settings: how crops are cut, and whether the whole picture is one more region.
        batch_size: pictures in memory at a time.

    Raises:
        ValueError: a picture cannot be read, or a caption is empty, or a feature not finite.
    """
    image, region, area, confidence, counts, without = [], [], [], [], [], 0
    starts = range(0, len(dataset), batch_size)
    for start in tqdm(starts, desc=f"regions of {dataset.split}", delay=2):
        pictures = [open_picture(path) for path in dataset.paths[start : start + batch_size]]
        found = detector.detect(pictures, batch_size, progress=False)
        without += found.without_detections
        crops = []
        for picture, regions in zip(pictures, found.regions, strict=True):
            own = crop_regions(picture, regions, settings.margin, settings.square)
            areas, confidences = [regions.area], [regions.confidence]
            if settings.whole_image and not regions.is_whole_image:
                own, whole = [*own, picture], torch.ones(1)
                areas, confidences = [*areas, whole], [*confidences, whole]
            crops += own
            counts.append(len(own))
            area += areas
            confidence += confidences
        image.append(encode_images(bundle, pictures, progress=False))
        region.append(encode_images(bundle, crops, progress=False))
    token, token_count = _flat_tokens(bundle, dataset.texts)
    return FrozenFeatures(
        image=torch.cat(image),
        region=torch.cat(region),
        region_count=torch.tensor(counts),
        area=torch.cat(area).float(),
        confidence=torch.cat(confidence).float(),
        text=encode_texts(bundle, dataset.texts),
        token=token,
        token_count=token_count,
        image_of_text=dataset.image_of_text,
        without_detections=torch.tensor(without),
    )


def _flat_tokens(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512
) -> tuple[Tensor, Tensor]:
    values, counts = [], []
    for start in tqdm(range(0, len(texts), batch_size), desc="caption tokens", delay=2):
        tokens = encode_tokens(bundle, texts[start : start + batch_size])
        values.append(tokens.features[tokens.mask].half())  # unit vectors: half is plenty
        counts.append(tokens.mask.sum(1))
    return torch.cat(values), torch.cat(counts)
