"""The regions of frozen features as pictures, for what looks at them again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import torch
from PIL import Image

from dclip_kit.config import RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.features.frozen import WHOLE_PICTURE, FrozenFeatures
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
        self._settings = settings
        self._xyxy, self._label = features.xyxy, features.label
        self._owner = torch.arange(len(features)).repeat_interleave(features.region_count)
        self._paths = paths

    def __len__(self) -> int:
        return len(self._owner)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return next(self.cut([index]))

    def path_of(self, index: int) -> Path:
        """The file of the picture that a region is of."""
        return self._paths[int(self._owner[index])]

    def cut(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Some regions of one picture, which is opened once."""
        picture = open_picture(self.path_of(indices[0]))
        for index in indices:
            if self._label[index] == WHOLE_PICTURE:
                yield picture
            else:
                box = Regions(self._xyxy[index][None], torch.ones(1), ("",), picture.size)
                yield from crop_regions(picture, box, self._settings.margin, self._settings.square)
