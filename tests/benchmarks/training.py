"""What a training step costs beside the least that it could, and beside the published code's.

`python tests/benchmarks/training.py [FILE.json]` times each contender in a process of its own,
several times in turn, and writes what it measured. The pocket's models and pictures; times are of
this machine, the ratios are the result.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import torch
from torch.nn import functional as F

from dclip_kit.config import get_profile
from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.data.pocket.world import load_captioned
from dclip_kit.features.extract import choose_detector, extract_features
from dclip_kit.features.store import EncodedPictures, FrozenFeatures
from dclip_kit.losses import contrastive_loss
from dclip_kit.models.clip import ClipBundle, autocast, choose_precision, load_clip
from dclip_kit.models.encode import read_pixels
from dclip_kit.models.regions import crop_regions
from dclip_kit.models.teacher import MetaTeacher
from dclip_kit.runtime.files import write_atomically
from dclip_kit.runtime.machine import MALLOC, keep_memory
from dclip_kit.training import apply_teacher, choose_terms, distill, train_teacher

PICTURES = 512
ROUNDS = 3
PROFILE = get_profile("pocket")
REGIONS = PROFILE.regions
# The described teacher, which reads the caption: the published code's sizes.
TEACHER = replace(PROFILE.teacher, batch_size=32, epochs=3)
# Without rehearsal: a step beside one of as many pictures.
STUDENT = replace(PROFILE.student, captions_per_image=1, epochs=4, rehearsal_weight=0.0)


def prepare() -> tuple[ClipBundle, CaptionedImages, FrozenFeatures]:
    """The untouched CLIP, pictures, and their features."""
    clip = load_clip(PROFILE.clip)
    pictures = load_captioned("train").select(range(PICTURES))
    return clip, pictures, extract_features(clip, choose_detector(REGIONS, clip), pictures, REGIONS)


def kit_teacher() -> list[float]:
    """Steps of `train_teacher`, from features that were encoded once."""
    _, _, features = prepare()
    return time_steps(lambda tick: train_teacher(features, TEACHER, REGIONS, on_step=tick))


def block_alone() -> list[float]:
    """Forward and backward of the teacher's block and its loss, on a batch that lies ready."""
    _, _, features = prepare()
    teacher = make_teacher(features)
    texts = torch.arange(len(features.text)).split(TEACHER.batch_size)
    seconds = []
    for own in texts[:48]:
        images = features.image_of_text[own]
        given = *features.regions_of(images), *features.tokens_of(own)
        began = time.perf_counter()
        output = teacher(*given, None)
        contrastive_loss(output.embedding, features.text[own], TEACHER.temperature).backward()
        seconds.append(time.perf_counter() - began)
        teacher.zero_grad()
    return seconds


def reference_teacher() -> list[float]:
    """Steps in which each picture's crops are cut and encoded anew, one picture at a time.

    The work of the published code, less its detector and its text tower, which
    are not counted.
    """
    clip, pictures, features = prepare()
    detector = choose_detector(REGIONS, clip)
    found = detector.detect([open_picture(path) for path in pictures.paths]).regions
    teacher = make_teacher(features)
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=TEACHER.learning_rate)
    seconds, first = [], features.first_texts()
    for images in torch.arange(PICTURES).split(TEACHER.batch_size)[:6]:
        began = time.perf_counter()
        encoded = []
        for index in images.tolist():
            picture = open_picture(pictures.paths[index])
            crops = crop_regions(picture, found[index], REGIONS.margin, REGIONS.square)
            with torch.no_grad():
                given = torch.stack([clip.preprocess(crop) for crop in crops])
                encoded.append(clip.model.encode_image(given, normalize=True))
        fresh = replace(features, region=_put(features, images, encoded))
        own = first[images]
        embedding = apply_teacher(teacher, fresh, own, REGIONS).embedding
        contrastive_loss(embedding, features.text[own], TEACHER.temperature).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


def _put(features: FrozenFeatures, images: torch.Tensor, encoded: list[torch.Tensor]) -> Any:
    """The features' regions, those of some pictures encoded anew."""
    region, ends = features.region, features.region_count.cumsum(0)
    start = int(ends[images[0]] - features.region_count[images[0]])
    values = torch.cat(encoded)
    if len(values) != int(ends[images[-1]]) - start:
        raise ValueError("Expected as many regions as the features have, got another number.")
    return torch.cat([region[:start], values, region[start + len(values) :]])


def make_teacher(features: FrozenFeatures) -> MetaTeacher:
    """An untrained one, of the benchmark's sizes."""
    return MetaTeacher(features.text.shape[1], TEACHER.heads, TEACHER.layers)


def kit_student() -> list[float]:
    """Steps of `distill`: both losses, from bytes."""
    clip, pictures, features = prepare()
    shown = read_pixels(clip, pictures.paths)
    targets = F.normalize(torch.randn(features.text.shape), dim=1)
    captioned = EncodedPictures(pictures, features, shown)
    terms = choose_terms(STUDENT, captioned, targets)
    return time_steps(lambda tick: distill(clip, captioned, terms, STUDENT, on_step=tick))


def plain_student() -> list[float]:
    """Contrastive steps of the same tower by open_clip's own loss, from tensors that lie ready."""
    clip, pictures, features = prepare()
    tower = clip.model.visual.to(memory_format=torch.channels_last).train()
    pixels = clip.normalize(read_pixels(clip, pictures.paths))
    first = features.text[features.first_texts()]
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-6, weight_decay=STUDENT.weight_decay)
    loss_of, device = open_clip.ClipLoss(), torch.device("cpu")
    precision = choose_precision(STUDENT.mixed_precision, "cpu")
    seconds = []
    for _ in range(STUDENT.epochs):
        for images in torch.randperm(PICTURES).split(STUDENT.batch_size):
            began = time.perf_counter()
            with autocast(device, precision):
                found = tower(pixels[images])
            loss = loss_of(F.normalize(found.float(), dim=-1), first[images], torch.tensor(20.0))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tower.parameters(), STUDENT.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - began)
    return seconds


def time_steps(train: Callable[[Callable[[int, float], None]], Any]) -> list[float]:
    """Seconds between the ends of a training's steps."""
    ends: list[float] = []
    train(lambda step, loss: ends.append(time.perf_counter()))
    return [after - before for before, after in pairwise(ends)]


CONTENDERS: dict[str, Callable[[], list[float]]] = {
    "teacher, kit": kit_teacher,
    "teacher, block alone": block_alone,
    "teacher, the published code's work": reference_teacher,
    "student, kit": kit_student,
    "student, plain open_clip": plain_student,
    "student, kit, memory as glibc has it": kit_student,  # in an environment without our settings
}


def compare() -> dict[str, Any]:
    """Runs all contenders in turn, each in a process of its own, and sets them in relation."""
    keep_memory(os.environ)  # of the processes started here
    rounds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(ROUNDS):
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--only", name]
            left_out = MALLOC if name.endswith("as glibc has it") else {}
            given = {key: value for key, value in os.environ.items() if key not in left_out}
            done = subprocess.run(command, env=given, check=True, capture_output=True, text=True)
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {1000 * rounds[name][-1]:.1f} ms a step", file=sys.stderr)
    seconds = {name: min(found) for name, found in rounds.items()}
    return {
        "threads": torch.get_num_threads(),
        "precision": choose_precision(STUDENT.mixed_precision, "cpu"),
        "seconds a step": seconds,
        "ratios": {
            "the published code's teacher step / kit": seconds["teacher, the published code's work"]
            / seconds["teacher, kit"],
            "block's share of the teacher's step": seconds["teacher, block alone"]
            / seconds["teacher, kit"],
            "student's step / plain open_clip": seconds["student, kit"]
            / seconds["student, plain open_clip"],
            "student's step, memory as glibc has it / kit": seconds[
                "student, kit, memory as glibc has it"
            ]
            / seconds["student, kit"],
        },
    }


def main() -> None:
    """Measures one contender, or all and writes the report."""
    if sys.argv[1:2] == ["--only"]:
        print(median(CONTENDERS[sys.argv[2]]()))
        return
    report = compare()
    for name, ratio in report["ratios"].items():
        print(f"{name:>42}  {ratio:.2f}")
    if len(sys.argv) > 1:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
