"""A run's folder: its settings, the pictures that it has seen, and its models.

Pictures are known by their names in public data sets, by their files' bytes and by what they show,
as the leak guard knows them, so that it does not matter where they lie or what data set has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch

from dclip_kit.config import PROFILES, Profile, change_settings
from dclip_kit.data import CaptionedImages, LabelledImages
from dclip_kit.data.leaks import EvaluationIndex, Leak, find_leaks, index_evaluation
from dclip_kit.data.pictures import scan_pictures
from dclip_kit.evaluation.experiment import load_arm, load_teacher
from dclip_kit.evaluation.profile_data import MEASURED_BY, ProfileData
from dclip_kit.features.store import differing_entries
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.runtime.files import asset_path, read_record, write_record
from dclip_kit.runtime.printing import printable, say

SETTINGS = "settings.json"
PICTURES = "pictures.json"
TEACHERS = ("region_teacher", "teacher")  # their files, and their settings in a profile


def require_settings(settings: Profile, folder: Path) -> None:
    """Checks that a run's folder has no settings yet, or these.

    Raises:
        ValueError: it has others.
    """
    path = folder / SETTINGS
    if not path.exists():
        return
    differing = read_record(path, lambda kept: differing_entries(kept, settings.as_dict()))
    if differing:
        raise ValueError(
            f"Expected the settings of the run in {folder}, but they differ in "
            f"{', '.join(differing)}; give the same ones to continue it, or another --out."
        )


# What a run has seen


@dataclass(frozen=True, eq=False)
class SeenPictures:
    """The pictures that a run has seen.

    Attributes:
        trained: captioned ones that its teacher or students trained on.
        chosen: captioned ones that its interpolations were chosen on.
        labelled: digests of the labelled ones that these were chosen on.
        complete: False where the run, or the teacher that it took, left no record.
    """

    trained: EvaluationIndex
    chosen: EvaluationIndex
    labelled: frozenset[str] = frozenset()
    complete: bool = True

    @property
    def files(self) -> frozenset[str]:
        """Digests of files on which naming is not to be measured: trained, or chosen on."""
        names = (each.partition("bytes ") for each in self.trained.names)
        return self.labelled | {digest for before, _, digest in names if digest and not before}


def describe_run(
    profile: Profile,
    data: ProfileData,
    uncaptioned: CaptionedImages | None = None,
    teacher: Path | None = None,
) -> SeenPictures:
    """What a run on these data sees, and what the runs that it begins from have seen."""
    by_content = profile.leak_guard == "content"
    trained, chosen = (_index_pictures(part, by_content) for part in (data.train, data.val))
    if uncaptioned:
        trained = trained.join(_index_pictures(uncaptioned, by_content))
    # The pocket's pictures to choose on are apart from those to measure on.
    labelled = () if profile.zero_shot == "pocket" else data.zero_shot_val.paths
    before = [load_seen(each) for each in begun_from(profile, teacher)]
    for each in before:
        trained = trained.join(each.trained)
    digests = frozenset(_digest_files(labelled)) - {""}
    return SeenPictures(trained, chosen, digests, all(each.complete for each in before))


def begun_from(profile: Profile, teacher: Path | None = None) -> list[Path]:
    """The folders of the runs that one begins from: of its teacher, and of its CLIP, if an arm."""
    first = find_run(profile.clip)
    return [*([teacher] if teacher else []), *([first.folder] if first else [])]


def _index_pictures(pictures: CaptionedImages, by_content: bool) -> EvaluationIndex:
    """Pictures by their names and their files' bytes, and perhaps by what they show.

    Scenes of the pocket go by their numbers alone.
    """
    if all(each.startswith("pocket:") for each in pictures.image_ids):
        return index_evaluation([pictures], by_content=False)
    index = index_evaluation([pictures], by_content)
    for digest, path in zip(_digest_files(pictures.paths), pictures.paths, strict=True):
        if digest:
            index.names.setdefault(f"bytes {digest}", path)
    return index


def _digest_files(paths: Sequence[Path]) -> list[str]:
    return [scan.digest for scan in scan_pictures(paths, decode=False)]


def keep_seen(seen: SeenPictures, folder: Path, teacher: SeenPictures | None = None) -> None:
    """Writes what a run has seen into its folder, unless something has been trained there.

    Args:
        seen: by all of the run.
        folder: of the run.
        teacher: by its teacher, which may be all that has been trained there: then what is seen
            beyond that is added.

    Raises:
        ValueError: something has been trained there, and it saw other pictures.
    """

    def name(each: SeenPictures) -> tuple[Any, ...]:
        indices = each.trained.as_dict(), each.chosen.as_dict()
        return *(index["names"].keys() for index in indices), each.labelled

    begun = any(any(folder.glob(each)) for each in ("*.safetensors", "checkpoints/*"))
    fitting = [name(each) for each in (seen, teacher) if each]
    if begun and (folder / PICTURES).is_file() and name(load_seen(folder)) not in fitting:
        raise ValueError(
            f"Expected the pictures that the run in {folder} began with, but those to train on, to "
            "choose on or with labels have changed; name another --out, or delete this one to "
            "begin again."
        )
    write_record(
        {
            "trained": seen.trained.as_dict(),
            "chosen": seen.chosen.as_dict(),
            "labelled": sorted(seen.labelled),
            "complete": seen.complete,
        },
        folder / PICTURES,
    )


def load_seen(folder: Path) -> SeenPictures:
    """What the models in a run's folder have seen; no picture is known where it left no record.

    Raises:
        ValueError: the record is damaged.
    """

    def build(record: dict[str, Any]) -> SeenPictures:
        return SeenPictures(
            EvaluationIndex.from_dict(record["trained"]),
            EvaluationIndex.from_dict(record["chosen"]),
            frozenset(record["labelled"]),
            record.get("complete", True),
        )

    if (folder / PICTURES).is_file():
        return read_record(folder / PICTURES, build)
    nothing = EvaluationIndex({}, None, {})
    return SeenPictures(nothing, nothing, complete=False)


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


def require_same_view(profile: Profile, folder: Path) -> None:
    """Checks that a teacher of another run saw regions as a profile makes them, by the same CLIP.

    Raises:
        ValueError: it did not.
    """
    kept = read_record(folder / SETTINGS, dict) if (folder / SETTINGS).is_file() else {}
    own = {x: profile.as_dict()[x] for x in ("clip", "pretrained", "regions") if x in kept}
    if differing := differing_entries({x: kept[x] for x in own}, own):
        raise ValueError(
            f"Expected a teacher in {folder} of the same CLIP and regions, but they differ in "
            f"{', '.join(differing)}; take its settings, or train another."
        )


def leave_out_seen(data: ProfileData, folder: Path) -> ProfileData:
    """Leaves out of val and test what another run has trained on, whose model a run begins from.

    Args:
        data: of the run that begins.
        folder: of the other.

    Raises:
        ValueError: too little is left to choose or to measure on.
    """
    seen = load_seen(folder)
    if not seen.complete:
        say(f"What the run in {folder} has trained on is not all known: one left no record.")
    val, test = (leave_out_trained(part, {str(folder): seen}) for part in (data.val, data.test))
    for note in filter(None, (val.describe("val"), test.describe("test"))):
        say(note)
    return replace(data, val=val.dataset, test=test.dataset)


def leave_out_labelled(dataset: LabelledImages, digests: frozenset[str]) -> LabelledImages:
    """Leaves out the labelled pictures that some model was trained or chosen on.

    Args:
        dataset: to measure on.
        digests: of those pictures' files.

    Raises:
        ValueError: nothing is left.
    """
    if not digests:
        return dataset
    kept = [i for i, own in enumerate(_digest_files(dataset.paths)) if own not in digests]
    if not kept:
        raise ValueError(
            f"Expected labelled pictures that no model has seen, but all {len(dataset)} of "
            f"{dataset.source} are such; name others."
        )
    return dataset.select(kept)


def leave_out_trained_labelled(data: ProfileData, seen: SeenPictures) -> ProfileData:
    """Leaves out of a run's own labelled pictures those that it trains on, and says how many.

    What is chosen on is not measured on, either: a copy of it may be in the other half.

    Raises:
        ValueError: nothing is left to choose or to measure on.
    """
    trained = replace(seen, labelled=frozenset()).files
    val = leave_out_labelled(data.zero_shot_val, trained)
    test = leave_out_labelled(data.zero_shot, seen.files)
    if gone := len(data.zero_shot_val) + len(data.zero_shot) - len(val) - len(test):
        say(f"{gone:,} labelled pictures are trained or chosen on, and are not measured on.")
    return replace(data, zero_shot_val=val, zero_shot=test)


# The models of a run


@dataclass(frozen=True, eq=False)
class Run:
    """The run that an arm came out of.

    Attributes:
        folder: of the run.
        name: of the arm.
        profile: what of its settings a model is loaded and measured with.
        seen: the pictures that it has seen.
    """

    folder: Path
    name: str
    profile: Profile
    seen: SeenPictures


def find_run(reference: Path | str) -> Run | None:
    """The run of an arm, by the arm's place; None for any other model.

    Raises:
        ValueError: the run's records are damaged.
    """
    place = Path(reference)
    folder, name = place.parent, place.name.removesuffix(".safetensors")
    if not (folder / SETTINGS).is_file() or not (folder / f"{name}.json").is_file():
        return None

    def build(settings: dict[str, Any]) -> Profile:
        known = {name: settings[name] for name in MEASURED_BY}
        # Older runs lack the guard.
        return replace(
            PROFILES["pocket"], **known, leak_guard=settings.get("leak_guard", "content")
        )

    return Run(folder, name, read_record(folder / SETTINGS, build), load_seen(folder))


def load_model(
    reference: str, pretrained: str | None = None, device: torch.device | str = "cpu"
) -> ClipBundle:
    """Loads a CLIP, or an arm that `distill` wrote: `runs/x/dclip`, with its run's own CLIP.

    Args:
        reference: the arm, or as in `load_clip`.
        pretrained: the weights of an architecture. Other models have their own beside it, so that
            one tag can be given for several models.
        device: where to put it.

    Raises:
        FileNotFoundError, ValueError: as `load_clip` and `load_arm`, or it is a run's whole folder.
    """
    if run := find_run(reference):
        clip = load_model(run.profile.clip, run.profile.pretrained, device)
        return replace(load_arm(run.name, clip, run.folder).clip, name=reference)
    arms = [
        str(each.with_suffix(""))
        for each in sorted(Path(reference).glob("*.safetensors"))
        if not each.stem.endswith("teacher") and find_run(each)
    ]
    if arms:
        raise ValueError(
            f"Expected a model, got the folder of a run; name one of its arms: {', '.join(arms)}."
        )
    return load_clip(
        reference, pretrained if reference in open_clip.list_models() else None, device
    )


def load_teachers(
    reference: str, device: torch.device | str = "cpu"
) -> tuple[Profile, ClipBundle, dict[str, MetaTeacher | RegionTeacher]]:
    """Loads the teachers of a run, or those that come with the kit.

    Args:
        reference: the run's folder, or "pocket".
        device: where to put their CLIP.

    Returns:
        What `score_teachers` takes: the settings that they were trained with, the untouched CLIP,
        and the teachers by the names of their files.

    Raises:
        FileNotFoundError, ValueError: there is no teacher, a file is missing or damaged, or as
            `load_model`.
    """
    profile, folder = PROFILES["pocket"], Path(reference)
    if reference == profile.name:
        folder = asset_path("pocket_arms")
    names = [name for name in TEACHERS if (folder / f"{name}.json").is_file()]
    if not names:
        raise FileNotFoundError(
            f"Expected a trained teacher in {folder}, found none; name the folder of a run that "
            'train-teacher or distill left one in, or "pocket".'
        )
    if reference != profile.name:
        decisive = ("clip", "pretrained", "regions", *TEACHERS)
        profile = read_record(
            folder / SETTINGS,
            lambda kept: change_settings(PROFILES["pocket"], {x: kept[x] for x in decisive}),
        )
    clip = load_model(profile.clip, profile.pretrained, device)
    teachers = {
        name: load_teacher(clip.embed_dim, getattr(profile, name), folder).teacher for name in names
    }
    return profile, clip, teachers
