"""Each format read by its name, as `read_captioned` reads it once it is recognised."""

from pathlib import Path

from dclip_kit.data.collect import Checks, UsableImages
from dclip_kit.data.formats import read_format


def _reader(format: str):
    def read(
        path: Path, images: Path | None = None, split: str = "train", checks: Checks = "pictures"
    ) -> UsableImages:
        return read_format(path, images, format, split, checks)

    return read


read_coco, read_conceptual, read_files = map(_reader, ("coco", "conceptual", "files"))
read_flickr, read_karpathy, read_manifest = map(_reader, ("flickr", "karpathy", "manifest"))
read_shards = _reader("shards")


def read_table(
    path: Path,
    images: Path | None = None,
    split: str = "train",
    checks: Checks = "pictures",
    format: str = "csv",
) -> UsableImages:
    return read_format(path, images, format, split, checks)
