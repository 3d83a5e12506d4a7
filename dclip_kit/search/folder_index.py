"""Searching a folder of pictures without captions: each picture is embedded once and kept.

The user's cache folder holds a search index for each folder and model. Embedded pictures are
identified by path and bytes, so that only new and changed ones are embedded the next time.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.data.paths import PICTURE_SUFFIXES, is_picture, walk_files
from dclip_kit.data.pictures import count_links, scan_pictures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images, read_picture
from dclip_kit.runtime.files import alone_at, cache_path, fingerprint
from dclip_kit.search.index import Hits, SearchIndex, stable_topk
from dclip_kit.search.rescoring import NNN, Rescoring

_BATCH = 256  # pictures to embed and save at a time, in memory as bytes of CLIP's input size


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """Embedded pictures, ready to be searched.

    Attributes:
        paths: of the readable pictures.
        vectors: their features in the same order, so that hits are indices of paths.
        unreadable: for the other pictures, the reason by path.
        embedded: how many were embedded now, and not earlier.
        linked: how many of the readable ones lie outside the folder, reached by links.
    """

    paths: tuple[Path, ...]
    vectors: SearchIndex
    unreadable: dict[Path, str]
    embedded: int
    linked: int

    def search(
        self,
        query: Float[Tensor, "1 embed"],
        top_k: int,
        references: Float[Tensor, "reference_query embed"] | None = None,
        rescoring: Rescoring = NNN,
    ) -> Hits:
        """Finds the pictures nearest to a query.

        Args:
            query: of length 1.
            top_k: how many.
            references: reference queries of length 1 for rescoring; None leaves scores unchanged.
            rescoring: the method.
        """
        if references is None:
            return self.vectors.search(query, top_k)[0]
        vectors = torch.cat(list(self.vectors.shards.values()))
        bias = rescoring.measure_bias(references, vectors)
        scores, images = stable_topk(rescoring.apply(query @ vectors.T, bias), top_k)
        found = images[0].tolist()
        ids = tuple(self.vectors.ids[image] for image in found)
        return Hits(tuple(found), tuple(scores[0].tolist()), ids)


def find_pictures(place: Path) -> list[Path]:
    """The picture itself, or all pictures below a folder, in order of names.

    Links to pictures and folders are followed.

    Raises:
        ValueError: there is nothing at the path, or no picture in the folder.
    """
    if place.is_file():
        return [place]
    files = walk_files(place) if place.is_dir() else ()
    names = list(filter(is_picture, files))
    if not names:
        raise ValueError(
            f"Expected pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) at {place} or in folders "
            "below it, found none; name another picture or folder."
        )
    return [place / name for name in names]


def index_pictures(
    bundle: ClipBundle,
    folder: Path,
    cache: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> PictureIndex:
    """Embeds the pictures of a folder that are new or have changed.

    Args:
        bundle: the CLIP.
        folder: of pictures, or one picture.
        cache: where features are kept; left out, below `DCLIP_CACHE` or the user's cache folder.
        on_batch: called before each batch, in place of a progress bar, with how many new pictures
            are done and how many there are. An error that it raises stops the work; pictures
            embedded so far are kept.

    Raises:
        ValueError: there is no readable picture.
    """
    paths = find_pictures(folder)
    index_folder = (cache or cache_path("search")) / _key(bundle, folder)
    with alone_at(index_folder, f"embedding {folder}"):
        return _update(bundle, folder, paths, index_folder, on_batch)


def _update(
    bundle: ClipBundle,
    folder: Path,
    paths: Sequence[Path],
    index_folder: Path,
    on_batch: Callable[[int, int], None] | None,
) -> PictureIndex:
    """Brings an index up to date, under the lock of `alone_at`."""
    scans = dict(zip(paths, scan_pictures(paths, "looking for changes", decode=False), strict=True))
    unreadable = {path: scan.problem for path, scan in scans.items() if scan.problem}
    names = {path: f"{scan.digest} {path.relative_to(folder)}" for path, scan in scans.items()}
    try:
        index = SearchIndex(index_folder)
    except (FileNotFoundError, ValueError):  # damaged: the pictures can be embedded again
        shutil.rmtree(index_folder)
        index = SearchIndex(index_folder)
    known_names = set(index.ids)
    new = [path for path in paths if names[path] not in known_names and path not in unreadable]
    embedded = 0
    for start in tqdm(
        range(0, len(new), _BATCH), "embedding pictures", delay=2, disable=on_batch is not None
    ):
        if on_batch:
            on_batch(start, len(new))
        pictures = {}
        for path in new[start : start + _BATCH]:
            try:
                pictures[path] = read_picture(bundle, path)
            except ValueError as error:
                unreadable[path] = str(error)
        if pictures:
            features = encode_images(bundle, torch.stack(list(pictures.values())), progress=False)
            index.append([names[path] for path in pictures], features)
            embedded += len(pictures)
    readable = [path for path in paths if path not in unreadable]
    if not readable:
        raise ValueError(
            f"Expected pictures that can be read in {folder}, got none; repair them, such as the "
            f"first ({next(iter(unreadable.values()))})."
        )
    ids = [names[path] for path in readable]
    if index.ids != ids or len(index.shards) > 1:  # many small shards take longer to search
        index.rewrite(ids)
    return PictureIndex(
        tuple(readable), index, unreadable, embedded, linked=count_links(readable, folder)
    )


def _key(bundle: ClipBundle, folder: Path) -> str:
    """A digest of the folder and of what features depend on: weights, preprocessing, precision."""
    visual = bundle.model.visual
    made_with = [
        str(folder.resolve()),
        fingerprint(*visual.state_dict().values()),
        open_clip.model.get_model_preprocess_cfg(visual),
        bundle.model_config,
        *([] if bundle.precision == "no" else [bundle.precision]),
    ]
    return hashlib.sha256(json.dumps(made_with, default=str).encode()).hexdigest()[:16]
