"""The compared arms: clip (untouched), contrastive (the control) and dclip, under one rule."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dclip_kit.config import Profile, TeacherSettings, contrastive_control
from dclip_kit.data.annotations import parse_json
from dclip_kit.evaluation.evaluate import ZeroShot, evaluate_retrieval, evaluate_zero_shot
from dclip_kit.evaluation.preparation import TrainingSet
from dclip_kit.evaluation.selection import Candidate, select_alpha
from dclip_kit.features.frozen import FrozenFeatures
from dclip_kit.metrics import RetrievalMetrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.precision import choose_precision
from dclip_kit.models.teacher import MetaTeacher, build_teacher
from dclip_kit.models.weights import clone_clip, interpolate
from dclip_kit.runtime.files import load_tensors, load_weights, save_tensors, write_atomically
from dclip_kit.runtime.machine import return_memory
from dclip_kit.training import History, average_histories, distill


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to treat CLIP.

    Attributes:
        name: "clip", "contrastive", "dclip", …
        clip: the result, after interpolation.
        alpha: its weight; None for the untouched CLIP.
        candidates: what the selection on val saw.
        history: a row of figures an epoch.
        trained_text: whether the text tower is another than CLIP's, too.
    """

    name: str
    clip: ClipBundle
    alpha: float | None = None
    candidates: tuple[Candidate, ...] = ()
    history: History | None = None
    trained_text: bool = False


@dataclass(frozen=True, eq=False)
class ArmResult:
    """An arm on test."""

    arm: Arm
    retrieval: RetrievalMetrics
    zero_shot: ZeroShot
    held_out: ZeroShot | None


def train_arm(
    name: str,
    clip: ClipBundle,
    shown: TrainingSet,
    features: FrozenFeatures,
    profile: Profile,
    teacher_embeddings: Float[Tensor, "text embed"] | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[ClipBundle, History], None] | None = None,
    texts: Sequence[str] | None = None,
) -> Arm:
    """Fine-tunes a copy of CLIP and chooses its interpolation on val.

    With a `soup` of runs that differ in the order of data, it goes on with the mean of their
    weights (arXiv 2203.05482).

    Args:
        name: of the arm. Without `teacher_embeddings` it is a contrastive control, unless the
            profile's student does without a teacher anyway.
        clip: the untouched CLIP.
        shown: the training data's pictures, and val, which decides; test is not looked at.
        features: of the training data.
        profile: settings, rule of selection and seed, the same for all arms.
        teacher_embeddings: what to distil.
        checkpoint: to continue from; a soup's later runs have their number behind its name.
        on_epoch: called after each epoch, with the history of the run that it is of.
        texts: the training captions; only needed where the text tower trains.
    """
    settings = profile.student
    if teacher_embeddings is None and settings.distillation_weight:
        settings = contrastive_control(settings)

    precision = choose_precision(settings.mixed_precision)
    glance = shown.zero_shot_val.every(20)  # for the curves; all of it would double the training

    def validate(trained: ClipBundle, history: History) -> None:
        student = replace(trained, precision=precision)
        found = evaluate_retrieval(student, shown.val, progress=False)
        history[-1] |= {
            "val_recall_at_1": found.text_to_image.recall_at[1],
            "val_zero_shot": evaluate_zero_shot(student, glance, progress=False).top1,
        }
        if on_epoch:
            on_epoch(trained, history)

    mean, histories = clip, []
    for run in range(settings.soup):
        trained = distill(
            clip,
            shown.pictures,
            features,
            settings,
            teacher_embeddings,
            rehearsal=shown.rehearsal,
            texts=texts,
            seed=member_seed(profile.seed, run),
            checkpoint=checkpoint and checkpoint.with_stem(checkpoint.stem + f"-{run}" * (run > 0)),
            on_epoch=validate,
        )
        mean = interpolate(mean, trained.student, 1 / (run + 1))
        histories.append(trained.history)
        del trained
        return_memory()
    decisive = shown.val, shown.zero_shot_val
    chosen = select_alpha(clip, mean, *decisive, profile.selection, precision)
    return_memory()
    found = chosen.student, chosen.alpha, chosen.candidates, average_histories(histories)
    return Arm(name, *found, trained_text=settings.train_text)


def member_seed(seed: int, member: int) -> int:
    """The seed of a soup's member: runs of different seeds share none, and repeats are repeats."""
    return seed + 1_000_003 * member


def save_arm(arm: Arm, folder: Path) -> None:
    """Writes what of an arm has trained (fp16), its image tower mostly, and how it came about."""
    weights = _halve(_trained_part(arm.clip, arm.trained_text))
    save_tensors(weights, folder / f"{arm.name}.safetensors")
    record = {
        "trained_text": arm.trained_text,
        "alpha": arm.alpha,
        "candidates": [asdict(c) for c in arm.candidates],
        "history": arm.history,
    }
    write_atomically(folder / f"{arm.name}.json", json.dumps(record, indent=1) + "\n")


def load_arm(name: str, clip: ClipBundle, folder: Path) -> Arm:
    """Reads what `save_arm` wrote.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or of another architecture.
    """
    loaded = clone_clip(clip)
    path = folder / f"{name}.safetensors"
    own = folder / f"{name}.json"
    kinds = {"alpha": float | int | None, "candidates": list, "history": list | None}
    record = _read_record(own, kinds)
    trained_text = record.get("trained_text", False)
    candidates = tuple(_read_fields(Candidate, each, own) for each in record["candidates"])
    load_weights(_trained_part(loaded, trained_text), load_tensors(path), str(path))
    return Arm(name, loaded, record["alpha"], candidates, record["history"], trained_text)


def _trained_part(clip: ClipBundle, trained_text: bool) -> nn.Module:
    return clip.model if trained_text else clip.model.visual


def _halve(part: nn.Module) -> dict[str, Tensor]:
    weights = part.state_dict().items()
    return {name: x.half() if x.is_floating_point() else x for name, x in weights}


def load_arms(clip: ClipBundle, folder: Path, recipe: str = "dclip") -> dict[str, Arm]:
    """Reads a recipe's arm and contrastive, beside the untouched CLIP, and says so.

    Raises:
        FileNotFoundError, ValueError: as `load_arm`.
    """
    arms = {"clip": Arm("clip", clip)}
    names = dict.fromkeys(("contrastive", recipe))
    arms |= {name: load_arm(name, clip, folder) for name in names}
    mixed = ", ".join(
        f"{name} (α = {arm.alpha:g})" for name, arm in arms.items() if arm.alpha is not None
    )
    print(f"Loaded the saved arms, trained earlier: {mixed}.")
    return arms


def save_teacher(teacher: MetaTeacher, history: History, profile: Profile, folder: Path) -> None:
    """Writes a teacher's weights and how it came about."""
    save_tensors(teacher.state_dict(), folder / "teacher.safetensors")
    record = {"settings": asdict(profile.teacher), "history": history}
    write_atomically(folder / "teacher.json", json.dumps(record, indent=1) + "\n")


def load_teacher(embed_dim: int, profile: Profile, folder: Path) -> tuple[MetaTeacher, History]:
    """Reads what `save_teacher` wrote.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or computes otherwise than the
            profile's would.
    """
    settings = profile.teacher
    own = folder / "teacher.json"
    record = _read_record(own, {"settings": dict, "history": list})
    computed_with = asdict(_read_fields(TeacherSettings, record["settings"], own))
    for name in ("heads", "layers", "pooling_temperature", "caption_free", "masked"):
        if computed_with[name] != getattr(settings, name):
            raise ValueError(
                f"Expected a teacher with {name}={getattr(settings, name)!r} in {folder}, got "
                f"{computed_with[name]!r}; change the profile or train another."
            )
    teacher = build_teacher(embed_dim, settings)
    path = folder / "teacher.safetensors"
    load_weights(teacher, load_tensors(path), str(path))
    return teacher.eval(), record["history"]


def _read_record(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """What stands beside weights, with at least these entries, each of its kind."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected how the weights came about in {path}, found no file.")
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        for name, kind in kinds.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is a {type(record[name]).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected {', '.join(sorted(kinds))} in {path}, but it is damaged ({error}); save it "
            "again."
        ) from error
    return record


def _read_fields(kind: type, found: Any, path: Path) -> Any:
    """A dataclass of numbers out of JSON."""
    try:
        if not isinstance(found, dict):
            raise TypeError(f"there is a {type(found).__name__}")
        if bad := [name for name, value in found.items() if not isinstance(value, int | float)]:
            raise TypeError(f"{bad[0]} is no number")
        return kind(**found)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(kind))
        raise ValueError(
            f"Expected {names} in {path}, but it is damaged ({error}); save it again."
        ) from error


def round_tower(arm: Arm) -> Arm:
    """A copy with its weights in the precision that `save_arm` keeps, so both measure the same."""
    clip = clone_clip(arm.clip)
    part = _trained_part(clip, arm.trained_text)
    part.load_state_dict(_halve(part))  # copied into what is there, so in single precision again
    return replace(arm, clip=clip)
