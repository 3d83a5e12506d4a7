"""Image regions: boxes, their crops, DCLIP's region weights, padding, and drawing.

Axes: `image` a batch, `region` the boxes of one image, `token` the tokens of its caption, `embed`
the joint space. Boxes are `xyxy`: left, top, right, bottom in pixels.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou

from dclip_kit.data.pictures import upright

Box = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels

# Each is legible as text on white (contrast of at least 4.5), and any two stay distinct for people
# who are blind to red, green or blue (CIE76 difference of at least 20 in Machado's simulations).
BOX_COLORS = ("#BF5700", "#0072B2", "#442200", "#220088", "#8800CC", "#004444")


@dataclass(frozen=True, eq=False)  # eq=False: comparing tensors with == gives no single answer
class Regions:
    """The regions of one picture; there is always at least one.

    Attributes:
        xyxy: boxes in pixels, inside the picture, each with an area.
        confidence: the detector's confidence in each box, from 0 to 1.
        label: the detector's word for each box.
        image_size: the picture's (width, height) in pixels.
        is_whole_image: True if nothing was detected and the whole picture is the only region.
        dropped: how many of a detector's boxes `from_boxes` left out.

    Raises:
        ValueError: a box, a confidence, the size or the lengths do not fit this description.
    """

    xyxy: Float[Tensor, "region 4"]
    confidence: Float[Tensor, "region"]
    label: tuple[str, ...]
    image_size: tuple[int, int]
    is_whole_image: bool = False
    dropped: int = 0

    def __post_init__(self) -> None:
        _require_boxes(self.xyxy, self.confidence, self.label, self.image_size)
        if len(self.label) == 0:
            raise ValueError("Expected at least one region, got none; use Regions.whole_image.")
        width, height = self.image_size
        inside = (self.xyxy >= 0) & (self.xyxy <= self.xyxy.new_tensor([width, height] * 2))
        bad = (~((self.area > 0) & inside.all(1))).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"Expected boxes that are finite, ordered, of some area and inside {width}x{height}"
                f" pixels, got {self.xyxy[bad[0]].tolist()} as region {bad[0]}; Regions.from_boxes "
                "clips and drops such boxes."
            )
        if not ((self.confidence >= 0) & (self.confidence <= 1)).all():
            raise ValueError(
                f"Expected confidences from 0 to 1, got {self.confidence.tolist()}; scale them."
            )

    def __len__(self) -> int:
        return len(self.label)

    @property
    def area(self) -> Float[Tensor, "region"]:
        """Each region's share of the picture, above 0 and at most 1."""
        return _area(self.xyxy, self.image_size)

    @classmethod
    def whole_image(cls, image_size: tuple[int, int]) -> "Regions":
        """The whole picture as its only region, with confidence 1, if nothing was detected.

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
    ) -> "Regions":
        """Makes regions from a detector's raw boxes; there may be none.

        Boxes are clipped to the picture; those that are not finite (box or confidence), lie outside
        or have no area are dropped and counted. If none is left, the whole image is the only one.

        Raises:
            ValueError: the lengths differ, or a finite confidence is not from 0 to 1.
        """
        _require_boxes(xyxy, confidence, label, image_size)
        clipped = xyxy.clamp(min=0).minimum(xyxy.new_tensor(image_size).repeat(2))
        usable = xyxy.isfinite().all(1) & confidence.isfinite() & (_area(clipped, image_size) > 0)
        indices = usable.nonzero()[:, 0].tolist()
        dropped = len(label) - len(indices)
        if not indices:
            return replace(cls.whole_image(image_size), dropped=dropped)
        labels = tuple(label[index] for index in indices)
        return cls(clipped[indices], confidence[indices], labels, image_size, dropped=dropped)


def crop_regions(
    image: Image.Image, regions: Regions, margin: float = 0.0, square: bool = True
) -> list[Image.Image]:
    """Cuts the regions out of their picture.

    Crops come in the regions' order and the picture's mode; boxes are widened to whole pixels.

    Args:
        image: the picture that the regions were found in.
        regions: what to cut out.
        margin: share of the box's side to add on each side, as far as the picture reaches.
        square: widens the shorter side to the longer one, as far as the picture reaches. CLIP's
            preprocessing keeps the middle square, which would cut off both ends of a narrow crop.

    Raises:
        ValueError: the picture does not have the regions' size.
    """
    image = upright(image)  # as the detector saw it
    if image.size != regions.image_size:
        raise ValueError(
            f"Expected the regions' picture of {regions.image_size} pixels, got one of "
            f"{image.size}; crop before resizing it."
        )
    return [image.crop(box) for box in crop_boxes(regions, margin, square)]


def crop_boxes(regions: Regions, margin: float = 0.0, square: bool = True) -> list[Box]:
    """Where `crop_regions` cuts: left, top, right and bottom of each region, in whole pixels."""
    size = torch.tensor(regions.image_size)
    low, high = regions.xyxy.double().tensor_split(2, dim=1)
    extra = margin * (high - low)
    low, high = (low - extra).floor().clamp(min=0), (high + extra).ceil().minimum(size)
    if square:
        side = (high - low).amax(dim=1, keepdim=True).minimum(size)
        # Extended on both sides, and moved inside the picture.
        low = (low - (side - (high - low)) // 2).clamp(min=0).minimum(size - side)
        high = low + side
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in torch.cat([low, high], 1).int().tolist()]


def region_similarity(
    region_features: Float[Tensor, "image region embed"],
    token_features: Float[Tensor, "image token embed"],
    token_mask: Bool[Tensor, "image token"],
) -> Float[Tensor, "image region"]:
    """The highest cosine of each region with a real token of its caption; negative ones count as 0.

    DCLIP (arXiv 2505.21549), section 3. Computed in float32, whatever the features are.
    """
    tokens = token_features.float().masked_fill(~token_mask[..., None], 0.0)
    regions = F.normalize(region_features.float(), dim=-1)
    # Padding is a zero vector; its cosine is 0, as which negative cosines count too.
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
    Padding is ignored and weighs 0; if every product is 0, all real regions weigh the same.
    `check_values=False` trusts the values, since checking them waits for the device.

    Raises:
        ValueError: as `require_real`; an area or a confidence is below 0 or not finite.
    """
    importance = (area * confidence).masked_fill(~region_mask, 0.0)
    if check_values:
        require_real("region", region_features, region_mask)
        require_real("token", token_features, token_mask)
        negative = region_mask & ((area < 0) | (confidence < 0))
        if negative.any() or not importance.isfinite().all():
            raise ValueError(
                "Expected areas and confidences that are finite and at least 0, got at least one "
                "that is not; take those of `Regions`."
            )
    features = region_features.masked_fill(~region_mask[..., None], 0.0)
    product = importance * region_similarity(features, token_features, token_mask)
    return scale_products(product, region_mask)


def require_real(
    kind: str, features: Float[Tensor, "image item embed"], mask: Bool[Tensor, "image item"]
) -> None:
    """Checks that each image has a real item, and that real ones are finite.

    Args:
        kind: what the items are, "region" or "token".
        features: of the items.
        mask: True at real items.

    Raises:
        ValueError: an image has no real item, or a real item's features are not finite.
    """
    empty = (~mask.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"Expected at least one real {kind} in each image, got none in {empty[:5]}; give the "
            "whole image as a region where nothing was detected, and leave out empty captions."
        )
    if not features[mask].isfinite().all():
        raise ValueError(
            f"Expected finite {kind} features, got NaN or infinity; encode them again."
        )


def scale_products(
    product: Float[Tensor, "image region"], region_mask: Bool[Tensor, "image region"]
) -> Float[Tensor, "image region"]:
    """Scales the weights of an image's regions to sum to 1; if all are 0, real regions share it.

    Args:
        product: 0 or more, and 0 at padding.
        region_mask: True at real regions; each image has at least one.
    """
    total = product.sum(dim=1, keepdim=True)
    uniform = region_mask.to(product) / region_mask.sum(dim=1, keepdim=True)
    # The divisor is made safe first: with `where` alone, 0/0 would reach the gradient.
    return torch.where(total > 0, product / total.where(total > 0, 1.0), uniform)


def pad_rows(
    values: Float[Tensor, "row *rest"], counts: Int[Tensor, "image"], chosen: Int[Tensor, "chosen"]
) -> tuple[Float[Tensor, "chosen item *rest"], Bool[Tensor, "chosen item"]]:
    """Selects the items of some images, padded with 0 to the longest.

    Args:
        values: one row an item, its features or a number (area, confidence); the items of an
            image are consecutive.
        counts: how many items each image has, at least 1.
        chosen: indices of the images.

    Returns:
        The items, and a mask that is True where they are real.
    """
    end, count = counts.cumsum(0)[chosen], counts[chosen]
    ranges = zip((end - count).tolist(), end.tolist(), strict=True)
    padded = pad_sequence([values[start:stop] for start, stop in ranges], batch_first=True)
    return padded, torch.arange(padded.shape[1]) < count[:, None]


def _require_boxes(
    xyxy: Tensor, confidence: Tensor, label: Sequence[str], image_size: tuple[int, int]
) -> None:
    if xyxy.shape[1:] != (4,) or not len(xyxy) == len(confidence) == len(label):
        raise ValueError(
            "Expected boxes of shape (region, 4), and a confidence and a label for each, got "
            f"shape {tuple(xyxy.shape)}, {len(confidence)} and {len(label)}; give those of one "
            "picture."
        )


def _area(xyxy: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Shares of the picture; 0 for boxes whose corners are swapped."""
    return ((xyxy[:, 2:] - xyxy[:, :2]) / xyxy.new_tensor(image_size)).clamp(min=0).prod(1)


# Drawing


def draw_boxes(
    picture: Image.Image,
    regions: Regions,
    labels: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
    side: int | None = None,
    font_size: int | None = None,
) -> Image.Image:
    """Draws the boxes of a picture's regions, each with its label, on a copy.

    Args:
        picture: the picture that the regions were found in.
        regions: of this picture.
        labels: a short text for each region; by default the detector's label and confidence.
        colors: one for each region; by default one for each label.
        side: pixels of the copy's longer side; by default the picture's.
        font_size: of the labels, in pixels of the copy; by default a fortieth of its longer side.

    Returns:
        The copy, in RGB.

    Raises:
        ValueError: the regions belong to a picture of another size.
    """
    picture = upright(picture)  # as the detector saw it
    if picture.size != regions.image_size:
        raise ValueError(
            f"Expected a picture of the regions' {regions.image_size} pixels, got {picture.size}; "
            "detect the regions in this very picture."
        )
    side = side or max(picture.size)
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]  # of a sliver, too
    copy = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(copy)
    font_size = font_size or max(side // 40, 12)
    font, stroke = _load_font(font_size), max(1, round(font_size / 6))
    detections = zip(regions.label, regions.confidence.tolist(), strict=True)
    labels = labels or [f"{label} {confidence:.2f}" for label, confidence in detections]
    colors = colors or label_colors(regions.label)
    boxes = (regions.xyxy * scale).tolist()
    for left, top, right, bottom in boxes:  # a white rim, visible on any background
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="white", width=stroke + 2)
    for box, color in zip(boxes, colors, strict=True):
        pen.rectangle(box, outline=color, width=stroke)
    label_boxes = torch.zeros(0, 4)
    for box, color, label in zip(boxes, colors, labels, strict=True):
        _, _, width, height = pen.textbbox((stroke, stroke), label, font=font)
        left = max(min(box[0], copy.width - width - stroke), 0.0)
        tops = (box[1] - height, box[1], box[3] - height, box[3])  # above, inside or below its box
        inside = [top for top in tops if 0 <= top <= copy.height - height] or [0.0]
        candidates = torch.tensor(
            [[left, top, left + width + stroke, top + height] for top in inside]
        )
        label_box = candidates[box_iou(candidates, label_boxes).sum(1).argmin()]  # overlaps least
        label_boxes = torch.cat([label_boxes, label_box[None]])
        pen.rectangle(label_box.tolist(), fill=color)
        pen.text((left + stroke, float(label_box[1])), label, fill="white", font=font)
    return copy


def label_colors(labels: Sequence[str]) -> list[str]:
    """Chooses a colour for each label; equal labels get equal colours."""
    names = sorted(set(labels))
    return [BOX_COLORS[names.index(label) % len(BOX_COLORS)] for label in labels]


def _load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of the system, since Pillow's own has English letters only."""
    for name in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"):
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)
