"""Captioned and labelled pictures, whatever format they came in."""

from dclip_kit.data.formats import read_captioned, recognise_format
from dclip_kit.data.labelled import read_labelled
from dclip_kit.data.leaks import find_leaks
from dclip_kit.data.pictures import CaptionedImages, LabelledImages, open_picture
from dclip_kit.data.splits import curate, inspect_data, summarize

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
