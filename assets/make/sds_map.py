"""What the map of the recipe sds shows the denoiser: `python -m assets.make.sds_map WORK`.

WORK is the folder that `python -m assets.make.run_study assets/studies/pocket_sds.toml --work WORK`
trained in: its checkpoints have the map, which no arm keeps, and the student that it was trained
with, not interpolated.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.functional import resize, to_pil_image, to_tensor
from torchvision.utils import make_grid

from assets.make.study import Study, read_study
from dclip_kit.data.pictures import open_picture
from dclip_kit.data.pocket import world as pocket
from dclip_kit.features.store import digest_record
from dclip_kit.models.clip import ClipBundle, load_clip
from dclip_kit.models.denoiser import Denoiser, DenoiserHead, caption_losses, load_denoiser
from dclip_kit.models.encode import read_pixels
from dclip_kit.models.weights import clone_clip
from dclip_kit.runtime.files import asset_path, load_tensors, write_record

SHOWN = 5


def load_tower(study: Study, seed: int, work: Path, clip: ClipBundle) -> nn.Sequential:
    """The student's tower and its map, as a training of the arm sds has left them.

    Raises:
        FileNotFoundError: it has not been trained there.
    """
    (arm,) = (arm for arm in study.arms if arm.name == "sds")
    key = digest_record(replace(arm, rescoring=None).describe(seed))
    state = load_tensors(work / "checkpoints" / f"student-{key}.safetensors")
    head = DenoiserHead(clip.embed_dim, load_denoiser("pocket", clip).shape)
    parts = {"module.tower.": clone_clip(clip).model.visual, "module.heads.sds.": head}
    for prefix, part in parts.items():
        part.load_state_dict(
            {name[len(prefix) :]: each for name, each in state.items() if name.startswith(prefix)}
        )
    return nn.Sequential(*parts.values()).eval().requires_grad_(False)


def describe(
    denoiser: Denoiser, latents: Float[Tensor, "picture 3 side side"], captions: list[str]
) -> dict[str, float]:
    """How what is shown fits captions, and how far it is one picture for all.

    Returns:
        The mean loss beside the own caption and beside the next picture's; in how many pictures
        the own one's is smaller; and the share of all variance that lies in the mean picture.
    """
    own = caption_losses(denoiser, latents, captions)
    other = caption_losses(denoiser, latents, captions[1:] + captions[:1])
    alike = latents.mean(0).var(correction=0) / latents.var(correction=0)
    return {
        "own": round(float(own.mean()), 4),
        "other": round(float(other.mean()), 4),
        "prefers_own_caption": round(float((own < other).double().mean()), 3),
        "alike": round(float(alike), 3),
    }


def write_map(study: Study, work: Path, folder: Path, count: int = 512) -> None:
    """Writes mapped.json, of scenes and each training, and mapped.jpg: scenes, then a row for each.

    Args:
        study: with an arm sds.
        work: the folder that it was run in.
        folder: to write to.
        count: of the further scenes that are looked at.
    """
    clip = load_clip("pocket")
    denoiser = load_denoiser("pocket", clip)
    scenes = pocket.load_further("further_val", 2000).select(range(count))
    owners = scenes.image_of_text.tolist()
    captions = [scenes.texts[owners.index(image)] for image in range(count)]
    real = torch.cat([denoiser.encode(to_tensor(open_picture(x))[None]) for x in scenes.paths])
    seeds: dict[str, dict[str, float]] = {}
    rows = [real[:SHOWN]]
    for seed in study.seeds:
        tower = load_tower(study, seed, work, clip)
        pixels = read_pixels(clip, scenes.paths).split(64)
        mapped = torch.cat([tower(clip.normalize(each)) for each in pixels])
        seeds[str(seed)] = describe(denoiser, mapped, captions)
        rows.append(mapped[:SHOWN])
    figures = {"pictures": count, "scenes": describe(denoiser, real, captions), "seeds": seeds}
    print(json.dumps(figures, indent=1))
    write_record(figures, folder / "mapped.json")
    sheet = make_grid(torch.cat(rows).clamp(-1, 1) / 2 + 0.5, nrow=SHOWN, pad_value=1.0)
    shown = resize(to_pil_image(sheet), [sheet.shape[1] * 2])
    shown.save(folder / "mapped.jpg", quality=60)


def main(work: str = "runs/studies") -> None:
    """Looks at those of the pocket's study."""
    study = read_study(asset_path("studies", "pocket_sds.toml"))
    write_map(study, Path(work), asset_path("sprites").parent / "pocket_denoiser")


if __name__ == "__main__":
    main(*sys.argv[1:])
