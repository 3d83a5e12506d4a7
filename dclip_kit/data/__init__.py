"""Captioned and labelled pictures, whatever format they came in."""

from dclip_kit.data.curate import curate
from dclip_kit.data.images import CaptionedImages, LabelledImages
from dclip_kit.data.inspect import inspect_data, summarize
from dclip_kit.data.labelled import read_labelled
from dclip_kit.data.leaks import find_leaks
from dclip_kit.data.pictures import open_picture
from dclip_kit.data.read import read_captioned, recognise_format

__all__ = [
    "CaptionedImages",
    "LabelledImages",
    "curate",
    "find_leaks",
    "inspect_data",
    "open_picture",
    "read_captioned",
    "read_labelled",
    "recognise_format",
    "summarize",
]
