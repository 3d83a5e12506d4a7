"""Pictures with their regions drawn."""

from pathlib import Path

from dclip_kit.data import open_picture
from dclip_kit.models.boxes import draw_boxes
from dclip_kit.models.regions import Regions
from dclip_kit.runtime.files import replacing


def draw_regions(path: Path, regions: Regions, out: Path) -> None:
    """Writes a picture with its boxes drawn, atomically; a whole picture gets no box."""
    picture = open_picture(path)
    if not regions.is_whole_image:
        picture = draw_boxes(picture, regions)
    with replacing(out) as temporary:
        picture.save(temporary, format="PNG")
