"""All settings, as frozen dataclasses: change them with `dataclasses.replace`, save them as JSON.

A profile says what a run works with, and a recipe how it trains. The `paper` profile has the
published code's values; those of `pocket` were chosen on the pocket's val split.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

POLICIES = ("projection", "attention", "norms", "last_blocks(n)", "all")  # see `weights.freeze`

# Allowed values of settings, by name; a setting that is not listed may have any value of its type.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "a whole number from 1": (
        lambda x: isinstance(x, int) and x >= 1,
        "max_regions heads layers width anchors epochs captions_per_image gradient_accumulation",
    ),
    # A single picture has no negatives.
    "a whole number from 2": (lambda x: isinstance(x, int) and x >= 2, "batch_size"),
    "a whole number from 0": (
        lambda x: isinstance(x, int) and x >= 0,
        "rehearsal_batch uncaptioned_batch lora",
    ),
    # Times a million, it must still be a seed that PyTorch accepts.
    "a whole number from 0 to below 2**32": (
        lambda x: isinstance(x, int) and 0 <= x < 2**32,
        "seed",
    ),
    "a finite number above 0": (
        lambda x: 0 < x < inf,
        "temperature pooling_temperature clip_norm",
    ),
    "a finite number from 0": (
        lambda x: 0 <= x < inf,
        "margin learning_rate block_rate weight_decay distillation_weight contrastive_weight "
        "rehearsal_weight sds_weight least_retention",  # above 1, zero-shot accuracy has to rise
    ),
    "a number from 0 to 1": (lambda x: 0 <= x <= 1, "confidence sds_until"),
    "a number from 0 to below 1": (lambda x: 0 <= x < 1, "warmup_share region_dropout sds_from"),
    "one or more numbers from 0 to 1": (
        lambda x: len(x) > 0 and all(0 <= each <= 1 for each in x),
        "alphas",
    ),
}
_ALLOWED = {
    name: (expected, is_allowed)
    for expected, (is_allowed, names) in _RANGES.items()
    for name in names.split()
}


def read_policy(policy: str, name: str = "a policy") -> int:
    """How many blocks at the end of the tower a freeze policy trains.

    Args:
        policy: one of POLICIES.
        name: what to call it in an error.

    Returns:
        The n of last_blocks(n); 0 for other policies.

    Raises:
        ValueError: it is not one of POLICIES.
    """
    match = re.fullmatch(r"projection|attention|norms|all|last_blocks\(0*([1-9]\d*)\)", str(policy))
    if not match:
        raise ValueError(
            f"Expected {name} out of {', '.join(POLICIES)}, got {policy!r}; take one of these, n "
            "from 1."
        )
    return int(match[1] or 0)


def _check(settings: Any, prefix: str = "") -> None:
    """Refuses values that no run could use, before a run begins.

    Raises:
        ValueError: a value is out of its range or not one of its field's choices.
    """
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        expected, is_allowed = _ALLOWED.get(setting.name, ("", None))
        choices = get_args(setting.type) if get_origin(setting.type) is Literal else ()
        if choices:
            expected, is_allowed = f"one of {', '.join(choices)}", choices.__contains__
        try:
            allowed = is_allowed is None or is_allowed(value)
        except TypeError:  # for example a string, which does not compare with numbers
            allowed = False
        if not allowed:
            raise ValueError(
                f"Expected {prefix}{setting.name} to be {expected}, got {value!r}; choose another "
                "value."
            )


@dataclass(frozen=True)
class RegionSettings:
    """How regions are found and weighted."""

    detector: str = "pocket"  # or a .pt, a .json of boxes, "crops", or one of these with "+crops"
    confidence: float = 0.25  # ultralytics' own default
    max_regions: int = 10
    margin: float = 0.1  # share of the box's side kept around a crop: context helps CLIP
    square: bool = True  # widens crops to squares, from which CLIP's preprocessing cuts nothing
    weighted: bool = True  # area * confidence * similarity; the published code never applies it
    whole_image: bool = False  # adds the whole picture as one more region, beyond the description
    normalized_crops: bool = True  # the published code only resizes them
    undetected_as_zeros: bool = False  # the published code's region where nothing was detected

    def __post_init__(self) -> None:
        _check(self, "regions.")


@dataclass(frozen=True)
class TeacherSettings:
    """The cross-modal teacher and its training (paper, section 3; sizes of the reference code)."""

    heads: int = 8
    layers: int = 1
    pooling_temperature: float = 2.0
    masked: bool = True  # False: attention includes padding, as in the published code
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    epochs: int = 8
    temperature: float = 0.05

    def __post_init__(self) -> None:
        _check(self, "teacher.")


@dataclass(frozen=True)
class RegionTeacherSettings:
    """The caption-free teacher over a picture and its regions, and its training (ours)."""

    # always: trained, from random weights. never: it is the picture's feature plus a share of its
    # regions' mean, chosen on val.
    train: Literal["always", "never"] = "always"

    width: int = 384
    heads: int = 6
    layers: int = 2
    # The inputs; all but the defaults are controls. none: the whole picture alone; another: the
    # regions of another picture.
    regions: Literal["own", "none", "another"] = "own"
    boxes: bool = True  # the regions' boxes and confidences
    whole_picture: bool = True  # its feature, besides the regions'
    region_dropout: float = 0.2  # share of the regions that each step leaves out at random
    captions_per_image: int = 5  # in a step; captions of one picture are not negatives
    learning_rate: float = 1e-3
    warmup_share: float = 0.1  # of all steps
    weight_decay: float = 0.05
    batch_size: int = 128  # pictures
    epochs: int = 24
    temperature: float = 0.05

    def __post_init__(self) -> None:
        _check(self, "region_teacher.")


@dataclass(frozen=True)
class StudentSettings:
    """Fine-tuning of CLIP's image tower."""

    train: str = "all"  # one of POLICIES
    # LoRA's rank; 0: none. Of the image tower, adapters train alone: those of the attention and MLP
    # layers that `train` takes in. They need a far higher learning rate.
    lora: int = 0
    # True: the text tower too, as the published code does; all of it, with lora as well
    train_text: bool = False
    learning_rate: float = 3e-4
    block_rate: float = 1.0  # the blocks' share of it; pooling and projection use the full rate
    weight_decay: float = 0.01
    batch_size: int = 128  # pictures
    captions_per_image: int = 1  # in a step; captions of one picture are not negatives
    gradient_accumulation: int = 1
    clip_norm: float = 0.5
    epochs: int = 12
    warmup_share: float = 0.1  # of all steps
    temperature: float = 0.05
    distillation_weight: float = 1.0  # 0: no teacher
    # cosine: match the teacher's vectors; anchored_kl: rank captions, the anchors, as it does.
    distillation: Literal["cosine", "anchored_kl"] = "cosine"
    anchors: int = 2048  # captions drawn for each batch
    uncaptioned_batch: int = 0  # pictures without captions added to each batch
    contrastive_weight: float = 1.0
    # Not in the paper: crops whose features should stay the untouched CLIP's; 0: none.
    rehearsal_weight: float = 0.0
    rehearsal_batch: int = 64  # crops added to each batch of pictures
    # SDS-CLIP's: how well a frozen denoiser, given the caption, denoises latents that a linear map
    # makes from the student's features; 0: none.
    sds_weight: float = 0.0
    sds_from: float = 0.02  # timesteps are drawn between these two shares of all
    sds_until: float = 0.98
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # auto: bf16 where the hardware has it

    def __post_init__(self) -> None:
        _check(self, "student.")
        read_policy(self.train, "student.train")
        if self.sds_from >= self.sds_until:
            raise ValueError(
                f"Expected student.sds_from below student.sds_until, got {self.sds_from} and "
                f"{self.sds_until}; choose another value of either."
            )
        if self.sds_weight and self.train_text:
            raise ValueError(
                "Expected a frozen text tower with a student.sds_weight, got student.train_text; "
                "turn one of the two off."
            )
        if self.rehearsal_weight and not self.rehearsal_batch:
            raise ValueError(
                "Expected student.rehearsal_batch to be a whole number from 1 if there is a "
                "student.rehearsal_weight, got 0; choose another value of either."
            )


@dataclass(frozen=True)
class SelectionRule:
    """How every arm is chosen on val: best retrieval among interpolations with enough retention.

    Retention is measured on val's labelled pictures. The least is slightly above the 94 % that the
    test should reach, since noise flatters a maximum over candidates.
    """

    alphas: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 1.0)
    least_retention: float = 0.955

    def __post_init__(self) -> None:
        _check(self, "selection.")


# Student settings that say what it learns from, by kind of recipe.
_UNTAUGHT: dict[str, Any] = {
    "distillation_weight": 0.0,
    "contrastive_weight": 1.0,
    "uncaptioned_batch": 0,
    "sds_weight": 0.0,
    "train_text": False,
}
_TAUGHT = _UNTAUGHT | {
    "distillation": "anchored_kl",
    "distillation_weight": 1.0,
    "contrastive_weight": 0.5,
    "rehearsal_weight": 4.0,
    "uncaptioned_batch": 80,
}
_DCLIP = _UNTAUGHT | {
    "distillation": "cosine",
    "distillation_weight": 1.0,
    "rehearsal_weight": 0.0,
}

# What a recipe changes in a profile; sizes and rates stay the profile's, except the rate of sds.
# The published code and the paper (arXiv 2505.21549) differ in seven places, numbered below:
# `official_code` follows the code, `dclip` the paper.
CONTROL = "contrastive_rehearsal"
RECIPES: dict[str, dict[str, Any]] = {
    # The region teacher's ranking of captions, on captioned and uncaptioned pictures; captions;
    # rehearsed crops.
    "region_taught": {
        "teacher_model": "region",
        "region_teacher": {"regions": "own", "train": "always"},
        "student": _TAUGHT,
    },
    # The same, but nobody trained the teacher: the picture's feature plus its regions' mean.
    "crops_taught": {
        "teacher_model": "region",
        "region_teacher": {"regions": "own", "train": "never"},
        "student": _TAUGHT,
    },
    # The same, but the teacher sees no regions: is it the regions, or only more pictures?
    "whole_picture_taught": {
        "teacher_model": "region",
        "region_teacher": {"regions": "none", "train": "always"},
        "student": _TAUGHT,
    },
    # The same, but the teacher is the control: is it the teacher, or only more pictures?
    "self_taught": {"teacher_model": "control", "student": _TAUGHT},
    # No teacher: captions and rehearsed crops. The control of every other recipe.
    CONTROL: {"student": _UNTAUGHT | {"rehearsal_weight": 4.0}},
    # No teacher: captions alone.
    "contrastive": {"student": _UNTAUGHT | {"rehearsal_weight": 0.0}},
    # No teacher, but SDS-CLIP's frozen denoiser (arXiv 2307.09233) and captions; only normalisation
    # layers and the map into the denoiser train.
    "sds": {
        "student": _UNTAUGHT
        | {
            "rehearsal_weight": 0.0,
            "sds_weight": 0.1,
            "train": "norms",
            # At a rate for whole towers, norms and a randomly initialised map hardly move.
            "learning_rate": 5e-5,
            "gradient_accumulation": 1,
        },
    },
    # As the paper describes it: the embedding of a teacher that reads the caption; captions. Half
    # of that embedding comes from the caption that it is contrasted with, so it can be right
    # without the picture, as `shortcut_probe` shows.
    "dclip": {
        "teacher_model": "cross_attention",
        "teacher": {"masked": True},
        "student": _DCLIP,
    },
    "official_code": {
        "teacher_model": "cross_attention",
        "regions": {
            # 1: the function that computes area · confidence · similarity is never called.
            "weighted": False,
            # 2: crops are resized, and not normalised as CLIP's preprocessing does.
            "normalized_crops": False,
            # 4: a picture without detections becomes a zero vector, not the whole picture.
            "undetected_as_zeros": True,
            "whole_image": False,  # the code has no such region
        },
        "teacher": {
            # 3: zero-padded regions and tokens are attended to.
            "masked": False,
        },
        "student": _DCLIP
        | {
            # 5: the text tower trains, though the paper says that it is frozen.
            "train_text": True,
            # 6: every parameter with "proj" in its name trains: all attention layers.
            "train": "attention",
        },
        # 7: "MAP" is the mean reciprocal rank of the best match.
        "reciprocal_rank_as_map": True,
    },
}

# Rates of the pocket's recipes; assets/studies/pocket_choice.toml compares candidates on val.
_TAUGHT_RATES = {
    "batch_size": 48,
    "uncaptioned_batch": 80,
    "rehearsal_batch": 64,
    "captions_per_image": 5,
    "epochs": 29,
    "learning_rate": 6e-4,
    "block_rate": 1.0,
}
_OTHER_RATES = {
    "batch_size": 128,
    "rehearsal_batch": 64,
    "epochs": 12,
    "learning_rate": 4e-3,
    "block_rate": 0.1,
}
_OWN_RATES: dict[str, dict[str, dict[str, Any]]] = {
    "pocket": {
        "region_taught": {"student": _TAUGHT_RATES},
        "crops_taught": {"student": _TAUGHT_RATES},
        "whole_picture_taught": {"student": _TAUGHT_RATES},
        "self_taught": {"student": _TAUGHT_RATES},
        CONTROL: {"student": _OTHER_RATES | {"captions_per_image": 5}},
        "contrastive": {"student": _OTHER_RATES | {"captions_per_image": 5}},
        "sds": {"student": _OTHER_RATES | {"captions_per_image": 5, "block_rate": 1.0}},
        "dclip": {"student": _OTHER_RATES | {"captions_per_image": 1}},
        "official_code": {"student": _OTHER_RATES | {"captions_per_image": 1}},
    }
}


@dataclass(frozen=True)
class Profile:
    """All settings of one run."""

    name: str  # of the run in reports; for some of PROFILES, recipes have their own rates
    clip: str  # "pocket", "pocket_vit", an architecture of open_clip, or a folder that it loads
    pretrained: str | None  # of an architecture: a tag of open_clip, or a file
    # "pocket", or pocket:COUNT for its first scenes to train on; the path of captioned pictures, or
    # of curate's manifest.
    data: str = "pocket"
    images: str = ""  # the folder that the pictures' names start from; empty: searched for
    test: str = ""  # captioned pictures to measure on; empty: the data's own, or a tenth of it
    # Labelled pictures, half to choose on and half to measure on: "pocket", or pocket:COUNT for so
    # many of each noun; imagenet:FOLDER, cifar10:FOLDER, cifar100:FOLDER, or a folder with one
    # folder per class.
    zero_shot: str = "pocket"
    # Prompts for the classes of zero_shot: the pocket's own templates, CLIP's 80 (imagenet), or the
    # paper's one; auto is the pocket's for the pocket and CLIP's for others.
    templates: Literal["auto", "pocket", "imagenet", "paper"] = "auto"
    # Pictures to learn from without captions: a folder, any format of captioned pictures (whose
    # captions are not read), or pocket:COUNT for further scenes; empty: none. auto is pocket:16000
    # if the pocket is the data, else none.
    uncaptioned: str = "auto"
    # none: no picture is paired with its captions, which are only ranked (see anchor_texts); of a
    # folder of pictures, there need be none.
    captions: Literal["own", "none"] = "own"
    # Texts that a student ranks for each picture, as its teacher does: a .txt with one a line, or
    # any format of captioned pictures; empty: the captions to train on.
    anchor_texts: str = ""
    leak_guard: Literal["content", "names"] = "content"  # how pictures in several splits are found
    regions: RegionSettings = field(default_factory=RegionSettings)
    # Who teaches: the region teacher, the paper's cross-attention block, or a fine-tuned control.
    teacher_model: Literal["region", "cross_attention", "control"] = "region"
    # The region teacher, which reads no captions.
    region_teacher: RegionTeacherSettings = field(default_factory=RegionTeacherSettings)
    # The paper's teacher, the cross-attention block.
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    # Fine-tuning: what trains, at which rates, on which losses.
    student: StudentSettings = field(default_factory=StudentSettings)
    # For the recipe sds: "pocket", or a text-to-image pipeline of diffusers by its name or folder.
    denoiser: str = "pocket"
    # How much of the new weights to keep, chosen on val.
    selection: SelectionRule = field(default_factory=SelectionRule)
    seed: int = 0  # of weights, the order of pictures, and splits that have to be drawn
    # True: reports give the best match's reciprocal rank as the "mean average precision", as the
    # published code does.
    reciprocal_rank_as_map: bool = False
    recipe: str = "region_taught"  # out of RECIPES

    def __post_init__(self) -> None:
        _check(self)
        if self.recipe not in RECIPES:
            raise ValueError(
                f"Expected a recipe out of {', '.join(RECIPES)}, got {self.recipe!r}; name one."
            )

    def as_dict(self) -> dict[str, Any]:
        """All settings as a dict, to write as JSON beside a result."""
        return asdict(self)


# How each format of captioned pictures looks on disk, for --help and errors.
FORMATS: dict[str, str] = {
    "csv": "captions.csv, metadata.csv (or .tsv) or captions.txt with the columns image or "
    "file_name, caption or text, and perhaps split",
    "jsonl": "a .jsonl with these as keys; captions may be a list",
    "files": "a .txt beside each picture",
    "karpathy": "dataset_*.json",
    "coco": "captions_*.json",
    "flickr": "results_20130124.token or results.csv; Flickr8k.token.txt, with its splits' lists",
    "conceptual": "a .tsv of captions and addresses, over what img2dataset downloaded",
    "shards": "webdataset's .tar",
    "datasets": "hf:organisation/name[:split], a .parquet with pictures, or an Arrow data set",
}


def apply_recipe(profile: Profile, name: str) -> Profile:
    """Returns the profile changed to train by a recipe.

    Args:
        profile: the data, sizes and rates; the pocket has its own rates for each recipe.
        name: out of RECIPES.

    Raises:
        ValueError: the name is unknown, or the profile is official_code's or sds's, whose changes
            to regions and to what trains other recipes do not undo.
    """
    if profile.recipe in ("official_code", "sds") and profile.recipe != name:
        raise ValueError(
            f"Expected a profile of another recipe to apply {name} to, got {profile.recipe}'s; "
            "begin with one of PROFILES."
        )
    for changes in (RECIPES.get(name, {}), _OWN_RATES.get(profile.clip, {}).get(name, {})):
        profile = change_settings(profile, changes)
    return replace(profile, recipe=name)  # refuses an unknown name


def change_settings(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Returns settings with changes by name; those of nested settings are a dict.

    Paths may be of any kind; settings keep them as text.

    Raises:
        ValueError: there is no such setting, or a value is out of its range.
    """
    names = [field.name for field in fields(settings)]
    new_values = {}
    for name, value in changes.items():
        if name not in names:
            raise ValueError(
                f"Expected a setting out of {', '.join(names)}, got {name!r}; choose one of these."
            )
        if isinstance(value, Mapping):
            value = change_settings(getattr(settings, name), value)
        if isinstance(value, Path):
            value = str(value)
        new_values[name] = tuple(value) if isinstance(value, list) else value  # TOML has lists
    return replace(settings, **new_values)


def require_recipe(profile: Profile) -> None:
    """Checks that a profile does what its recipe says, before it trains.

    Raises:
        ValueError: who teaches, or the weight of distillation, rehearsal or the denoiser,
            contradicts the recipe; or the teacher would have a text tower of its own, with other
            captions than the student's; or captions are not to be used, and something would learn
            from them.
    """

    def allows(recipe: str, name: str) -> bool:
        return bool(RECIPES[recipe]["student"][name]) == bool(getattr(profile.student, name))

    weights = ("distillation_weight", "rehearsal_weight", "sds_weight")
    teaches = profile.teacher_model == "region" and profile.region_teacher.train == "never"
    unread = allows("crops_taught", "distillation_weight") and not profile.student.train_text
    if profile.captions == "none" and not (teaches and unread):
        raise ValueError(
            "Expected a teacher that learned from no captions and a frozen text encoder with "
            f"captions none, got the recipe {profile.recipe}; take --recipe crops_taught."
        )
    if profile.student.train_text and profile.teacher_model == "control":
        raise ValueError(
            f"Expected a frozen text encoder in the recipe {profile.recipe}, got "
            "student.train_text; leave it out, or take --recipe region_taught."
        )
    asked = RECIPES[profile.recipe]
    for name, expected, got in (
        ("teacher_model", asked.get("teacher_model"), profile.teacher_model),
        (
            "region_teacher.train",
            asked.get("region_teacher", {}).get("train"),
            profile.region_teacher.train,
        ),
    ):
        if expected not in (None, got):
            raise ValueError(
                f"Expected {name} {expected} in the recipe {profile.recipe}, got {got}; leave it "
                "out, or take the recipe that has it."
            )
    for name in weights:
        if not allows(profile.recipe, name):
            value = getattr(profile.student, name)
            recipes = [x for x in RECIPES if all(allows(x, weight) for weight in weights)]
            advice = f", or take --recipe {' or '.join(recipes)}" if recipes else ""
            raise ValueError(
                f"Expected student.{name} {'to be 0' if value else 'above 0'} in the recipe "
                f"{profile.recipe}, got {value}; give another{advice}."
            )


def trains_teacher(profile: Profile) -> bool:
    """Whether a profile's recipe trains a teacher of its own; the control is trained anyway."""
    return profile.student.distillation_weight > 0 and profile.teacher_model != "control"


def control_of(profile: Profile) -> Profile:
    """The control of a profile's recipe: the same captioned pictures and rehearsal, and no teacher.

    Its text tower trains if the recipe's does; otherwise that effect would look like the teacher's.

    If the control has its own rates, as for the pocket, it uses them; settings in which the profile
    differs from its recipe are carried over, of the learning rate the factor.
    """
    student = profile.student
    by_clip = {candidate.clip: candidate for candidate in PROFILES.values()}
    base = PROFILES.get(profile.name, by_clip.get(profile.clip))  # a run may have another name
    if base and profile.recipe != CONTROL:
        recipe_values = vars(apply_recipe(base, profile.recipe).student)
        changes = {k: v for k, v in vars(student).items() if v != recipe_values[k]}
        own = apply_recipe(base, CONTROL).student
        usual = recipe_values["learning_rate"]
        if "learning_rate" in changes and usual not in (0, own.learning_rate):
            changes["learning_rate"] = own.learning_rate * (student.learning_rate / usual)
        student = replace(own, **changes)
    control = replace(profile, student=student, recipe=CONTROL)
    untaught = RECIPES[CONTROL]["student"] | {"train_text": profile.student.train_text}
    untaught["rehearsal_weight"] = student.rehearsal_weight or untaught["rehearsal_weight"]
    changes = {"student": untaught, "reciprocal_rank_as_map": False, "captions": "own"}
    return change_settings(control, changes)


_STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_REFERENCE_TEACHER = TeacherSettings(learning_rate=1e-5, weight_decay=0.0, batch_size=32, epochs=5)
_REFERENCE_STUDENT = StudentSettings(
    learning_rate=1e-6, batch_size=32, gradient_accumulation=4, epochs=2
)

PROFILES: dict[str, Profile] = {
    profile.name: apply_recipe(profile, profile.recipe)
    for profile in (
        Profile(
            "pocket",
            "pocket",
            None,
            student=StudentSettings(captions_per_image=5),
            selection=SelectionRule(alphas=(0.4, 0.6, 0.8, 1.0)),
        ),
        Profile(
            "base",
            "ViT-B-32-quickgelu",
            "openai",
            regions=RegionSettings(detector="yolov8n.pt"),
            teacher=_REFERENCE_TEACHER,
            student=_REFERENCE_STUDENT,
            denoiser=_STABLE_DIFFUSION,
        ),
        Profile(
            "paper",
            "ViT-B-16-quickgelu",
            "openai",
            data="",  # the paper's data has no name here: load_data says what to give
            zero_shot="",
            templates="paper",
            regions=RegionSettings(detector="yolov8x.pt"),
            teacher=_REFERENCE_TEACHER,
            student=_REFERENCE_STUDENT,
            denoiser=_STABLE_DIFFUSION,
        ),
    )
}


def get_profile(name: str, **changes: Any) -> Profile:
    """Looks up a profile and applies changes: `get_profile("base", data="photos")`.

    Args:
        name: out of PROFILES.
        changes: as in `change_settings`; a `recipe` is applied before the others.

    Raises:
        ValueError: the name or a setting is unknown, or a value is out of its range.
    """
    if name not in PROFILES:
        raise ValueError(f"Expected a profile out of {', '.join(PROFILES)}, got {name!r}.")
    profile = PROFILES[name]
    return change_settings(apply_recipe(profile, changes.get("recipe", profile.recipe)), changes)
