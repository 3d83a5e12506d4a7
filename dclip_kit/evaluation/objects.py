"""What stands in scenes, thing by thing: found by a detector or not, named by CLIP or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.data.pocket.scenes import Scene
from dclip_kit.metrics import ranks
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.regions import Regions, crop_regions


@dataclass(frozen=True, eq=False)
class SceneObjects:
    """The things of a number of scenes, scene by scene.

    Attributes:
        image: the scene that each stands in.
        label: each thing's noun, an index into `load_nouns()`.
        size: "small", "medium" or "large", of each.
        xyxy: each thing's box in pixels.
    """

    image: Int[Tensor, "object"]
    label: Int[Tensor, "object"]
    size: tuple[str, ...]
    xyxy: Float[Tensor, "object 4"]

    def __len__(self) -> int:
        return len(self.size)

    def of_size(self, size: str) -> Bool[Tensor, "object"]:
        """Which of them are of a size."""
        return torch.tensor([each == size for each in self.size])


def list_objects(scenes: Sequence[Scene]) -> SceneObjects:
    """All things of these scenes, scene by scene; there must be one."""
    things = [(index, thing) for index, scene in enumerate(scenes) for thing in scene.objects]
    return SceneObjects(
        torch.tensor([index for index, _ in things]),
        torch.tensor([thing.noun for _, thing in things]),
        tuple(thing.size for _, thing in things),
        torch.tensor([thing.xyxy for _, thing in things], dtype=torch.float32),
    )


def match_regions(
    objects: SceneObjects, regions: Sequence[Regions], least_overlap: float = 0.5
) -> Int[Tensor, "object"]:
    """For each thing the region that found it, by its number in its picture; -1 where none did.

    Region and thing belong together if they overlap enough, the best pairs first, each of them
    once. Labels decide nothing: the detector says where to look, and not what is there.

    Args:
        objects: of as many pictures as there are `regions`.
        regions: of each picture.
        least_overlap: intersection over union of both boxes, 0 to 1.
    """
    found = torch.full_like(objects.label, -1)
    for image in objects.image.unique().tolist():
        things = (objects.image == image).nonzero().flatten()
        overlap = box_iou(objects.xyxy[things], regions[image].xyxy)  # object region
        while overlap.numel() and overlap.max() >= least_overlap:
            thing, region = divmod(int(overlap.argmax()), overlap.shape[1])
            found[things[thing]] = region
            overlap[thing], overlap[:, region] = -1, -1
    return found


@dataclass(frozen=True, eq=False)
class NamedObjects:
    """Which things CLIP names, from the whole picture and from a crop of each.

    Attributes:
        found: whether the detector found the thing; without a crop it is not named from one.
        by_picture: whether the whole picture's features name it.
        by_crop: whether its crop's features name it.
    """

    found: Bool[Tensor, "object"]
    by_picture: Bool[Tensor, "object"]
    by_crop: Bool[Tensor, "object"]


def name_objects(
    clip: ClipBundle,
    paths: Sequence[Path],
    objects: SceneObjects,
    regions: Sequence[Regions],
    class_features: Float[Tensor, "class embed"],
    settings: RegionSettings | None = None,
) -> NamedObjects:
    """Asks CLIP for every thing of every picture, once of the picture and once of its crop.

    A thing is named if its noun is nearer than all nouns that the picture does *not* show. Those
    of the things beside it are no mistake, so they do not compete, and one vector of a picture
    may name all that it shows.

    Args:
        clip: whose image tower looks.
        paths: of the pictures.
        objects: their things.
        regions: what a detector found in each picture.
        class_features: of all nouns, from `encode_classes`.
        settings: how crops are cut; the defaults if left out.

    Raises:
        ValueError: paths and regions differ in number.
    """
    if len(paths) != len(regions):
        raise ValueError(
            f"Expected the regions of each of {len(paths)} pictures, got {len(regions)}; detect in "
            "these very pictures."
        )
    settings = settings or RegionSettings()
    match = match_regions(objects, regions)
    found = match >= 0
    crops = []
    for image, path in enumerate(tqdm(paths, "cutting things out", delay=2)):
        every = crop_regions(open_picture(path), regions[image], settings.margin, settings.square)
        crops += [every[region] for region in match[found & (objects.image == image)].tolist()]
    picture_features = encode_images(clip, paths)[objects.image]
    crop_features = torch.zeros_like(picture_features)
    if crops:
        crop_features[found] = encode_images(clip, crops)
    by_picture, by_crop = (
        _is_named(features, objects, class_features)
        for features in (picture_features, crop_features)
    )
    return NamedObjects(found, by_picture, by_crop & found)


def _is_named(
    features: Float[Tensor, "object embed"],
    objects: SceneObjects,
    class_features: Float[Tensor, "class embed"],
) -> Bool[Tensor, "object"]:
    """Whether each thing's noun ranks first among the nouns that its picture lacks; no tie does."""
    present = torch.zeros(int(objects.image.max()) + 1, len(class_features), dtype=torch.bool)
    present[objects.image, objects.label] = True
    own = torch.zeros(len(features), len(class_features), dtype=torch.bool)
    own[torch.arange(len(features)), objects.label] = True
    below_all = -2.0  # no cosine is
    scores = (features @ class_features.T).masked_fill(present[objects.image] & ~own, below_all)
    return ranks(scores, own) <= 1
