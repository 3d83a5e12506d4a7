"""What the map of the recipe sds shows the denoiser: `python -m assets.make.sds_map WORK`.

WORK is the folder of `python -m assets.make.run_study assets/studies/pocket_sds.toml --work WORK`.
Its checkpoints have the map, which no arm keeps, and the student that was trained with it, before
interpolation.
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
    """The student's tower and its map, from the checkpoint of a training of the arm sds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    (arm,) = (arm for arm in study.arms if arm.name == "sds")
    key = digest_record(replace(arm, rescoring=None).describe(seed))
    state = load_tensors(work / "checkpoints" / f"student-{key}.safetensors")
    head = DenoiserHead(clip.embed_dim, load_denoiser("pocket", clip).shape)
    parts = {"module.tower.": clone_clip(clip).model.visual, "module.heads.sds.": head}
    for prefix, part in parts.items():
        part.load_state_dict(
            {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        )
    return nn.Sequential(*parts.values()).eval().requires_grad_(False)


def describe(
    denoiser: Denoiser, latents: Float[Tensor, "picture 3 side side"], captions: list[str]
) -> dict[str, float]:
    """How well latents fit their captions, and how similar the latents are to each other.

    Returns:
        The mean loss with each picture's own caption and with the next picture's; the share of
        pictures whose own is smaller; and the share of the variance that is in the mean picture.
    """
    own_losses = caption_losses(denoiser, latents, captions)
    other_losses = caption_losses(denoiser, latents, captions[1:] + captions[:1])
    alike = latents.mean(0).var(correction=0) / latents.var(correction=0)
    return {
        "own": round(float(own_losses.mean()), 4),
        "other": round(float(other_losses.mean()), 4),
        "prefers_own_caption": round(float((own_losses < other_losses).double().mean()), 3),
        "alike": round(float(alike), 3),
    }


def write_map(study: Study, work: Path, folder: Path, count: int = 512) -> None:
    """Writes mapped.json, for the scenes and each training, and mapped.jpg, a row for each of them.

    Args:
        study: with an arm sds.
        work: the folder that the study was run in.
        folder: to write to.
        count: the number of further scenes to use.
    """
    clip = load_clip("pocket")
    denoiser = load_denoiser("pocket", clip)
    scenes = pocket.load_captioned("further_val", 2000).select(range(count))
    image_of_text = scenes.image_of_text.tolist()
    captions = [scenes.texts[image_of_text.index(image)] for image in range(count)]
    scene_latents = torch.cat(
        [denoiser.encode(to_tensor(open_picture(path))[None]) for path in scenes.paths]
    )
    seeds: dict[str, dict[str, float]] = {}
    rows = [scene_latents[:SHOWN]]
    for seed in study.seeds:
        tower = load_tower(study, seed, work, clip)
        pixels = read_pixels(clip, scenes.paths).split(64)
        mapped = torch.cat([tower(clip.normalize(chunk)) for chunk in pixels])
        seeds[str(seed)] = describe(denoiser, mapped, captions)
        rows.append(mapped[:SHOWN])
    figures = {
        "pictures": count,
        "scenes": describe(denoiser, scene_latents, captions),
        "seeds": seeds,
    }
    print(json.dumps(figures, indent=1))
    write_record(figures, folder / "mapped.json")
    sheet = make_grid(torch.cat(rows).clamp(-1, 1) / 2 + 0.5, nrow=SHOWN, pad_value=1.0)
    enlarged = resize(to_pil_image(sheet), [sheet.shape[1] * 2])
    enlarged.save(folder / "mapped.jpg", quality=60)


def main(work: str = "runs/studies") -> None:
    """Writes the maps of the pocket's study."""
    study = read_study(asset_path("studies", "pocket_sds.toml"))
    write_map(study, Path(work), asset_path("sprites").parent / "pocket_denoiser")


if __name__ == "__main__":
    main(*sys.argv[1:])
