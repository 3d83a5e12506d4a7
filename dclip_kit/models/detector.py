"""Finding regions: YOLO detectors, the embedded one or any of ultralytics'.

Ultralytics is AGPL-3.0 and imported on first use. Regions may as well come from any other detector:
see `Regions.from_boxes`.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.pictures import open_picture
from dclip_kit.models.regions import Regions, RegionsReport
from dclip_kit.models.yolo import contained_ultralytics, find_weights, read_weights
from dclip_kit.runtime.files import asset_path

_STRIDE = 32  # ultralytics rounds other image sizes up without a word
_PIXELS = 32_000_000  # of the pictures that are detected at once; one that has more goes alone
_NMS_SECONDS = 2.0  # past this, ultralytics may leave the rest of a batch without boxes


@dataclass(frozen=True)
class Detections:
    """What a detector found in a sequence of pictures.

    Attributes:
        regions: one for each readable picture, in order, each sorted by falling confidence.
        without_detections: how many pictures have the whole image as their one region.
        dropped_boxes: how many boxes had no area inside their picture.
        unreadable: position and reason of each picture that was skipped on request.
    """

    regions: tuple[Regions, ...]
    without_detections: int
    dropped_boxes: int
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector, made by `load_detector`.

    Attributes:
        names: the labels it knows, by class number.
        image_size: side in pixels of the square that every picture is fitted into.
        confidence: what a detection's confidence must exceed.
        max_regions: how many detections of a picture are kept, the most confident.
        source: the weights it was loaded from.
        predictor: ultralytics' predictor: its model, letterbox and non-maximum suppression.
    """

    names: tuple[str, ...]
    image_size: int
    confidence: float
    max_regions: int
    source: Path
    predictor: Any = field(repr=False)

    def detect(
        self,
        images: Sequence[Image.Image | Path | str],
        batch_size: int = 32,
        progress: bool = True,
        skip_unreadable: bool = False,
    ) -> Detections:
        """Finds regions, in pixels of each picture as `open_picture` reads it.

        Every picture is letterboxed to one size, so that its neighbours in a batch decide nothing
        (beyond float rounding).

        Args:
            images: pictures or their paths.
            batch_size: how many are read and detected at once; fewer where they have more than 32
                million pixels together.
            progress: shows a bar once the work has lasted for two seconds.
            skip_unreadable: leaves unreadable pictures out and reports them instead of raising.

        Raises:
            ValueError: if a picture is missing, broken or, opened already, not of 8 bits a channel.
        """
        if isinstance(images, str | Path | Image.Image):
            raise TypeError(f"images must be a sequence; for one picture give [{images!r}].")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        found: list[RegionsReport] = []
        unreadable: dict[int, str] = {}
        total, silent = len(images), not progress
        with tqdm(total=total, desc="detect", unit="picture", delay=2, disable=silent) as bar:
            for start in range(0, total, batch_size):
                pictures: list[np.ndarray] = []
                for index in range(start, min(start + batch_size, total)):
                    bar.update()
                    try:
                        picture = _read_picture(images[index])
                    except ValueError as error:
                        if not skip_unreadable:
                            raise
                        unreadable[index] = str(error)
                        continue
                    if sum(each.size for each in pictures) + picture.size > 3 * _PIXELS:
                        found += self._detect_batch(pictures)
                        pictures = []
                    pictures.append(picture)
                found += self._detect_batch(pictures)
        regions = tuple(report.regions for report in found)
        without, dropped = sum(r.is_whole_image for r in regions), sum(r.dropped for r in found)
        return Detections(regions, without, dropped, unreadable)

    def _detect_batch(self, pictures: list[np.ndarray]) -> list[RegionsReport]:
        results = self.predictor(pictures) if pictures else []
        if sum(result.speed["postprocess"] for result in results) > 1000 * _NMS_SECONDS:
            # Out of its time limit, suppression drops every picture but the one it is at.
            results = [self.predictor([picture])[0] for picture in pictures]
        reports = []
        for result in results:
            boxes = result.boxes.cpu()
            order = boxes.conf.argsort(descending=True, stable=True)[: self.max_regions]
            labels = [self.names[int(number)] for number in boxes.cls[order]]
            size = result.orig_shape[1], result.orig_shape[0]
            reports.append(Regions.from_boxes(boxes.xyxy[order], boxes.conf[order], labels, size))
        # It would keep the pictures until it is given others.
        self.predictor.dataset = self.predictor.batch = self.predictor.results = None
        return reports


def load_detector(
    name_or_path: str | Path = "pocket",
    *,
    confidence: float = 0.25,
    max_regions: int = 10,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Detector:
    """Loads a detector.

    Args:
        name_or_path: "pocket", the embedded one; a folder written by `save_detector`; or a `.pt` of
            ultralytics, by path or by name (such as "yolov8n.pt", downloaded to torch's cache if
            need be). A `.pt` is a pickle: take it from people you trust.
        confidence: what a detection's confidence must exceed, 0 to 1.
        max_regions: how many detections of a picture are kept, the most confident.
        image_size: side in pixels of the square that pictures are fitted into, a multiple of 32;
            left out, the one that the weights were trained at.
        device: where it runs, such as "cpu" or "cuda:0".

    Raises:
        FileNotFoundError: if the weights are neither on disk nor to be downloaded; offline, after
            at most 3 s of trying to reach the network.
        ModuleNotFoundError: if ultralytics is not installed.
        ValueError: if the weights are cut short, of another architecture or no detector's, or an
            argument is out of range.
    """
    fits = image_size is None or (image_size > 0 and image_size % _STRIDE == 0)
    if not (0 <= confidence <= 1 and max_regions >= 1 and fits):
        raise ValueError(
            "expected a confidence of 0 to 1, max_regions of at least 1 and an image_size that is "
            f"a multiple of {_STRIDE}, not {confidence}, {max_regions} and {image_size}."
        )
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} needs a CUDA GPU, and there is none; use 'cpu'.")
    source = locate_weights(name_or_path)
    weights = read_weights(source)
    size = image_size or -(-weights.image_size // _STRIDE) * _STRIDE
    with contained_ultralytics():
        predictor = weights.predictor_class(
            overrides={
                "mode": "predict",
                "conf": confidence,
                "imgsz": size,
                "rect": False,  # with True, a batch of equal pictures is letterboxed otherwise
                "device": device,
                "save": False,
                "verbose": False,
            }
        )
        predictor.setup_model(weights.model, verbose=False)
        predictor([np.zeros((size, size, 3), np.uint8)])  # the first one also warms up
    return Detector(weights.names, size, confidence, max_regions, source, predictor)


def locate_weights(name_or_path: str | Path) -> Path:
    """Where a detector's weights are, as `load_detector` takes them, without loading them.

    Raises:
        FileNotFoundError: as `load_detector`.
    """
    return asset_path("pocket_yolo") if name_or_path == "pocket" else find_weights(name_or_path)


def find_photographs() -> list[Path]:
    """The photographs that ultralytics packages for trying detectors on; nothing is downloaded.

    Raises:
        ModuleNotFoundError: ultralytics is not installed.
        FileNotFoundError: its package has no such photographs.
    """
    package = importlib.util.find_spec("ultralytics")  # where it lies, without importing it
    if package is None or not package.origin:
        raise ModuleNotFoundError(
            "expected ultralytics, whose package has photographs, but it is not installed; "
            "pip install 'dclip-kit[detect]'."
        )
    folder = Path(package.origin).parent / "assets"
    found = sorted(folder.glob("*.jpg"))
    if not found:
        raise FileNotFoundError(
            f"expected photographs in {folder}, but found none; give paths of your own."
        )
    return found


def _read_picture(image: Image.Image | Path | str) -> np.ndarray:
    """Reads a picture as ultralytics wants its arrays: height, width, blue-green-red."""
    try:
        picture = image if isinstance(image, Image.Image) else open_picture(image)
        if picture.mode.startswith(("I", "F")):  # Pillow would clip these to white
            raise ValueError(f"mode {picture.mode} has not 8 bits a channel")
        if 0 in picture.size:
            raise ValueError("it has no pixels")
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        pixels = np.frombuffer(picture.tobytes("raw", "BGR"), np.uint8)
        return pixels.reshape(picture.height, picture.width, 3)
    except (OSError, ValueError, SyntaxError, ImportError, Image.DecompressionBombError) as error:
        name = getattr(image, "filename", "") or image
        raise ValueError(
            f"Expected a whole picture of 8 bits a channel, but picture {name} cannot be read "
            f"({error}); mend it or leave it out."
        ) from error
