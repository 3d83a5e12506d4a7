"""The pocket data: scenes and single objects, made on first use into a cache folder.

Every picture has its own random generator, so neither its place in the work nor the number of
workers changes a byte, and a cache cut off half-way is finished by making only what is missing.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.pocket.captions import count_matches, write_captions
from dclip_kit.data.pocket.scenes import (
    Scene,
    SceneObject,
    render_scene,
    sample_scene,
    sample_single,
)
from dclip_kit.data.pocket.sprites import HELD_OUT_STYLE, KNOWN_STYLES, load_nouns
from dclip_kit.runtime.files import asset_path, write_atomically

SCENE_SPLITS = {"train": 4000, "val": 500, "test": 1000}
SINGLE_SPLITS = {  # pictures a noun, and the styles they are drawn in
    "zero_shot_val": (40, KNOWN_STYLES),  # interpolations are chosen by it, within a percent
    "zero_shot": (30, KNOWN_STYLES),
    "zero_shot_held_out": (30, (HELD_OUT_STYLE,)),
}
# Further scenes, as many as asked for: to learn from without captions, to choose on, to measure on.
STREAMS = ("uncaptioned", "further_val", "further_test")
SEED = 2026
_SPLITS = (*SCENE_SPLITS, *SINGLE_SPLITS)
_ORDER = (*_SPLITS, *STREAMS)  # their numbers are part of their pictures' seeds


@cache
def _fingerprint() -> str:
    """Changes with whatever decides the bytes: sprites, and the code that draws and describes."""
    digest = hashlib.sha256()
    modules = ("backgrounds", "captions", "scenes", "sprites", "world")
    sources = [Path(__file__).with_name(f"{name}.py") for name in modules]
    atlases = [asset_path("sprites", f"{style}.webp") for style in (*KNOWN_STYLES, HELD_OUT_STYLE)]
    for path in (asset_path("sprites", "nouns.json"), *atlases, *sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Where the pictures lie: below `DCLIP_CACHE`, else the user's cache folder."""
    root = os.environ.get("DCLIP_CACHE") or (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dclip_kit"
    )
    return Path(root) / f"pocket-{_fingerprint()}"


def _require(split: str, known: Iterable[str]) -> None:
    if split not in known:
        raise ValueError(f"Expected a pocket split out of {', '.join(known)}, got {split!r}.")


def make_scene(split: str, index: int) -> tuple[Scene, tuple[str, ...]]:
    """The scene with a number in a split, and its captions (none for single objects).

    Raises:
        ValueError: the split is unknown.
    """
    _require(split, _ORDER)
    rng = np.random.default_rng([SEED, _ORDER.index(split), index])
    if split in (*SCENE_SPLITS, *STREAMS):
        domain = [i for i, noun in enumerate(load_nouns()) if noun.domain]
        scene = sample_scene(rng, domain, KNOWN_STYLES)
        return scene, () if split == "uncaptioned" else write_captions(scene, rng)
    per_noun, styles = SINGLE_SPLITS[split]
    return sample_single(rng, index // per_noun, styles), ()


def split_size(split: str) -> int:
    """How many pictures a split has.

    Raises:
        ValueError: the split is unknown.
    """
    _require(split, _SPLITS)
    return SCENE_SPLITS.get(split) or SINGLE_SPLITS[split][0] * len(load_nouns())


def _make_picture(split: str, index: int, path: Path) -> tuple[Scene, tuple[str, ...]]:
    scene, captions = make_scene(split, index)
    if not path.exists():
        encoded = io.BytesIO()
        render_scene(scene).save(encoded, format="JPEG", quality=92)
        write_atomically(path, encoded.getvalue())
    return scene, captions


def prepare(split: str, workers: int = 2, folder: Path | None = None) -> Path:
    """Makes what is missing of a split and returns its folder.

    Args:
        split: one of `SCENE_SPLITS` or `SINGLE_SPLITS`.
        workers: threads that draw.
        folder: instead of `cache_folder()`.

    Raises:
        ValueError: the split is unknown.
    """
    place = (folder or cache_folder()) / split
    paths = [place / f"{index:05d}.jpg" for index in range(split_size(split))]
    place.mkdir(parents=True, exist_ok=True)
    if (place / "annotations.json").exists() and all(path.exists() for path in paths):
        return place
    with ThreadPoolExecutor(workers) as pool:
        made = list(
            tqdm(
                pool.map(_make_picture, [split] * len(paths), range(len(paths)), paths),
                total=len(paths),
                desc=f"drawing {split}",
                delay=1,
            )
        )
    entries = [{"scene": asdict(scene), "captions": captions} for scene, captions in made]
    write_atomically(place / "annotations.json", json.dumps(entries).encode())
    return place


def _read(split: str) -> tuple[Path, list[dict]]:
    place = prepare(split)
    return place, json.loads((place / "annotations.json").read_text(encoding="utf-8"))


def load_scenes(split: str) -> list[Scene]:
    """The scenes of a split: places, objects, boxes."""
    return [
        Scene(
            entry["scene"]["place"],
            entry["scene"]["background_seed"],
            tuple(
                SceneObject(**{**thing, "xyxy": tuple(thing["xyxy"])})
                for thing in entry["scene"]["objects"]
            ),
        )
        for entry in _read(split)[1]
    ]


def load_captioned(split: str) -> CaptionedImages:
    """A split of scenes with five captions each.

    Raises:
        ValueError: it is no split of scenes.
    """
    _require(split, SCENE_SPLITS)
    place, entries = _read(split)
    paths = tuple(place / f"{index:05d}.jpg" for index in range(len(entries)))
    captions = tuple(tuple(entry["captions"]) for entry in entries)
    ids = tuple(name_scene(split, index) for index in range(len(entries)))
    return CaptionedImages(paths, captions, split, "pocket scenes", ids)


def name_scene(split: str, index: int) -> str:
    """What the leak guard knows a scene by: its file's bytes differ between versions of Pillow."""
    return f"pocket:{split}/{index}"


def load_further(stream: str, count: int, first: int = 0) -> CaptionedImages:
    """Further scenes, made like those of the splits; pictures that are missing are drawn now.

    Args:
        stream: one of `STREAMS`. Scenes of "uncaptioned" have no captions: none are written.
        count: how many.
        first: the number of the first.

    Raises:
        ValueError: the stream is unknown.
    """
    _require(stream, STREAMS)
    place, numbers = cache_folder() / stream, range(first, first + count)
    place.mkdir(parents=True, exist_ok=True)
    paths = tuple(place / f"{number:06d}.jpg" for number in numbers)

    def make(number: int) -> tuple[str, ...]:
        return _make_picture(stream, number, paths[number - first])[1]

    with ThreadPoolExecutor(2) as pool:
        made = pool.map(make, numbers)
        captions = tuple(tqdm(made, total=count, desc=f"{stream} scenes", delay=2))
    ids = tuple(name_scene(stream, number) for number in numbers)
    return CaptionedImages(paths, captions, stream, f"pocket {stream}", ids)


def load_labelled(split: str) -> LabelledImages:
    """A split of single objects, over all nouns.

    Raises:
        ValueError: it is no split of single objects.
    """
    _require(split, SINGLE_SPLITS)
    place, entries = _read(split)
    nouns = load_nouns()
    return LabelledImages(
        tuple(place / f"{index:05d}.jpg" for index in range(len(entries))),
        tuple(entry["scene"]["objects"][0]["noun"] for entry in entries),
        tuple(noun.singular for noun in nouns),
        tuple(noun.domain for noun in nouns),
        f"pocket {split}",
    )


def caption_matches(split: str) -> list[int]:
    """For each caption of a split the number of its scenes that it is true of."""
    return count_matches(load_captioned(split).texts, load_scenes(split)).tolist()


def main() -> None:
    """Draws every split now instead of on first use: `python -m dclip_kit.data.pocket.world`."""
    for split in _SPLITS:
        print(prepare(split))


if __name__ == "__main__":
    main()
