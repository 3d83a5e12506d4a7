"""Arms, the compared ways to treat CLIP: trained, chosen by one rule, measured, and saved.

The untouched CLIP is one of them. A trained arm's folder is an ordinary open_clip folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from dclip_kit.config import (
    CONTROL,
    PROFILES,
    Profile,
    SelectionRule,
    StudentSettings,
    change_settings,
)
from dclip_kit.data import LabelledImages
from dclip_kit.evaluation.evaluate import (
    RetrievalSet,
    ZeroShot,
    ZeroShotSet,
    evaluate_retrieval,
    evaluate_zero_shot,
    prepare_retrieval,
    prepare_zero_shot,
)
from dclip_kit.evaluation.profile_data import MEASURED_BY, ProfileData
from dclip_kit.evaluation.seen import TRAINING, SeenPictures
from dclip_kit.features.store import EncodedPictures
from dclip_kit.metrics import RetrievalMetrics
from dclip_kit.models.clip import (
    MERGES_FILE,
    ClipBundle,
    choose_precision,
    find_folder,
    load_clip,
    save_clip,
    tag_for,
)
from dclip_kit.models.encode import read_few
from dclip_kit.models.weights import interpolate, round_changed
from dclip_kit.runtime.files import asset_path, read_record, write_atomically, write_record
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import as_code, say
from dclip_kit.runtime.processes import is_main_process, training_device
from dclip_kit.training import History, RuinedError, Term, distill

_LEAST_FOUND = 20  # right answers, below which half of them may be luck
CARD = "README.md"  # of a model's folder, as hubs show it


@dataclass(frozen=True)
class Candidate:
    """An interpolation: its text→image Recall@1 and its zero-shot retention."""

    alpha: float
    recall_at_1: float
    retention: float


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to treat CLIP.

    Attributes:
        clip: the result, after interpolation.
        alpha: its weight; None for the untouched CLIP.
        candidates: the interpolations that val chose from.
        history: a row of figures for each epoch.
    """

    clip: ClipBundle
    alpha: float | None = None
    candidates: tuple[Candidate, ...] = ()
    history: History | None = None


@dataclass(frozen=True, eq=False)
class ArmResult:
    """An arm on test."""

    arm: Arm
    retrieval: RetrievalMetrics
    zero_shot: ZeroShot
    held_out: ZeroShot | None


# What arms are chosen and measured on


@dataclass(frozen=True, eq=False)
class EvaluationSets:
    """What arms are chosen on (val) and measured on (test), ready to embed."""

    val: RetrievalSet
    test: RetrievalSet
    zero_shot_val: ZeroShotSet
    zero_shot: ZeroShotSet
    zero_shot_held_out: ZeroShotSet | None


def prepare_evaluation(clip: ClipBundle, data: ProfileData) -> EvaluationSets:
    """Encodes all texts once; pictures are read when they are encoded."""

    def prepare(labelled: LabelledImages) -> ZeroShotSet:
        return prepare_zero_shot(clip, labelled, False, data.templates)

    sets = EvaluationSets(
        prepare_retrieval(clip, data.val, read=False),
        prepare_retrieval(clip, data.test, read=False),
        prepare(data.zero_shot_val),
        prepare(data.zero_shot),
        prepare(data.zero_shot_held_out) if data.zero_shot_held_out else None,
    )
    return_memory()
    return sets


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What arms train on and are chosen on.

    Attributes:
        captioned: to train on.
        val, zero_shot_val: to choose on.
        rule: how the choice is made.
        stop_collapsed: whether a training that ruins the model ends after its epoch.
    """

    captioned: EncodedPictures
    val: RetrievalSet
    zero_shot_val: ZeroShotSet
    rule: SelectionRule
    stop_collapsed: bool = False


def prepare_training(
    clip: ClipBundle,
    captioned: EncodedPictures,
    sets: EvaluationSets,
    rule: SelectionRule,
    stop_collapsed: bool = False,
) -> TrainingSet:
    """Reads val, which every training measures after each epoch; arguments as in `TrainingSet`.

    Raises:
        ValueError: as `read_pixels` and `require_some_named`.
    """
    val = replace(sets.val, pictures=read_few(clip, sets.val.pictures))
    zero_shot_val = replace(
        sets.zero_shot_val, pictures=read_few(clip, sets.zero_shot_val.pictures)
    )
    require_some_named(clip, zero_shot_val)  # before hours of training
    return_memory()
    return TrainingSet(captioned, val, zero_shot_val, rule, stop_collapsed)


# Training, and choosing


def measure_interpolations(
    before: ClipBundle,
    after: ClipBundle,
    retrieval: RetrievalSet,
    zero_shot: ZeroShotSet,
    alphas: Sequence[float],
    precision: str = "no",
) -> tuple[Candidate, ...]:
    """Measures the retrieval and the zero-shot retention of interpolations between two CLIPs.

    Args:
        before, after: the ends.
        retrieval, zero_shot: the data to measure on.
        alphas: weights of `after`; 0, which is `before`, always comes first.
        precision: to encode all pictures in: "no" (float32) or "bf16".

    Raises:
        ValueError: `before` classifies no picture correctly, so that there is nothing to retain.
    """
    before, rows = replace(before, precision=precision), []
    for alpha in tqdm(
        sorted({0.0, *alphas}), desc="interpolations", delay=2, disable=not is_main_process()
    ):
        mixed = interpolate(before, after, alpha)
        recall = evaluate_retrieval(mixed, retrieval, progress=False).text_to_image.recall_at[1]
        top1 = evaluate_zero_shot(mixed, zero_shot, progress=False).top1
        rows.append((alpha, recall, top1))
        if rows[0][2] == 0:
            raise knows_none()
    return tuple(Candidate(alpha, recall, top1 / rows[0][2]) for alpha, recall, top1 in rows)


def require_some_named(clip: ClipBundle, zero_shot: ZeroShotSet) -> float:
    """A CLIP's zero-shot accuracy, of which something has to be there to be retained.

    Raises:
        ValueError: it classifies no picture correctly.
    """
    top1 = evaluate_zero_shot(clip, zero_shot, progress=False).top1
    if top1 == 0:
        raise knows_none()
    return top1


def knows_none() -> ValueError:
    """The error about a CLIP that classifies no picture correctly."""
    return ValueError(
        "Expected a CLIP that knows some of the classes, got none right; give it classes that it "
        "can name."
    )


def choose_candidate(candidates: Sequence[Candidate], least_retention: float) -> Candidate:
    """Chooses between interpolations measured on val, by one rule for every arm.

    It is the one with the best text→image Recall@1 among those that retain enough of the zero-shot
    accuracy; if none does, the first, the untouched CLIP.
    """
    retaining = [candidate for candidate in candidates if candidate.retention >= least_retention]
    return max(retaining or candidates[:1], key=lambda candidate: candidate.recall_at_1)


def train_arm(
    clip: ClipBundle,
    shown: TrainingSet,
    terms: Sequence[Term],
    settings: StudentSettings,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[ClipBundle, History], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Arm:
    """Fine-tunes a copy of CLIP and chooses its interpolation on val.

    The trained weights are rounded to half precision, as `save_arm` stores them, so that the arm
    measures the same after it is loaded.

    Args:
        clip: the untouched CLIP.
        shown: the training data, and val to choose on; test is not used.
        terms: of the loss, from `choose_terms`.
        settings, seed, checkpoint, on_epoch, on_step: as in `distill`.

    Raises:
        ValueError: as `distill`; or the model has collapsed, and `shown` says to stop then.
    """
    precision = choose_precision(settings.mixed_precision, training_device(clip.device))
    validator = _Validator(clip, shown, precision, settings.learning_rate)
    run = distill(
        clip,
        shown.captioned,
        terms,
        settings,
        seed=seed,
        checkpoint=checkpoint,
        on_epoch=partial(validator.after_epoch, on_epoch),
        on_step=on_step,
        on_look=validator.require_intact if shown.stop_collapsed else None,
    )
    return_memory()
    candidates = measure_interpolations(
        clip, run.student, shown.val, shown.zero_shot_val, shown.rule.alphas, precision
    )
    alpha = choose_candidate(candidates, shown.rule.least_retention).alpha
    student = interpolate(clip, run.student, alpha)
    round_changed(clip, student)
    return_memory()
    return Arm(student, alpha, candidates, run.history)


class _Validator:
    """Measures a training on val: its curves, and whether it ruins the model."""

    def __init__(self, clip: ClipBundle, shown: TrainingSet, precision: str, rate: float) -> None:
        self._shown, self._precision, self._rate = shown, precision, rate
        # A sample, since with all pictures training would take twice as long; of few, a larger one.
        labelled = shown.zero_shot_val
        self._sample = labelled.every(min(20, max(1, len(labelled.labels) // 40)))
        self._untouched, self._recall = self._name(clip), 0.0
        if shown.stop_collapsed:
            metrics = self._search(clip)
            # What finds less by chance alone is not known to collapse.
            if metrics.text_to_image.hits(1).sum() >= _LEAST_FOUND:
                self._recall = metrics.text_to_image.recall_at[1]

    def _name(self, model: ClipBundle) -> float:
        student = replace(model, precision=self._precision)
        return evaluate_zero_shot(student, self._sample, progress=False).top1

    def _search(self, model: ClipBundle) -> RetrievalMetrics:
        student = replace(model, precision=self._precision)
        return evaluate_retrieval(student, self._shown.val, progress=False)

    def after_epoch(
        self,
        on_epoch: Callable[[ClipBundle, History], None] | None,
        trained: ClipBundle,
        history: History,
    ) -> None:
        """Adds val's figures to an epoch's row, and calls on_epoch."""
        recall = self._search(trained).text_to_image.recall_at[1]
        top1 = self._name(trained)
        history[-1] |= {"val_recall_at_1": recall, "val_zero_shot": top1}
        if self._untouched:
            history[-1]["val_retention"] = top1 / self._untouched
        if on_epoch:
            on_epoch(trained, history)
        if self._shown.stop_collapsed:
            self._judge(recall, top1)

    def require_intact(self, trained: ClipBundle) -> None:
        """Checks that a training has not ruined the model; raises as `_require_intact`."""
        self._judge(self._search(trained).text_to_image.recall_at[1], self._name(trained))

    def _judge(self, recall: float, top1: float) -> None:
        kept = 1.0
        if self._untouched * len(self._sample.labels) >= _LEAST_FOUND:
            kept = top1 / self._untouched
        _require_intact(recall, self._recall, kept, self._rate)


def _require_intact(recall: float, before: float, retention: float, rate: float) -> None:
    """Checks that a trained model is not ruined.

    Raises:
        RuinedError: it has lost half of what it found or could name.
    """
    if recall < before / 2 or retention < 0.5:
        raise RuinedError(
            "Expected a model that still searches and remembers as it trains, got "
            f"{100 * recall:.1f} % R@1 on val (the untouched CLIP: {100 * before:.1f} %) and "
            f"{retention:.0%} of its zero-shot accuracy; train into another folder with "
            f"--student.learning-rate {rate / 3:.1e}, or go on with --keep-going."
        )


def evaluate_arms(arms: Mapping[str, Arm], sets: EvaluationSets) -> dict[str, ArmResult]:
    """Measures arms on test: retrieval, zero-shot, and zero-shot in a held-out style if any.

    One set at a time, so that its pictures are read once for all arms if they fit into memory.
    """
    clip, columns = next(iter(arms.values())).clip, []
    measurements: list[tuple[Callable[..., Any], Any]] = [
        (evaluate_retrieval, sets.test),
        (evaluate_zero_shot, sets.zero_shot),
        (evaluate_zero_shot, sets.zero_shot_held_out),
    ]
    for evaluate, data in measurements:
        if data:
            data = replace(data, pictures=read_few(clip, data.pictures))
        bar = tqdm(arms.values(), "measuring arms", disable=not data or not is_main_process())
        columns.append([data and evaluate(arm.clip, data, progress=False) for arm in bar])
    return dict(zip(arms, map(ArmResult, arms.values(), *columns), strict=True))


# On disk


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        profile: the settings that the model is loaded and measured with.
        digest: of the CLIP that it was made from, which the profile names.
    """

    profile: Profile
    digest: str

    def load_base(self, device: str = "cpu", instead: str = "", advice: str = "") -> ClipBundle:
        """Loads the CLIP that the model was made from.

        Args:
            device: where to put it.
            instead: its present name, if it has moved.
            advice: what else to do where it does not load, for the end of the error.

        Raises:
            FileNotFoundError, ValueError: as `load_clip`, or it is a different CLIP.
        """
        name = instead or self.profile.clip
        try:
            clip = load_clip(name, tag_for(name, self.profile.pretrained), device)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(
                f"Expected the CLIP that the model was made from at {name}, but it does not load "
                f"({error}); restore it{advice}."
            ) from error
        if clip.digest != self.digest:
            raise ValueError(
                f"Expected the CLIP that the model was made from, of the digest {self.digest}, got "
                f"{name} of {clip.digest}; restore it{advice}."
            )
        return clip


def describe_origin(profile: Profile, clip: ClipBundle) -> dict[str, Any]:
    """What the training.json of every model of a run begins with."""
    base = {"clip": profile.clip, "pretrained": profile.pretrained, "digest": clip.digest}
    return {"base": base, "recipe": profile.recipe, "settings": profile.as_dict()}


def read_origin(reference: Path | str) -> Origin | None:
    """Where a model comes from; None for one that the kit did not train.

    Args:
        reference: the folder of a CLIP or of a teacher, or another name of a CLIP.

    Raises:
        ValueError: its record is damaged.
    """
    folder = find_folder(str(reference))
    if folder is None or not (folder / TRAINING).is_file():
        return None

    def build(record: dict[str, Any]) -> Origin:
        names = (*MEASURED_BY, "leak_guard", "regions")
        settings = {name: record["settings"][name] for name in names}
        profile = change_settings(PROFILES["pocket"], settings)
        return Origin(profile, str(record["base"]["digest"]))

    return read_record(folder / TRAINING, build)


def save_arm(arm: Arm, folder: Path, origin: Mapping[str, Any], seen: SeenPictures) -> None:
    """Writes an arm as a folder that open_clip loads, with a record of its training.

    Trained weights are stored in half precision, the others bit for bit as they were loaded.

    Args:
        arm: a trained one.
        folder: to write to, named like the arm.
        origin: from `describe_origin`.
        seen: the pictures that the arm, its base and its teacher have seen.
    """
    seen.save(folder)  # first, so that no weights are ever without this record
    chosen = {
        "alpha": arm.alpha,
        "candidates": [asdict(candidate) for candidate in arm.candidates],
        "history": arm.history,
    }
    write_record({**origin, **chosen}, folder / TRAINING)
    save_clip(arm.clip, folder)
    write_card(folder)


def load_arm(folder: Path, device: str = "cpu") -> Arm:
    """Reads what `save_arm` wrote.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; or as `load_clip`.
    """

    def build(record: dict[str, Any]) -> tuple[Any, ...]:
        candidates = tuple(Candidate(**candidate) for candidate in record["candidates"])
        return record["alpha"], candidates, record["history"]

    if not (folder / TRAINING).is_file():
        raise FileNotFoundError(
            f"Expected an arm in {folder}, found no {TRAINING}; name the folder of one that "
            "distill trained."
        )
    chosen = read_record(folder / TRAINING, build)
    return Arm(load_clip(folder, device=device), *chosen)


def load_arms(
    clip: ClipBundle, folder: Path, names: Sequence[str] = (CONTROL, "region_taught")
) -> dict[str, Arm]:
    """Reads some arms of a run, adds the untouched CLIP, and prints what it loaded.

    Raises:
        FileNotFoundError, ValueError: as `load_arm`, or an arm was made from another CLIP.
    """
    trained = {}
    for name in names:
        trained[name] = load_arm(folder / name)
        origin = read_origin(folder / name)
        if origin and origin.digest != clip.digest:
            raise ValueError(
                f"Expected an arm of {clip.name} in {folder / name}, got one that was made from "
                f"another CLIP, {origin.profile.clip}; load that, or name another folder."
            )
    weights = ", ".join(f"{name} (α = {arm.alpha:g})" for name, arm in trained.items())
    say(f"Loaded the saved arms, trained earlier: {weights}.")
    return {"clip": Arm(clip)} | trained


def find_saved(profile: Profile, folder: str = "") -> Path:
    """The folder of a profile's teacher and arms, for a notebook.

    Args:
        profile: the pocket's arms come with the kit; those of others must be trained first.
        folder: of a run of yours, to take them from instead.

    Raises:
        FileNotFoundError: they have not been trained.
    """
    if not folder and profile.name == profile.data == "pocket":
        return asset_path("pocket_arms")
    arms_folder = Path(folder or f"../runs/{profile.name}/arms")  # from notebooks/
    if not (arms_folder / profile.recipe / TRAINING).is_file():
        raise FileNotFoundError(
            f"Expected a teacher and arms of the profile {profile.name} in {arms_folder}, found "
            f"none; run: python -m dclip_kit distill --profile {profile.name} --out {arms_folder}"
        )
    return arms_folder


_CARD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, image-text-retrieval]
---
# {name}

{name} is a CLIP that finds pictures by texts and texts by pictures, fine-tuned from {base} by the
recipe {recipe} of dclip_kit. open_clip loads it:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER"{merges})
```

It was trained on {data} with the seed {seed}; of the new weights it has the share α = {alpha}.
The terms of the CLIP that it was made from, and of the pictures, hold for it. `training.json` has
all settings, and losses by epoch.

## Measured

{measured}
"""


def write_card(folder: Path, measured: str = "Not measured.") -> None:
    """Writes the card of an arm in a folder: what it is, how it is loaded, what was measured.

    Args:
        folder: of the arm, with its training.json.
        measured: Markdown.

    Raises:
        FileNotFoundError, ValueError: training.json is missing or damaged.
    """

    def build(record: dict[str, Any]) -> dict[str, str]:
        base, settings = record["base"], record["settings"]
        # Only the last part of each path, since the rest is private.
        tag = f" ({Path(base['pretrained']).name})" if base["pretrained"] else ""
        fields = {
            "base": f"{Path(base['clip']).name}{tag}",
            "recipe": record["recipe"],
            "data": Path(settings["data"]).name,
            "name": folder.name,
        }
        return {name: as_code(text) for name, text in fields.items()} | {
            "seed": str(settings["seed"]),
            "alpha": f"{record['alpha']:g}",
        }

    fields = read_record(folder / TRAINING, build)
    merges = f', bpe_path="FOLDER/{MERGES_FILE}"' if (folder / MERGES_FILE).is_file() else ""
    write_atomically(folder / CARD, _CARD.format(**fields, merges=merges, measured=measured))
