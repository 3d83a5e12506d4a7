"""The names that data sets give to one and the same picture."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

# COCO's file names of 2014 and of 2017. Twelve digits are COCO's alone: img2dataset counts with
# nine, and Flickr's numbers have no zeros in front.
_COCO = re.compile(r"(?:COCO_)?(?:train|val|test)20[0-9]{2}_([0-9]{12})|([0-9]{12})")
_FLICKR8K = re.compile(r"([0-9]+)_[0-9a-f]{10}(?:_[a-z])?")  # part of Flickr30k, with secrets added
_NUMBER = re.compile(r"[1-9][0-9]{0,11}")


def picture_names(path: Path, image_id: str = "") -> list[str]:
    """All names of a picture; two pictures that share one are the same picture.

    A bare number is COCO's or Flickr's where nothing tells which: then it counts as both, as a
    guard had better leave out a picture too many. Ids that say which ("coco:36979", as the readers
    give them) are never mistaken.

    Args:
        path: the picture's file.
        image_id: as in `CaptionedImages`; a COCO or Flickr file name, its number, an address, or
            the place of a scene of the pocket.

    Returns:
        Such as "coco 391895", "flickr 36979", "url …", "pocket train/7", and last, "path …".
    """
    names = _names_of_id(image_id) if image_id else []
    names += _names_of_stem(path.stem, alone=not image_id)
    return list(dict.fromkeys([*names, f"path {path.absolute()}"]))


def _names_of_id(image_id: str) -> list[str]:
    if "://" in image_id:
        return _names_of_url(image_id)
    kind, _, rest = image_id.rpartition(":")
    stem = PurePosixPath(rest).stem
    if kind == "pocket":  # split and number of a scene that the kit draws
        return [f"pocket {rest}"]
    if kind in ("coco", "flickr"):
        found = [name for name in _names_of_stem(stem, alone=True) if name.startswith(f"{kind} ")]
        return found or [f"{kind} {stem}"]
    return _names_of_stem(PurePosixPath(image_id).stem, alone=True)


def _names_of_url(url: str) -> list[str]:
    names = [f"url {url}"]
    try:
        parts = urlsplit(url)
    except ValueError:  # no address that could be taken apart; as a name it serves
        return names
    host, stem = parts.hostname or "", PurePosixPath(parts.path).stem
    if host.endswith("flickr.com"):
        names += [name for name in _names_of_stem(stem, alone=True) if name.startswith("flickr ")]
    elif "cocodataset" in host or "mscoco" in host:
        names += _names_of_stem(stem, alone=False)
    return names


def _names_of_stem(stem: str, alone: bool) -> list[str]:
    """Names that a file's name tells; a bare number counts only if it has to speak alone."""
    if coco := _COCO.fullmatch(stem):
        return [f"coco {int(coco[1] or coco[2])}"]
    if flickr := _FLICKR8K.fullmatch(stem):
        return [f"flickr {flickr[1]}"]
    return [f"coco {stem}", f"flickr {stem}"] if alone and _NUMBER.fullmatch(stem) else []
