"""What test_processes.py runs in one process and in two: everything that several share out."""

import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, notebook_launcher
from torch import Tensor

from dclip_kit.config import (
    RegionSettings,
    RegionTeacherSettings,
    StudentSettings,
    TeacherSettings,
)
from dclip_kit.data import CaptionedImages
from dclip_kit.features import store as stores
from dclip_kit.features.extract import extract_features
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.clip import load_clip
from dclip_kit.models.detector import Detections, Detector
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.regions import Regions
from dclip_kit.runtime.files import asset_path, load_tensors, save_tensors
from dclip_kit.runtime.processes import gather_batch, is_main_process, own_share
from dclip_kit.training import (
    PictureTargets,
    loop,
    train_teacher,
)
from tests.models.test_denoiser import make_denoiser
from tests.training.fine_tuning import fine_tune

WEIGHTS = asset_path("pocket_yolo")  # what the detector below claims to have

# Seven captioned pictures: a step of four, and an uneven one of three; ten steps in all.
PLAIN = StudentSettings(batch_size=4, captions_per_image=2, epochs=5, mixed_precision="no")
STUDENTS = {
    "dclip": PLAIN,
    "accumulating": replace(PLAIN, batch_size=2, gradient_accumulation=2),
    "attention": replace(PLAIN, train="attention", distillation_weight=0.0),
    "with text": replace(PLAIN, train_text=True),
    "adapters": replace(PLAIN, lora=3),
    "resnet": replace(PLAIN, epochs=2),
    "rehearsing": replace(PLAIN, rehearsal_weight=3.0, rehearsal_batch=5),
    "uncaptioned": replace(
        PLAIN,
        rehearsal_weight=3.0,
        rehearsal_batch=5,
        uncaptioned_batch=3,
        distillation="anchored_kl",
        anchors=9,
    ),
    "sds": replace(PLAIN, distillation_weight=0.0, sds_weight=0.5, train="norms"),
    "from files": replace(PLAIN, rehearsal_weight=3.0, rehearsal_batch=5),
}
TEACHERS = {
    "described": TeacherSettings(heads=4, batch_size=3, epochs=5),
    "region teacher": RegionTeacherSettings(width=24, heads=3, batch_size=3, epochs=5),
}
TEXTS = ("a red ball", "two dogs", "sea", "a box", "boats", "it", "an apple", "a far town", "sand")


class Fake(Detector):
    """Finds no, one or two boxes in a picture, by its width."""

    def detect(
        self, images, batch_size=32, progress=True, skip_unreadable=False, paths=None
    ) -> Detections:
        found = []
        for picture in images:
            count = picture.width % 3
            boxes = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11]])[:count]
            scores = torch.tensor([0.9, 0.6])[:count]
            found.append(Regions.from_boxes(boxes, scores, ["thing"] * count, picture.size))
        return Detections(tuple(found), sum(each.is_whole_image for each in found))


def flat(module: torch.nn.Module) -> Tensor:
    """All weights. A key's bias shifts all scores alike: AdamW blows its rounding errors up."""
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for name, value in state.items():
        if name.endswith("in_proj_bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    return torch.cat([value.flatten().float() for value in state.values()])


def train(folder: Path, name: str, losses: list[float], **more) -> Tensor:
    """One of the trainings above: its weights in the end, and what they were validated by."""
    features = FrozenFeatures.load(folder / "features.safetensors")

    def on_step(step: int, loss: float) -> None:
        assert step == len(losses)
        losses.append(loss)

    given = {"seed": 6, "on_step": on_step, **more}
    if name in TEACHERS:
        return flat(train_teacher(features, TEACHERS[name], RegionSettings(), **given).teacher)
    clip = load_clip(folder / ("resnet" if name == "resnet" else "clip"))
    data = load_tensors(folder / "data.safetensors")
    texts = [f"{text} {number}" for number in range(2) for text in TEXTS][: len(features.text)]

    def validate(student, history) -> None:
        history[-1]["val"] = float(encode_images(student, data["pixels"][:3])[:, 0].sum())

    shown, again = data["pixels"], data["pixels"].flip(3)
    if name == "from files":
        shown = sorted((folder / "pictures").iterdir())
        again = shown[::-1]
    run = fine_tune(
        clip, shown, features, STUDENTS[name], data["targets"], on_epoch=validate, texts=texts,
        rehearsal=PictureTargets(again, features.image),
        uncaptioned=PictureTargets(again, features.image.flip(1)),
        denoiser=make_denoiser(clip) if name == "sds" else None, **given,
    )  # fmt: skip
    figures = torch.tensor([row["val"] for row in run.history])
    return torch.cat([flat(run.student.model), figures])


def gradient(rows: Tensor) -> Tensor:
    """A plain model's, by a loss in which all rows meet: AdamW would hide a wrong scale of it."""
    torch.manual_seed(2)
    accelerator, count = Accelerator(mixed_precision="no"), len(rows)
    model = accelerator.prepare(torch.nn.Linear(rows.shape[1], 4))
    own = rows[own_share(count)]
    image, text = gather_batch(model(own), own[:, :4], count, count)
    accelerator.backward((image @ text.T).logsumexp(dim=1).square().sum())
    return next(model.parameters()).grad


def work(folder: Path, paths: list[Path], names=(*STUDENTS, *TEACHERS)) -> dict[str, Tensor]:
    """All that several processes share out, by name."""
    clip = load_clip(folder / "clip")
    captions = tuple((text,) for text in TEXTS[: len(paths)])
    found = {
        "images": encode_images(clip, paths, batch_size=2),
        "one image": encode_images(clip, paths[:1]),
        "texts": encode_texts(clip, TEXTS),
        "gradient": gradient(torch.arange(21.0).reshape(3, 7).cos()),
    }
    dataset = CaptionedImages(tuple(paths), captions, "train", "drawn")
    given = clip, Fake(("thing",), 64, 0.25, 2, WEIGHTS, None), dataset, RegionSettings(), 2
    frozen = extract_features(*given)
    found |= {f"frozen {name}": value for name, value in vars(frozen).items()}
    stored = fill_store(folder / f"store of {os.environ.get('WORLD_SIZE', 1)}", *given)
    found |= {f"stored {name}": value for name, value in vars(stored).items()}
    for name in names:
        losses: list[float] = []
        found[f"weights of {name}"] = train(folder, name, losses)
        found[f"losses of {name}"] = torch.tensor(losses, dtype=torch.float64)
    return found


def fill_store(place: Path, *given) -> FrozenFeatures:
    """Features in a store of as many shards as pictures, and who wrote which of them."""
    save = FrozenFeatures.save

    def logging(self: FrozenFeatures, shard: Path) -> None:
        with place.with_suffix(".log").open("a") as log:
            log.write(f"{os.environ.get('RANK', 0)} {int(shard.name.split('-')[1])}\n")
        save(self, shard)

    before = stores.SHARD
    stores.SHARD, FrozenFeatures.save = 1, logging
    try:
        return extract_features(*given, place)
    finally:
        stores.SHARD, FrozenFeatures.save = before, save


def train_in_notebook(folder: Path) -> None:
    """What a notebook has several processes do."""
    found = train(folder, "dclip", [])
    if is_main_process():
        save_tensors({"weights": found}, folder / "notebook.safetensors")


def main(folder: Path, job: str) -> None:
    """What each process of the tests runs."""
    torch.set_num_threads(1)
    rank = os.environ.get("RANK")
    if job == "notebook":
        encode_texts(load_clip(folder / "clip"), TEXTS)  # alone, before there are several
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        notebook_launcher(train_in_notebook, (folder,), num_processes=2, use_port=port)
    elif job == "work":
        paths = json.loads((folder / "paths.json").read_text())
        save_tensors(work(folder, [Path(p) for p in paths]), folder / f"found{rank}.safetensors")
        assert is_main_process() is (rank == "0")
    elif job == "die":

        class Dying(list):
            def append(self, loss: float) -> None:
                super().append(loss)
                if rank == "1" and len(self) == 7:
                    os.kill(os.getpid(), signal.SIGKILL)

        loop.MINUTES = 0.0
        train(folder, "dclip", Dying(), checkpoint=folder / "state.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
