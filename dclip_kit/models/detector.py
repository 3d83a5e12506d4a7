"""Finding regions: YOLO detectors, the boxes of any other detector in a file, and fixed crops.

Ultralytics is AGPL-3.0 and imported on first use; boxes in a file and crops need none of it.
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
from dclip_kit.models.boxes import CROP_NAMES, StoredBoxes, add_crops, read_boxes
from dclip_kit.models.encode import split_by_pixels
from dclip_kit.models.regions import Regions
from dclip_kit.runtime.files import asset_path, load_tensors, load_weights
from dclip_kit.runtime.packages import require_packages

_STRIDE = 32  # ultralytics silently rounds other image sizes up
_CROPS = "+crops"  # behind the name of a detector
_NMS_SECONDS = 2.0  # past this, ultralytics may leave the rest of a batch without boxes


@dataclass(frozen=True)
class Detections:
    """What a detector found in a sequence of pictures.

    Attributes:
        regions: one for each readable picture, in order, each sorted by falling confidence.
        without_detections: number of pictures whose only region is the whole image.
        unreadable: position and reason of each picture that was skipped on request.
    """

    regions: tuple[Regions, ...]
    without_detections: int
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Detector:
    """A detector, loaded by `load_detector`.

    Attributes:
        names: the labels it knows, by class number.
        image_size: side in pixels of the square that every picture is fitted into.
        confidence: what a detection's confidence must exceed.
        max_regions: how many of a picture's detections are kept, by falling confidence.
        source: the weights or boxes it was loaded from; None for crops alone.
        predictor: ultralytics' predictor: its model, letterbox and non-maximum suppression.
        boxes: what another detector found, in place of a predictor.
        crops: whether fixed crops are regions, too; alone if there is neither of the others.
    """

    names: tuple[str, ...]
    image_size: int
    confidence: float
    max_regions: int
    source: Path | None
    predictor: Any = field(default=None, repr=False)
    boxes: StoredBoxes | None = None
    crops: bool = False

    def detect(
        self,
        images: Sequence[Image.Image | Path | str],
        batch_size: int = 32,
        progress: bool = True,
        skip_unreadable: bool = False,
        paths: Sequence[Path] | None = None,
    ) -> Detections:
        """Finds regions, in pixels of each picture as `open_picture` reads it.

        Every picture is letterboxed to one size, so that its neighbours in a batch do not matter
        (beyond float rounding).

        Args:
            images: pictures or their paths.
            batch_size: how many are read and detected at once; fewer if together they have more
                than `MOST_PIXELS` pixels.
            progress: shows a bar once the work has lasted for two seconds.
            skip_unreadable: leaves unreadable pictures out and reports them instead of raising.
            paths: of pictures that are open already; stored boxes are found by them.

        Raises:
            ValueError: as `open_picture`, or an opened picture does not have 8 bits a channel; or
                as `StoredBoxes.find`.
        """
        if isinstance(images, str | Path | Image.Image):
            raise TypeError(f"Expected a sequence of pictures, got one; give [{images!r}].")
        regions: list[Regions] = []
        unreadable: dict[int, str] = {}
        with tqdm(
            total=len(images), desc="detect", unit="picture", delay=2, disable=not progress
        ) as bar:
            for batch in split_by_pixels(images, batch_size):
                pictures, read_paths = [], []
                for index in batch:
                    given = images[index]
                    try:
                        pictures.append(_read_picture(given))
                        path = None if isinstance(given, Image.Image) else given
                        read_paths.append(paths[index] if paths else path)
                    except ValueError as error:
                        if not skip_unreadable:
                            raise
                        unreadable[index] = str(error)
                regions += self._find(pictures, read_paths)
                bar.update(len(batch))
        without_detections = sum(item.is_whole_image for item in regions)
        return Detections(tuple(regions), without_detections, unreadable)

    def _find(self, pictures: list[np.ndarray], paths: Sequence[Any]) -> list[Regions]:
        if self.predictor:
            regions = self._detect_batch(pictures)
        else:
            sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
            regions = [
                self.boxes.find(path, size) if self.boxes else Regions.whole_image(size)
                for path, size in zip(paths, sizes, strict=True)
            ]
        return [add_crops(each) for each in regions] if self.crops else regions

    def _detect_batch(self, pictures: list[np.ndarray]) -> list[Regions]:
        results = self.predictor(pictures) if pictures else []
        if sum(result.speed["postprocess"] for result in results) > 1000 * _NMS_SECONDS:
            # Past its time limit, suppression drops every picture but the current one.
            results = [self.predictor([picture])[0] for picture in pictures]
        regions = []
        for result in results:
            boxes = result.boxes.cpu()
            order = boxes.conf.argsort(descending=True, stable=True)[: self.max_regions]
            labels = [self.names[int(number)] for number in boxes.cls[order]]
            size = result.orig_shape[1], result.orig_shape[0]
            regions.append(Regions.from_boxes(boxes.xyxy[order], boxes.conf[order], labels, size))
        # Otherwise the predictor would keep the pictures until the next call.
        self.predictor.dataset = self.predictor.batch = self.predictor.results = None
        return regions


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
        name_or_path: "pocket", the embedded one; a folder of the same files; a `.pt` of
            ultralytics, by path or by name (such as "yolov8n.pt", downloaded to torch's cache if
            needed); a `.json` with the boxes of any detector, as the command detect writes it; or
            "crops", fixed crops without a detector. With "+crops" behind it, each of the others has
            these crops as well. A `.pt` is a pickle: take it only from people you trust.
        confidence: what a detection's confidence must exceed, 0 to 1.
        max_regions: how many of a picture's detections are kept, by falling confidence.
        image_size: side in pixels of the square that pictures are fitted into, a multiple of 32;
            by default the one that the weights were trained at.
        device: where it runs, such as "cpu" or "cuda:0".

    Raises:
        FileNotFoundError: the weights are not on disk and cannot be downloaded.
        ImportError: ultralytics is not installed.
        ValueError: the weights are cut short, of another architecture or not a detector's, or an
            argument is out of range.
    """
    size_fits = image_size is None or (image_size > 0 and image_size % _STRIDE == 0)
    if not (0 <= confidence <= 1 and max_regions >= 1 and size_fits):
        raise ValueError(
            "Expected a confidence from 0 to 1, max_regions of at least 1 and an image_size that "
            f"is a multiple of {_STRIDE}, got {confidence}, {max_regions} and {image_size}."
        )
    source, crops = locate_weights(name_or_path), with_crops(name_or_path)
    crop_names = CROP_NAMES if crops else ()
    if source is None or source.suffix.lower() == ".json":
        boxes = read_boxes(source, confidence, max_regions) if source else None
        names = (*(boxes.names if boxes else ()), *crop_names)
        return Detector(names, 0, confidence, max_regions, source, None, boxes, crops)
    yolo = read_weights(source)
    size = image_size or -(-int(np.max(yolo.overrides.get("imgsz", 640))) // _STRIDE) * _STRIDE
    with contained_ultralytics():
        predictor = yolo.task_map["detect"]["predictor"](
            overrides={
                "mode": "predict",
                "conf": confidence,
                "max_det": max_regions,
                "imgsz": size,
                "rect": False,  # True would letterbox a batch of equal sizes differently
                "device": device,
                "save": False,
                "verbose": False,
            }
        )
        predictor.setup_model(yolo.model, verbose=False)
        predictor([np.zeros((size, size, 3), np.uint8)])  # the first one also warms up
    names = tuple(name for _, name in sorted(yolo.names.items()))
    names = (*names, *crop_names)
    return Detector(names, size, confidence, max_regions, source, predictor, crops=crops)


def with_crops(name_or_path: str | Path) -> bool:
    """Whether a detector's name asks for fixed crops."""
    return str(name_or_path) == "crops" or str(name_or_path).endswith(_CROPS)


def locate_weights(name_or_path: str | Path) -> Path | None:
    """Finds a detector's weights or boxes, as `load_detector` takes them, without loading them.

    None for crops alone.

    Looks at the path itself, then, for the bare name of a .pt, in torch's cache
    (`torch.hub.get_dir()`), and finally downloads what ultralytics publishes under that name.

    Raises:
        FileNotFoundError: as `load_detector`; at once if YOLO_OFFLINE is set, otherwise when
            ultralytics gives up.
        ImportError: a download would need ultralytics, which is not installed.
    """
    if name_or_path == "crops":
        return None
    name = str(name_or_path).removesuffix(_CROPS)
    if name == "pocket":
        return asset_path("pocket_yolo")
    path = Path(name).expanduser()
    if path.exists():
        return path
    reason, advice = "it is not on disk", "give a path that exists"
    if path.name == str(path) and path.suffix == ".pt":
        cached = Path(torch.hub.get_dir(), "checkpoints", path.name)
        advice += f", or put the file at {cached}"
        if cached.is_file():
            return cached
        with contained_ultralytics():
            from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset
        # The values that ultralytics takes as true.
        if os.environ.get("YOLO_OFFLINE", "").lower() in ("1", "true", "yes", "on", "y", "t"):
            reason += ", and YOLO_OFFLINE forbids to download it"
        elif path.name in GITHUB_ASSETS_NAMES:
            try:
                return Path(attempt_download_asset(cached))
            except Exception as error:  # whatever went wrong, the weights are not there
                reason += f", and its download failed: {' '.join(str(error).split())}"
    raise FileNotFoundError(
        "Expected 'pocket', 'crops', a folder, a .pt or .json file, or a name that ultralytics "
        f"publishes, got {str(path)!r} ({reason}); {advice}."
    )


def read_weights(path: Path) -> Any:
    """Reads a folder such as the pocket's, or a `.pt` of ultralytics.

    A `.pt` is a pickle. Ultralytics' restricted reading is switched on, unless the environment's
    ULTRALYTICS_SAFE_LOAD says otherwise or ultralytics had already been imported elsewhere.

    Returns:
        An ultralytics YOLO, whose `overrides["imgsz"]` is the image side it was trained at.

    Raises:
        ValueError: the weights are incomplete, cut short, of another architecture or not a
            detector's.
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
    """The sample photographs that come with ultralytics; nothing is downloaded.

    Raises:
        ImportError: ultralytics is not installed.
    """
    with contained_ultralytics():
        from ultralytics.utils import ASSETS
    return sorted(ASSETS.glob("*.jpg"))


@functools.cache
def _settings_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="dclip-ultralytics-")  # gone when Python ends


@contextlib.contextmanager
def contained_ultralytics() -> Iterator[None]:
    """Imports ultralytics if needed, and undoes what it does to the process meanwhile.

    It changes threads, the current GPU, environment, random state, functions of Pillow and torch,
    and settings in the home folder, and sends usage statistics; all of this is undone or switched
    off.

    Raises:
        ImportError: ultralytics is not installed.
    """
    environment = {
        # Defaults that the user can override: without them, settings would go into the home folder
        # and pickles of any content would be read.
        "YOLO_CONFIG_DIR": _settings_folder().name,
        "ULTRALYTICS_SAFE_LOAD": "true",
        **os.environ,
        "YOLO_VERBOSE": "false",
        "YOLO_OFFLINE": "true",  # no look-ups during the import
        "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "true",  # a checkpoint must not install packages
    }
    threads = torch.get_num_threads()
    # Ultralytics makes the GPU that it is given the current one. Asking which one is would start
    # CUDA; before that, it is the first.
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    try:
        with (
            mock.patch.dict(os.environ, environment),
            # Ultralytics replaces these by functions of its own: its `open` installs a package when
            # given a file that is not a picture. Both are restored; neither is called here.
            mock.patch.object(Image, "open", vars(Image)["open"]),
            mock.patch.object(torch, "save", vars(torch)["save"]),
            torch.random.fork_rng(devices=[]),
            np.printoptions(),
        ):
            require_packages("detect", "ultralytics.utils")
            from ultralytics.utils import SETTINGS
            from ultralytics.utils.events import events

            dict.__setitem__(SETTINGS, "sync", False)  # its own __setitem__ writes the user's file
            events.enabled = False
            yield
    finally:
        torch.set_num_threads(threads)
        if torch.cuda.is_initialized():
            torch.cuda.set_device(gpu)


def _read_picture(image: Image.Image | Path | str) -> np.ndarray:
    """Reads a picture into the array that ultralytics takes: height, width, blue-green-red."""
    picture = image if isinstance(image, Image.Image) else open_picture(image)
    if picture.mode.startswith(("I", "F")):  # Pillow would clip to white
        raise ValueError(
            f"Expected pictures of 8 bits a channel, got one of mode {picture.mode}; give its path."
        )
    return np.ascontiguousarray(np.asarray(as_seen(picture))[:, :, ::-1])
