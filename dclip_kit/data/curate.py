"""The paper's training mixture, drawn once and written down picture by picture: a manifest."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dclip_kit.data.annotations import drop_unusable, is_text, list_reasons, load_json
from dclip_kit.data.images import CaptionedImages
from dclip_kit.data.leaks import EvaluationIndex, find_leaks, index_evaluation
from dclip_kit.runtime.files import write_atomically

# How many pictures of each data set the paper draws: 75,000, of which a tenth is held out, so that
# 67,500 train. Our reading: a picture with all its captions counts as one image-caption pair.
PAPER_MIXTURE = {"coco": 50_000, "flickr30k": 15_000, "conceptual_captions": 10_000}
HELD_OUT = 0.1
FORMAT = "dclip-kit manifest 1"


def curate(
    datasets: Mapping[str, CaptionedImages],
    manifest: Path | str,
    evaluation: Sequence[CaptionedImages],
    *,
    mixture: Mapping[str, int] = PAPER_MIXTURE,
    seed: int = 0,
    by_content: bool = True,
) -> dict[str, Any]:
    """Draws a training mixture without leaks and writes it as a manifest, atomically.

    The same seed draws the same pictures, whatever order they were read in. Pictures that cannot be
    read, have no caption or leak are passed over for the next; each is named in the manifest. A
    tenth of each data set goes to split "val".

    Args:
        datasets: by name, as in the mixture, those of its data sets that are present. They may have
            been read with checks="files": pictures are read here, and only those that are drawn.
        manifest: the JSON file to write.
        evaluation: the sets that a model will be measured on.
        mixture: how many pictures to draw by name.
        seed: of the draw.
        by_content: whether leaks are looked for by content too.

    Returns:
        What was written: format, recipe, seed, counts, leaks, unusable, not_compared, entries.

    Raises:
        ValueError: a data set is not of the mixture, or nothing was drawn.
        ModuleNotFoundError: imagehash is not installed, and `by_content` asks for it.
    """
    if unknown := sorted(datasets.keys() - mixture.keys()):
        raise ValueError(
            f"Expected data sets of the mixture ({', '.join(mixture)}), got {', '.join(unknown)}; "
            "name them so, or give a mixture that has them."
        )
    index = index_evaluation(evaluation, by_content)
    record: dict[str, Any] = {
        "format": FORMAT,
        "recipe": {"mixture": dict(mixture), "held_out": HELD_OUT, "by_content": by_content},
        "seed": seed,
        "counts": {},
        "leaks": [],
        "unusable": [],
        "not_compared": list_reasons(index.not_compared),
        "entries": [],
    }
    for name, count in mixture.items():
        entries = []
        if name in datasets:
            rng = random.Random(f"{seed} {name}")
            drawn = _draw(datasets[name], count, rng, index, record)
            entries = _list_entries(drawn, name, Path(manifest).absolute().parent)
        train = sum(entry["split"] == "train" for entry in entries)
        record["counts"][name] = {"asked": count, "train": train, "val": len(entries) - train}
        record["entries"] += entries
    if not record["entries"]:
        raise ValueError(
            f"Expected pictures to draw from {', '.join(datasets) or 'at least one data set'}, but "
            "none was usable and free of leaks; read one of the mixture's data sets first."
        )
    write_atomically(Path(manifest), json.dumps(record, indent=1) + "\n")
    return record


def _draw(
    dataset: CaptionedImages,
    count: int,
    rng: random.Random,
    index: EvaluationIndex,
    record: dict[str, Any],
) -> CaptionedImages:
    """Goes through the pictures in a random order until there are enough without fault.

    What is left out on the way is noted in the record.
    """
    paths, ids = dataset.paths, dataset.image_ids
    # By id and name and not by folder, so that the draw is the same on another machine.
    order = sorted(range(len(dataset)), key=lambda i: (ids[i], paths[i].name, i))
    rng.shuffle(order)
    chosen: list[int] = []
    while order and len(chosen) < count:
        # What leaks or fails is made up for from the next ones in the order.
        size = count - len(chosen)
        batch, order = order[:size], order[size:]
        found = drop_unusable(dataset.select(batch))
        report = find_leaks(found.dataset, index)
        bare = {str(paths[i]): "it has no caption" for i in batch if not dataset.captions[i]}
        unusable = bare | found.unusable
        left_out = unusable.keys() | {str(leak.picture) for leak in report.leaks}
        chosen += [i for i in batch if str(paths[i]) not in left_out]
        blind = {p: why for p, why in report.not_compared.items() if p not in index.not_compared}
        record["leaks"] += [leak.as_dict() for leak in report.leaks]
        record["unusable"] += list_reasons(unusable)
        record["not_compared"] += list_reasons(blind)
    return dataset.select(chosen)


def _list_entries(dataset: CaptionedImages, name: str, folder: Path) -> list[dict[str, Any]]:
    """The entries of one data set; they stand in random order, so that the last are held out."""
    train = len(dataset) - round(HELD_OUT * len(dataset))
    # Below the manifest's folder, so that both can move together.
    places = [path.absolute() for path in dataset.paths]
    places = [p.relative_to(folder) if p.is_relative_to(folder) else p for p in places]
    return [
        {
            "path": place.as_posix(),
            "id": dataset.image_ids[i],
            "captions": list(dataset.captions[i]),
            "source": name,
            "split": "train" if i < train else "val",
        }
        for i, place in enumerate(places)
    ]


def is_manifest(path: Path | str) -> bool:
    """Whether a file begins as those that `curate` writes."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return FORMAT.encode() in file.read(100)


def read_manifest(path: Path | str) -> CaptionedImages:
    """Reads what `curate` wrote: pictures of the splits train and val.

    Raises:
        ValueError: there is no such file, or it is no manifest.
    """
    path = Path(path)
    record = load_json(path)
    entries = record.get("entries") if isinstance(record, dict) else None
    if not isinstance(entries, list) or record.get("format") != FORMAT:
        raise ValueError(f"Expected a manifest ({FORMAT}) at {path}; write one with curate.")
    if odd := [number for number, entry in enumerate(entries) if not _is_entry(entry)]:
        raise ValueError(
            f"Expected path, id, captions, source and split (train or val) in entry {odd[0]} of "
            f"{path}, got {ascii(entries[odd[0]])[:200]}; write the manifest again with curate."
        )
    return CaptionedImages(
        tuple(path.parent / entry["path"] for entry in entries),
        tuple(tuple(entry["captions"]) for entry in entries),
        "all",
        path.stem,
        tuple(entry["id"] for entry in entries),
        tuple(entry["split"] for entry in entries),
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("captions"), list):
        return False
    texts = [*entry["captions"], *(entry.get(key) for key in ("path", "id", "source"))]
    return (
        entry.get("split") in ("train", "val")
        and all(isinstance(text, str) and is_text(text) for text in texts)
        and bool(entry["captions"])
        and all(caption.strip() for caption in entry["captions"])
    )
