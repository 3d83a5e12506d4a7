"""What a training's steps do: what decays, what is waited for, and what is read beside them."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dclip_kit.config import RegionSettings
from dclip_kit.features.extract import RegionCrops, extract_features
from dclip_kit.losses import contrastive_loss, cosine_distillation_loss
from dclip_kit.models.encode import read_batches, read_pixels
from dclip_kit.models.regions import region_weights
from dclip_kit.models.teacher import MetaTeacher
from dclip_kit.models.weights import freeze
from dclip_kit.runtime.files import load_tensors, save_tensors
from dclip_kit.training import PictureTargets, train_teacher
from dclip_kit.training import distillation as student_module
from dclip_kit.training import loop as loop_module
from tests.training.fine_tuning import fine_tune
from tests.training.test_training import (
    CONTROL,
    REGIONS,
    REHEARSED,
    RUNS,
    STUDENT,
    TEACHER,
    Stop,
    weights,
)
from tests.training.test_training import targets as targets  # a fixture

# Weight decay


def names_of(groups, module, decays: bool) -> set[str]:
    chosen = {
        id(p) for group in groups for p in group["params"] if bool(group["weight_decay"]) is decays
    }
    return {name for name, parameter in module.named_parameters() if id(parameter) in chosen}


@pytest.mark.parametrize("text", [False, True])
def test_matrices_decay_and_biases_and_norms_do_not(text, clip) -> None:
    freeze(clip, "all")
    if text:
        student_module._unfreeze_text(clip, ["one"])
    module = clip.model if text else clip.model.visual
    groups = student_module.group_parameters(module, replace(STUDENT, block_rate=0.5))
    assert [group["peak"] for group in groups] == [5e-4, 5e-4, 1e-3, 1e-3]
    free = names_of(groups, module, False)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert names_of(groups, module, True) == trained - free
    marks = ("bias", "ln_", "class_embedding")
    assert free == {name for name in trained if any(mark in name for mark in marks)}
    assert len(free) > 20 and len(trained - free) > 10


def test_a_step_of_the_teacher_and_of_the_student_shrinks_matrices_alone(
    clip, pixels, features
) -> None:
    """The first step's gradients are those without decay."""
    step = {"epochs": 1, "batch_size": 99}
    kinds = {
        "teacher": lambda decay: train_teacher(
            features, replace(TEACHER, weight_decay=decay, **step), REGIONS
        ).teacher,
        "student": lambda decay: fine_tune(
            clip, pixels, features,
            replace(CONTROL, weight_decay=decay, warmup_share=0.0, **step),
        ).student.model.visual,
    }  # fmt: skip
    for name, train in kinds.items():
        without, much = (dict(train(decay).named_parameters()) for decay in (0.0, 30.0))
        for key, value in much.items():
            assert torch.equal(value, without[key]) is (value.ndim < 2), f"{name}: {key}"


def write_progress(progress: dict, path: Path) -> None:
    """Changes what a checkpoint says of its run."""
    told = torch.tensor(list(json.dumps(progress).encode()), dtype=torch.uint8)
    save_tensors(load_tensors(path) | {"progress": told}, path)


def test_a_checkpoint_with_a_setting_that_is_no_more_is_refused(
    clip, pixels, features, targets, tmp_path
) -> None:
    """Steps that were taken by another version of the kit."""
    path = tmp_path / "state.safetensors"
    given = (clip, pixels, features, targets, path)
    RUNS["teacher"](*given)
    progress = json.loads(bytes(load_tensors(path)["progress"].tolist()))
    progress["settings"]["label_smoothing"] = 0.1
    write_progress(progress, path)
    with pytest.raises(ValueError, match=r"settings in .*differ in label_smoothing; give another"):
        RUNS["teacher"](*given)


# Waiting for the device


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: single numbers and lists of floats that Python is given.

    Lists of whole numbers are places in features, which are not on the device.
    """

    def __init__(self, monkeypatch) -> None:
        super().__init__()
        self.count, to_list = 0, torch.Tensor.tolist

        def watched(tensor):
            self.count += tensor.is_floating_point()
            return to_list(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", watched)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


# That of a denoiser waits more often, which nobody has looked into.
@pytest.mark.parametrize("name", [name for name in RUNS if "denoiser" not in name])
def test_a_step_waits_for_the_device_once(
    name, clip, pixels, features, targets, monkeypatch
) -> None:
    counts = []
    with Waits(monkeypatch) as waits:
        RUNS[name](
            clip, pixels, features, targets, on_step=lambda step, loss: counts.append(waits.count)
        )
    epochs = TEACHER.epochs if "teacher" in name else STUDENT.epochs  # of both kinds of teacher
    assert len(counts) >= 2 * epochs
    for own in torch.tensor(counts).reshape(epochs, -1):
        assert own.diff().tolist() == [1] * (len(own) - 1)


def test_nothing_is_looked_at_where_values_are_trusted(monkeypatch) -> None:
    """A tensor on the device "meta" has no values: whatever waits for one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no "meta"

    def empty(*shape) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    image, text, teacher = (empty(6, 8).requires_grad_() for _ in range(3))
    same = torch.empty(6, 6, device="meta", dtype=torch.bool)
    for loss in (
        contrastive_loss(image, text, same_pair=same),
        cosine_distillation_loss(image, teacher),
    ):
        assert loss.shape == () and loss.is_meta
    with pytest.raises(ValueError, match="of one shape"):
        contrastive_loss(image, text[:5])
    masks = [torch.empty(6, count, device="meta", dtype=torch.bool) for count in (4, 5)]
    regions, tokens, scores = empty(6, 4, 8), empty(6, 5, 8), empty(6, 4)
    weights = region_weights(regions, tokens, scores, scores, *masks, check_values=False)
    for kind in ({}, {"masked": False}):
        model = MetaTeacher(8, 2, **kind).to("meta")
        output = model(regions, masks[0], tokens, masks[1], weights, check_values=False)
        assert output.embedding.shape == (6, 8)


@pytest.mark.parametrize("train", ["teacher", "student"])
def test_features_that_are_not_finite_are_refused_before_the_first_step(
    train, clip, pixels, features, targets
) -> None:
    """Though it stands with the last picture, whose turn may come late."""
    features.text[-1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"every row of text_features to be finite.*row 9"):
        RUNS[train](clip, pixels, features, targets, on_step=pytest.fail)


# Pictures that do not fit the memory


def test_reading_ahead_changes_no_batch(
    clip, detector, captioned, make_features, tmp_path, monkeypatch
) -> None:
    """Of pictures and of crops, also when a run is stopped within an epoch and goes on."""
    found = extract_features(clip, detector, captioned, RegionSettings())
    crops = RegionCrops(captioned.paths, found, RegionSettings())
    settings, ahead = replace(REHEARSED, distillation_weight=0.0), []

    def reading_ahead(bundle, pictures, batches, busy):
        assert busy == torch.device("cpu")
        ahead.append(type(pictures))
        return read_batches(bundle, pictures, batches, busy=torch.device("cuda"))

    def train(pictures, regions, **more):
        rehearsal = PictureTargets(regions, found.region)
        run = fine_tune(clip, pictures, found, settings, rehearsal=rehearsal, **more)
        return weights(run.student.model)

    state, timed = tmp_path / "state.safetensors", tmp_path / "timed.safetensors"

    def stop(step, loss) -> None:
        if step == 3:  # two make an epoch
            shutil.copy(state, timed)  # before the stop writes over it
            raise Stop

    kept = train(read_pixels(clip, captioned.paths), read_pixels(clip, crops))
    assert torch.equal(train(captioned.paths, crops), kept)
    monkeypatch.setattr(student_module, "read_batches", reading_ahead)
    assert torch.equal(train(captioned.paths, crops), kept)
    assert {RegionCrops, tuple} == {*ahead}
    monkeypatch.setattr(loop_module, "MINUTES", 0.0)
    with pytest.raises(Stop):
        train(captioned.paths, crops, on_step=stop, checkpoint=state)
    steps = []
    more = {"checkpoint": timed, "on_step": lambda step, loss: steps.append(step)}
    assert torch.equal(train(captioned.paths, crops, **more), kept)
    assert steps[0] == 3


def test_a_picture_that_cannot_be_read_ends_the_training(
    clip, captioned, make_features, tmp_path
) -> None:
    features = replace(make_features(6), image_of_text=captioned.image_of_text[:6])
    paths = (*captioned.paths[:3], tmp_path / "gone.png", *captioned.paths[4:])
    with pytest.raises(ValueError, match=r"gone\.png"):
        fine_tune(clip, paths, features, CONTROL)
