"""All settings, as frozen dataclasses: change them with `dataclasses.replace`, save them as JSON.

A profile says what a run works with; a recipe says how it trains. Values of METHOD's reference
stand in the `paper` profile; those of `pocket` were chosen on the pocket's val split.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

FreezePolicy = str  # "projection", "attention", "last_blocks(n)" or "all": see student.trainable


@dataclass(frozen=True)
class RegionSettings:
    """How regions are found and weighted."""

    detector: str = "pocket"
    confidence: float = 0.25  # ultralytics' own default
    max_regions: int = 10
    margin: float = 0.1  # share of the box's side kept around a crop: context helps CLIP
    square: bool = True  # crops widened to squares, of which CLIP's preprocessing cuts nothing off
    weighted: bool = True  # area * confidence * similarity; the published code never applies it
    whole_image: bool = False  # adds the whole picture as one more region, beyond the description


@dataclass(frozen=True)
class TeacherSettings:
    """The cross-modal teacher and its training (paper, section 3; sizes of the reference code)."""

    heads: int = 8
    layers: int = 1
    pooling_temperature: float = 2.0
    caption_free: bool = False  # True: regions attend to regions, and no caption is seen
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 128
    epochs: int = 8
    temperature: float = 0.05


@dataclass(frozen=True)
class StudentSettings:
    """Fine-tuning of CLIP's image tower."""

    train: FreezePolicy = "all"
    learning_rate: float = 3e-4
    block_rate: float = 1.0  # the blocks' share of it; what pools and projects after them takes all
    weight_decay: float = 0.01
    batch_size: int = 128  # pictures
    captions_per_image: int = 1  # in a step; a picture's captions are no negatives of each other
    gradient_accumulation: int = 1
    clip_norm: float = 0.5
    epochs: int = 12
    warmup_share: float = 0.1  # of all steps
    temperature: float = 0.05
    distillation_weight: float = 1.0  # 0 makes the plain contrastive fine-tune: the control
    contrastive_weight: float = 1.0
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"  # auto: bf16 in hardware, else no


@dataclass(frozen=True)
class SelectionRule:
    """How every arm is chosen on val: the interpolation that retrieves best of those that remember.

    Retention is measured on val pictures of single objects; a little above the bar that the test
    is held to, since a maximum over candidates is flattered by noise.
    """

    alphas: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 1.0)
    least_retention: float = 0.955


@dataclass(frozen=True)
class Profile:
    """Everything that one run needs to know."""

    name: str
    clip: str
    pretrained: str | None
    data: str = "pocket"  # whose pictures and captions: the pocket's come with the kit
    regions: RegionSettings = field(default_factory=RegionSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    selection: SelectionRule = field(default_factory=SelectionRule)
    seed: int = 0

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
        # The described teacher reads the caption; its students searched no better than the control.
        teacher=TeacherSettings(caption_free=True, epochs=24),
        # Moving the blocks is what forgets, moving the pooling after them what learns to search.
        student=StudentSettings(
            learning_rate=4e-3, block_rate=0.1, captions_per_image=5, distillation_weight=2.0
        ),
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
        data="coco",
        regions=RegionSettings(detector="yolov8x.pt"),
        teacher=_REFERENCE_TEACHER,
        student=_REFERENCE_STUDENT,
    ),
}


def get_profile(name: str) -> Profile:
    """Looks a profile up.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PROFILES:
        raise ValueError(f"Expected a profile out of {', '.join(PROFILES)}, got {name!r}.")
    return PROFILES[name]


def contrastive_control(student: StudentSettings) -> StudentSettings:
    """The control: the same fine-tune, budget and order of data, without the teacher."""
    return replace(student, distillation_weight=0.0)
