"""Splits Flickr8k for the photo CLIP and its study: `python -m assets.make.split_photographs DIR`.

DIR has `flickr8k`, `imagenet_1000` and `cifar10_test`. Half of the official training pictures
teach the photo CLIP; of the other half, 500 choose, 1,500 have captions, and 1,000 have none, as
have the pictures in no official split. What is measured on are the official dev and test pictures.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.paths import load_json
from dclip_kit.models.boxes import read_boxes
from dclip_kit.runtime.files import write_atomically, write_record

SEED = 52
COUNTS = {"clip": 3000, "val": 500, "train": 1500}  # the other training pictures have no captions
OUT = Path("runs/photographs")


def split_names(flickr8k: Path) -> dict[str, list[str]]:
    """Names of the pictures by their use: clip, val, train, uncaptioned and test."""
    lists = {
        split: sorted((flickr8k / f"Flickr_8k.{split}Images.txt").read_text().split())
        for split in ("train", "dev", "test")
    }
    names = np.random.default_rng(SEED).permutation(lists["train"]).tolist()
    used, begin = {}, 0
    for use, count in COUNTS.items():
        used[use] = names[begin : begin + count]
        begin += count
    official = {name for split in lists.values() for name in split}
    strays = {path.name for path in (flickr8k / "Images").glob("*.jpg")} - official
    used["uncaptioned"] = [*names[begin:], *sorted(strays)]
    used["test"] = [*lists["dev"], *lists["test"]]
    return used


def read_captions(flickr8k: Path) -> dict[str, list[str]]:
    """The captions of each picture's name."""
    captions: dict[str, list[str]] = {}
    for line in (flickr8k / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name.split("#")[0], []).append(caption)
    return captions


def write_captions(
    path: Path, pictures: dict[str, list[str]], captions: dict[str, list[str]]
) -> None:
    """Writes pictures by split, with their captions, as a CSV file that the kit reads."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "caption", "split"])
    for split, names in pictures.items():
        writer.writerows([name, caption, split] for name in names for caption in captions[name])
    write_atomically(path, text.getvalue())


def convert_boxes(boxes: Path, images: Path, out: Path) -> None:
    """Writes boxes in the form of `dclip_kit detect`; refuses what cannot be read again.

    Args:
        boxes: some detector's, `{name: [{"xyxy", "confidence", "label"}]}`.
        images: the folder of the pictures with these names.
        out: the file to write.

    Raises:
        FileNotFoundError: a picture is missing.
        ValueError: a box is of another form.
    """
    entries = []
    for name, regions in tqdm(load_json(boxes).items(), desc="sizes", delay=2):
        with Image.open(images / name) as picture:
            width, height = picture.size
        entries.append({"path": name, "width": width, "height": height, "regions": regions})
    write_record({"detector": boxes.name, "pictures": entries}, out)
    read_boxes(out)


def main() -> None:
    """Writes the splits' files, with links to the pictures, into `runs/photographs`."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.make.split_photographs", description=__doc__
    )
    parser.add_argument("photographs", type=Path)
    photographs = parser.parse_args().photographs.resolve()
    flickr8k = photographs / "flickr8k"
    used, captions = split_names(flickr8k), read_captions(flickr8k)
    OUT.mkdir(parents=True, exist_ok=True)
    for name, target in {
        "Images": flickr8k / "Images",
        "imagenet_1000": photographs / "imagenet_1000",
        "cifar10_test": photographs / "cifar10_test",
    }.items():
        (OUT / name).unlink(missing_ok=True)
        (OUT / name).symlink_to(target)
    write_captions(OUT / "clip.csv", {"train": used["clip"]}, captions)
    splits = {split: used[split] for split in ("train", "val", "test")}
    write_captions(OUT / "captions.csv", splits, captions)
    hidden = {name: [""] for name in used["uncaptioned"]}
    write_captions(OUT / "uncaptioned.csv", {"train": used["uncaptioned"]}, hidden)
    convert_boxes(flickr8k / "boxes.json", flickr8k / "Images", OUT / "boxes.json")
    print({use: len(names) for use, names in used.items()})


if __name__ == "__main__":
    main()
