"""Finding regions: YOLO detectors, the embedded one or any of ultralytics'.

Ultralytics is AGPL-3.0 and imported on first use. Regions may as well come from any other detector:
see `Regions.from_boxes`.
"""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch  # before ultralytics, which would otherwise hold torch to one thread
from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.pictures import as_seen, open_picture
from dclip_kit.models.encode import split_by_pixels
from dclip_kit.models.regions import Regions
from dclip_kit.runtime.files import asset_path, load_tensors, load_weights

_STRIDE = 32  # ultralytics rounds other image sizes up without a word
_NMS_SECONDS = 2.0  # past this, ultralytics may leave the rest of a batch without boxes


@dataclass(frozen=True)
class Detections:
    """What a detector found in a sequence of pictures.

    Attributes:
        regions: one for each readable picture, in order, each sorted by falling confidence.
        without_detections: how many pictures have the whole image as their one region.
        unreadable: position and reason of each picture that was skipped on request.
    """

    regions: tuple[Regions, ...]
    without_detections: int
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
            batch_size: how many are read and detected at once; fewer where they have more pixels
                together than `MOST_PIXELS`.
            progress: shows a bar once the work has lasted for two seconds.
            skip_unreadable: leaves unreadable pictures out and reports them instead of raising.

        Raises:
            ValueError: as `open_picture`, or a picture that is opened is not of 8 bits a channel.
        """
        if isinstance(images, str | Path | Image.Image):
            raise TypeError(f"Expected a sequence of pictures, got one; give [{images!r}].")
        regions: list[Regions] = []
        unreadable: dict[int, str] = {}
        with tqdm(
            total=len(images), desc="detect", unit="picture", delay=2, disable=not progress
        ) as bar:
            for group in split_by_pixels(images, batch_size):
                pictures = []
                for index in group:
                    try:
                        pictures.append(_read_picture(images[index]))
                    except ValueError as error:
                        if not skip_unreadable:
                            raise
                        unreadable[index] = str(error)
                regions += self._detect_batch(pictures)
                bar.update(len(group))
        return Detections(tuple(regions), sum(each.is_whole_image for each in regions), unreadable)

    def _detect_batch(self, pictures: list[np.ndarray]) -> list[Regions]:
        results = self.predictor(pictures) if pictures else []
        if sum(result.speed["postprocess"] for result in results) > 1000 * _NMS_SECONDS:
            # Out of its time limit, suppression drops every picture but the one it is at.
            results = [self.predictor([picture])[0] for picture in pictures]
        found = []
        for result in results:
            boxes = result.boxes.cpu()
            order = boxes.conf.argsort(descending=True, stable=True)[: self.max_regions]
            labels = [self.names[int(number)] for number in boxes.cls[order]]
            size = result.orig_shape[1], result.orig_shape[0]
            found.append(Regions.from_boxes(boxes.xyxy[order], boxes.conf[order], labels, size))
        # It would keep the pictures until it is given others.
        self.predictor.dataset = self.predictor.batch = self.predictor.results = None
        return found


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
        name_or_path: "pocket", the embedded one; a folder of the same files; or a `.pt` of
            ultralytics, by path or by name (such as "yolov8n.pt", downloaded to torch's cache if
            need be). A `.pt` is a pickle: take it from people you trust.
        confidence: what a detection's confidence must exceed, 0 to 1.
        max_regions: how many detections of a picture are kept, the most confident.
        image_size: side in pixels of the square that pictures are fitted into, a multiple of 32;
            left out, the one that the weights were trained at.
        device: where it runs, such as "cpu" or "cuda:0".

    Raises:
        FileNotFoundError: the weights are neither on disk nor to be downloaded.
        ModuleNotFoundError: ultralytics is not installed.
        ValueError: the weights are cut short, of another architecture or no detector's, or an
            argument is out of range.
    """
    fits = image_size is None or (image_size > 0 and image_size % _STRIDE == 0)
    if not (0 <= confidence <= 1 and max_regions >= 1 and fits):
        raise ValueError(
            "Expected a confidence from 0 to 1, max_regions of at least 1 and an image_size that "
            f"is a multiple of {_STRIDE}, got {confidence}, {max_regions} and {image_size}."
        )
    source = locate_weights(name_or_path)
    yolo = read_weights(source)
    size = image_size or -(-int(np.max(yolo.overrides.get("imgsz", 640))) // _STRIDE) * _STRIDE
    with contained_ultralytics():
        predictor = yolo.task_map["detect"]["predictor"](
            overrides={
                "mode": "predict",
                "conf": confidence,
                "max_det": max_regions,
                "imgsz": size,
                "rect": False,  # with True, a batch of equal pictures is letterboxed otherwise
                "device": device,
                "save": False,
                "verbose": False,
            }
        )
        predictor.setup_model(yolo.model, verbose=False)
        predictor([np.zeros((size, size, 3), np.uint8)])  # the first one also warms up
    names = tuple(name for _, name in sorted(yolo.names.items()))
    return Detector(names, size, confidence, max_regions, source, predictor)


def locate_weights(name_or_path: str | Path) -> Path:
    """Finds a detector's weights, as `load_detector` takes them, without loading them.

    Looks at the path itself, then, for a bare name, in torch's cache (`torch.hub.get_dir()`), and
    downloads what ultralytics publishes under it.

    Raises:
        FileNotFoundError: as `load_detector`; with YOLO_OFFLINE set, at once, and else when
            ultralytics gives up.
    """
    if name_or_path == "pocket":
        return asset_path("pocket_yolo")
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    cached = Path(torch.hub.get_dir(), "checkpoints", path.name)
    reason = "it is not on disk"
    if path.name == str(path):
        if cached.is_file():
            return cached
        with contained_ultralytics():
            from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset
        # As ultralytics reads it.
        if os.environ.get("YOLO_OFFLINE", "").lower() in ("1", "true", "yes", "on", "y", "t"):
            reason += ", and YOLO_OFFLINE forbids to download it"
        elif path.name in GITHUB_ASSETS_NAMES:
            try:
                return Path(attempt_download_asset(cached))
            except Exception as error:  # whatever the download met, the weights are not there
                reason += f", and its download failed: {' '.join(str(error).split())}"
    raise FileNotFoundError(
        f"Expected 'pocket', a folder, a .pt file or a name that ultralytics publishes, got "
        f"{str(path)!r} ({reason}); give a path that exists, or put the file at {cached}."
    )


def read_weights(path: Path) -> Any:
    """Reads a folder such as the pocket's, or a `.pt` of ultralytics.

    A `.pt` is a pickle. Ultralytics' restricted reading is switched on, unless the environment's
    ULTRALYTICS_SAFE_LOAD says otherwise or ultralytics was imported by somebody else before.

    Returns:
        An ultralytics YOLO, whose `overrides["imgsz"]` is the side that it was trained at.

    Raises:
        ValueError: it is incomplete, cut short, of another architecture or no detector's.
    """
    with contained_ultralytics():
        from ultralytics import YOLO

        in_folder = path.is_dir()
        try:
            if not in_folder and path.suffix != ".pt":
                raise ValueError("it is of another kind")
            yolo: Any = YOLO(path / "model.yaml" if in_folder else path, task="detect")
            if in_folder:
                config = json.loads((path / "config.json").read_text(encoding="utf-8"))
                names, yolo.overrides["imgsz"] = config["names"], int(config["image_size"])
                if yolo.model.yaml["nc"] != len(names):
                    raise ValueError(f"{len(names)} names for {yolo.model.yaml['nc']} classes")
                yolo.model.names = dict(enumerate(names))
        except Exception as error:  # ultralytics raises many types on broken or foreign files
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                "Expected a .pt of ultralytics, or a folder with a detector's config.json, "
                f"model.yaml and model.safetensors, but {path} cannot be read ({reason}); fetch it "
                "again, or set ULTRALYTICS_SAFE_LOAD=0 if it is whole and you trust who made it."
            ) from error
    if in_folder:
        file = path / "model.safetensors"
        load_weights(yolo.model, load_tensors(file), str(file))
    if yolo.task != "detect":
        raise ValueError(
            f"Expected a detector such as yolov8n.pt, but {path} is for the task {yolo.task!r}; "
            "give another."
        )
    return yolo


def find_photographs() -> list[Path]:
    """The photographs that ultralytics packages for trying detectors on; nothing is downloaded.

    Raises:
        ModuleNotFoundError: ultralytics is not installed.
    """
    with contained_ultralytics():
        from ultralytics.utils import ASSETS
    return sorted(ASSETS.glob("*.jpg"))


@functools.cache
def _settings_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="dclip-ultralytics-")  # gone when Python ends


@contextlib.contextmanager
def contained_ultralytics() -> Iterator[None]:
    """Imports ultralytics if need be, and puts back what it does to the process meanwhile.

    It changes threads, environment, random state, functions of Pillow and torch, and settings in
    the home folder, and sends usage statistics: all that is undone or switched off.

    Raises:
        ModuleNotFoundError: ultralytics is not installed.
    """
    environment = {
        # Unless the user has set them: its settings would go into the home folder, and pickles of
        # any content would be read.
        "YOLO_CONFIG_DIR": _settings_folder().name,
        "ULTRALYTICS_SAFE_LOAD": "true",
        **os.environ,
        "YOLO_VERBOSE": "false",
        "YOLO_OFFLINE": "true",  # no look-ups during the import
        "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "true",  # a checkpoint shall not install packages
    }
    threads = torch.get_num_threads()
    try:
        with (
            mock.patch.dict(os.environ, environment),
            # Ultralytics puts functions of its own in the place of these: `open` installs a package
            # when it is given a file that is no picture. Both are put back; neither is called here.
            mock.patch.object(Image, "open", vars(Image)["open"]),
            mock.patch.object(torch, "save", vars(torch)["save"]),
            torch.random.fork_rng(devices=[]),
            np.printoptions(),
        ):
            try:
                from ultralytics.utils import SETTINGS
                from ultralytics.utils.events import events
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"Expected ultralytics, which YOLO detectors need, but it does not import "
                    f"({error}); pip install 'dclip-kit[detect]'."
                ) from error
            dict.__setitem__(SETTINGS, "sync", False)  # its own __setitem__ writes the user's file
            events.enabled = False
            yield
    finally:
        torch.set_num_threads(threads)


def _read_picture(image: Image.Image | Path | str) -> np.ndarray:
    """Reads a picture as ultralytics wants its arrays: height, width, blue-green-red."""
    picture = image if isinstance(image, Image.Image) else open_picture(image)
    if picture.mode.startswith(("I", "F")):  # Pillow would clip to white
        raise ValueError(
            f"Expected pictures of 8 bits a channel, got one of mode {picture.mode}; give its path."
        )
    return np.ascontiguousarray(np.asarray(as_seen(picture))[:, :, ::-1])
