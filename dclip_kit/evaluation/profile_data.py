"""What a profile trains on, chooses on and is measured on: the pocket's data, or one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dclip_kit.config import Profile
from dclip_kit.data import CaptionedImages, LabelledImages, read_captioned, read_labelled
from dclip_kit.data.curate import is_manifest
from dclip_kit.data.labelled import require_labelled
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.read import recognise_format, require_readable
from dclip_kit.data.scan import import_imagehash
from dclip_kit.data.splits import (
    LeftOut,
    halve_labelled,
    has_splits,
    read_given_test,
    read_splits,
    read_test,
)
from dclip_kit.metrics import recall_ceiling
from dclip_kit.runtime.printing import say


@dataclass(frozen=True, eq=False)
class WalkData:
    """A profile's data.

    Attributes:
        train, val, test: captioned pictures.
        zero_shot_val, zero_shot, zero_shot_held_out: labelled pictures; those of a style that no
            training shows are the pocket's, and None elsewhere.
        ceiling: text→image Recall@1 on test that a perfect model could reach; None where it is not
            known which other pictures a caption fits.
        left_out: what of the data could not be used; None for the pocket's, which is whole.
        templates: what the labelled pictures' classes are put into, of `evaluate.TEMPLATE_SETS`.
    """

    train: CaptionedImages
    val: CaptionedImages
    test: CaptionedImages
    zero_shot_val: LabelledImages
    zero_shot: LabelledImages
    zero_shot_held_out: LabelledImages | None
    ceiling: float | None
    left_out: LeftOut | None = None
    templates: str = "pocket"


def require_data(profile: Profile) -> None:
    """Checks what can be known of a profile's data before any of it is read.

    Raises:
        ValueError: data must be given, there is nothing at a path, or its format is unknown.
        FileNotFoundError: there is no folder of labelled pictures.
        ModuleNotFoundError: imagehash is needed and not installed.
    """
    if not profile.data or not profile.zero_shot:
        raise ValueError(
            f"Expected data and zero_shot in the profile {profile.name!r}, got {profile.data!r} "
            f"and {profile.zero_shot!r}; give as data captioned pictures, or curate's manifest and "
            "Karpathy's dataset_coco.json as test, and as zero_shot labelled pictures or 'pocket'."
        )
    if profile.data != "pocket":
        for path in filter(None, (profile.data, profile.test)):
            if not is_manifest(path):
                require_readable(path, profile.images or None, recognise_format(path))
        if profile.leak_guard == "content":
            import_imagehash()
    if profile.zero_shot != "pocket":
        require_labelled(profile.zero_shot)


def load_data(profile: Profile) -> WalkData:
    """Reads a profile's data; the pocket's is drawn on first use.

    What could not be used of other data is printed.

    Raises:
        ValueError: as `require_data`, or data cannot be read or is too little.
        ModuleNotFoundError: a library of the extra "data" is needed and not installed.
    """
    require_data(profile)
    zero_shot_val, zero_shot, held_out = _load_zero_shot(profile)
    templates = choose_templates(profile.zero_shot, profile.templates)
    if profile.data == "pocket":
        return WalkData(
            train=pocket.load_captioned("train"),
            val=pocket.load_captioned("val"),
            test=pocket.load_captioned("test"),
            zero_shot_val=zero_shot_val,
            zero_shot=zero_shot,
            zero_shot_held_out=held_out,
            ceiling=recall_ceiling(torch.tensor(pocket.caption_matches("test"))),
            templates=templates,
        )
    read = read_splits(
        profile.data,
        profile.images or None,
        profile.test or None,
        profile.seed,
        profile.leak_guard == "content",
    )
    if str(read.left_out):
        say(str(read.left_out))
    return WalkData(
        train=read.train,
        val=read.val,
        test=read.test,
        zero_shot_val=zero_shot_val,
        zero_shot=zero_shot,
        zero_shot_held_out=held_out,
        ceiling=None,
        left_out=read.left_out,
        templates=templates,
    )


def _load_zero_shot(
    profile: Profile,
) -> tuple[LabelledImages, LabelledImages, LabelledImages | None]:
    """What alpha is chosen on, what is measured on, and the held-out style."""
    if profile.zero_shot != "pocket":
        val, test = halve_labelled(read_labelled(profile.zero_shot), profile.seed)
        return val, test, None
    val, test, held_out = (
        pocket.load_labelled(split)
        for split in ("zero_shot_val", "zero_shot", "zero_shot_held_out")
    )
    return val, test, held_out


@dataclass(frozen=True)
class Measured:
    """What models are measured on: entries of a profile, see there."""

    data: str
    images: str
    test: str
    zero_shot: str
    templates: str
    seed: int


def choose_measured(
    runs: Sequence[Mapping[str, Any]],
    profile: Profile,
    data: str | None = None,
    images: str | None = None,
    zero_shot: str | None = None,
    templates: str | None = None,
    seed: int | None = None,
) -> Measured:
    """What was asked for; for the rest, what the models' runs were measured on, or a profile's.

    Args:
        runs: the settings of the runs that the models came out of, if any.
        profile: for models that came out of none.
        data, images, zero_shot, templates, seed: what was asked for.

    Raises:
        ValueError: there is no data, or the runs had different ones and none was asked for.
    """
    own = [profile.as_dict() | dict(run) for run in runs] or [profile.as_dict()]
    first = own[0]
    for name, asked in {"data": data, "zero_shot": zero_shot}.items():
        places = sorted({str(each[name]) for each in own})
        if asked is None and len(places) > 1:
            raise ValueError(
                f"Expected {name} to measure on, since the models' runs had different ones "
                f"({', '.join(places)}); give --{name.replace('_', '-')}."
            )
    chosen = Measured(
        data=first["data"] if data is None else data,
        images=(first["images"] if data is None else "") if images is None else images,
        test=first["test"] if data is None else "",
        zero_shot=first["zero_shot"] if zero_shot is None else zero_shot,
        templates=first["templates"] if templates is None else templates,
        seed=first["seed"] if seed is None else seed,
    )
    if not chosen.data:
        raise ValueError("Expected captioned pictures to measure on, got none; give --data.")
    return chosen


def read_measured(
    data: str,
    images: Path | None = None,
    split: str = "test",
    seed: int = 0,
    test: str = "",
) -> CaptionedImages:
    """Captioned pictures to measure on.

    Args:
        data: "pocket", or as in `read_captioned`.
        images: as in `read_captioned`.
        split: "test" as `load_data` makes it, "all", or a split that the format has; of data
            without splits also "train" and "val" as `load_data` makes them.
        seed: of the profile.
        test: the profile's, which the split "test" is of where it has one.

    Raises:
        ValueError: there is no such split, or as `read_captioned` and `read_splits`.
    """
    if data == "pocket":
        return pocket.load_captioned(split)
    if split == "test":
        return read_given_test(test) if test else read_test(data, images, seed)
    if split != "all" and not has_splits(data):
        if split not in ("train", "val"):
            raise ValueError(
                f"Expected a split of train, val, test or all of {data}, whose format has none of "
                f"its own, got {split!r}."
            )
        return getattr(read_splits(data, images, test or None, seed), split)
    return read_captioned(data, images, split=split).dataset


def read_zero_shot(reference: str) -> tuple[LabelledImages, ...]:
    """All labelled pictures of a reference; for "pocket" those of the held-out style come too."""
    if reference == "pocket":
        return pocket.load_labelled("zero_shot"), pocket.load_labelled("zero_shot_held_out")
    return (read_labelled(reference),)


def choose_templates(zero_shot: str, asked: str = "auto") -> str:
    """The name of the templates for labelled pictures, as `Profile.templates` says.

    Args:
        zero_shot: as in `Profile`.
        asked: one of `evaluate.TEMPLATE_SETS`, or "auto".
    """
    if asked != "auto":
        return asked
    return "pocket" if zero_shot == "pocket" else "imagenet"
