"""The regions of frozen features as pictures, for training to rehearse."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image

from dclip_kit.config import RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.data.pictures import count_pixels
from dclip_kit.features.frozen import WHOLE_PICTURE, FrozenFeatures
from dclip_kit.models.reading import hold_picture
from dclip_kit.models.regions import Regions, crop_regions


class RegionCrops(Sequence[Image.Image]):
    """What `features.region` was encoded from, in its order, each cut when it is asked for.

    Args:
        paths: of the pictures of `features`, in its order.
        features: with the regions' boxes.
        settings: that the features were made by.

    Raises:
        ValueError: the features are of another number of pictures, or the settings encode some
            regions otherwise than CLIP encodes pictures.
    """

    def __init__(
        self, paths: Sequence[Path], features: FrozenFeatures, settings: RegionSettings
    ) -> None:
        if len(paths) != len(features):
            raise ValueError(
                f"Expected the {len(features)} pictures of the features, got {len(paths)}; give "
                "both from one data set."
            )
        if settings.undetected_as_zeros or not settings.normalized_crops:
            raise ValueError(
                "Expected features of regions that CLIP encoded as it does pictures, got the "
                "published code's; set normalized_crops=True and undetected_as_zeros=False."
            )
        self._paths, self._features, self._settings = paths, features, settings
        self._owner = torch.arange(len(features)).repeat_interleave(features.region_count)
        self._open = lru_cache(maxsize=1)(open_picture)  # a picture's regions follow each other

    def __len__(self) -> int:
        return len(self._owner)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # no slices
        path = self._paths[int(self._owner[index])]
        with hold_picture(count_pixels(path)):
            picture = self._open(path)
            if self._features.label[index] == WHOLE_PICTURE:
                return picture
            box = Regions(self._features.xyxy[index][None], torch.ones(1), ("",), picture.size)
            return crop_regions(picture, box, self._settings.margin, self._settings.square)[0]
