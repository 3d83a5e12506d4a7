"""Pre-trains the pocket CLIP on weak alt-text: `python -m assets.make.pretrain_clip`.

Every batch shows every noun once, mostly as one prominent object with an alt-text like those of
shops and albums, which name no relation and seldom a size. After an interruption, the same command
continues.

With `--tower vit`, a vision transformer learns the same pairs beside the frozen texts of the pocket
CLIP, and to say of each picture, and of its patches, what the pocket's ResNet says: so few pictures
would not be enough otherwise.
"""

import argparse
import gzip
import json
import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torchvision.transforms.functional import normalize, pil_to_tensor
from tqdm.auto import tqdm

from assets.make.resuming import begin_or_continue
from assets.make.weak_pairs import weak_pair
from dclip_kit.data.pocket.sprites import load_nouns
from dclip_kit.models.clip import load_clip
from dclip_kit.runtime.files import asset_path, save_tensors, write_atomically
from dclip_kit.training.checkpoint import save_training_state

MERGES = 8000  # the most frequent of CLIP's 48,894; rarer words are split into more tokens
TOWERS: dict[str, dict[str, Any]] = {
    # CLIP's own ResNet with attention pooling, shallow and narrow: its convolutions see a thing of
    # 16 pixels that patches of 8 see as two tokens, and cost less.
    "resnet": {"image_size": 64, "layers": [2, 2, 2, 2], "width": 32, "head_width": 64},
    "vit": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
}
FOLDERS = {"resnet": "pocket_clip", "vit": "pocket_vit"}
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": TOWERS["resnet"],
    "text_cfg": {
        "context_length": 40,
        "vocab_size": 512 + MERGES + 2,
        "width": 192,
        "heads": 3,
        "layers": 3,
    },
}


@dataclass(frozen=True)
class Recipe:
    """How a pocket CLIP is pre-trained.

    Attributes:
        distillation_weight: of 1 − the cosine between the image features and the ResNet's, beside
            the contrastive loss; for the vision transformer.
        hint_weight: of the error with which its patches predict the ResNet's feature maps
            (`Hints`); likewise.
    """

    seed: int = 7
    steps: int = 8000
    learning_rate: float = 1e-3
    warmup_steps: int = 250
    weight_decay: float = 0.1
    single_share: float = 0.7  # of pictures with one prominent object
    span: tuple[float, float] = (0.2, 0.95)  # object's share of the side; crops fill the picture
    line_art: float = 0.35  # how often a sprite is redrawn in lines, for styles not in training
    distillation_weight: float = 0.0
    hint_weight: float = 0.0


RECIPES = {
    "resnet": Recipe(),
    # The weight of a squared distance of 4, as in CLIP-KD (arXiv 2307.12732): 2,000 × its mean
    # over 512 numbers, which is 8 × (1 − cosine).
    "vit": Recipe(steps=2600, distillation_weight=8.0, hint_weight=2.0),
}


def make_batch(step: int, recipe: Recipe) -> tuple[torch.Tensor, list[str]]:
    """The pictures (noun, 3, side, side) and texts of a step: each noun once."""
    side = ARCHITECTURE["vision_cfg"]["image_size"]
    pairs = [
        weak_pair(
            noun,
            side,
            np.random.default_rng([recipe.seed, step, noun]),
            recipe.single_share,
            recipe.span,
            recipe.line_art,
        )
        for noun in range(len(load_nouns()))
    ]
    images = torch.stack([pil_to_tensor(picture) for picture, _ in pairs]).float() / 255
    return (
        normalize(images, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        [text for _, text in pairs],
    )


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def encode_short(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's `encode_text` without the padding after the longest text; same features."""
    length = int((ids != 0).sum(1).max())
    hidden = model.token_embedding(ids[:, :length]) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    end = hidden[torch.arange(len(ids)), ids.argmax(1)]  # text embed
    return model.ln_final(end) @ model.text_projection


class Hints(nn.Module):
    """Linear maps from a transformer's patches to a ResNet's feature maps.

    Patches after a third of the blocks predict the second stage's maps, those after two thirds the
    third stage's (FitNets, arXiv 1412.6550).
    """

    def __init__(self, model: Any, teacher: Any) -> None:
        super().__init__()
        blocks, stages = model.visual.transformer.resblocks, teacher.visual
        third = len(blocks) // 3
        pairs = [(blocks[third - 1], stages.layer2), (blocks[2 * third - 1], stages.layer3)]
        self.side = model.visual.grid_size[0]
        self.seen: dict[nn.Module, torch.Tensor] = {}
        self.pairs = pairs  # in a list, so that they do not count as this module's own
        width = model.visual.conv1.out_channels
        self.maps = nn.ModuleList(nn.Linear(width, x[-1].bn3.num_features) for _, x in pairs)
        for module in (module for pair in pairs for module in pair):
            module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, _: Any, output: torch.Tensor) -> None:
        self.seen[module] = output

    def forward(self) -> torch.Tensor:
        """The sum of both mean squared errors, in variances, for what the towers last saw.

        Targets are cut at four deviations.
        """
        errors = []
        for translate, (block, stage) in zip(self.maps, self.pairs, strict=True):
            target = self.seen[stage].float()
            deviation, mean = torch.std_mean(target, (0, 2, 3), keepdim=True)
            target = ((target - mean) / (deviation + 1e-4)).clamp(-4, 4)
            patches = self.seen[block][:, 1:].mT.unflatten(2, (self.side, self.side))
            patches = F.adaptive_avg_pool2d(patches, (target.shape[2], target.shape[3]))
            found = translate(patches.movedim(1, 3)).movedim(3, 1).float()
            errors.append(F.mse_loss(found, target))
        return torch.stack(errors).sum()


def take_step(model: Any, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """A step of CLIP's training: the model's gradients clipped, a logit scale of at most 100."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))


def write_merges(path: Path) -> None:
    """Shortens CLIP's merges file, without a time stamp, so that its bytes are reproducible."""
    source = Path(open_clip.tokenizer.default_bpe())
    lines = gzip.decompress(source.read_bytes()).decode().split("\n")[: MERGES + 1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def save_clip(model: nn.Module, folder: Path, architecture: dict[str, Any]) -> None:
    """Writes a folder that open_clip loads as `local-dir:`, with weights in fp16."""
    save_tensors(
        {
            name: value.half() if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        },
        folder / "open_clip_model.safetensors",
    )
    preprocess = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": architecture, "preprocess_cfg": preprocess}
    write_atomically(folder / "open_clip_config.json", json.dumps(config, indent=1) + "\n")


def build(tower: str) -> tuple[dict[str, Any], Any, Any]:
    """An architecture, a new model of it and, for the vision transformer, its frozen teacher."""
    architecture = ARCHITECTURE | {"vision_cfg": TOWERS[tower]}
    model: Any = open_clip.CLIP(**architecture)
    if tower == "resnet":
        model.visual.to(memory_format=torch.channels_last)
        return architecture, model, None
    teacher = load_clip("pocket").model.requires_grad_(False)
    texts = {k: v for k, v in teacher.state_dict().items() if not k.startswith("visual.")}
    model.load_state_dict(texts, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
    return architecture, model, teacher


def main() -> None:
    """Trains, or continues, and writes assets/pocket_clip or assets/pocket_vit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", choices=TOWERS, default="resnet")
    parser.add_argument("--runs", type=Path, help="where it continues (runs/pretrain_TOWER)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    tower, runs = arguments.tower, arguments.runs or Path("runs", f"pretrain_{arguments.tower}")
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[tower]
    folder = asset_path("sprites").parent / FOLDERS[tower]
    write_merges(folder / "merges.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(
        str(folder / "merges.txt.gz"), context_length=ARCHITECTURE["text_cfg"]["context_length"]
    )
    torch.manual_seed(recipe.seed)
    architecture, model, teacher = build(tower)
    hints = Hints(model, teacher) if teacher else None
    module = nn.ModuleList([model, hints] if hints else [model])
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    state = runs / "state.safetensors"
    progress = begin_or_continue(state, module, optimizer, recipe)
    began = time.monotonic() - progress["seconds"]
    steps = range(progress["step"], recipe.steps)
    batches: DataLoader[Any] = DataLoader(  # drawn ahead, in a second process
        steps,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=partial(make_batch, recipe=recipe),
        num_workers=1,
        prefetch_factor=4,
    )
    bar = tqdm(batches, initial=steps.start, total=steps.stop, desc="pocket CLIP", mininterval=10)
    losses: list[float] = []
    # Where a processor has no instructions for them, halves take ten times as long.
    halves = "AVX512" in torch.backends.cpu.get_cpu_capability()
    for step, (images, texts) in zip(steps, bar, strict=True):
        images = images.to(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        # On CPUs the fused attention's backward pass took a third of the step.
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=halves),
            sdpa_kernel(SDPBackend.MATH),
        ):
            image_features = F.normalize(model.encode_image(images).float(), dim=-1)
            text_features = F.normalize(encode_short(model, tokenizer(texts)).float(), dim=-1)
            wanted = F.normalize(teacher.encode_image(images).float(), dim=-1) if teacher else None
            missed = hints() if hints else 0.0
        logits = model.logit_scale.exp() * image_features @ text_features.T
        target = torch.arange(len(texts))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if wanted is not None:
            cosine = (image_features * wanted).sum(1)
            loss = loss + recipe.distillation_weight * (1 - cosine).mean()
            loss = loss + recipe.hint_weight * missed
        take_step(model, optimizer, loss)
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            progress["step"], progress["seconds"] = step + 1, time.monotonic() - began
            progress["loss"].append([step + 1, round(sum(losses) / len(losses), 4)])
            losses.clear()
            save_training_state(state, module, optimizer, progress)
            whole = step + 1 == recipe.steps
            save_clip(model, folder if whole else runs / "clip", architecture)
    log = {
        "recipe": asdict(recipe),
        "seconds": round(progress["seconds"]),
        "threads": arguments.threads,
        "loss": progress["loss"],
    }
    write_atomically(folder / "pretraining.json", json.dumps(log) + "\n")


if __name__ == "__main__":
    main()
