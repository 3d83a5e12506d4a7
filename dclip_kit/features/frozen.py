"""Frozen features: pictures, their regions, their captions and caption tokens."""

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dclip_kit.models.regions import PaddedFeatures, pad_rows
from dclip_kit.runtime.files import load_tensors, save_tensors

FEATURES = "features.safetensors"  # of a finished store's folder
WHOLE_PICTURE = -1  # the label of a region that nobody detected


@dataclass(frozen=True, eq=False)
class FrozenFeatures:
    """What the frozen CLIP and the detector say of a data set; ragged ones lie end to end.

    Attributes:
        image: of the whole pictures.
        size: of the pictures, width and height in pixels.
        region: of all crops, picture by picture.
        region_count: regions of each picture, at least 1.
        xyxy: each region's box: left, top, right, bottom, in pixels of its picture.
        area: each region's share of its picture.
        confidence: each region's, 0 to 1.
        label: each region's class, by number in `Detector.names`; -1 for a whole picture.
        text: of the captions.
        token: of all captions' real tokens, caption by caption, in half precision.
        token_count: tokens of each caption.
        image_of_text: each caption's picture.
    """

    image: Float[Tensor, "image embed"]
    size: Int[Tensor, "image 2"]
    region: Float[Tensor, "region embed"]
    region_count: Int[Tensor, "image"]
    xyxy: Float[Tensor, "region 4"]
    area: Float[Tensor, "region"]
    confidence: Float[Tensor, "region"]
    label: Int[Tensor, "region"]
    text: Float[Tensor, "text embed"]
    token: Float[Tensor, "token embed"]
    token_count: Int[Tensor, "text"]
    image_of_text: Int[Tensor, "text"]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def without_detections(self) -> int:
        """How many pictures have themselves as their one region."""
        first = self.region_count.cumsum(0) - self.region_count
        return int((self.label[first] == WHOLE_PICTURE).sum())

    def regions_of(self, images: Int[Tensor, "chosen"]) -> PaddedFeatures:
        """The regions of some pictures, padded."""
        return PaddedFeatures(*pad_rows(self.region, self.region_count, images))

    def areas_of(self, images: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen item"]:
        """The regions' areas of some pictures, padded with 0."""
        return pad_rows(self.area, self.region_count, images)[0]

    def confidences_of(self, images: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen item"]:
        """The regions' confidences of some pictures, padded with 0."""
        return pad_rows(self.confidence, self.region_count, images)[0]

    def boxes_of(self, images: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen item 5"]:
        """The boxes of some pictures as shares of their sides, and confidence; padded with 0."""
        boxes, _ = pad_rows(self.xyxy, self.region_count, images)
        shares = boxes / self.size[images].repeat(1, 2)[:, None]
        return torch.cat([shares, self.confidences_of(images)[..., None]], dim=-1)

    def tokens_of(self, texts: Int[Tensor, "chosen"]) -> PaddedFeatures:
        """The tokens of some captions, padded, in single precision."""
        token, mask = pad_rows(self.token, self.token_count, texts)
        return PaddedFeatures(token.float(), mask)

    def first_texts(self) -> Int[Tensor, "captioned"]:
        """The index of one caption, the first, of each picture that has any, in their order."""
        of = self.image_of_text
        return torch.stack([(of == image).nonzero()[0, 0] for image in of.unique().tolist()])

    def save(self, path: Path) -> None:
        """Writes one safetensors file, atomically."""
        save_tensors({field.name: getattr(self, field.name) for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> "FrozenFeatures":
        """Maps into memory what `save` wrote: a feature is read when it is used.

        Args:
            path: the file, or the folder that `extract_features` filled.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is damaged or of other content.
        """
        path = path / FEATURES if path.is_dir() else path
        tensors, names = load_tensors(path), {field.name for field in fields(cls)}
        if tensors.keys() != names:
            raise ValueError(
                f"Expected frozen features in {path}, got {sorted(tensors)[:5]}; "
                "extract them again."
            )
        return cls(**tensors)
