"""Captioned and labelled pictures, whatever format they came in."""

from dclip_kit.datasets.images import (
    CaptionedImages,
    LabelledImages,
    UsableImages,
    drop_unusable,
    open_picture,
)

__all__ = ["CaptionedImages", "LabelledImages", "UsableImages", "drop_unusable", "open_picture"]
