"""The pocket data: scenes and single objects, drawn into a cache folder on first use.

Every picture has its own random generator, so neither the order nor the number of workers changes
a byte, and of a cache that was interrupted only the missing pictures are drawn.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
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


def _paths(folder: Path, numbers: Iterable[int]) -> tuple[Path, ...]:
    return tuple(folder / f"{number:06d}.jpg" for number in numbers)


def _draw(
    split: str, numbers: Sequence[int], folder: Path, workers: int = 2
) -> list[tuple[Scene, tuple[str, ...]]]:
    """Draws those pictures that are missing in a folder; returns what `make_scene` does."""
    folder.mkdir(parents=True, exist_ok=True)

    def draw(number: int, path: Path) -> tuple[Scene, tuple[str, ...]]:
        scene, captions = make_scene(split, number)
        if not path.exists():
            encoded = io.BytesIO()
            render_scene(scene).save(encoded, format="JPEG", quality=92)
            write_atomically(path, encoded.getvalue())
        return scene, captions

    with ThreadPoolExecutor(workers) as pool:
        made = pool.map(draw, numbers, _paths(folder, numbers))
        return list(tqdm(made, total=len(numbers), desc=f"drawing {split}", delay=2))


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
    numbers, annotations = range(split_size(split)), folder / "annotations.json"
    if annotations.exists() and all(path.exists() for path in _paths(folder, numbers)):
        return folder
    made = _draw(split, numbers, folder, workers)
    entries = [{"scene": asdict(scene), "captions": captions} for scene, captions in made]
    write_atomically(annotations, json.dumps(entries).encode())
    return folder


def _read(split: str) -> list[dict]:
    return json.loads((prepare(split) / "annotations.json").read_text(encoding="utf-8"))


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
        for entry in _read(split)
    ]


def load_captioned(split: str, count: int | None = None, first: int = 0) -> CaptionedImages:
    """Scenes with five captions each; those of "uncaptioned" have none.

    Pictures that are missing are drawn now.

    Args:
        split: one of `SCENE_SPLITS`; or one of `STREAMS`, where count must be given.
        count: how many; left out, the whole split.
        first: the number of the first.

    Raises:
        ValueError: it is no split of scenes, or does not have as many.
    """
    _require(split, SCENE_SPLITS if count is None else (*SCENE_SPLITS, *STREAMS))
    numbers = range(first, SCENE_SPLITS[split] if count is None else first + count)
    folder = cache_folder() / split
    size = SCENE_SPLITS.get(split, 1_000_000)  # six digits in a file's name
    if not 0 <= first < numbers.stop <= size:
        raise ValueError(
            f"Expected scenes of {split} from 0 to {size - 1}, got {first} to {numbers.stop - 1}; "
            "ask for others."
        )
    if count is not None:
        captions = [texts for _, texts in _draw(split, numbers, folder)]
    else:
        captions = [tuple(entry["captions"]) for entry in _read(split)[first:]]
    ids = tuple(name_scene(split, number) for number in numbers)
    paths = _paths(folder, numbers)
    return CaptionedImages(paths, tuple(captions), split, f"pocket {split}", ids)


def name_scene(split: str, index: int) -> str:
    """Identifies a scene to the leak guard, since versions of Pillow write different bytes."""
    return f"pocket:{split}/{index}"


def load_labelled(split: str, per_noun: int | None = None) -> LabelledImages:
    """A split of single objects, over all nouns.

    Args:
        split: one of `SINGLE_SPLITS`.
        per_noun: how many pictures of each noun; left out, all.

    Raises:
        ValueError: it is no split of single objects, or does not have as many.
    """
    _require(split, SINGLE_SPLITS)
    nouns, most, folder = load_nouns(), SINGLE_SPLITS[split][0], cache_folder() / split
    count = most if per_noun is None else per_noun
    if not 1 <= count <= most:
        raise ValueError(f"Expected 1 to {most} pictures a noun, got {count}; ask for fewer.")
    labels = [noun for noun in range(len(nouns)) for _ in range(count)]
    numbers = [most * noun + index % count for index, noun in enumerate(labels)]
    if per_noun is None:
        prepare(split)
    else:
        _draw(split, numbers, folder)
    return LabelledImages(
        _paths(folder, numbers),
        tuple(labels),
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
