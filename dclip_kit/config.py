"""All settings, as frozen dataclasses: change them with `dataclasses.replace`, save them as JSON.

A profile says what a run works with, and a recipe how it trains. The `paper` profile has the
published code's values; those of `pocket` were chosen on the pocket's val split.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from typing import Any, Literal, get_args, get_origin

POLICIES = ("projection", "attention", "norms", "last_blocks(n)", "all")  # see `weights.freeze`

# The values that a setting may have, by its name; any of their type for those not listed here.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "a whole number from 1": (
        lambda x: isinstance(x, int) and x >= 1,
        "max_regions heads layers width anchors epochs captions_per_image gradient_accumulation",
    ),
    # A picture alone has none to be told from.
    "a whole number from 2": (lambda x: isinstance(x, int) and x >= 2, "batch_size"),
    "a whole number from 0": (
        lambda x: isinstance(x, int) and x >= 0,
        "rehearsal_batch uncaptioned_batch",
    ),
    # Times a million it must still be a seed that PyTorch takes.
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
        "rehearsal_weight sds_weight least_retention",  # above 1: zero-shot accuracy has to rise
    ),
    "a number from 0 to 1": (lambda x: 0 <= x <= 1, "confidence sds_until"),
    "a number from 0 to below 1": (lambda x: 0 <= x < 1, "warmup_share region_dropout sds_from"),
    "one or more numbers from 0 to 1": (
        lambda x: len(x) > 0 and all(0 <= each <= 1 for each in x),
        "alphas",
    ),
}
_ALLOWED = {name: (what, fits) for what, (fits, of) in _RANGES.items() for name in of.split()}


def read_policy(policy: str, name: str = "a policy") -> int:
    """How many blocks at the end of the tower a freeze policy trains.

    Args:
        policy: one of POLICIES.
        name: what to call it in an error.

    Returns:
        The n of last_blocks(n); 0 for other policies.

    Raises:
        ValueError: it is none of POLICIES.
    """
    found = re.fullmatch(r"projection|attention|norms|all|last_blocks\(0*([1-9]\d*)\)", str(policy))
    if not found:
        raise ValueError(
            f"Expected {name} out of {', '.join(POLICIES)}, got {policy!r}; take one of these, n "
            "from 1."
        )
    return int(found[1] or 0)


def _check(settings: Any, prefix: str = "") -> None:
    """Refuses values that no run could use, before it has begun.

    Raises:
        ValueError: a value is out of its range or none of its field's choices.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        what, fits = _ALLOWED.get(each.name, ("", None))
        choices = get_args(each.type) if get_origin(each.type) is Literal else ()
        if choices:
            what, fits = f"one of {', '.join(choices)}", choices.__contains__
        try:
            fitting = fits is None or fits(value)
        except TypeError:  # a text, for example, which does not compare with numbers
            fitting = False
        if not fitting:
            raise ValueError(
                f"Expected {prefix}{each.name} to be {what}, got {value!r}; choose another value."
            )


@dataclass(frozen=True)
class RegionSettings:
    """How regions are found and weighted."""

    detector: str = "pocket"
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
    masked: bool = True  # False: padding is attended to, as in the published code
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

    width: int = 384
    heads: int = 6
    layers: int = 2
    # What it sees; all but the defaults are controls. none: the whole picture alone; another: the
    # regions of another picture.
    regions: Literal["own", "none", "another"] = "own"
    boxes: bool = True  # where the regions lie, and how sure the detector is
    whole_picture: bool = True  # its feature, beside the regions'
    region_dropout: float = 0.2  # share of the regions that each step leaves out at random
    captions_per_image: int = 5  # in a step; a picture's captions are not negatives of each other
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
    train_text: bool = False  # True: the text tower too, as the published code does
    learning_rate: float = 3e-4
    block_rate: float = 1.0  # the blocks' share of it; pooling and projection train at all of it
    weight_decay: float = 0.01
    batch_size: int = 128  # pictures
    captions_per_image: int = 1  # in a step; captions of one picture are not negatives
    gradient_accumulation: int = 1
    clip_norm: float = 0.5
    epochs: int = 12
    warmup_share: float = 0.1  # of all steps
    temperature: float = 0.05
    distillation_weight: float = 1.0  # 0 does without the teacher
    # cosine: match the teacher's vectors; anchored_kl: rank captions, the anchors, as it does.
    distillation: Literal["cosine", "anchored_kl"] = "cosine"
    anchors: int = 2048  # captions drawn anew for each batch
    uncaptioned_batch: int = 0  # pictures without captions beside each batch
    contrastive_weight: float = 1.0
    # Not in the paper: crops whose features are to stay those of the untouched CLIP; 0: none.
    rehearsal_weight: float = 0.0
    rehearsal_batch: int = 64  # crops beside each batch of pictures
    # SDS-CLIP's: how well a frozen denoiser, told the caption, denoises what a linear map makes of
    # the student's features; 0 does without.
    sds_weight: float = 0.0
    sds_from: float = 0.02  # of the denoiser's timesteps, which are drawn between these two shares
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
    """How every arm is chosen on val: the best retrieval among interpolations that remember enough.

    Retention is measured on val's labelled pictures. The least is a little above the 94 % that the
    test should reach, since noise flatters a maximum over candidates.
    """

    alphas: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 1.0)
    least_retention: float = 0.955

    def __post_init__(self) -> None:
        _check(self, "selection.")


# What of a student's settings says how it is taught, by kind of recipe.
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

# What a recipe changes in a profile; sizes and rates stay the profile's, but for the rate of sds.
# The published code and the paper (arXiv 2505.21549) differ in seven places, numbered below:
# `official_code` follows the code, `dclip` the paper.
CONTROL = "contrastive_rehearsal"
RECIPES: dict[str, dict[str, Any]] = {
    # The region teacher's ranking of captions, on captioned and uncaptioned pictures; captions;
    # crops rehearsed.
    "region_taught": {
        "teacher_model": "region",
        "region_teacher": {"regions": "own"},
        "student": _TAUGHT,
    },
    # The same, but the teacher sees no regions: is it the regions, or only more pictures?
    "whole_picture_taught": {
        "teacher_model": "region",
        "region_teacher": {"regions": "none"},
        "student": _TAUGHT,
    },
    # The same, but the teacher is the control: is it the teacher, or only more pictures?
    "self_taught": {"teacher_model": "control", "student": _TAUGHT},
    # No teacher: captions, and crops rehearsed. The control of every other recipe.
    CONTROL: {"student": _UNTAUGHT | {"rehearsal_weight": 4.0}},
    # No teacher: captions alone.
    "contrastive": {"student": _UNTAUGHT | {"rehearsal_weight": 0.0}},
    # No teacher, but SDS-CLIP's frozen denoiser (arXiv 2307.09233) and captions; only normalisation
    # layers train, and the map into the denoiser.
    "sds": {
        "student": _UNTAUGHT
        | {
            "rehearsal_weight": 0.0,
            "sds_weight": 0.1,
            "train": "norms",
            # At a rate for whole towers, norms and a map that begins at random hardly move.
            "learning_rate": 5e-5,
            "gradient_accumulation": 1,
        },
    },
    # As the paper describes it: the embedding of a teacher that reads the caption; captions. Half
    # of that embedding is the caption that it is contrasted with, so it can be right without
    # looking at the picture, as `shortcut_probe` shows.
    "dclip": {
        "teacher_model": "cross_attention",
        "teacher": {"masked": True},
        "student": _DCLIP,
    },
    "official_code": {
        "teacher_model": "cross_attention",
        "regions": {
            # 1: area · confidence · similarity is computed by a function that nothing calls.
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

# What the pocket's recipes train by; assets/studies/pocket_choice.toml compares candidates on val.
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
    """Everything that one run needs to know."""

    name: str  # what reports call the run; recipes have rates of their own for some of PROFILES
    clip: str  # "pocket", an architecture of open_clip, or a folder that open_clip loads
    pretrained: str | None  # of an architecture: a tag of open_clip, or a file
    data: str = "pocket"  # "pocket", the path of captioned pictures, or of curate's manifest
    images: str = ""  # the folder that the pictures' names are below; empty: it is looked for
    test: str = ""  # captioned pictures to measure on; empty: the data's own, or a tenth of it
    # Labelled pictures, half to choose on and half to measure on: "pocket", imagenet:FOLDER,
    # cifar10:FOLDER, cifar100:FOLDER, or a folder with a folder a class.
    zero_shot: str = "pocket"
    # What the classes of zero_shot are put into: the pocket's own templates, CLIP's 80 (imagenet),
    # or the one of the paper; auto is the pocket's for the pocket and CLIP's for others.
    templates: Literal["auto", "pocket", "imagenet", "paper"] = "auto"
    # Pictures to learn from without captions: a folder, any format of captioned pictures (whose
    # captions are not read), or pocket:COUNT for further scenes; empty: none. auto is pocket:16000
    # where the pocket is the data, else none.
    uncaptioned: str = "auto"
    leak_guard: Literal["content", "names"] = "content"  # how pictures in two splits are found
    regions: RegionSettings = field(default_factory=RegionSettings)
    # Who teaches: the region teacher, the paper's cross-attention block, or a fine-tuned control.
    teacher_model: Literal["region", "cross_attention", "control"] = "region"
    # The region teacher, which reads no captions.
    region_teacher: RegionTeacherSettings = field(default_factory=RegionTeacherSettings)
    # The paper's teacher, the cross-attention block.
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    # Fine-tuning: what trains, at which rates, on which losses.
    student: StudentSettings = field(default_factory=StudentSettings)
    # Of the recipe sds: "pocket", or a text-to-image pipeline of diffusers by its name or folder.
    denoiser: str = "pocket"
    # How much of the new weights is kept, which val decides.
    selection: SelectionRule = field(default_factory=SelectionRule)
    seed: int = 0  # of weights, of the order of pictures, and of splits that have to be drawn
    # True: reports give the reciprocal rank of the best match as the "mean average precision", as
    # the published code does.
    reciprocal_rank_as_map: bool = False
    recipe: str = "region_taught"  # what it trains by, out of RECIPES

    def __post_init__(self) -> None:
        _check(self)
        if self.recipe not in RECIPES:
            raise ValueError(
                f"Expected a recipe out of {', '.join(RECIPES)}, got {self.recipe!r}; name one."
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON beside a result."""
        return asdict(self)


# What each format of captioned pictures looks like at a path, for --help and errors.
FORMATS: dict[str, str] = {
    "csv": "captions.csv or metadata.csv (or .tsv) with the columns image or file_name, caption or "
    "text, and perhaps split",
    "jsonl": "a .jsonl with these as keys; captions may be a list",
    "files": "a .txt beside each picture",
    "karpathy": "dataset_*.json",
    "coco": "captions_*.json",
    "flickr": "results_20130124.token or results.csv",
    "conceptual": "a .tsv of captions and addresses, over what img2dataset downloaded",
    "shards": "webdataset's .tar",
    "datasets": "hf:organisation/name[:split], a .parquet with pictures, or an Arrow data set",
}


def apply_recipe(profile: Profile, name: str) -> Profile:
    """A profile that trains by a recipe.

    Args:
        profile: what to work with, and by which sizes and rates; the pocket has rates of its own
            for each recipe.
        name: out of RECIPES.

    Raises:
        ValueError: the name is unknown, or the profile is official_code's or sds's, which change
            regions and what trains beyond what others undo.
    """
    if profile.recipe in ("official_code", "sds") and profile.recipe != name:
        raise ValueError(
            f"Expected a profile of another recipe to apply {name} to, got {profile.recipe}'s; "
            "begin with one of PROFILES."
        )
    for changes in (RECIPES.get(name, {}), _OWN_RATES.get(profile.clip, {}).get(name, {})):
        profile = change_settings(profile, changes)
    return replace(profile, recipe=name)  # which refuses an unknown one


def change_settings(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Settings with some changes by name; those of a part are a dict of their own.

    Raises:
        ValueError: there is no such setting, or a value is out of its range.
    """
    known = [field.name for field in fields(settings)]
    parts = {}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"Expected a setting out of {', '.join(known)}, got {name!r}.")
        if isinstance(value, Mapping):
            value = change_settings(getattr(settings, name), value)
        parts[name] = tuple(value) if isinstance(value, list) else value  # as TOML has them
    return replace(settings, **parts)


def require_recipe(profile: Profile) -> None:
    """Checks that a profile does what its recipe says, for whoever is about to train by it.

    Raises:
        ValueError: a weight, of distillation, rehearsal or the denoiser, contradicts the recipe; or
            its teacher would have a text tower of its own, whose captions the student has not.
    """

    def allows(recipe: str, name: str) -> bool:
        return bool(RECIPES[recipe]["student"][name]) == bool(getattr(profile.student, name))

    weights = ("distillation_weight", "rehearsal_weight", "sds_weight")
    if profile.student.train_text and profile.teacher_model == "control":
        raise ValueError(
            f"Expected a text encoder that stays as it is in the recipe {profile.recipe}, got "
            "student.train_text; leave it out, or take --recipe region_taught."
        )
    for name in weights:
        if not allows(profile.recipe, name):
            value = getattr(profile.student, name)
            fitting = [each for each in RECIPES if all(allows(each, weight) for weight in weights)]
            way = f", or take --recipe {' or '.join(fitting)}" if fitting else ""
            raise ValueError(
                f"Expected student.{name} {'to be 0' if value else 'above 0'} in the recipe "
                f"{profile.recipe}, got {value}; give another{way}."
            )


def trains_teacher(profile: Profile) -> bool:
    """Whether a profile's recipe trains a teacher of its own; the control is trained anyway."""
    return profile.student.distillation_weight > 0 and profile.teacher_model != "control"


def control_of(profile: Profile) -> Profile:
    """The control of a profile's recipe: the same captioned pictures and rehearsal, and no teacher.

    Its text tower trains where the recipe's does: else that would look like the teacher's work.

    Where the control has rates of its own, as for the pocket, it trains by these, but for what has
    been changed from those of the recipe: that it has too.
    """
    student, by_clip = profile.student, {each.clip: each for each in PROFILES.values()}
    base = PROFILES.get(profile.name, by_clip.get(profile.clip))  # a run may be called otherwise
    if base and profile.recipe != CONTROL:
        own, others = (apply_recipe(base, name).student for name in (profile.recipe, CONTROL))
        student = replace(
            others,
            **{name: value for name, value in vars(student).items() if value != getattr(own, name)},
        )
    control = replace(profile, student=student, recipe=CONTROL)
    untaught = RECIPES[CONTROL]["student"] | {"train_text": profile.student.train_text}
    untaught["rehearsal_weight"] = student.rehearsal_weight or untaught["rehearsal_weight"]
    return change_settings(control, {"student": untaught, "reciprocal_rank_as_map": False})


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
            data="",  # no name stands for the paper's data: load_data says what to give
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
    """Looks a profile up, and changes what is said: `get_profile("base", data="photos")`.

    Args:
        name: out of PROFILES.
        changes: as in `change_settings`.

    Raises:
        ValueError: the name or a setting is unknown, or a value is out of its range.
    """
    if name not in PROFILES:
        raise ValueError(f"Expected a profile out of {', '.join(PROFILES)}, got {name!r}.")
    return change_settings(PROFILES[name], changes)
