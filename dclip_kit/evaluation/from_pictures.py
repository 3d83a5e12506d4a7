"""A run from pictures alone: no caption of theirs exists, so that none can choose or measure."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dclip_kit.config import Profile
from dclip_kit.data.splits import read_uncaptioned
from dclip_kit.evaluation.arms import Arm, describe_origin, save_arm, write_card
from dclip_kit.evaluation.evaluate import evaluate_zero_shot, prepare_zero_shot
from dclip_kit.evaluation.experiment import (
    REPORT,
    SETTINGS,
    prepare_terms,
    require_settings,
    require_trainable,
    save_teacher_run,
    say_chosen,
    train_teacher_of,
)
from dclip_kit.evaluation.profile_data import (
    choose_templates,
    is_pocket,
    read_anchors,
    read_zero_shot,
    require_data,
)
from dclip_kit.evaluation.seen import describe_seen, leave_out_labelled, load_seen
from dclip_kit.features.extract import encode_pictures
from dclip_kit.features.store import EncodedPictures
from dclip_kit.metrics import retention
from dclip_kit.models.clip import choose_device, load_clip, tag_for
from dclip_kit.models.encode import encode_texts
from dclip_kit.models.teacher import kind_of
from dclip_kit.models.weights import interpolate, round_changed
from dclip_kit.runtime.files import write_record
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process
from dclip_kit.training import distill

ALPHA = 0.5  # of the trained weights, where no captioned val can choose it


def run_from_pictures(
    profile: Profile, out: Path, *, features: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Fine-tunes a CLIP on pictures without captions, by their own regions.

    Its teacher is the mean of picture and regions, whose weight is 1, and half of the new weights
    are kept, since nothing can choose. What it forgets is measured; what it finds, only captioned
    pictures can tell.

    Args:
        profile: with captions none, a folder of pictures as data, and anchor texts.
        out: the folder of the run.
        features: the folder to store frozen features in; `out` if left out.
        device: where to compute.

    Returns:
        What was measured, as written to report.json.

    Raises:
        FileNotFoundError, ValueError: as `experiment.run`, or there are no anchor texts.
    """
    if not profile.anchor_texts:
        raise ValueError(
            f"Expected texts that the pictures in {profile.data} can be compared with, got none; "
            "give --anchor-texts, such as a .txt with one a line."
        )
    require_settings(profile, out)
    require_data(profile)
    device = choose_device(device)
    clip = load_clip(profile.clip, tag_for(profile.clip, profile.pretrained), device)
    require_trainable(profile, clip)
    pictures, left_out = read_uncaptioned(profile.data, (), profile.leak_guard == "content")
    if str(left_out):
        say(str(left_out))
    before = load_seen(profile.clip)
    nothing = pictures.select([])
    seen = describe_seen(
        pictures, nothing, (), profile.leak_guard == "content", [before] if before else []
    )
    texts = read_anchors(profile.anchor_texts)
    labelled = read_zero_shot(profile.zero_shot)[0]  # all of them, since none chooses
    if not is_pocket(profile.zero_shot):
        labelled = leave_out_labelled(labelled, seen.files)
    templates = choose_templates(profile.zero_shot, profile.templates)
    zero_shot = prepare_zero_shot(clip, labelled, read=False, templates=templates)
    if is_main_process():  # only now, so that a command may be corrected
        write_record(profile.as_dict(), out / SETTINGS)
    say(f"{len(pictures):,} pictures without captions to train on, {len(texts):,} texts.")

    encoded = encode_pictures(clip, pictures, profile.regions, features or out)
    shown = lend_text(encoded, texts[0], encode_texts(clip, texts[:1]))
    teacher = train_teacher_of(profile, shown.features, device=clip.device)
    if is_main_process():
        save_teacher_run(teacher, out / kind_of(teacher.settings), profile, clip, seen)
    terms = prepare_terms(profile, clip, shown, teacher.teacher)
    state = out / "checkpoints" / f"{profile.recipe}.safetensors"
    run = distill(clip, shown, terms, profile.student, seed=profile.seed, checkpoint=state)
    student = interpolate(clip, run.student, ALPHA)
    round_changed(clip, student)

    knew, knows = (evaluate_zero_shot(each, zero_shot) for each in (clip, student))
    report = {
        "captions": "none",
        "recipe": profile.recipe,
        "pictures": len(pictures),
        "anchors": len(texts),
        "alpha": ALPHA,
        "teacher": say_chosen(teacher),
        "zero_shot": {"clip": knew.top1, profile.recipe: knows.top1},
        "retention": asdict(retention(knew.correct, knows.correct)) if knew.top1 else None,
        "least_retention": profile.selection.least_retention,
    }
    if is_main_process():
        arm = Arm(student, ALPHA, history=run.history)
        save_arm(arm, out / profile.recipe, describe_origin(profile, clip), seen)
        write_card(out / profile.recipe, "\n".join(f"- {x}" for x in say_from_pictures(report)))
        write_record(report, out / REPORT)
    return report


def lend_text(
    encoded: EncodedPictures, text: str, text_features: Float[Tensor, "1 embed"]
) -> EncodedPictures:
    """Gives all pictures one text: batches are planned by texts, and nothing learns from pairs."""
    count = len(encoded.features)
    features = replace(
        encoded.features,
        text=text_features.expand(count, -1),  # without a copy for each
        token_count=torch.zeros(count, dtype=torch.int64),
        image_of_text=torch.arange(count),
    )
    dataset = replace(encoded.dataset, captions=((text,),) * count)
    return replace(encoded, dataset=dataset, features=features)


def say_from_pictures(report: dict[str, Any]) -> list[str]:
    """A report as sentences."""
    knew, knows = report["zero_shot"].values()
    kept = report["retention"]
    share = ""
    if kept:
        share = f", {kept['estimate']:.0%} of it [{kept['low']:.0%}, {kept['high']:.0%}]"
    advice = []
    if kept and kept["high"] < report["least_retention"]:
        advice.append(
            "It has forgotten much; take a lower --student.learning-rate, or fewer epochs."
        )
    return [
        f"Learned from {report['pictures']:,} pictures without captions, compared with "
        f"{report['anchors']:,} texts.",
        report["teacher"],
        f"Half of the new weights are kept (α = {report['alpha']:g}), since no captioned pictures "
        "could choose.",
        f"Zero-shot accuracy: {100 * knew:.1f} % before, {100 * knows:.1f} % now{share}.",
        *advice,
        "What it finds was not measured: evaluate measures it with captioned pictures.",
    ]
