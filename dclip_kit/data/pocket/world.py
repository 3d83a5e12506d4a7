"""The pocket data: scenes and single objects, drawn into a cache folder on first use.

Every picture has its own random generator, so neither the order nor the number of workers changes
a byte, and of a cache that was interrupted only the missing pictures are drawn.
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
from dclip_kit.data.pocket.captions import write_captions
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
# Further scenes without a fixed number: to train on without captions, to choose and to measure on.
STREAMS = ("uncaptioned", "further_val", "further_test")
# Text→image Recall@1 that a perfect model reaches on "test", where a caption fits several scenes.
RECALL_CEILING = 0.7638
SEED = 2026
_SPLITS = (*SCENE_SPLITS, *SINGLE_SPLITS)
_ORDER = (*_SPLITS, *STREAMS)  # a picture's seed contains its split's number here


@cache
def _fingerprint() -> str:
    """Changes with whatever determines the pictures and captions: the sprites and the code."""
    digest = hashlib.sha256()
    modules = ("backgrounds", "captions", "scenes", "sprites", "world")
    sources = [Path(__file__).with_name(f"{name}.py") for name in modules]
    atlases = [asset_path("sprites", f"{style}.webp") for style in (*KNOWN_STYLES, HELD_OUT_STYLE)]
    for path in (asset_path("sprites", "nouns.json"), *atlases, *sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Where the pictures are stored: below `DCLIP_CACHE`, else in the user's cache folder."""
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
    """Draws what is missing of a split and returns its folder.

    Args:
        split: one of `SCENE_SPLITS` or `SINGLE_SPLITS`.
        workers: threads that draw.
        folder: instead of `cache_folder()`.

    Raises:
        ValueError: the split is unknown.
    """
    folder = (folder or cache_folder()) / split
    paths = [folder / f"{index:05d}.jpg" for index in range(split_size(split))]
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "annotations.json").exists() and all(path.exists() for path in paths):
        return folder
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
    write_atomically(folder / "annotations.json", json.dumps(entries).encode())
    return folder


def _read(split: str) -> tuple[Path, list[dict]]:
    folder = prepare(split)
    return folder, json.loads((folder / "annotations.json").read_text(encoding="utf-8"))


def load_scenes(split: str) -> list[Scene]:
    """The scenes of a split: places, objects, boxes."""
    return [
        Scene(
            entry["scene"]["place"],
            entry["scene"]["background_seed"],
            tuple(
                SceneObject(**{**obj, "xyxy": tuple(obj["xyxy"])})
                for obj in entry["scene"]["objects"]
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
    folder, entries = _read(split)
    paths = tuple(folder / f"{index:05d}.jpg" for index in range(len(entries)))
    captions = tuple(tuple(entry["captions"]) for entry in entries)
    ids = tuple(name_scene(split, index) for index in range(len(entries)))
    return CaptionedImages(paths, captions, split, "pocket scenes", ids)


def name_scene(split: str, index: int) -> str:
    """Identifies a scene to the leak guard, since versions of Pillow write different bytes."""
    return f"pocket:{split}/{index}"


def load_further(stream: str, count: int, first: int = 0) -> CaptionedImages:
    """Further scenes, sampled like those of the splits; missing pictures are drawn now.

    Args:
        stream: one of `STREAMS`. Scenes of "uncaptioned" have no captions: none are written.
        count: how many.
        first: the number of the first.

    Raises:
        ValueError: the stream is unknown.
    """
    _require(stream, STREAMS)
    folder, numbers = cache_folder() / stream, range(first, first + count)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{number:06d}.jpg" for number in numbers)

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
    folder, entries = _read(split)
    nouns = load_nouns()
    return LabelledImages(
        tuple(folder / f"{index:05d}.jpg" for index in range(len(entries))),
        tuple(entry["scene"]["objects"][0]["noun"] for entry in entries),
        tuple(noun.singular for noun in nouns),
        tuple(noun.domain for noun in nouns),
        f"pocket {split}",
    )


def main() -> None:
    """Draws every split now instead of on first use: `python -m dclip_kit.data.pocket.world`."""
    for split in _SPLITS:
        print(prepare(split))


if __name__ == "__main__":
    main()
