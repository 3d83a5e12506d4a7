"""Reading a curated mixture back, and refusing one that holds evaluation pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import is_text, load_json
from dclip_kit.data.curate import FORMAT
from dclip_kit.data.images import CaptionedImages
from dclip_kit.data.leaks import index_evaluation, require_no_leaks


@dataclass(frozen=True)
class CuratedImages:
    """A curated mixture.

    Attributes:
        train: its training pictures.
        val: those that were held out.
        record: all that the manifest says.
        not_compared: reason by path, of pictures whose content the leak guard could not compare.
    """

    train: CaptionedImages
    val: CaptionedImages
    record: dict[str, Any]
    not_compared: dict[Path, str]


def read_manifest(
    path: Path | str, evaluation: Sequence[CaptionedImages], by_content: bool = True
) -> CuratedImages:
    """Reads what `curate` wrote, unless it holds leaks against the given evaluation sets.

    Held-out pictures choose between models, so that they may not leak either.

    Args:
        path: the JSON file.
        evaluation: the sets that a model will be measured on, perhaps others than were known when
            the manifest was written; none checks nothing.
        by_content: whether leaks are looked for by content too, which reads all pictures.

    Raises:
        ValueError: there is no such file, it is no manifest, or it holds leaks.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    path = Path(path)
    record = load_json(path)
    entries = record.get("entries") if isinstance(record, dict) else None
    if not isinstance(entries, list) or record.get("format") != FORMAT:
        raise ValueError(f"Expected a manifest ({FORMAT}) at {path}; write one with curate.")
    for number, entry in enumerate(entries):
        if not _is_entry(entry):
            raise ValueError(
                f"Expected path, id, captions, source and split (train or val) in entry {number} "
                f"of {path}, got {ascii(entry)[:200]}; write the manifest again with curate."
            )
    train, val = (_select(entries, split, path) for split in ("train", "val"))
    not_compared: dict[Path, str] = {}
    if evaluation:
        index = index_evaluation(evaluation, by_content)
        for dataset in (train, val):
            not_compared |= require_no_leaks(dataset, index).not_compared
    return CuratedImages(train, val, record, not_compared)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("split") not in ("train", "val"):
        return False
    captions, texts = entry.get("captions"), [entry.get(k) for k in ("path", "id", "source")]
    if not isinstance(captions, list) or not captions:
        return False
    fit = all(isinstance(text, str) for text in [*captions, *texts])
    return fit and all(is_text(caption) and caption.strip() for caption in captions)


def _select(entries: list[dict[str, Any]], split: str, manifest: Path) -> CaptionedImages:
    own = [entry for entry in entries if entry["split"] == split]
    return CaptionedImages(
        tuple(manifest.parent / entry["path"] for entry in own),
        tuple(tuple(entry["captions"]) for entry in own),
        split,
        manifest.stem,
        tuple(entry["id"] for entry in own),
    )
