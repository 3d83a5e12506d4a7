"""Searching a folder of pictures without captions: each picture is embedded once and kept.

The user's cache folder holds vectors for each folder and model. Embedded pictures are named by
bytes and path, so that only new and changed ones are embedded the next time.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from dclip_kit.runtime.files import (
    alone_at,
    cache_path,
    fingerprint,
    load_tensors,
    save_tensors,
)
from dclip_kit.search.index import Hits, find_nearest, stable_topk, unit_vectors
from dclip_kit.search.rescoring import NNN, Rescoring

_BATCH = 256  # pictures to embed and save at a time, in memory as bytes of CLIP's input size


@dataclass(frozen=True, eq=False)
class PictureIndex:
    """Embedded pictures, ready to be searched.

    Attributes:
        paths: of the readable pictures.
        vectors: their features of length 1 in the same order, so that hits are indices of paths.
        unreadable: for the other pictures, the reason by path.
        embedded: how many were embedded now, and not earlier.
        linked: how many of the readable ones lie outside the folder, reached by links.
    """

    paths: tuple[Path, ...]
    vectors: Float[Tensor, "image embed"]
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

        Raises:
            ValueError: top_k is below 1, or the query is of another width, not finite or all zeros.
        """
        if top_k < 1:
            raise ValueError(f"Expected top_k from 1, got {top_k}; ask for more.")
        query = unit_vectors(query, self.vectors.shape[1])
        if references is None:
            scores, images = find_nearest(query, self.vectors, top_k)
        else:
            bias = rescoring.measure_bias(references, self.vectors)
            scores, images = stable_topk(rescoring.apply(query @ self.vectors.T, bias), top_k)
        return Hits(tuple(images[0].tolist()), tuple(scores[0].tolist()))


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
    known, parts = _load(index_folder)
    known_names = set(known)
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
            parts.append(unit_vectors(features))
            known += [names[path] for path in pictures]
            _save(known[-len(pictures) :], parts[-1], index_folder)
            embedded += len(pictures)
    readable = [path for path in paths if path not in unreadable]
    if not readable:
        raise ValueError(
            f"Expected pictures that can be read in {folder}, got none; repair them, such as the "
            f"first ({next(iter(unreadable.values()))})."
        )
    wanted = [names[path] for path in readable]
    if known != wanted or len(parts) > 1:
        row_of = {name: row for row, name in enumerate(known)}
        parts = [torch.cat(parts)[[row_of[name] for name in wanted]]]
        written = _save(wanted, parts[0], index_folder)
        for file in index_folder.glob("*.safetensors*"):  # what a crash has left behind, too
            if file != written:
                with suppress(OSError):  # Windows keeps what is mapped: it is known twice then
                    file.unlink()
    return PictureIndex(
        tuple(readable), parts[0], unreadable, embedded, linked=count_links(readable, folder)
    )


def _save(names: Sequence[str], vectors: Float[Tensor, "image embed"], index_folder: Path) -> Path:
    """Writes named vectors into a file of their own, complete or not at all."""
    file = index_folder / f"{secrets.token_hex(8)}.safetensors"
    name_bytes = torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8)
    save_tensors({"vectors": vectors, "ids": name_bytes}, file)
    return file


def _load(index_folder: Path) -> tuple[list[str], list[Float[Tensor, "_image embed"]]]:
    """All names and vectors that were saved; damaged files are deleted, to be made again."""
    names: list[str] = []
    parts: list[Tensor] = []
    for file in sorted(index_folder.glob("*.safetensors")):
        try:
            tensors = load_tensors(file)
            part_names = json.loads(tensors["ids"].numpy().tobytes())
            part = tensors["vectors"]
        except FileNotFoundError:  # somebody with another cache folder has no part in the lock
            continue
        except (ValueError, KeyError):
            file.unlink(missing_ok=True)
            continue
        names += part_names
        parts.append(part)
    return names, parts


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
