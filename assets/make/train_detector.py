"""Trains the pocket YOLO: `python -m assets.make.train_detector`.

An ultralytics YOLOv8n with ultralytics' own loss, on scenes of all nouns that are drawn on the fly
with their own seeds; labels are super-categories. Ultralytics' trainer would need half a million
files and fp32; bf16 with channels last is three times as fast on a CPU that supports it.
After an interruption, the same command continues.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.functional import pil_to_tensor, resize
from tqdm.auto import tqdm

from assets.make.resuming import begin_or_continue
from dclip_kit.data.pocket.scenes import SIDE, render_scene, sample_scene
from dclip_kit.data.pocket.sprites import KNOWN_STYLES, load_categories, load_nouns
from dclip_kit.models.detector import contained_ultralytics
from dclip_kit.runtime.files import (
    asset_path,
    save_tensors,
    write_atomically,
)
from dclip_kit.training.checkpoint import save_training_state


@dataclass(frozen=True)
class Recipe:
    """How the pocket YOLO is trained."""

    seed: int = 11
    steps: int = 3000
    batch_size: int = 64
    image_size: int = 192  # small objects are 30 pixels; half the cost of 256
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 5e-4
    ema_decay: float = 0.998  # of the averaged weights, which are saved


def make_batch(step: int, recipe: Recipe) -> dict[str, torch.Tensor]:
    """A batch in ultralytics' format: img; and cls, bboxes (xywh, shares), batch_idx per box."""
    nouns, categories = load_nouns(), load_categories()
    images, labels, boxes, owners = [], [], [], []
    for index in range(recipe.batch_size):
        rng = np.random.default_rng([recipe.seed, step, index])
        scene = sample_scene(rng, range(len(nouns)), KNOWN_STYLES)
        picture = pil_to_tensor(render_scene(scene))
        # Without antialiasing, as ultralytics' letterbox resizes.
        images.append(resize(picture, [recipe.image_size] * 2, antialias=False))
        for thing in scene.objects:
            x1, y1, x2, y2 = (edge / SIDE for edge in thing.xyxy)
            labels.append(categories.index(nouns[thing.noun].category))
            boxes.append(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
            owners.append(index)
    pictures = torch.stack(images).float() / 255
    return {
        "img": pictures.contiguous(memory_format=torch.channels_last),
        "cls": torch.tensor(labels, dtype=torch.float32)[:, None],
        "bboxes": torch.tensor(boxes),
        "batch_idx": torch.tensor(owners),
    }


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / recipe.steps))


class _WithAverage(torch.nn.Module):
    """The trained weights and their running average, in one module so that both are resumed."""

    def __init__(self, model: Any, average: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.average = model, average

    @torch.no_grad()
    def update(self, step: int, decay: float) -> None:
        decay *= 1 - math.exp(-step / 200)  # early weights are worthless
        for average, current in zip(
            self.average.state_dict().values(), self.model.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)


def build_model() -> Any:
    """An untrained YOLOv8n for our categories."""
    with contained_ultralytics():
        from ultralytics.nn.tasks import DetectionModel
        from ultralytics.utils import DEFAULT_CFG

        model: Any = DetectionModel("yolov8n.yaml", nc=len(load_categories()), verbose=False)
        model.args = DEFAULT_CFG  # the loss reads its gains here
    return model.to(memory_format=torch.channels_last)


def save_detector(model: Any, folder: str | Path, names: Sequence[str], image_size: int) -> None:
    """Writes a detector as safetensors, YAML and JSON, for `load_detector(folder)`.

    Each file is renamed into place; `config.json` is deleted first and written last, so that an
    incomplete folder is noticed. Weights are in half precision; the few biases and normalisation
    parameters in full.

    Args:
        model: an ultralytics YOLO or DetectionModel, not fused.
        folder: to write to; other files in it are left alone.
        names: the labels, by class number.
        image_size: side in pixels that it was trained at.

    Raises:
        ValueError: the model is no detector or is fused, its weights are not finite in half
            precision, or the names do not fit its classes.
    """
    import yaml

    folder = Path(folder)
    with contained_ultralytics():
        from ultralytics import YOLO
        from ultralytics.nn.tasks import DetectionModel

        if isinstance(model, YOLO):
            model = model.model
        usable = isinstance(model, DetectionModel) and not model.is_fused()
        if not usable:
            raise ValueError(
                f"Expected an ultralytics detector that is not fused, got a "
                f"{type(model).__name__}; load the trained checkpoint afresh."
            )
    if len(names) != model.yaml["nc"] or len(set(names)) != len(names):
        raise ValueError(
            f"Expected {model.yaml['nc']} different names, one for each class, got {names}."
        )
    architecture = {key: value for key, value in model.yaml.items() if key != "yaml_file"}
    if architecture.get("scales"):  # only its own, so that plain ultralytics builds the same model
        scale = architecture.get("scale") or next(iter(architecture["scales"]))
        architecture |= {"scale": scale, "scales": {scale: architecture["scales"][scale]}}
    tensors = {}
    for name, value in model.state_dict().items():
        tensors[name] = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not tensors[name].isfinite().all():
            raise ValueError(f"Expected finite weights, but {name} has NaN or exceeds 65504.")
    (folder / "config.json").unlink(missing_ok=True)
    write_atomically(folder / "model.yaml", yaml.safe_dump(architecture, sort_keys=False))
    save_tensors(tensors, folder / "model.safetensors")
    config = {"names": list(names), "image_size": image_size}
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Trains, or continues, and writes assets/pocket_yolo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/train_detector"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe()
    folder = asset_path("sprites").parent / "pocket_yolo"
    torch.manual_seed(recipe.seed)
    models = _WithAverage(build_model(), build_model().requires_grad_(False).eval())
    models.average.load_state_dict(models.model.state_dict())
    models.model.train()
    optimizer = torch.optim.AdamW(models.model.parameters(), weight_decay=recipe.weight_decay)
    state = arguments.runs / "state.safetensors"
    progress = begin_or_continue(state, models, optimizer, recipe)
    began = time.monotonic() - progress["seconds"]
    for step in tqdm(
        range(progress["step"], recipe.steps),
        initial=progress["step"],
        total=recipe.steps,
        desc="pocket YOLO",
        mininterval=10,
    ):
        batch = make_batch(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            output = models.model(batch["img"])
        output = {
            name: value.float() if torch.is_tensor(value) else [v.float() for v in value]
            for name, value in output.items()
        }
        loss, _ = models.model.loss(batch, output)
        optimizer.zero_grad()
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(models.model.parameters(), 10.0)
        optimizer.step()
        models.update(step + 1, recipe.ema_decay)
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            progress["step"], progress["seconds"] = step + 1, time.monotonic() - began
            progress["loss"].append(
                [step + 1, *(round(x / recipe.batch_size, 4) for x in loss.tolist())]
            )
            save_training_state(state, models, optimizer, progress)
            done = step + 1 == recipe.steps
            save_detector(
                models.average,
                folder if done else arguments.runs / "yolo",
                load_categories(),
                recipe.image_size,
            )
    log = {
        "recipe": asdict(recipe),
        "seconds": round(progress["seconds"]),
        "threads": arguments.threads,
        "loss (step, box, class, dfl)": progress["loss"],
    }
    write_atomically(folder / "training.json", json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
