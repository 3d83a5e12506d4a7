"""What a run has trained and chosen on, kept beside its arms, so that nobody measures them on it.

Pictures are known by their names in public data sets, by their files' bytes and by what they show,
as the leak guard knows them, so that it does not matter where they lie or what data set has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.leaks import EvaluationIndex, Leak, find_leaks, index_evaluation
from dclip_kit.data.pocket.world import SCENE_SPLITS
from dclip_kit.data.scan import scan_pictures
from dclip_kit.evaluation.records import read_record, write_record
from dclip_kit.runtime.printing import printable

PICTURES = "pictures.json"


@dataclass(frozen=True, eq=False)
class SeenPictures:
    """The pictures that a run has seen.

    Attributes:
        trained: captioned ones that its teacher or students trained on.
        chosen: captioned ones that its interpolations were chosen on.
        labelled: digests of the labelled ones that these were chosen on.
        complete: False where a teacher was taken that left no record of what it has trained on.
    """

    trained: EvaluationIndex
    chosen: EvaluationIndex
    labelled: frozenset[str] = frozenset()
    complete: bool = True


def describe_seen(
    train: CaptionedImages, val: CaptionedImages, labelled: Sequence[Path], by_content: bool
) -> SeenPictures:
    """What a run on these pictures sees.

    Args:
        train: to train on.
        val: to choose on.
        labelled: to choose on; their files are read.
        by_content: whether captioned pictures are known by what they show too, beside their names
            and their files' bytes.
    """

    def index(dataset: CaptionedImages) -> EvaluationIndex:
        found = index_evaluation([dataset], by_content)
        for digest, path in zip(_digests(dataset.paths), dataset.paths, strict=True):
            if digest:
                found.names.setdefault(f"bytes {digest}", path)
        return found

    return SeenPictures(index(train), index(val), frozenset(_digests(labelled)) - {""})


def _digests(paths: Sequence[Path]) -> list[str]:
    return [scan.digest for scan in scan_pictures(paths, decode=False)]


def describe_pocket() -> SeenPictures:
    """What a run on the pocket's scenes sees."""

    def index(split: str) -> EvaluationIndex:
        places = (f"{split}/{number}" for number in range(SCENE_SPLITS[split]))
        return EvaluationIndex({f"pocket {each}": Path(each) for each in places}, None, {})

    return SeenPictures(index("train"), index("val"))


def keep_seen(seen: SeenPictures, folder: Path) -> None:
    """Writes what a run has seen into its folder, unless something has been trained there.

    Raises:
        ValueError: something has, and it saw other pictures.
    """
    trained, chosen = seen.trained.as_dict(), seen.chosen.as_dict()
    before = load_seen(folder)
    if before and any(any(folder.glob(each)) for each in ("*.safetensors", "checkpoints/*")):
        kept = before.trained.names.keys(), before.chosen.names.keys(), before.labelled
        if kept != (trained["names"].keys(), chosen["names"].keys(), seen.labelled):
            raise ValueError(
                f"Expected the pictures that the run in {folder} began with, but those to train "
                "on, to choose on or with labels have changed; name another --out, or delete this "
                "one to begin again."
            )
        return
    record = {"trained": trained, "chosen": chosen, "labelled": sorted(seen.labelled)}
    write_record(record | {"complete": seen.complete}, folder / PICTURES)


def load_seen(folder: Path) -> SeenPictures | None:
    """Reads what `keep_seen` wrote; None where there is nothing, as of runs before it.

    Raises:
        ValueError: it is damaged.
    """

    def build(record: dict[str, Any]) -> SeenPictures:
        trained, chosen = (EvaluationIndex.from_dict(record[n]) for n in ("trained", "chosen"))
        labelled, complete = frozenset(record["labelled"]), record.get("complete", True)
        return SeenPictures(trained, chosen, labelled, complete)

    path = folder / PICTURES
    return read_record(path, build) if path.is_file() else None


@dataclass(frozen=True)
class Unseen:
    """What is left to measure on.

    Attributes:
        dataset: pictures that no model has trained on.
        trained: by model, those that it has trained on, which are left out.
        chosen: by model, how many of those that are left it was chosen on.
    """

    dataset: CaptionedImages
    trained: dict[str, tuple[Leak, ...]]
    chosen: dict[str, int]

    def describe(self, what: str) -> str:
        """Sentences for a person, or nothing where nothing was left out and nothing chosen on."""
        notes = [
            f"Left out of {what}: {len(leaks):,} pictures that {name} has trained on (the first, "
            f"{_describe_leak(leaks[0])})."
            for name, leaks in self.trained.items()
            if leaks
        ]
        notes += [
            f"{name} was chosen on {count:,} pictures of {what}."
            for name, count in self.chosen.items()
            if count
        ]
        return printable(" ".join(notes))


def _describe_leak(leak: Leak) -> str:
    return f"{leak.picture} is {leak.evaluation} by {leak.by}"


def leave_out_trained(dataset: CaptionedImages, seen: Mapping[str, SeenPictures]) -> Unseen:
    """Leaves out the pictures that a model has trained on.

    Args:
        dataset: to measure on.
        seen: by model, what it has seen.

    Raises:
        ValueError: fewer than two pictures are left.
        ModuleNotFoundError: imagehash is not installed, and pictures are known by content.
    """
    trained = {name: find_leaks(dataset, each.trained).leaks for name, each in seen.items()}
    gone = {leak.picture for leaks in trained.values() for leak in leaks}
    left = dataset.select([i for i, path in enumerate(dataset.paths) if path not in gone])
    if len(left) < 2 <= len(dataset):
        name, leaks = next((name, leaks) for name, leaks in trained.items() if leaks)
        raise ValueError(
            f"Expected pictures to measure on that no model has trained on, but of {len(dataset)} "
            f"in {dataset.source} {len(left)} are left; {name} has trained on the others, of which "
            f"{_describe_leak(leaks[0])}; name other data, or take the seed and the split of its "
            "run."
        )
    chosen = {name: len(find_leaks(left, each.chosen).leaks) for name, each in seen.items()}
    return Unseen(left, trained, chosen)


def leave_out_chosen(dataset: LabelledImages, digests: frozenset[str]) -> LabelledImages:
    """Leaves out the labelled pictures that some model's interpolation was chosen on.

    Args:
        dataset: to measure on.
        digests: of those pictures' files.

    Raises:
        ValueError: nothing is left.
    """
    if not digests:
        return dataset
    scans = scan_pictures(dataset.paths, decode=False)
    kept = [i for i, scan in enumerate(scans) if scan.digest not in digests]
    if not kept:
        raise ValueError(
            f"Expected labelled pictures that no model was chosen on, but all {len(dataset)} of "
            f"{dataset.source} are such; name others."
        )
    return replace(
        dataset,
        paths=tuple(dataset.paths[i] for i in kept),
        labels=tuple(dataset.labels[i] for i in kept),
    )
