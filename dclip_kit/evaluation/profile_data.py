"""From a profile to its data: captioned, uncaptioned and labelled pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from dclip_kit.config import Profile, change_settings
from dclip_kit.data import (
    CaptionedImages,
    LabelledImages,
    open_picture,
    read_captioned,
    read_labelled,
)
from dclip_kit.data.collect import says_something
from dclip_kit.data.formats import find_formats, recognise_format
from dclip_kit.data.hub import is_dataset
from dclip_kit.data.labelled import LABELLED_READERS
from dclip_kit.data.paths import is_text, read_lines
from dclip_kit.data.pictures import SPLITS, require_imagehash, scan_pictures
from dclip_kit.data.pocket import world as pocket
from dclip_kit.data.pocket.scenes import render_scene
from dclip_kit.data.splits import (
    Splits,
    halve_labelled,
    read_splits,
    read_test,
    read_training_captions,
    read_uncaptioned,
    say_left_out,
)
from dclip_kit.evaluation.evaluate import TEMPLATE_SETS, TEMPLATES, Templates
from dclip_kit.models.clip import POCKET
from dclip_kit.runtime.printing import say

# The fields of a profile that decide what is measured: the model and the pictures.
MEASURED_BY = ("clip", "pretrained", "data", "images", "test", "zero_shot", "templates", "seed")


@dataclass(frozen=True, eq=False)
class ProfileData(Splits):
    """A profile's data.

    Attributes:
        train, val, test, left_out: as in `Splits`.
        zero_shot_val, zero_shot, zero_shot_held_out: labelled pictures; only the pocket has some in
            a style that no training shows, elsewhere the last is None.
        ceiling: text→image Recall@1 on test that a perfect model could reach; None if it is not
            known which other pictures a caption fits.
        templates: the texts that the labelled pictures' class names are put into.
    """

    zero_shot_val: LabelledImages
    zero_shot: LabelledImages
    zero_shot_held_out: LabelledImages | None
    ceiling: float | None
    templates: Templates = TEMPLATES


def require_data(profile: Profile) -> None:
    """Checks what can be checked of a profile's data before any of it is read.

    Raises:
        ValueError: the profile names no data, a path does not exist, or a format is unknown.
        FileNotFoundError: there is no folder of labelled pictures.
        ImportError: imagehash is needed and not installed.
    """
    if not profile.data or not profile.zero_shot:
        raise ValueError(
            f"Expected data and zero_shot in the profile {profile.name!r}, got {profile.data!r} "
            f"and {profile.zero_shot!r}; give as data captioned pictures, or curate's manifest and "
            "Karpathy's dataset_coco.json as test, and as zero_shot labelled pictures or 'pocket'."
        )
    if is_pocket(profile.data) and (profile.test or profile.images):
        raise ValueError(
            f"Expected no test and no images for the pocket's data, which has its own, got "
            f"{profile.test or profile.images!r}; name your own data, too."
        )
    for source in filter(is_pocket, (profile.data, profile.zero_shot)):
        pocket_count(source)
    alone = lacks_captions(profile)
    if alone and not profile.anchor_texts:
        raise ValueError(
            f"Expected texts that the pictures in {profile.data} can be compared with, got none; "
            "give --anchor-texts, such as a .txt with one a line."
        )
    for option, given in (("test", profile.test), ("uncaptioned", locate_uncaptioned(profile))):
        if alone and given:
            raise ValueError(
                f"Expected no --{option} where no picture has a caption, got {given}; leave it "
                "out, and put all pictures to train on into --data."
            )
    if not is_pocket(profile.data):
        if not alone:
            recognise_format(profile.data, profile.images or None)
            if profile.test:
                recognise_format(profile.test)
        if profile.leak_guard == "content":
            require_imagehash()
    kind, _, folder = profile.zero_shot.partition(":")
    labelled = Path(folder if kind in LABELLED_READERS else profile.zero_shot)
    if not is_pocket(profile.zero_shot) and not labelled.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of labelled pictures at {labelled}, found none; check the path."
        )
    if profile.anchor_texts:
        read_anchors(profile.anchor_texts)
    source = locate_uncaptioned(profile)
    if source and not (is_pocket(source) or is_dataset(source) or Path(source).exists()):
        raise ValueError(
            f"Expected pictures to learn from at {source}, found nothing; check --uncaptioned."
        )


def load_data(profile: Profile) -> ProfileData:
    """Reads a profile's data; the pocket's is drawn on first use.

    For other data, what cannot be used is printed. Of a folder of pictures without captions, all
    are to train on; val and test are empty, and no labelled picture chooses.

    Raises:
        ValueError: as `require_data`, or data cannot be read or is too little.
        ImportError: a library of the extra "data" is needed and not installed.
    """
    require_data(profile)
    if lacks_captions(profile):
        return load_pictures_alone(profile)
    if is_pocket(profile.zero_shot):
        count = pocket_count(profile.zero_shot)
        labelled: tuple[LabelledImages, LabelledImages, LabelledImages | None] = (
            pocket.load_labelled("zero_shot_val", count),
            pocket.load_labelled("zero_shot", count),
            pocket.load_labelled("zero_shot_held_out", count),
        )
    else:
        halves = halve_labelled(read_labelled(profile.zero_shot), profile.seed)
        first, second = leave_out_unreadable(*halves)
        labelled = first, second, None
    templates = choose_templates(profile.zero_shot, profile.templates)
    splits = load_splits(profile)
    ceiling = pocket.RECALL_CEILING if is_pocket(profile.data) else None
    return ProfileData(
        splits.train, splits.val, splits.test, splits.left_out, *labelled, ceiling, templates
    )


def load_pictures_alone(profile: Profile) -> ProfileData:
    """The data of a profile whose pictures have no captions, as `load_data` says."""
    pictures, left_out = read_uncaptioned(profile.data, (), profile.leak_guard == "content")
    if str(left_out):
        say(str(left_out))
    if is_pocket(profile.zero_shot):
        labelled = pocket.load_labelled("zero_shot", pocket_count(profile.zero_shot))
    else:
        (labelled,) = read_zero_shot(profile.zero_shot)
    return ProfileData(
        pictures,
        val=pictures.select([]),
        test=pictures.select([]),
        left_out=left_out,
        zero_shot_val=labelled.select([]),
        zero_shot=labelled,
        zero_shot_held_out=None,
        ceiling=None,
        templates=choose_templates(profile.zero_shot, profile.templates),
    )


def leave_out_unreadable(*sets: LabelledImages) -> tuple[LabelledImages, ...]:
    """Leaves out labelled pictures that cannot be used, and prints how many."""
    problems = [[scan.problem for scan in scan_pictures(images.paths)] for images in sets]
    if unusable := [problem for each in problems for problem in each if problem]:
        say(f"{len(unusable):,} labelled pictures are left out, such as: {unusable[0]}")
    return tuple(
        images.select([number for number, problem in enumerate(each) if not problem])
        for images, each in zip(sets, problems, strict=True)
    )


def load_splits(profile: Profile) -> Splits:
    """A profile's captioned pictures; raises and prints as `load_data`."""
    if is_pocket(profile.data):
        train = pocket.load_captioned("train", pocket_count(profile.data))
        val, test = (pocket.load_captioned(split) for split in ("val", "test"))
        return Splits(train, val, test, left_out=None)
    splits = read_splits(
        profile.data,
        profile.images or None,
        profile.test or None,
        profile.seed,
        profile.leak_guard == "content",
    )
    if str(splits.left_out):
        say(str(splits.left_out))
    return splits


def preview(profile: Profile, count: int) -> list[tuple[Image.Image, tuple[str, ...]]]:
    """The first test pictures with their captions; of the pocket's, only these are drawn.

    Args:
        profile: with the data.
        count: of pictures; fewer are returned if there are fewer.

    Raises:
        ValueError: as `read_measured`.
    """
    if is_pocket(profile.data):
        scenes = (pocket.make_scene("test", index) for index in range(count))
        return [(render_scene(scene), captions) for scene, captions in scenes]
    test = read_measured(profile)
    return [(open_picture(p), c) for p, c in zip(test.paths[:count], test.captions, strict=False)]


def is_pocket(source: str) -> bool:
    """Whether data are the pocket's: "pocket" or pocket:COUNT."""
    return source.partition(":")[0] == "pocket"


def pocket_count(source: str) -> int | None:
    """The number in pocket:COUNT; None for "pocket", which is all.

    Raises:
        ValueError: it is not a whole number from 1 to 999,999.
    """
    if source == "pocket":
        return None
    count = source.removeprefix("pocket:")
    if not re.fullmatch(r"[1-9]\d{0,5}", count):
        raise ValueError(
            f"Expected pocket:COUNT with a count up to 999,999, got {source!r}; say pocket:4000, "
            "for example."
        )
    return int(count)


def locate_uncaptioned(profile: Profile) -> str:
    """`Profile.uncaptioned`, with "auto" resolved.

    Raises:
        ValueError: it asks for the pocket's scenes, but not for a number of them.
    """
    source = profile.uncaptioned
    if source == "auto":
        return "pocket:16000" if is_pocket(profile.data) else ""
    if is_pocket(source) and pocket_count(source) is None:
        raise ValueError(
            "Expected pocket:COUNT as uncaptioned pictures, since the pocket's scenes have no end, "
            "got 'pocket'; say pocket:16000, for example."
        )
    return source


def load_uncaptioned(profile: Profile, data: ProfileData) -> CaptionedImages | None:
    """The pictures without captions that a profile's student learns from.

    Further scenes of the pocket are drawn on first use. Of other pictures, those in val or test are
    left out, identified by name and content as `Profile.leak_guard` says, and this is printed.

    Returns:
        The pictures; None if the profile has none or its recipe cannot use them, which is printed,
            or if all that it has are in `data` already.

    Raises:
        ValueError: as `read_uncaptioned`.
    """
    if not data.val:
        return None
    source = locate_uncaptioned(profile)
    scenes = pocket_count(source) if is_pocket(source) else None
    learns = profile.student.distillation_weight and profile.student.uncaptioned_batch
    if not learns or profile.teacher_model == "cross_attention":  # which reads captions
        if source and not scenes:
            say(f"The recipe {profile.recipe} learns nothing from {source}, which has no captions.")
        return None
    if not source:
        say("No uncaptioned pictures are given: the student learns from the captioned ones alone.")
        return None
    if scenes:
        return pocket.load_captioned("uncaptioned", scenes)
    pictures, left_out = read_uncaptioned(
        source, (data.val, data.test), profile.leak_guard == "content"
    )
    if str(left_out):
        say(f"Of {source}: {left_out}")
    return pictures


def resolve_paths(profile: Profile) -> Profile:
    """A profile with whole paths to its CLIP and its data, which are then found from any folder."""

    def resolve(name: str, source: str) -> str:
        kind = source.partition(":")[0]
        start = f"{kind}:" if kind in LABELLED_READERS else ""
        path = Path(source.removeprefix(start))
        # A CLIP's name and tag may be those of other things that happen to lie here.
        is_there = {"clip": path.is_dir, "pretrained": path.is_file}.get(name, path.exists)
        if source in ("auto", *POCKET) or is_pocket(source) or not is_there():
            return source
        # A link to a file may lead to one with another name, or without what lies beside it.
        whole = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
        return f"{start}{whole}"

    names = ("pretrained", "data", "images", "test", "zero_shot", "uncaptioned", "anchor_texts")
    sources = {name: getattr(profile, name) for name in names}
    sources["clip"] = profile.clip.removeprefix("local-dir:")
    whole = {name: source and resolve(name, source) for name, source in sources.items()}
    return change_settings(profile, whole)


def choose_measured(runs: Sequence[Profile], profile: Profile, **asked: Any) -> Profile:
    """Chooses what to measure models on: a profile's data, zero_shot, templates and seed.

    Args:
        runs: the profiles of the runs that trained the models, if any; the first decides.
        profile: for models that no run trained.
        asked: fields of a profile to use instead; None keeps the chosen one.

    Raises:
        ValueError: there is no data, or the runs' data differ and `asked` names none.
    """
    overrides = {name: value for name, value in asked.items() if value is not None}
    for name in ("data", "zero_shot"):
        values = sorted({getattr(run, name) for run in runs})
        if name not in overrides and len(values) > 1:
            raise ValueError(
                f"Expected {name} to measure on, since the models' runs had different ones "
                f"({', '.join(values)}); give --{name.replace('_', '-')}."
            )
    if "data" in overrides:
        overrides = {"images": "", "test": ""} | overrides
    measured = replace([*runs, profile][0], **overrides)
    got = "" if measured.data else "none"
    if is_pocket(measured.data) and measured.images:
        got = f"{measured.images} alone"
    elif measured.data and "data" not in overrides and not has_captions(measured):
        got = f"those of the model's training in {measured.data}, which have no captions"
    if got:
        raise ValueError(f"Expected captioned pictures to measure on, got {got}; give --data.")
    return measured


def read_measured(profile: Profile, split: str = "test") -> CaptionedImages:
    """Captioned pictures to measure on; what cannot be used of the data is printed.

    Args:
        profile: with the data.
        split: "test" as in `load_data`, "all", or a split of the format; for data without splits
            also "train" and "val" as in `load_data`.

    Raises:
        ValueError: there is no such split, or as `read_captioned` and `read_splits`.
    """
    data, images, test = profile.data, profile.images or None, profile.test
    if is_pocket(data):
        count = pocket_count(data)
        return pocket.load_captioned(split, count if split == "train" else None)
    if split == "test":
        return read_test(data, images, test or None, profile.seed)
    if split == "all" or recognise_format(data) in ("karpathy", "coco", "manifest"):
        found = read_captioned(data, images, split=split)
        captions = found.dataset.captions
        with_captions = [i for i, group in enumerate(captions) if group]  # only they are measured
        return say_left_out(found, found.dataset.select(with_captions))
    if split not in SPLITS:
        raise ValueError(
            f"Expected a split of train, val, test or all of {data}, whose format has none of its "
            f"own, got {split!r}; name one of these."
        )
    return getattr(load_splits(profile), split)


def read_references(profile: Profile) -> list[str]:
    """A profile's training captions, to rescore by.

    Raises:
        ValueError: as `read_captioned`, or there is none.
    """
    if is_pocket(profile.data):
        return pocket.load_captioned("train", pocket_count(profile.data)).texts
    captions = read_training_captions(
        profile.data, profile.images or None, profile.test or None, profile.seed
    )
    if not captions:
        raise ValueError(
            f"Expected captions to rescore by in the training split of {profile.data}, got none; "
            "name other data with --references."
        )
    return captions


def read_anchors(source: str) -> list[str]:
    """The texts of `Profile.anchor_texts`.

    Raises:
        ValueError: it has no text, or a line without words; or as `read_captioned`.
    """
    path = Path(source)
    if path.suffix == ".txt" and path.is_file() and not find_formats(path):
        lines = [(where, line.strip()) for where, line in read_lines(path)]
        texts = [text for _, text in lines]
        if not all(is_text(text) and "\0" not in text for text in texts):
            raise ValueError(
                f"Expected texts in UTF-8 in {path}, got another encoding; save it as UTF-8."
            )
        if silent := [where for where, text in lines if not says_something(text)]:
            raise ValueError(
                f"Expected words in each line of {path}, got none in {', '.join(silent[:5])}; "
                "delete such lines."
            )
    else:
        texts = read_captioned(path, split="all", checks="names").dataset.texts
    if not texts:
        raise ValueError(
            f"Expected texts to rank for pictures in {source}, got none; give a .txt of them."
        )
    return texts


def has_captions(profile: Profile) -> bool:
    """Whether a profile's data are more than a folder of pictures."""
    data = Path(profile.data)
    return is_pocket(profile.data) or not data.is_dir() or bool(find_formats(data))


def lacks_captions(profile: Profile) -> bool:
    """Whether a profile learns from nothing but pictures: of its data, none has a caption."""
    return profile.captions == "none" and not has_captions(profile)


def read_zero_shot(reference: str) -> tuple[LabelledImages, ...]:
    """All readable labelled pictures of a reference; for "pocket" also the held-out style's."""
    if is_pocket(reference):
        splits, count = ("zero_shot", "zero_shot_held_out"), pocket_count(reference)
        return tuple(pocket.load_labelled(split, count) for split in splits)
    return leave_out_unreadable(read_labelled(reference))


def choose_templates(zero_shot: str, name: str = "auto") -> Templates:
    """The texts that the class names of labelled pictures are put into: `Profile.templates`.

    Args:
        zero_shot: as in `Profile`.
        name: one of `evaluate.TEMPLATE_SETS`, or "auto".

    Raises:
        ValueError: they do not fit the pocket's class names, which include an article.
    """
    fitting = "pocket" if is_pocket(zero_shot) else "imagenet"
    if fitting == "pocket" and name not in ("auto", "pocket"):
        raise ValueError(
            f"Expected templates for the pocket's classes, which bring their article, got {name}'s;"
            " give --templates pocket."
        )
    return TEMPLATE_SETS[fitting if name == "auto" else name]
