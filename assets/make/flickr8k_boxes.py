"""Boxes by picture's name, as some detector wrote them, in the form of `dclip_kit detect`.

`python -m assets.make.flickr8k_boxes boxes.json Images out.json`: the first is `{name: [{"xyxy",
"confidence", "label"}]}`, the second the folder of the pictures.
"""

import argparse
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.paths import load_json
from dclip_kit.models.boxes import read_boxes
from dclip_kit.runtime.files import write_record


def convert(boxes: Path, images: Path, out: Path) -> None:
    """Writes the boxes with each picture's size; refuses what cannot be read again.

    Raises:
        ValueError: a picture is missing, or a box is of another form.
    """
    entries = []
    for name, regions in tqdm(load_json(boxes).items(), desc="sizes", delay=2):
        with Image.open(images / name) as picture:
            width, height = picture.size
        entries.append({"path": name, "width": width, "height": height, "regions": regions})
    write_record({"detector": boxes.name, "pictures": entries}, out)
    read_boxes(out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.make.flickr8k_boxes", description=__doc__
    )
    for name in ("boxes", "images", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    convert(given.boxes, given.images, given.out)


if __name__ == "__main__":
    main()
