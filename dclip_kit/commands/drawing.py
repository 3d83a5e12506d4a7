"""Pictures with their regions drawn."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.utils import draw_bounding_boxes

from dclip_kit.data import open_picture
from dclip_kit.models.regions import Regions
from dclip_kit.runtime.files import replacing


def draw_regions(path: Path, regions: Regions, out: Path) -> None:
    """Writes a picture with its boxes drawn, atomically; a whole picture gets no box."""
    picture = open_picture(path)
    if not regions.is_whole_image:
        labels = [
            f"{label} {sure:.2f}"
            for label, sure in zip(regions.label, regions.confidence.tolist(), strict=True)
        ]
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # 3 height width
        width = max(1, round(min(picture.size) / 150))
        pixels = draw_bounding_boxes(pixels, regions.xyxy, labels, colors="red", width=width)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    with replacing(out) as temporary:
        picture.save(temporary, format="PNG")
