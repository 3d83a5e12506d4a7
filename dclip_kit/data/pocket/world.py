"""The pocket data: scenes and single objects, drawn into a cache folder on first use.

Every picture has its own random generator, so their order changes no byte, and of a cache that was
interrupted only the missing pictures are drawn. Scenes and captions are made anew each time.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.pocket.captions import write_captions
from dclip_kit.data.pocket.scenes import Scene, render_scene, sample_scene, sample_single
from dclip_kit.data.pocket.sprites import HELD_OUT_STYLE, KNOWN_STYLES, load_nouns
from dclip_kit.runtime.files import asset_path, cache_path, write_atomically

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
_ORDER = (*SCENE_SPLITS, *SINGLE_SPLITS, *STREAMS)  # a seed contains its split's number


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
    return cache_path(f"pocket-{_fingerprint()}")


def _require(split: str, known: Iterable[str]) -> None:
    if split not in known:
        raise ValueError(f"Expected a pocket split out of {', '.join(known)}, got {split!r}.")


@lru_cache(8192)  # all that have captions; walks through them are many
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


def _paths(split: str, numbers: Iterable[int]) -> tuple[Path, ...]:
    folder = cache_folder() / split
    return tuple(folder / f"{number:06d}.jpg" for number in numbers)


def draw_scenes(paths: Sequence[Path], make: Callable[[int], Scene], title: str) -> None:
    """Draws those pictures of one folder that are missing.

    Args:
        paths: of the JPEGs.
        make: gives the scene for the path with an index.
        title: of the progress bar.
    """
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    missing = [index for index, path in enumerate(paths) if not path.exists()]

    def draw(index: int) -> None:
        encoded = io.BytesIO()
        render_scene(make(index)).save(encoded, format="JPEG", quality=92)
        write_atomically(paths[index], encoded.getvalue())

    with ThreadPoolExecutor(2) as pool:
        list(tqdm(pool.map(draw, missing), title, len(missing), delay=2))


def load_scenes(split: str) -> list[Scene]:
    """The scenes of one of `SCENE_SPLITS`: places, objects, boxes.

    Raises:
        ValueError: it is no split of scenes.
    """
    _require(split, SCENE_SPLITS)
    return [make_scene(split, number)[0] for number in range(SCENE_SPLITS[split])]


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
    size = SCENE_SPLITS.get(split, 1_000_000)  # six digits in a file's name
    if not 0 <= first < numbers.stop <= size:
        raise ValueError(
            f"Expected scenes of {split} from 0 to {size - 1}, got {first} to {numbers.stop - 1}; "
            "ask for others."
        )
    scenes, captions = zip(*(make_scene(split, number) for number in numbers), strict=True)
    paths, ids = _paths(split, numbers), tuple(name_scene(split, number) for number in numbers)
    draw_scenes(paths, scenes.__getitem__, f"drawing {split}")
    return CaptionedImages(paths, captions, split, f"pocket {split}", ids)


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
    nouns, most = load_nouns(), SINGLE_SPLITS[split][0]
    count = most if per_noun is None else per_noun
    if not 1 <= count <= most:
        raise ValueError(f"Expected 1 to {most} pictures a noun, got {count}; ask for fewer.")
    labels = [noun for noun in range(len(nouns)) for _ in range(count)]
    numbers = [most * noun + index % count for index, noun in enumerate(labels)]
    paths = _paths(split, numbers)
    draw_scenes(paths, lambda index: make_scene(split, numbers[index])[0], f"drawing {split}")
    return LabelledImages(
        paths,
        tuple(labels),
        tuple(noun.singular for noun in nouns),
        tuple(noun.domain for noun in nouns),
        f"pocket {split}",
    )


def main() -> None:
    """Draws every split now instead of on first use: `python -m dclip_kit.data.pocket.world`."""
    for split in SCENE_SPLITS:
        print(load_captioned(split).paths[0].parent)
    for split in SINGLE_SPLITS:
        print(load_labelled(split).paths[0].parent)


if __name__ == "__main__":
    main()
