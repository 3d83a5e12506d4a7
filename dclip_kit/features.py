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
from dclip_kit.distributed import gather_rows, is_main_process, own_share
from dclip_kit.embedding import encode_own_images, encode_tokens
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

    Each of several processes, all of which must call it, takes its share; all get everything.

    Args:
        bundle: the frozen CLIP.
        detector: from `load_detector(settings.detector, …)`.
        dataset: pictures with captions.
        settings: how crops are cut and encoded, what stands for a picture without detections, and
            whether the whole picture is one more region.
        batch_size: pictures in memory at a time.

    Raises:
        ValueError: a picture cannot be read, or a caption is empty, or a feature not finite.
    """
    image, region, area, confidence, counts, without = [], [], [], [], [], []
    for chosen in tqdm(
        own_share(len(dataset)).split(batch_size),
        desc=f"regions of {dataset.split}",
        delay=2,
        disable=not is_main_process(),
    ):
        pictures = [open_picture(dataset.paths[index]) for index in chosen.tolist()]
        found = detector.detect(pictures, batch_size, progress=False)
        crops, silent = [], []
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
            without.append(int(regions.is_whole_image))
            silent += [regions.is_whole_image and settings.undetected_as_zeros] * len(own)
        image.append(encode_own_images(bundle, pictures, progress=False))
        encoded = encode_own_images(
            bundle, crops, progress=False, normalized=settings.normalized_crops
        )
        region.append(encoded.masked_fill(torch.tensor(silent)[:, None], 0.0))
    text, token, token_count = _encode_captions(bundle, dataset.texts)
    region_count = gather_rows(torch.tensor(counts))[: len(dataset)]
    regions_in_all = int(region_count.sum())  # what repeats at the end of the shares is cut off
    return FrozenFeatures(
        image=gather_rows(torch.cat(image))[: len(dataset)],
        region=gather_rows(torch.cat(region))[:regions_in_all],
        region_count=region_count,
        area=gather_rows(torch.cat(area).float())[:regions_in_all],
        confidence=gather_rows(torch.cat(confidence).float())[:regions_in_all],
        text=text,
        token=token,
        token_count=token_count,
        image_of_text=dataset.image_of_text,
        without_detections=gather_rows(torch.tensor(without))[: len(dataset)].sum(),
    )


def _encode_captions(
    bundle: ClipBundle, texts: Sequence[str], batch_size: int = 512
) -> tuple[Tensor, Tensor, Tensor]:
    """Captions, their tokens end to end, and how many tokens each has."""
    whole, values, counts = [], [], []
    for chosen in tqdm(
        own_share(len(texts)).split(batch_size),
        desc="encoding captions",
        delay=2,
        disable=not is_main_process(),
    ):
        tokens = encode_tokens(bundle, [texts[index] for index in chosen.tolist()])
        whole.append(tokens.text)
        values.append(tokens.features[tokens.mask].half())  # unit vectors: half is plenty
        counts.append(tokens.mask.sum(1))
    count = gather_rows(torch.cat(counts))[: len(texts)]
    text = gather_rows(torch.cat(whole))[: len(texts)]
    return text, gather_rows(torch.cat(values))[: int(count.sum())], count
