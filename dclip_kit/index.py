"""A folder's pictures, embedded once and kept: captions are not needed, only a query.

Kept in the user's cache folder, a file for each folder and model: what was embedded is known by
path, size and time, so that new and changed pictures alone are embedded the next time.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.assets import cache_path
from dclip_kit.checkpoint import fingerprint, load_tensors, save_tensors
from dclip_kit.datasets import open_picture
from dclip_kit.datasets.folder import PICTURE_SUFFIXES, walk_files
from dclip_kit.embedding import encode_images
from dclip_kit.encoders import ClipBundle

_BATCH = 256  # pictures between two looks at what is done, in memory as bytes of CLIP's size


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """Pictures, ready to be searched.

    Attributes:
        paths: of the readable ones.
        image_features: theirs, in this order.
        unreadable: reason by path, of the others.
        embedded: how many were embedded now; the rest had been before.
    """

    paths: tuple[Path, ...]
    image_features: Float[Tensor, "image embed"]
    unreadable: dict[Path, str]
    embedded: int


def find_pictures(place: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder and of the folders in it, in order of names.

    Raises:
        ValueError: there is nothing at the path, or no picture in the folder.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"Expected a picture or a folder at {place}, found none; check the path.")
    names = [name for name in walk_files(place) if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    if not names:
        known = ", ".join(sorted(PICTURE_SUFFIXES))
        raise ValueError(
            f"Expected pictures ({known}) in {place} or in folders below it, found none; name "
            "another."
        )
    return [place / name for name in names]


def index_pictures(bundle: ClipBundle, folder: Path, cache: Path | None = None) -> PictureIndex:
    """Embeds a folder's pictures, those of them that are new or have changed.

    Args:
        bundle: the CLIP.
        folder: of pictures, or one picture.
        cache: where features are kept; left out, below `DCLIP_CACHE` or the user's cache folder.

    Raises:
        ValueError: there is no picture that can be read.
    """
    states = {path: _state(path, folder) for path in find_pictures(folder)}
    file = (cache or cache_path("search")) / f"{_key(bundle, folder)}.safetensors"
    known = _load(file)
    new = [path for path, state in states.items() if state not in known]
    unreadable: dict[Path, str] = {}
    for start in tqdm(range(0, len(new), _BATCH), desc="embedding pictures", delay=2):
        pictures = {}
        for path in new[start : start + _BATCH]:
            try:
                pictures[path] = bundle.to_pixels(open_picture(path))
            except ValueError as error:
                unreadable[path] = str(error)
        if pictures:
            pixels = torch.stack(list(pictures.values()))
            features = encode_images(bundle, pixels, progress=False)
            known |= {states[path]: row for path, row in zip(pictures, features, strict=True)}
    found = [path for path in states if path not in unreadable]
    if not found:
        first = next(iter(unreadable.values()), "none is there")
        raise ValueError(f"Expected pictures that can be read in {folder}, got none: {first}")
    kept = {states[path]: known[states[path]] for path in found}
    if len(new) > len(unreadable) or len(kept) < len(known):
        _save(kept, file)
    return PictureIndex(
        tuple(found), torch.stack(list(kept.values())), unreadable, len(new) - len(unreadable)
    )


def _key(bundle: ClipBundle, folder: Path) -> str:
    """What decides the features besides the pictures, weights and preprocessing; and the folder."""
    visual = bundle.model.visual
    made_with = [
        str(folder.resolve()),
        fingerprint(*visual.state_dict().values()),
        open_clip.model.get_model_preprocess_cfg(visual),
        bundle.model_config,
    ]
    return hashlib.sha256(json.dumps(made_with, default=str).encode()).hexdigest()[:16]


def _state(path: Path, folder: Path) -> str:
    """What tells that a picture is still the one that was embedded."""
    try:
        stat = path.stat()
    except OSError:  # a link to nothing, say: told when it is read
        return str(path.relative_to(folder))
    return f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}"


def _save(known: dict[str, Tensor], file: Path) -> None:
    """One file, so that states and features can never be of different moments."""
    states = torch.frombuffer(bytearray(json.dumps(list(known)).encode()), dtype=torch.uint8)
    save_tensors({"states": states, "image": torch.stack(list(known.values()))}, file)


def _load(file: Path) -> dict[str, Tensor]:
    """What is kept; nothing where that is damaged, since pictures can be embedded again."""
    try:
        tensors = load_tensors(file)
        states = json.loads(bytes(tensors["states"].tolist()).decode())
        return dict(zip(states, tensors["image"], strict=True))
    except (FileNotFoundError, KeyError, ValueError):
        return {}
