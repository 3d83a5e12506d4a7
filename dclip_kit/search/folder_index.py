"""A folder's pictures, embedded once and kept: captions are not needed, only a query.

Kept in the user's cache folder, a search index for each folder and model: what was embedded is
known by path, size and time, so that new and changed pictures alone are embedded the next time.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.data.folder import PICTURE_SUFFIXES, walk_files
from dclip_kit.data.pictures import count_links
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.reading import read_picture
from dclip_kit.runtime.files import cache_path, fingerprint
from dclip_kit.search.hits import Found
from dclip_kit.search.index import SearchIndex

_BATCH = 256  # pictures between two looks at what is done, in memory as bytes of CLIP's size


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """Pictures, ready to be searched.

    Attributes:
        paths: of the readable ones.
        vectors: theirs; in any order, and named by what tells that a picture is still the same.
        place: by this name, a picture's place among the paths.
        unreadable: reason by path, of the others.
        embedded: how many were embedded now; the rest had been before.
        linked: how many of the readable ones are links out of the folder.
    """

    paths: tuple[Path, ...]
    vectors: SearchIndex
    place: dict[str, int]
    unreadable: dict[Path, str]
    embedded: int
    linked: int = 0

    def search(self, query: Float[Tensor, "_embed"], top_k: int = 5) -> Found:
        """Finds the pictures nearest to a query's vector, from the same model, by their places.

        Raises:
            ValueError: as `SearchIndex.search`.
        """
        (hits,) = self.vectors.search(query[None], top_k)
        return Found(tuple(self.place[name] for name in hits.ids), hits.scores)


def find_pictures(place: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder and of the folders in it, in order of names.

    Links to pictures and folders are followed.

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
    known = _open((cache or cache_path("search")) / _key(bundle, folder))
    new = [path for path, state in states.items() if state not in known.names]
    unreadable: dict[Path, str] = {}
    for start in tqdm(range(0, len(new), _BATCH), desc="embedding pictures", delay=2):
        pictures = {}
        for path in new[start : start + _BATCH]:
            try:
                pictures[path] = read_picture(bundle, path)
            except ValueError as error:
                unreadable[path] = str(error)
        if pictures:
            features = encode_images(bundle, torch.stack(list(pictures.values())), progress=False)
            known.append([states[path] for path in pictures], features)
    paths = [path for path in states if path not in unreadable]
    if not paths:
        first = next(iter(unreadable.values()), "none is there")
        raise ValueError(f"Expected pictures that can be read in {folder}, got none: {first}")
    place = {states[path]: number for number, path in enumerate(paths)}
    gone = [name for name in known.names if name not in place]
    if gone:
        known.delete(gone)
    embedded, linked = len(new) - len(unreadable), count_links(paths, folder)
    return PictureIndex(tuple(paths), known, place, unreadable, embedded, linked)


def _open(place: Path) -> SearchIndex:
    """What is kept; nothing where that is damaged, since pictures can be embedded again."""
    try:
        return SearchIndex(place)
    except (FileNotFoundError, ValueError):
        shutil.rmtree(place)
        return SearchIndex(place)


def _key(bundle: ClipBundle, folder: Path) -> str:
    """What decides the features besides the pictures, weights and preprocessing; and the folder."""
    visual = bundle.model.visual
    made_with = [
        str(folder.resolve()),
        fingerprint(*visual.state_dict().values()),
        open_clip.model.get_model_preprocess_cfg(visual),
        bundle.model_config,
        *([] if bundle.precision == "no" else [bundle.precision]),
    ]
    return hashlib.sha256(json.dumps(made_with, default=str).encode()).hexdigest()[:16]


def _state(path: Path, folder: Path) -> str:
    """What tells that a picture is still the one that was embedded."""
    try:
        stat = path.stat()
    except OSError:  # a link to nothing, say: told when it is read
        return str(path.relative_to(folder))
    return f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}"
