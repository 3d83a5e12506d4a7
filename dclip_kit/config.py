"""All settings, as frozen dataclasses: change them with `dataclasses.replace`, save them as JSON.

A profile says what a run works with, and a recipe how it trains. The `paper` profile has the
published code's values; those of `pocket` were chosen on the pocket's val split.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from typing import Any, Literal, get_args, get_origin

FreezePolicy = str  # one of these; `weights.freeze` says what each trains
POLICIES = ("projection", "attention", "last_blocks(n)", "all")

# The values that a setting may have, by its name; any of their type for those not listed here.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "a whole number from 1": (
        lambda x: isinstance(x, int) and x >= 1,
        "max_regions heads layers width anchors batch_size epochs captions_per_image "
        "gradient_accumulation soup",
    ),
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
        "rehearsal_weight least_retention",  # above 1: zero-shot accuracy has to rise
    ),
    "a number from 0 to 1": (lambda x: 0 <= x <= 1, "confidence"),
    "a number from 0 to below 1": (lambda x: 0 <= x < 1, "warmup_share region_dropout"),
    "one or more numbers from 0 to 1": (
        lambda x: len(x) > 0 and all(0 <= each <= 1 for each in x),
        "alphas",
    ),
}
_ALLOWED = {name: (what, fits) for what, (fits, of) in _RANGES.items() for name in of.split()}


def read_policy(policy: FreezePolicy, name: str = "a policy") -> int:
    """How many blocks at the end of the tower a freeze policy trains.

    Args:
        policy: one of POLICIES.
        name: what to call it in an error.

    Returns:
        The n of last_blocks(n); 0 for other policies.

    Raises:
        ValueError: it is none of POLICIES.
    """
    found = re.fullmatch(r"projection|attention|all|last_blocks\(0*([1-9]\d*)\)", str(policy))
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
    caption_free: bool = False  # True: regions attend to regions, and no caption is seen
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
    regions: bool = True  # False: it sees the whole picture alone, as a control
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

    train: FreezePolicy = "all"
    train_text: bool = False  # True: the text tower too, as the published code does
    learning_rate: float = 3e-4
    block_rate: float = 1.0  # the blocks' share of it; pooling and projection train at all of it
    weight_decay: float = 0.01
    batch_size: int = 128  # pictures
    captions_per_image: int = 1  # in a step; captions of one picture are not negatives
    gradient_accumulation: int = 1
    clip_norm: float = 0.5
    epochs: int = 12
    soup: int = 1  # runs that differ in the order of data, whose weights are averaged
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
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # auto: bf16 where the hardware has it

    def __post_init__(self) -> None:
        _check(self, "student.")
        read_policy(self.train, "student.train")
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


# What a recipe changes in a profile. The published code and the paper (arXiv 2505.21549) differ in
# eight places, numbered below: `official_code` follows the code, every other recipe the paper.
# Sizes, learning rates and weights of losses stay the profile's.
RECIPES: dict[str, dict[str, Any]] = {
    "dclip": {},
    "contrastive": {"student": {"distillation_weight": 0.0, "rehearsal_weight": 0.0}},
    "rehearsal": {"student": {"distillation_weight": 0.0}},
    "official_code": {
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
            # 8: half of the teacher's embedding is the caption that it is contrasted with, so it
            # can be right without looking at the picture, as `shortcut_probe` shows.
            "caption_free": False,
        },
        "student": {
            # 5: the text tower trains, though the paper says that it is frozen.
            "train_text": True,
            # 6: every parameter with "proj" in its name trains: all attention layers.
            "train": "attention",
            "rehearsal_weight": 0.0,
        },
        # 7: "MAP" is the mean reciprocal rank of the best match.
        "reciprocal_rank_as_map": True,
    },
}

# Which recipes need a weight of the student's, and which must not have it; others may.
_WEIGHTED = {
    "distillation_weight": {
        "dclip": True,
        "official_code": True,
        "contrastive": False,
        "rehearsal": False,
    },
    "rehearsal_weight": {"contrastive": False, "rehearsal": True},
}


@dataclass(frozen=True)
class Profile:
    """Everything that one run needs to know."""

    name: str  # what reports call the run
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
    leak_guard: Literal["content", "names"] = "content"  # how pictures in two splits are found
    regions: RegionSettings = field(default_factory=RegionSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    selection: SelectionRule = field(default_factory=SelectionRule)
    seed: int = 0  # of weights, of the order of pictures, and of splits that have to be drawn
    # True: reports give the reciprocal rank of the best match as the "mean average precision", as
    # the published code does.
    reciprocal_rank_as_map: bool = False
    recipe: str = "dclip"  # it trains by: dclip, contrastive, rehearsal or official_code

    def __post_init__(self) -> None:
        _check(self)
        if self.recipe not in RECIPES:
            raise ValueError(
                f"Expected a recipe out of {', '.join(RECIPES)}, got {self.recipe!r}; name one."
            )

    def as_dict(self) -> dict[str, Any]:
        """For JSON beside a result."""
        return asdict(self)


_REFERENCE_TEACHER = TeacherSettings(learning_rate=1e-5, weight_decay=0.0, batch_size=32, epochs=5)
_REFERENCE_STUDENT = StudentSettings(
    learning_rate=1e-6, batch_size=32, gradient_accumulation=4, epochs=2
)

PROFILES: dict[str, Profile] = {
    "pocket": Profile(
        "pocket",
        "pocket",
        None,
        # Students of a teacher that reads the caption searched no better than the control.
        teacher=TeacherSettings(caption_free=True, epochs=24),
        # Training the blocks forgets; training the pooling after them learns to search.
        student=StudentSettings(
            learning_rate=4e-3,
            block_rate=0.1,
            captions_per_image=5,
            distillation_weight=2.0,
            epochs=4,  # on val as good as twelve, which forgot more
            soup=2,
            rehearsal_weight=4.0,
        ),
        selection=SelectionRule(alphas=(0.4, 0.6, 0.8, 1.0)),
    ),
    "base": Profile(
        "base",
        "ViT-B-32-quickgelu",
        "openai",
        regions=RegionSettings(detector="yolov8n.pt"),
        teacher=_REFERENCE_TEACHER,
        student=_REFERENCE_STUDENT,
    ),
    "paper": Profile(
        "paper",
        "ViT-B-16-quickgelu",
        "openai",
        data="",  # no name stands for the paper's data: load_data says what to give
        zero_shot="",
        templates="paper",
        regions=RegionSettings(detector="yolov8x.pt"),
        teacher=_REFERENCE_TEACHER,
        student=_REFERENCE_STUDENT,
    ),
}


# What each format of captioned pictures looks like at a path, for --help and errors.
FORMATS: dict[str, str] = {
    "csv": "captions.csv or metadata.csv with the columns image or file_name, caption or text, and "
    "perhaps split",
    "jsonl": "a .jsonl with these as keys; captions may be a list",
    "files": "a .txt beside each picture",
    "karpathy": "dataset_*.json",
    "coco": "captions_*.json",
    "flickr": "results_20130124.token or results.csv",
    "conceptual": "a .tsv of captions and addresses, over what img2dataset downloaded",
    "shards": "webdataset's .tar",
}


def get_profile(name: str) -> Profile:
    """Looks a profile up.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PROFILES:
        raise ValueError(f"Expected a profile out of {', '.join(PROFILES)}, got {name!r}.")
    return PROFILES[name]


def apply_recipe(profile: Profile, name: str) -> Profile:
    """A profile that trains by a recipe.

    Args:
        profile: what to work with, and by which sizes and rates.
        name: "dclip" (the profile as it is), "contrastive" (neither teacher nor rehearsal: the
            control), "rehearsal" (without the teacher: what of a gain is the rehearsal's) or
            "official_code" (what the published code does where it parts from its description).

    Raises:
        ValueError: the name is unknown.
    """
    changes = {
        part: replace(getattr(profile, part), **change) if isinstance(change, dict) else change
        for part, change in RECIPES.get(name, {}).items()
    }
    return replace(profile, recipe=name, **changes)  # which refuses an unknown one


def require_recipe(profile: Profile) -> None:
    """Checks that a profile does what its recipe says, for whoever is about to train by it.

    Raises:
        ValueError: the weight of distillation or of rehearsal contradicts the recipe.
    """
    weights = {name: getattr(profile.student, name) for name in _WEIGHTED}

    def allows(recipe: str, name: str) -> bool:
        return _WEIGHTED[name].get(recipe) in (None, bool(weights[name]))

    wrong = [name for name in weights if not allows(profile.recipe, name)]
    if wrong:
        name, fitting = wrong[0], [r for r in RECIPES if all(allows(r, each) for each in weights)]
        raise ValueError(
            f"Expected student.{name} {'to be 0' if weights[name] else 'above 0'} in the recipe "
            f"{profile.recipe}, got {weights[name]}; give another, or take --recipe "
            f"{' or '.join(fitting)}."
        )


def contrastive_control(student: StudentSettings) -> StudentSettings:
    """The control: a plain fine-tune on the same pictures in the same order, and no more."""
    return replace(student, distillation_weight=0.0, rehearsal_weight=0.0)
