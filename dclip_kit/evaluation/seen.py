"""The pictures that a model has seen, so that none of them is measured on: seen.json in its folder.

Like the leak guard, this identifies pictures by their names in public data sets, by their files'
bytes and by what they show, wherever they are stored and whichever data set they belong to. The
record has no paths, and names only in a form that can be compared but not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.leaks import OWN, EvaluationIndex, Leak, find_leaks, index_evaluation
from dclip_kit.data.pictures import scan_pictures
from dclip_kit.evaluation.profile_data import ProfileData
from dclip_kit.models.clip import find_folder
from dclip_kit.runtime.files import read_record, write_record
from dclip_kit.runtime.printing import printable, say

SEEN = "seen.json"  # in a model's folder
TRAINING = "training.json"  # beside it, how the model was trained


@dataclass(frozen=True, eq=False)
class SeenPictures:
    """The pictures that a model, its base and its teacher have seen.

    Attributes:
        trained: captioned pictures that they trained on.
        chosen: captioned pictures that their interpolations were chosen on.
        labelled: digests of the labelled pictures that the interpolations were chosen on.
        complete: False if one of them has no record.
    """

    trained: EvaluationIndex
    chosen: EvaluationIndex
    labelled: frozenset[str] = frozenset()
    complete: bool = True

    @property
    def files(self) -> frozenset[str]:
        """Digests of files that zero-shot must not be measured on: trained on or chosen on."""
        names = (name.partition("bytes ") for name in self.trained.names)
        return self.labelled | {digest for before, _, digest in names if digest and not before}

    def join(self, other: "SeenPictures") -> "SeenPictures":
        """Adds what another model has trained on; what that one was chosen on is not added."""
        trained = self.trained.join(other.trained)
        return replace(self, trained=trained, complete=self.complete and other.complete)

    def save(self, folder: Path) -> None:
        """Writes the record into a model's folder."""
        write_record(
            {
                "trained": self.trained.as_dict(),
                "chosen": self.chosen.as_dict(),
                "labelled": sorted(self.labelled),
                "complete": self.complete,
            },
            folder / SEEN,
        )


def describe_seen(
    train: CaptionedImages,
    val: CaptionedImages,
    labelled: Sequence[Path],
    by_content: bool,
    before: Sequence[SeenPictures] = (),
) -> SeenPictures:
    """What a training sees, together with what its teacher and its CLIP have seen.

    Args:
        train: captioned pictures to train on.
        val: captioned pictures to choose on.
        labelled: labelled pictures to choose on; others are measured on.
        by_content: whether to identify pictures by what they show, too.
        before: the records of a teacher, and of a CLIP that was fine-tuned itself.
    """
    trained, chosen = (_index_pictures(part, by_content) for part in (train, val))
    seen = SeenPictures(trained, chosen, frozenset(_digest_files(labelled)) - {""})
    for earlier in before:
        seen = seen.join(earlier)
    return seen


def add_trained(seen: SeenPictures, pictures: CaptionedImages, by_content: bool) -> SeenPictures:
    """Adds pictures that were trained on without captions."""
    return replace(seen, trained=seen.trained.join(_index_pictures(pictures, by_content)))


def _index_pictures(pictures: CaptionedImages, by_content: bool) -> EvaluationIndex:
    """Indexes pictures by their names, by their files' bytes and, if asked, by what they show.

    The pocket's scenes are indexed by their numbers only.
    """
    if all(image_id.startswith("pocket:") for image_id in pictures.image_ids):
        return index_evaluation([pictures], by_content=False)
    index = index_evaluation([pictures], by_content)
    for digest, path in zip(_digest_files(pictures.paths), pictures.paths, strict=True):
        if digest:
            index.names.setdefault(f"bytes {digest}", path)
    return index


def _digest_files(paths: Sequence[Path]) -> list[str]:
    return [scan.digest for scan in scan_pictures(paths, decode=False)]


def load_seen(reference: Path | str) -> SeenPictures | None:
    """What a model has seen; None for one that the kit did not train, so that nothing is known.

    Args:
        reference: the folder of a CLIP or of a teacher, or another name of a CLIP.

    Returns:
        A record without pictures if the model's own was left out, as it is for publishing.

    Raises:
        ValueError: the record is damaged.
    """

    def build(record: dict[str, Any]) -> SeenPictures:
        return SeenPictures(
            EvaluationIndex.from_dict(record["trained"]),
            EvaluationIndex.from_dict(record["chosen"]),
            frozenset(record["labelled"]),
            record["complete"],
        )

    folder = find_folder(str(reference))
    if folder and (folder / SEEN).is_file():
        return read_record(folder / SEEN, build)
    if folder and (folder / TRAINING).is_file():
        nothing = EvaluationIndex({}, None, {})
        return SeenPictures(nothing, nothing, complete=False)
    return None


@dataclass(frozen=True)
class Unseen:
    """What is left to measure on.

    Attributes:
        dataset: pictures that no model has trained on.
        trained: by model, the pictures that it has trained on, which are left out.
        chosen: by model, how many of the remaining pictures it was chosen on.
    """

    dataset: CaptionedImages
    trained: dict[str, tuple[Leak, ...]]
    chosen: dict[str, int]

    def describe(self, what: str) -> str:
        """Sentences on what was left out and on what was chosen on; empty if there is neither."""
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
    return f"{leak.picture}, known by {leak.by}"


def leave_out_trained(dataset: CaptionedImages, seen: Mapping[str, SeenPictures]) -> Unseen:
    """Leaves out the pictures that a model has trained on.

    Args:
        dataset: to measure on.
        seen: by model, its record.

    Raises:
        ValueError: fewer than two pictures are left.
        ImportError: pictures are identified by content, and imagehash is not installed.
    """
    trained = {
        name: find_leaks(_as_compared(dataset, record), record.trained).leaks
        for name, record in seen.items()
    }
    trained_paths = {leak.picture for leaks in trained.values() for leak in leaks}
    unseen = dataset.select(
        [i for i, path in enumerate(dataset.paths) if path not in trained_paths]
    )
    if len(unseen) < 2 <= len(dataset):
        name, leaks = next((name, leaks) for name, leaks in trained.items() if leaks)
        raise ValueError(
            f"Expected pictures to measure on that no model has trained on, but of {len(dataset)} "
            f"in {dataset.source} {len(unseen)} are left; {name} has trained on others, such as "
            f"{_describe_leak(leaks[0])}; name other data, or give the seed and the split of its "
            "run."
        )
    chosen = {
        name: len(find_leaks(_as_compared(unseen, record), record.chosen).leaks)
        for name, record in seen.items()
    }
    return Unseen(unseen, trained, chosen)


def _as_compared(dataset: CaptionedImages, record: SeenPictures) -> CaptionedImages:
    """The pictures as `read_splits` compares them: numbers in names tell only without contents."""
    if record.trained.phash is None:
        return dataset
    return replace(dataset, image_ids=tuple(image_id or OWN for image_id in dataset.image_ids))


def leave_out_seen(data: ProfileData, seen: SeenPictures, name: str) -> ProfileData:
    """Leaves out of val and test what the model that a run begins from has trained on.

    Args:
        data: of the run.
        seen: the model's record.
        name: of the model.

    Raises:
        ValueError: too few pictures are left to choose or to measure on.
    """
    if not seen.complete:
        say(f"What {name} has trained on is not all known: one left no record.")
    val, test = (leave_out_trained(part, {name: seen}) for part in (data.val, data.test))
    for note in filter(None, (val.describe("val"), test.describe("test"))):
        say(note)
    return replace(data, val=val.dataset, test=test.dataset)


def leave_out_labelled(dataset: LabelledImages, digests: frozenset[str]) -> LabelledImages:
    """Leaves out the labelled pictures that a model was trained or chosen on.

    Args:
        dataset: to measure on.
        digests: of the files of those pictures.

    Raises:
        ValueError: there were some, and nothing is left.
    """
    if not digests or not dataset:
        return dataset
    indices = [i for i, digest in enumerate(_digest_files(dataset.paths)) if digest not in digests]
    if not indices:
        raise ValueError(
            f"Expected labelled pictures that no model has seen, but all {len(dataset)} of "
            f"{dataset.source} were seen; name others."
        )
    return dataset.select(indices)


def leave_out_trained_labelled(data: ProfileData, seen: SeenPictures) -> ProfileData:
    """Leaves out of a run's own labelled pictures those that it trains on, and prints how many.

    Those that it chooses on are not measured on, either: the other half may have copies of them.

    Raises:
        ValueError: nothing is left to choose or to measure on.
    """
    trained = replace(seen, labelled=frozenset()).files
    val = leave_out_labelled(data.zero_shot_val, trained)
    test = leave_out_labelled(data.zero_shot, seen.files)
    if left_out := len(data.zero_shot_val) + len(data.zero_shot) - len(val) - len(test):
        say(f"{left_out:,} labelled pictures are trained or chosen on, and are not measured on.")
    return replace(data, zero_shot_val=val, zero_shot=test)
