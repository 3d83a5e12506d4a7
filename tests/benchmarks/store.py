"""What making frozen features costs beside the bare model, and what opening and using them costs.

`python tests/benchmarks/store.py [FILE.json]` embeds pictures from their files and, in turn with
that, the same pictures by the bare model from tensors that lie ready; makes a store of the pocket's
training scenes and opens it; and trains a teacher from it. Times are of this machine; the ratios
are the result.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dclip_kit.config import get_profile
from dclip_kit.data import open_picture
from dclip_kit.data.pocket.world import load_captioned
from dclip_kit.features.extract import load_or_extract_features
from dclip_kit.features.store import FEATURES, FrozenFeatures
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, read_pixels
from dclip_kit.runtime.files import write_atomically
from dclip_kit.training import train_teacher

PROFILE = get_profile("pocket")
SCENES = 4000
BATCH = 64
# By model: its weights, pictures to embed, rounds.
MODELS = {
    "pocket": ("pocket", None, 512, 5),
    "ViT-B/32": ("ViT-B-32-quickgelu", "untrained", 64, 3),
}


def measure(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that passed, and those that processors worked for this process."""
    passed, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - passed, time.process_time() - worked


def embed(name: str) -> dict[str, Any]:
    """The kit and the bare model in turn, and the parts of the kit's work that the model has not.

    A speed is the best of its rounds: others on the machine only ever slow it down.
    """
    reference, pretrained, count, rounds = MODELS[name]
    clip, paths = load_clip(reference, pretrained), load_captioned("train").paths[:count]
    read = read_pixels(clip, paths)
    ready = clip.normalize(read).split(BATCH)

    @torch.no_grad()
    def bare() -> None:
        for batch in ready:
            clip.model.encode_image(batch, normalize=True)

    pictures = [open_picture(path) for path in paths]
    pixels = torch.stack([clip.to_pixels(picture) for picture in pictures]).split(BATCH)
    contenders: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "kit": lambda: encode_images(clip, paths, BATCH, progress=False),
        "kit, from bytes": lambda: encode_images(clip, read, BATCH, progress=False),
        "decoding": lambda: [open_picture(path) for path in paths],
        "preprocessing": lambda: [clip.to_pixels(picture) for picture in pictures],
        "normalising": lambda: [clip.normalize(batch) for batch in pixels],
    }
    for work in contenders.values():
        work()  # whatever is allocated at first use
    found: dict[str, list[tuple[float, float]]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, work in contenders.items():
            found[key].append(measure(work))
    return {
        "passed, ms a picture": {k: 1000 * min(a for a, _ in v) / count for k, v in found.items()},
        "worked, ms a picture": {k: 1000 * min(b for _, b in v) / count for k, v in found.items()},
        "of each round": [b[0] / k[0] for b, k in zip(found["bare"], found["kit"], strict=True)],
    }


def make_and_open(folder: Path) -> dict[str, float]:
    """Seconds to make a store, and to open it, which checks that it is of the same."""
    clip, scenes = load_clip(PROFILE.clip), load_captioned("train").select(range(SCENES))

    def obtain() -> None:
        load_or_extract_features(clip, scenes, PROFILE.regions, folder)

    made = measure(obtain)[0]
    return {"making": made, "opening": median(measure(obtain)[0] for _ in range(5))}


def train(place: Path, copied: bool) -> float:
    """Peak of memory of this process's own, in MB, above that before the features were loaded."""
    settings = replace(PROFILE.teacher, epochs=1)
    few = FrozenFeatures.load(place)
    few = replace(few, image_of_text=few.image_of_text[:64], text=few.text[:64].clone())
    train_teacher(few, settings, PROFILE.regions)  # whatever is allocated at first use
    before, seen = own_memory_mb(), [0.0]
    features = FrozenFeatures.load(place)
    if copied:
        names = [field.name for field in fields(FrozenFeatures)]
        features = FrozenFeatures(**{name: getattr(features, name).clone() for name in names})
    train_teacher(
        features, settings, PROFILE.regions, on_step=lambda *_: seen.append(own_memory_mb())
    )
    return max(seen) - before


def own_memory_mb() -> float:
    """What this process holds besides files that are mapped: Linux's RssAnon."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def compare() -> dict[str, Any]:
    """Measures everything and sets it in relation."""
    embedded = {}
    for name in MODELS:
        embedded[name] = embed(name)
        print(f"{name}: {embedded[name]['passed, ms a picture']}", file=sys.stderr)
    with TemporaryDirectory() as folder:
        seconds = make_and_open(Path(folder))
        print(f"{seconds}", file=sys.stderr)
        (place,) = Path(folder).iterdir()
        size = (place / FEATURES).stat().st_size / 2**20
        memory = {}
        for how in ("mapped", "copied"):
            command = [sys.executable, __file__, "--train", str(place), how]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            memory[how] = float(done.stdout.splitlines()[-1])
    ratios = {}
    for name, found in embedded.items():
        for kind, title in (("passed", "speed"), ("worked", "speed by processor time")):
            times = found[f"{kind}, ms a picture"]
            for what, kit in (("files", "kit"), ("bytes", "kit, from bytes")):
                ratios[f"embedding {what}, {title} / bare {name}"] = times["bare"] / times[kit]
    return {
        "threads": torch.get_num_threads(),
        "embedding": embedded,
        "store of the pocket's scenes, s": seconds,
        "store, MB": size,
        "memory to train a teacher from it, MB": memory,
        "ratios": ratios
        | {
            "opening a store / making it": seconds["opening"] / seconds["making"],
            "memory to train from a store / its size": memory["mapped"] / size,
            "memory to train from memory / its size": memory["copied"] / size,
        },
    }


def main() -> None:
    """Measures one training, or all and writes the report."""
    if sys.argv[1:2] == ["--train"]:
        print(train(Path(sys.argv[2]), sys.argv[3] == "copied"))
        return
    report = compare()
    for name, ratio in report["ratios"].items():
        print(f"{name:>60}  {ratio:.3f}")
    if len(sys.argv) > 1:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
