"""A folder's pictures, embedded once and kept: captions are not needed, only a query.

The user's cache folder holds a search index for each folder and model. A picture that was embedded
is known by its path and bytes, so that only new and changed ones are embedded the next time.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.data.paths import PICTURE_SUFFIXES, is_picture, walk_files
from dclip_kit.data.pictures import count_links, scan_pictures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images, read_picture
from dclip_kit.runtime.files import cache_path, fingerprint
from dclip_kit.runtime.printing import say
from dclip_kit.search.index import Hits, SearchIndex
from dclip_kit.search.rescoring import NNN, Rescoring

_BATCH = 256  # pictures between two looks at what is done, in memory as bytes of CLIP's size


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """Pictures, ready to be searched.

    Attributes:
        paths: of the readable ones.
        vectors: theirs, in this order, so that hits are indices of paths.
        unreadable: reason by path, of the others.
        embedded: how many were embedded now; the rest had been before.
        linked: how many of the readable ones are links out of the folder.
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
        """Finds the pictures that are nearest to a query.

        Args:
            query: of length 1.
            top_k: how many.
            references: of length 1, to rescore by; None leaves scores as they are.
            rescoring: how.
        """
        if references is None:
            return self.vectors.search(query, top_k)[0]
        vectors = torch.cat(list(self.vectors.shards.values()))
        bias = rescoring.measure_bias(references, vectors)
        scores, images = rescoring.apply(query @ vectors.T, bias)[0].topk(min(top_k, len(vectors)))
        return Hits(tuple(images.tolist()), tuple(scores.tolist()))


def find_pictures(place: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder and of the folders in it, in order of names.

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
    """Embeds a folder's pictures, those of them that are new or have changed.

    Args:
        bundle: the CLIP.
        folder: of pictures, or one picture.
        cache: where features are kept; left out, below `DCLIP_CACHE` or the user's cache folder.
        on_batch: called before each batch with how many pictures are done, of how many that were
            not known, in place of a progress bar. What it raises stops the work; what is embedded
            is kept.

    Raises:
        ValueError: there is no picture that can be read.
    """
    paths = find_pictures(folder)
    place = (cache or cache_path("search")) / _key(bundle, folder)
    with _alone_at(place, folder):
        return _update(bundle, folder, paths, place, on_batch)


@contextmanager
def _alone_at(place: Path, folder: Path) -> Iterator[None]:
    """Waits for other processes that index the same folder, which is said."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{place}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is embedding {folder}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _update(
    bundle: ClipBundle,
    folder: Path,
    paths: Sequence[Path],
    place: Path,
    on_batch: Callable[[int, int], None] | None,
) -> PictureIndex:
    """Brings an index up to date, while nobody else does."""
    scans = dict(zip(paths, scan_pictures(paths, "looking for changes", decode=False), strict=True))
    unreadable = {path: scan.problem for path, scan in scans.items() if scan.problem}
    names = {path: f"{scan.digest} {path.relative_to(folder)}" for path, scan in scans.items()}
    try:
        known = SearchIndex(place)
    except (FileNotFoundError, ValueError):  # damaged: the pictures can be embedded again
        shutil.rmtree(place)
        known = SearchIndex(place)
    before = set(known.ids)
    new = [path for path in paths if names[path] not in before and path not in unreadable]
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
            known.append([names[path] for path in pictures], features)
            embedded += len(pictures)
    readable = [path for path in paths if path not in unreadable]
    if not readable:
        raise ValueError(
            f"Expected pictures that can be read in {folder}, got none; mend them, such as the "
            f"first ({next(iter(unreadable.values()))})."
        )
    kept = [names[path] for path in readable]
    if known.ids != kept or len(known.shards) > 1:  # many small shards take longer to search
        known.rewrite(kept)
    return PictureIndex(
        tuple(readable), known, unreadable, embedded, linked=count_links(readable, folder)
    )


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
