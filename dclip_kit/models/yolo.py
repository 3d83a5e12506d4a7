"""Ultralytics, contained: its weights found, read and written without pickles of ours.

It rearranges the process that imports it (threads, environment, random state, functions of Pillow
and torch, settings in the home folder, usage statistics); here that is undone or switched off.
"""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # before ultralytics, which would otherwise hold torch to one thread
from PIL import Image

from dclip_kit.runtime.files import load_tensors, load_weights, save_tensors, write_atomically
from dclip_kit.runtime.machine import warn_unless_answered

_PATCHED = ((Image, "open"), (torch, "save"))
_TRUE = {"1", "true", "yes", "on", "y", "t"}  # as ultralytics reads its variables


@functools.cache
def _settings_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="dclip-ultralytics-")  # gone when Python ends


@dataclass(frozen=True, eq=False)
class YoloWeights:
    """A detector's weights, read.

    Attributes:
        model: ultralytics' module.
        predictor_class: the class of ultralytics that runs it.
        names: its labels, by class number.
        image_size: side in pixels that it was trained at.
    """

    model: Any
    predictor_class: Any
    names: tuple[str, ...]
    image_size: int


@contextlib.contextmanager
def contained_ultralytics() -> Iterator[None]:
    """Imports ultralytics if need be, and puts back what it does to the process meanwhile.

    Raises:
        ModuleNotFoundError: if ultralytics is not installed.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    # Theirs of Image.open installs a package when it is given a file that is no picture.
    functions = [(owner, name, getattr(owner, name)) for owner, name in _PATCHED]
    os.environ |= {
        "YOLO_VERBOSE": "false",
        "YOLO_OFFLINE": "true",  # no look-ups during the import
        "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "true",  # a checkpoint shall not install packages
    }
    # Theirs, unless the user has spoken: settings into the home folder, pickles of any content.
    os.environ.setdefault("YOLO_CONFIG_DIR", _settings_folder().name)
    os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")
    try:
        with torch.random.fork_rng(devices=[]), np.printoptions():
            try:
                from ultralytics.utils import SETTINGS
                from ultralytics.utils.events import events
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"YOLO detectors need ultralytics ({error}); pip install 'dclip-kit[detect]'."
                ) from error
            dict.__setitem__(SETTINGS, "sync", False)  # its own __setitem__ writes the user's file
            events.enabled = False
            yield
    finally:
        torch.set_num_threads(threads)
        for owner, name, function in functions:
            setattr(owner, name, function)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ |= environment


def find_weights(name_or_path: str | Path) -> Path:
    """Finds a detector's file or folder, and downloads ultralytics' own weights by their name.

    Looks at the path itself, then, for a bare name, in torch's cache (`torch.hub.get_dir()`).

    Raises:
        FileNotFoundError: if it is neither on disk nor to be downloaded; with YOLO_OFFLINE set, at
            once, and else when ultralytics gives up.
    """
    path = Path(name_or_path).expanduser()
    cached = Path(torch.hub.get_dir(), "checkpoints", path.name)
    if path.exists():
        return path
    problem = "and it is not on disk"
    if path.name == str(path):
        if cached.is_file():
            return cached
        with contained_ultralytics():
            from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset
        if path.name not in GITHUB_ASSETS_NAMES:
            problem += ", nor published by ultralytics under that name"
        elif os.environ.get("YOLO_OFFLINE", "").strip().lower() in _TRUE:
            problem += ", and YOLO_OFFLINE forbids to download it"
        else:
            warn_unless_answered("https://github.com")
            try:
                return Path(attempt_download_asset(cached))
            except Exception as error:  # whatever the download met, the weights are not there
                problem += f", and its download failed ({' '.join(str(error).split())})"
    raise FileNotFoundError(
        f"expected 'pocket', a folder or a .pt file as detector weights, but got {str(path)!r} "
        f"{problem}; give a path that exists, or put the file at {cached}."
    )


def read_weights(path: Path) -> YoloWeights:
    """Reads a folder that `save_detector` wrote, or a `.pt` of ultralytics.

    A `.pt` is a pickle. Ultralytics' restricted reading is switched on, unless the environment's
    ULTRALYTICS_SAFE_LOAD says otherwise or ultralytics was imported by somebody else before.

    Raises:
        ValueError: if it is incomplete, cut short, of another architecture or no detector's.
    """
    with contained_ultralytics():
        return _read_folder(path) if path.is_dir() else _read_pt(path)


def _read_folder(folder: Path) -> YoloWeights:
    import yaml
    from ultralytics.models.yolo.detect import DetectionPredictor
    from ultralytics.nn.tasks import DetectionModel

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names, image_size = tuple(config["names"]), int(config["image_size"])
        architecture = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        if architecture["nc"] != len(names):
            raise ValueError(f"{len(names)} names for {architecture['nc']} classes")
        model = DetectionModel(architecture, verbose=False)
    except Exception as error:  # the architecture is parsed by ultralytics, which raises anything
        raise ValueError(
            f"expected config.json (names, image_size) and model.yaml of a detector in {folder}, "
            f"but reading them failed ({type(error).__name__}: {error}); repeat save_detector."
        ) from error
    file = folder / "model.safetensors"
    load_weights(model, load_tensors(file), str(file))
    model.names = dict(enumerate(names))
    return YoloWeights(model.eval(), DetectionPredictor, names, image_size)


def _read_pt(path: Path) -> YoloWeights:
    from ultralytics import YOLO

    if path.suffix != ".pt":
        raise ValueError(
            f"expected a .pt of ultralytics or a folder written by save_detector, but got {path}; "
            "convert it to one of these."
        )
    try:
        yolo = YOLO(str(path))
    except Exception as error:  # ultralytics raises many types on a broken or foreign file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"expected a checkpoint of ultralytics, but {path} is cut short or something else "
            f"({reason}); fetch it again, or set ULTRALYTICS_SAFE_LOAD=0 "
            "if it is whole and you trust who made it."
        ) from error
    if yolo.task != "detect":
        raise ValueError(
            f"expected a detector such as yolov8n.pt, but {path} is for the task {yolo.task!r}."
        )
    names = tuple(name for _, name in sorted(yolo.names.items()))
    image_size = int(np.max(yolo.overrides.get("imgsz", 640)))
    return YoloWeights(yolo.model, yolo.task_map["detect"]["predictor"], names, image_size)


def save_detector(model: Any, folder: str | Path, names: Sequence[str], image_size: int) -> None:
    """Writes a detector as safetensors, YAML and JSON, for `load_detector(folder)`.

    Each file is renamed into place; `config.json` goes first and comes last, so that a folder left
    half-way is noticed. Weights are in half precision; biases and normalisation, few, in full.

    Args:
        model: an ultralytics YOLO or DetectionModel, not fused.
        folder: where to; other files in it are left alone.
        names: the labels, by class number.
        image_size: side in pixels that it was trained at.

    Raises:
        ValueError: if it is no detector or fused, not finite in half precision, or misnamed.
    """
    import yaml

    folder = Path(folder)
    with contained_ultralytics():
        from ultralytics import YOLO
        from ultralytics.nn.tasks import DetectionModel

        if isinstance(model, YOLO):
            model = model.model
        usable = isinstance(model, DetectionModel) and not model.is_fused()
        if not usable:
            raise ValueError(
                f"expected an ultralytics detector that is not fused, but got a "
                f"{type(model).__name__}; load the trained checkpoint afresh."
            )
    if len(names) != model.yaml["nc"] or len(set(names)) != len(names):
        raise ValueError(
            f"expected {model.yaml['nc']} different names, one for each class, but got {names}."
        )
    architecture = {key: value for key, value in model.yaml.items() if key != "yaml_file"}
    if architecture.get("scales"):  # only its own, so that plain ultralytics builds the same
        scale = architecture.get("scale") or next(iter(architecture["scales"]))
        architecture |= {"scale": scale, "scales": {scale: architecture["scales"][scale]}}
    tensors = {}
    for name, value in model.state_dict().items():
        tensors[name] = value.half() if value.is_floating_point() and value.ndim > 1 else value
        if not tensors[name].isfinite().all():
            raise ValueError(f"expected finite weights, but {name} has NaN or exceeds 65504.")
    (folder / "config.json").unlink(missing_ok=True)
    write_atomically(folder / "model.yaml", yaml.safe_dump(architecture, sort_keys=False))
    save_tensors(tensors, folder / "model.safetensors")
    config = {"names": list(names), "image_size": image_size}
    write_atomically(folder / "config.json", json.dumps(config, indent=2) + "\n")
