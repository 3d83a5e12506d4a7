"""The paper's training mixture, drawn once and written down picture by picture."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dclip_kit.data.images import CaptionedImages
from dclip_kit.data.leaks import EvaluationIndex, Leak, index_evaluation, remove_leaks
from dclip_kit.data.usable import sort_out
from dclip_kit.runtime.files import write_atomically

# How many pictures of each data set the paper draws: 75,000, of which a tenth is held out, so that
# 67,500 train. Our reading: a picture with all its captions counts as one image-caption pair.
PAPER_MIXTURE = {"coco": 50_000, "flickr30k": 15_000, "conceptual_captions": 10_000}
HELD_OUT = 0.1
FORMAT = "dclip-kit manifest 1"


@dataclass
class _Drawn:
    """What was drawn of one data set, and what was met on the way and left out."""

    dataset: CaptionedImages
    leaks: list[Leak] = field(default_factory=list)
    unusable: dict[Path, str] = field(default_factory=dict)
    not_compared: dict[Path, str] = field(default_factory=dict)


def curate(
    datasets: Mapping[str, CaptionedImages],
    manifest: Path | str,
    evaluation: Sequence[CaptionedImages],
    *,
    mixture: Mapping[str, int] = PAPER_MIXTURE,
    held_out: float = HELD_OUT,
    seed: int = 0,
    by_content: bool = True,
) -> dict[str, Any]:
    """Draws a training mixture without leaks and writes it as a manifest, atomically.

    The same seed draws the same pictures, whatever order they were read in. Pictures that cannot be
    read, have no caption or leak are passed over for the next; each is named in the manifest.

    Args:
        datasets: by name, as in the mixture, those of its data sets that are present. They may have
            been read with checks="files": pictures are read here, and only those that are drawn.
        manifest: the JSON file to write.
        evaluation: the sets that a model will be measured on.
        mixture: how many pictures to draw by name.
        held_out: share of each data set that goes to split "val", 0 to below 1.
        seed: of the draw.
        by_content: whether leaks are looked for by content too.

    Returns:
        What was written: format, recipe, seed, counts, leaks, unusable, not_compared, entries.

    Raises:
        ValueError: a data set is not of the mixture, an argument is out of range, or nothing was
            drawn.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    unknown = sorted(datasets.keys() - mixture.keys())
    if unknown:
        raise ValueError(
            f"Expected data sets of the mixture ({', '.join(mixture)}), got {', '.join(unknown)}; "
            "name them so, or give a mixture that has them."
        )
    if not 0 <= held_out < 1 or any(count < 0 for count in mixture.values()):
        raise ValueError(
            f"Expected a held-out share from 0 to below 1 and no negative count, got {held_out} "
            f"and {dict(mixture)}."
        )
    place = Path(manifest)
    index = index_evaluation(evaluation, by_content)
    drawn = {
        name: _draw(datasets[name], count, random.Random(f"{seed} {name}"), index)
        for name, count in mixture.items()
        if name in datasets
    }
    entries, counts = [], {}
    for name, count in mixture.items():
        own = _entries(drawn[name].dataset, name, held_out, place) if name in drawn else []
        train = sum(entry["split"] == "train" for entry in own)
        counts[name] = {"asked": count, "train": train, "val": len(own) - train}
        entries += own
    if not entries:
        raise ValueError(
            f"Expected pictures to draw from {', '.join(datasets) or 'at least one data set'}, but "
            "none was usable and free of leaks; read one of the mixture's data sets first."
        )
    parts = list(drawn.values())
    record = {
        "format": FORMAT,
        "recipe": {"mixture": dict(mixture), "held_out": held_out, "by_content": by_content},
        "seed": seed,
        "counts": counts,
        "leaks": [
            {"picture": str(leak.picture), "evaluation": str(leak.evaluation), "by": leak.by}
            for part in parts
            for leak in part.leaks
        ],
        "unusable": _reasons([part.unusable for part in parts]),
        "not_compared": _reasons([index.not_compared, *(part.not_compared for part in parts)]),
        "entries": entries,
    }
    write_atomically(place, json.dumps(record, indent=1) + "\n")
    return record


def _draw(
    dataset: CaptionedImages, count: int, rng: random.Random, index: EvaluationIndex
) -> _Drawn:
    """Goes through the pictures in a random order until there are enough without fault."""
    ids = dataset.image_ids or ("",) * len(dataset)
    # By id and name and not by folder, so that the draw is the same on another machine.
    order = sorted(range(len(dataset)), key=lambda i: (ids[i], dataset.paths[i].name, i))
    rng.shuffle(order)
    drawn, chosen, start = _Drawn(dataset), list[int](), 0
    place = {path: i for i, path in enumerate(dataset.paths)}  # the first of a path that is twice
    while len(chosen) < count and start < len(order):
        # What leaks or fails is made up for from the next ones in the order.
        batch = dataset.select(order[start : start + count - len(chosen)])
        start += len(batch)
        found = sort_out(batch.paths, batch.captions, batch.split, batch.source, batch.image_ids)
        drawn.unusable |= found.unreadable
        clean = remove_leaks(found.dataset, index)
        drawn.leaks += clean.report.leaks
        own = set(batch.paths)
        drawn.not_compared |= {
            path: reason for path, reason in clean.report.not_compared.items() if path in own
        }
        for path, captions in zip(clean.dataset.paths, clean.dataset.captions, strict=True):
            if captions:
                chosen.append(place[path])
            else:
                drawn.unusable[path] = "it has no caption"
    drawn.dataset = dataset.select(list(dict.fromkeys(chosen)))
    return drawn


def _entries(
    dataset: CaptionedImages, name: str, held_out: float, manifest: Path
) -> list[dict[str, Any]]:
    """The entries of one data set; they stand in random order, so that the last are held out."""
    train = len(dataset) - round(held_out * len(dataset))
    folder = manifest.absolute().parent
    entries = []
    for i, (path, captions) in enumerate(zip(dataset.paths, dataset.captions, strict=True)):
        whole = path.absolute()
        # Below the manifest's folder, so that both can move together.
        inside = whole.relative_to(folder) if whole.is_relative_to(folder) else whole
        entries.append(
            {
                "path": inside.as_posix(),
                "id": dataset.image_ids[i] if dataset.image_ids else "",
                "captions": list(captions),
                "source": name,
                "split": "train" if i < train else "val",
            }
        )
    return entries


def _reasons(parts: Sequence[dict[Path, str]]) -> list[dict[str, str]]:
    return [{"path": str(p), "reason": reason} for part in parts for p, reason in part.items()]
