"""Image regions: boxes, their crops, and DCLIP's region weights.

Axes: `image` a batch, `region` the boxes of one image, `token` the tokens of its caption, `embed`
the joint space. Boxes are `xyxy`: left, top, right, bottom in pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors with == gives no single answer
class Regions:
    """The regions of one picture; there is always at least one.

    Attributes:
        xyxy: boxes in pixels, inside the picture, each with an area.
        confidence: the detector's confidence in each box, from 0 to 1.
        label: the detector's word for each box.
        image_size: the picture's (width, height) in pixels.
        is_whole_image: True where nothing was detected and the whole picture stands in.

    Raises:
        ValueError: if a box, a confidence, the size or the lengths are not as described.
    """

    xyxy: Float[Tensor, "region 4"]
    confidence: Float[Tensor, "region"]
    label: tuple[str, ...]
    image_size: tuple[int, int]
    is_whole_image: bool = False

    def __post_init__(self) -> None:
        _require_boxes(self.xyxy, self.confidence, self.label, self.image_size)
        if len(self.label) == 0:
            raise ValueError("there must be at least one region; use Regions.whole_image instead.")
        width, height = self.image_size
        inside = (self.xyxy >= 0) & (self.xyxy <= self.xyxy.new_tensor([width, height] * 2))
        bad = (~(_has_area(self.xyxy, self.image_size) & inside.all(1))).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"region {bad[0]} has the box {self.xyxy[bad[0]].tolist()}, which must be finite, "
                f"ordered, of some area and inside {width}x{height} pixels; Regions.from_boxes "
                "clips and drops such boxes."
            )
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ValueError(f"confidences must be 0 to 1, not {self.confidence.tolist()}.")
        if self.is_whole_image and self.xyxy.tolist() != [[0, 0, width, height]]:
            raise ValueError("is_whole_image needs one region that covers the whole picture.")

    def __len__(self) -> int:
        return len(self.label)

    @property
    def area(self) -> Float[Tensor, "region"]:
        """Each region's share of the picture, above 0 and at most 1."""
        return _sides(self.xyxy, self.image_size).prod(1)

    @classmethod
    def whole_image(cls, image_size: tuple[int, int]) -> "Regions":
        """All of a picture as its one region, with confidence 1, where nothing was detected.

        The published code encodes such a picture as a zero vector (4 in `config.RECIPES`).
        """
        box = torch.tensor([[0.0, 0.0, *image_size]])
        return cls(box, torch.ones(1), ("whole image",), image_size, is_whole_image=True)

    @classmethod
    def from_boxes(
        cls,
        xyxy: Float[Tensor, "region 4"],
        confidence: Float[Tensor, "region"],
        label: Sequence[str],
        image_size: tuple[int, int],
    ) -> "RegionsReport":
        """Makes regions from a detector's raw boxes, of which there may be none.

        Boxes are clipped to the picture; those that are not finite (box or confidence), lie outside
        or have no area are dropped and counted. None left: the whole image is the one region.

        Raises:
            ValueError: if the lengths differ or a finite confidence is not 0 to 1.
        """
        _require_boxes(xyxy, confidence, label, image_size)
        clipped = xyxy.clamp(min=0).minimum(xyxy.new_tensor(image_size).repeat(2))
        usable = xyxy.isfinite().all(1) & confidence.isfinite() & _has_area(clipped, image_size)
        kept = usable.nonzero()[:, 0].tolist()
        dropped = len(label) - len(kept)
        if not kept:
            return RegionsReport(cls.whole_image(image_size), dropped)
        labels = tuple(label[index] for index in kept)
        return RegionsReport(cls(clipped[kept], confidence[kept], labels, image_size), dropped)


@dataclass(frozen=True)
class RegionsReport:
    """Regions made from raw boxes, and how many of the boxes were dropped."""

    regions: Regions
    dropped: int


def crop_regions(
    image: Image.Image, regions: Regions, margin: float = 0.0, square: bool = True
) -> list[Image.Image]:
    """Cuts the regions out of their picture.

    Crops come in the regions' order and the picture's mode; boxes are widened to whole pixels.

    Args:
        image: what the regions were found in.
        regions: what to cut out.
        margin: a share of the box's side added on each side, as far as the picture reaches.
        square: widens the shorter side to the longer one, as far as the picture reaches. CLIP's
            preprocessing keeps the middle square: of a narrow crop it would lose both ends.

    Raises:
        ValueError: if the picture is not of the regions' size, or the margin is negative.
    """
    if image.size != regions.image_size:
        sizes = f"{regions.image_size} pixels, this one has {image.size}"
        raise ValueError(f"the regions belong to a picture of {sizes}; crop before resizing it.")
    return [image.crop(box) for box in crop_boxes(regions, margin, square)]


def crop_boxes(regions: Regions, margin: float = 0.0, square: bool = True) -> list[Box]:
    """Where `crop_regions` cuts: left, top, right and bottom of each region, in whole pixels.

    Raises:
        ValueError: if the margin is negative.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ValueError(f"margin must be a share of the box's side, 0 or more, not {margin}.")
    width, height = regions.image_size
    boxes = []
    for left, top, right, bottom in regions.xyxy.tolist():
        across, down = margin * (right - left), margin * (bottom - top)
        x1, y1 = max(0, math.floor(left - across)), max(0, math.floor(top - down))
        x2 = min(width, math.ceil(right + across))
        y2 = min(height, math.ceil(bottom + down))
        if square:
            side = max(x2 - x1, y2 - y1)
            x1, x2 = _widen(x1, x2, side, width)
            y1, y2 = _widen(y1, y2, side, height)
        boxes.append((x1, y1, x2, y2))
    return boxes


def _widen(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """Start to end, lengthened on both sides and moved to lie inside 0 to `limit`."""
    length = min(length, limit)
    start = min(max(0, start - (length - (end - start)) // 2), limit - length)
    return start, start + length


def region_similarity(
    region_features: Float[Tensor, "image region embed"],
    token_features: Float[Tensor, "image token embed"],
    token_mask: Bool[Tensor, "image token"],
    check_values: bool = True,
) -> Float[Tensor, "image region"]:
    """The best cosine of each region with a real token of its caption, negative ones as 0.

    DCLIP (arXiv 2505.21549), section 3. Computed in at least float32, whatever the features are.
    Without `check_values` nothing is looked at that would wait for the device.

    Raises:
        ValueError: if widths differ, a caption has no real token, or a feature is not finite.
    """
    if region_features.shape[-1] != token_features.shape[-1]:
        widths = f"{region_features.shape[-1]} and {token_features.shape[-1]}"
        raise ValueError(f"region and token features are {widths} wide; take both from one CLIP.")
    dtype = torch.promote_types(torch.float32, region_features.dtype)
    tokens = token_features.to(dtype).masked_fill(~token_mask[..., None], 0.0)
    if check_values:
        empty = (~token_mask.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"captions {empty} have no real token; leave empty captions out.")
        if not (region_features.isfinite().all() and tokens.isfinite().all()):
            raise ValueError(
                "region and token features must be finite; look for NaN in the encoder."
            )
    regions = F.normalize(region_features.to(dtype), dim=-1)
    # Padding is a zero vector with cosine 0, which is also what a negative cosine counts as.
    cosine = regions @ F.normalize(tokens, dim=-1).transpose(1, 2)  # image region token
    return cosine.amax(dim=-1).clamp(min=0)


def region_weights(
    region_features: Float[Tensor, "image region embed"],
    token_features: Float[Tensor, "image token embed"],
    area: Float[Tensor, "image region"],
    confidence: Float[Tensor, "image region"],
    region_mask: Bool[Tensor, "image region"],
    token_mask: Bool[Tensor, "image token"],
    check_values: bool = True,
) -> Float[Tensor, "image region"]:
    """How much each region counts: area · confidence · similarity, summing to 1 over an image.

    DCLIP (arXiv 2505.21549), section 3; the published code never uses them (1 in
    `config.RECIPES`).
    Padding is ignored and weighs 0; where every product is 0, the real regions weigh the same.
    `check_values` as in `region_similarity`.

    Raises:
        ValueError: as `region_similarity`; no real region; an area or confidence below 0 or NaN.
    """
    importance = (area * confidence).masked_fill(~region_mask, 0.0)
    if check_values:
        empty = (~region_mask.any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"images {empty} have no real region; use Regions.whole_image.")
        negative = region_mask & ((area < 0) | (confidence < 0))
        if negative.any() or not importance.isfinite().all():
            raise ValueError("areas and confidences must be finite and at least 0.")
    features = region_features.masked_fill(~region_mask[..., None], 0.0)
    product = importance * region_similarity(features, token_features, token_mask, check_values)
    return scale_products(product, region_mask)


def scale_products(
    product: Float[Tensor, "image region"], region_mask: Bool[Tensor, "image region"]
) -> Float[Tensor, "image region"]:
    """Scales what regions count to sum to 1 over an image; all real ones alike where it is all 0.

    Args:
        product: 0 or more, and 0 at padding.
        region_mask: True at real regions, of which each image has one.
    """
    total = product.sum(dim=1, keepdim=True)
    uniform = region_mask.to(product) / region_mask.sum(dim=1, keepdim=True)
    # The divisor is made safe first: `where` alone would let 0/0 into the gradient.
    return torch.where(total > 0, product / total.where(total > 0, 1.0), uniform)


def _require_boxes(
    xyxy: Tensor, confidence: Tensor, label: Sequence[str], image_size: tuple[int, int]
) -> None:
    if min(image_size) < 1:
        raise ValueError(f"image_size must be (width, height) in pixels, not {image_size}.")
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise ValueError(f"xyxy must have shape (region, 4), not {tuple(xyxy.shape)}.")
    if not len(xyxy) == len(confidence) == len(label):
        counts = f"{len(xyxy)}, {len(confidence)} and {len(label)}"
        raise ValueError(f"boxes, confidences and labels must be equally many, not {counts}.")


def _sides(xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    return (xyxy[:, 2:] - xyxy[:, :2]) / xyxy.new_tensor(image_size)  # shares of the picture's


def _has_area(xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    sides = _sides(xyxy, image_size)
    return (sides > 0).all(1) & (sides.prod(1) > 0)  # a sliver's area can round to 0
