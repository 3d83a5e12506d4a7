"""Conceptual Captions: a list of captions and addresses, over what img2dataset downloaded."""

from pathlib import Path

from dclip_kit.data.annotations import Annotations, gather, read_lines
from dclip_kit.data.folder import PICTURE_SUFFIXES, read_sample, walk_files
from dclip_kit.data.usable import Checks, UsableImages


def read_conceptual(
    path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
) -> UsableImages:
    """Reads the TSV (caption, tab, address; no header needed) and finds the pictures by address.

    Many of its addresses are dead by now: each row without a picture is named among the broken
    rows, each picture that the list does not know among the unreadable ones.

    Args:
        path: the TSV, or the folder with the only one.
        images: the folder that img2dataset wrote with output_format="files", a .json beside each
            picture; left out, the TSV's own.
        split: what to call the data; it selects nothing.
        checks: as in `sort_out`.

    Raises:
        ValueError: there is no such file or folder, or there are several.
    """
    if path.is_dir():
        files = sorted(path.glob("*.tsv"))
        if len(files) != 1:
            raise ValueError(f"Expected one .tsv in {path}, got {len(files)}; name the file.")
        path = files[0]
    found = Annotations()
    pictures = _find_pictures(found, images or path.parent)
    listed = set()
    for number, (place, line) in enumerate(read_lines(path)):
        fields = [field.strip() for field in line.split("\t")]
        if number == 0 and fields == ["caption", "url"]:
            continue  # img2dataset asks for such a header, and the published file has none
        if len(fields) != 2 or not fields[1]:
            found.broken[place] = f"expected caption and address, got {len(fields)} fields"
            continue
        caption, url = fields
        listed.add(url)
        if url not in pictures:
            found.broken[place] = f"its picture was not downloaded ({ascii(url)[1:-1]})"
        for name in pictures.get(url, ()):
            found.add(place, name, caption, url)
    for url, names in pictures.items():
        if url not in listed:
            reason = f"Expected its address in {path.name}, but {url!a} is not there."
            found.unusable |= {(images or path.parent) / name: reason for name in names}
    return gather(found, images or path.parent, split, "conceptual_captions", checks)


def _find_pictures(found: Annotations, folder: Path) -> dict[str, list[str]]:
    """The downloaded pictures by their address; one that has none is noted as unusable."""
    pictures: dict[str, list[str]] = {}
    for name in walk_files(folder):
        if Path(name).suffix.lower() not in PICTURE_SUFFIXES:
            continue
        stem = str(Path(name).with_suffix(""))
        try:
            sample = read_sample(folder, stem)
        except ValueError as error:
            found.unusable[folder / name] = f"Expected its address in {stem}.json ({error})."
            continue
        url, status = sample.get("url"), sample.get("status", "success")
        if status != "success":
            found.unusable[folder / name] = f"img2dataset notes that it is no success ({status!r})"
        elif not isinstance(url, str):
            found.unusable[folder / name] = f"Expected its address in {stem}.json, found none."
        else:
            pictures.setdefault(url.strip(), []).append(name)
    return pictures
