"""Captioned and labelled pictures, whatever format they came in."""

from dclip_kit.data.curate import PAPER_MIXTURE, curate
from dclip_kit.data.images import CaptionedImages, LabelledImages
from dclip_kit.data.inspect import inspect_data
from dclip_kit.data.labelled import (
    LABELLED_READERS,
    read_cifar,
    read_class_folders,
    read_imagenet,
    read_labelled,
)
from dclip_kit.data.leaks import (
    Leak,
    LeakReport,
    find_leaks,
    index_evaluation,
    remove_leaks,
    require_no_leaks,
)
from dclip_kit.data.manifest import read_manifest
from dclip_kit.data.pictures import open_picture
from dclip_kit.data.read import READERS, read_captioned, recognise_format
from dclip_kit.data.usable import UsableImages, drop_unusable

__all__ = [
    "LABELLED_READERS",
    "PAPER_MIXTURE",
    "READERS",
    "CaptionedImages",
    "LabelledImages",
    "Leak",
    "LeakReport",
    "UsableImages",
    "curate",
    "drop_unusable",
    "find_leaks",
    "index_evaluation",
    "inspect_data",
    "open_picture",
    "read_captioned",
    "read_cifar",
    "read_class_folders",
    "read_imagenet",
    "read_labelled",
    "read_manifest",
    "recognise_format",
    "remove_leaks",
    "require_no_leaks",
]
