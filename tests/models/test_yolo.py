"""Ultralytics, contained: the weights' format, what is refused, and what the process keeps."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dclip_kit.models.yolo import contained_ultralytics, find_weights, read_weights, save_detector

NAMES = ("animal", "vehicle", "fruit")
SIZE = 64


def tiny_model(width: float = 0.125) -> Any:
    """An untrained YOLOv8 of our own width whose boxes and scores depend on the picture."""
    with contained_ultralytics():
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load

        architecture = yaml_model_load("yolov8n.yaml")
        architecture |= {"nc": len(NAMES), "scale": "t", "scales": {"z": [1, 1, 64]}}
        architecture["scales"]["t"] = [0.33, width, 256]
        torch.manual_seed(1)
        model = DetectionModel(architecture, verbose=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what passes
    with torch.no_grad():
        model.train()(torch.rand(16, 3, SIZE, SIZE))
        for branch in model.model[-1].cv3:
            branch[-1].bias.fill_(-2.0)
            branch[-1].weight.mul_(60.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.03
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path: Path) -> Path:
    save_detector(model, tmp_path / "detector", NAMES, SIZE)
    return tmp_path / "detector"


def outputs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.rand(2, 3, SIZE, SIZE, generator=torch.manual_seed(5)))[0]


# The format


def test_a_saved_detector_is_read_back(model, folder) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "model.yaml",
    }
    weights = read_weights(folder)
    assert (weights.names, weights.image_size) == (NAMES, SIZE)
    assert weights.model.names == dict(enumerate(NAMES))
    own, read = model.state_dict(), weights.model.state_dict()
    assert own.keys() == read.keys()
    rounded = {n: value.half().float() if value.ndim > 1 else value for n, value in own.items()}
    for name, value in read.items():
        assert value.dtype == own[name].dtype
        assert torch.equal(value, rounded[name]), name
    same = tiny_model()
    same.load_state_dict(rounded)
    assert torch.equal(outputs(weights.model), outputs(same))


def test_most_of_a_saved_detector_is_half_precision(folder) -> None:
    tensors = load_file(folder / "model.safetensors").values()
    half = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.float16)
    assert half > 0.95 * sum(tensor.numel() for tensor in tensors)


def test_saving_again_gives_the_same_bytes_and_leaves_other_files_alone(model, folder) -> None:
    (folder / "LICENSE").write_text("free")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    save_detector(read_weights(folder).model, folder, NAMES, SIZE)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_plain_ultralytics_builds_the_saved_architecture(folder) -> None:
    with contained_ultralytics():
        from ultralytics import YOLO

        yolo = YOLO(folder / "model.yaml")
    tensors = load_file(folder / "model.safetensors")
    assert {name: value.shape for name, value in yolo.model.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }


@pytest.mark.parametrize("fails", ["model.yaml", "model.safetensors"])
def test_saving_cut_off_half_way_is_noticed(model, folder, fails, monkeypatch) -> None:
    replace = Path.replace

    def cut(self: Path, target: Path) -> Path:
        if Path(target).name == fails:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        save_detector(model, folder, NAMES, SIZE)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"expected config.json .* save_detector"):
        read_weights(folder)
    save_detector(model, folder, NAMES, SIZE)
    assert read_weights(folder).names == NAMES


def test_what_is_no_trainable_detector_is_not_saved(model, tmp_path) -> None:
    with pytest.raises(ValueError, match="not fused, but got a Linear"):
        save_detector(torch.nn.Linear(1, 1), tmp_path, NAMES, SIZE)
    with pytest.raises(ValueError, match="not fused"):
        save_detector(tiny_model().fuse(verbose=False), tmp_path, NAMES, SIZE)
    for names in (("animal",), ("animal", "animal", "fruit")):
        with pytest.raises(ValueError, match="expected 3 different names"):
            save_detector(model, tmp_path, names, SIZE)
    for value in (float("nan"), 1e6):
        broken = tiny_model()
        next(broken.parameters()).data[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match="expected finite weights"):
            save_detector(broken, tmp_path, NAMES, SIZE)
    assert list(tmp_path.iterdir()) == []


# What is refused


def test_weights_cut_short_are_refused(folder) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or cut short"):
        read_weights(folder)


def test_weights_of_another_architecture_are_refused(folder, tmp_path) -> None:
    save_detector(tiny_model(width=0.25), tmp_path / "wide", NAMES, SIZE)
    shutil.copy(tmp_path / "wide" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="another architecture"):
        read_weights(folder)
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        read_weights(folder)


@pytest.mark.parametrize("name", ["config.json", "model.yaml", "model.safetensors"])
def test_an_incomplete_folder_is_refused(folder, name) -> None:
    (folder / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        read_weights(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", '{"names": ["animal"]}'),
        ("config.json", '{"names": ["animal"], "image_size": 64}'),  # the architecture has three
        ("model.yaml", "backbone: ["),
        ("model.yaml", "nc: 3\nbackbone: []\nhead: []"),
        ("model.yaml", "just words"),
    ],
)
def test_damaged_descriptions_are_refused(folder, name, text) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"expected config.json .* reading them failed"):
        read_weights(folder)


# Checkpoints of ultralytics


def test_a_checkpoint_of_ultralytics_is_read(tmp_path) -> None:
    with contained_ultralytics():
        from ultralytics import YOLO

        yolo = YOLO("yolov8n.yaml")
        yolo.save(tmp_path / "mine.pt")
    weights = read_weights(tmp_path / "mine.pt")
    assert len(weights.names) == 80
    assert weights.image_size == 640
    for name, value in weights.model.state_dict().items():
        assert torch.equal(value, yolo.model.state_dict()[name].half().to(value.dtype)), name


def test_what_is_no_checkpoint_of_a_detector_is_refused(tmp_path) -> None:
    file = tmp_path / "some.pt"
    with contained_ultralytics():
        from ultralytics import YOLO

        YOLO("yolov8n-cls.yaml").save(file)
    with pytest.raises(ValueError, match="task 'classify'"):
        read_weights(file)
    whole = file.read_bytes()
    for content in (b"", b"not a pickle", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"some.pt is cut short or something else"):
            read_weights(file)
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"some.pt is cut short or something else"):
        read_weights(file)
    with pytest.raises(ValueError, match=r"expected a .pt .* but got .*other.onnx"):
        read_weights(tmp_path / "other.onnx")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_checkpoint_runs_no_code(tmp_path) -> None:
    """In a fresh process: ultralytics decides at its import how it reads."""
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    read = f"read_weights(Path({str(tmp_path / 'trap.pt')!r}))"
    program = f"from dclip_kit.models.yolo import *; {read}"
    done = fresh_python(program, tmp_path)
    assert "expected a checkpoint of ultralytics" in done.stderr
    assert not (tmp_path / "sprung").exists()


# Finding


def test_paths_are_found_and_the_home_is_understood(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pt").touch()
    assert find_weights(tmp_path / "mine.pt") == find_weights("~/mine.pt") == tmp_path / "mine.pt"
    assert find_weights(str(tmp_path)) == tmp_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_names_are_looked_up_in_torchs_cache(cache) -> None:
    (cache / "yolov8x.pt").touch()
    assert find_weights("yolov8x.pt") == cache / "yolov8x.pt"
    with pytest.raises(FileNotFoundError):
        find_weights("elsewhere/yolov8x.pt")


def test_a_missing_name_is_one_sentence_at_once_where_downloads_are_switched_off(
    cache, monkeypatch
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked"))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"'yolov8x.pt' .*YOLO_OFFLINE forbids") as caught:
        find_weights("yolov8x.pt")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert str(cache / "yolov8x.pt") in str(caught.value)


@pytest.mark.parametrize("name", ["yolov99x.pt", "pockets", "some/folder", "some/yolov8n.pt"])
def test_a_missing_path_is_not_looked_for_on_the_network(name, cache, monkeypatch) -> None:
    monkeypatch.delenv("YOLO_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=f"got '{name}' and it is not on disk"):
        find_weights(name)


def test_published_names_are_downloaded_to_the_cache(cache, monkeypatch) -> None:
    with contained_ultralytics():
        from ultralytics.utils import downloads

    def download(file: Path) -> str:
        file.touch()
        return str(file)

    def fail(file: Path) -> str:
        raise ConnectionError("cut\noff")

    def ask(*_: Any, **__: Any) -> None:
        raise urllib.request.URLError("no route")

    monkeypatch.delenv("YOLO_OFFLINE", raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", ask)  # a proxy may be slow: it is tried
    for attempt in (fail, download):
        monkeypatch.setattr(downloads, "attempt_download_asset", attempt)
        with pytest.warns(UserWarning, match=r"github.com .*none \(.*no route.*\); trying"):
            if attempt is download:
                assert find_weights("yolov8n.pt") == cache / "yolov8n.pt"
            else:
                with pytest.raises(FileNotFoundError, match=r"download failed \(cut off\)"):
                    find_weights("yolov8n.pt")


# Containment


def fresh_python(program: str, home: Path) -> subprocess.CompletedProcess:
    """Runs a program as somebody would who has never set a thing."""
    dropped = ("YOLO_", "ULTRALYTICS_", "OMP_", "XDG_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=home, capture_output=True, text=True
    )


def test_the_process_and_the_home_stay_as_they_were(folder, tmp_path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = f"""
import json, os, random
import numpy as np, torch
from PIL import Image
torch.set_num_threads(3)
def state():
    numbers = [random.getstate()[1][:9], np.random.get_state()[1][:9].tolist()]
    formats = [np.get_printoptions()["linewidth"], torch.get_num_threads()]
    patched = [Image.open, torch.save, torch.load]
    return dict(os.environ), torch.get_rng_state().tolist(), numbers, formats, patched
before = state()
from dclip_kit.models.detector import load_detector
detector = load_detector({str(folder)!r})
detector.detect([Image.new("RGB", (40, 30))] * 3)
after = state()
from ultralytics.utils import SETTINGS, SETTINGS_FILE
from ultralytics.utils.events import events
print(json.dumps([before == after, SETTINGS["sync"], events.enabled, str(SETTINGS_FILE)]))
"""
    done = fresh_python(program, home)
    assert (done.returncode, done.stderr) == (0, "")
    same, sync, reports, settings = json.loads(done.stdout)  # nothing else was printed
    assert (same, sync, reports) == (True, False, False)
    assert list(home.iterdir()) == []
    assert not Path(settings).exists(), "the settings' folder outlived the process"


def test_the_users_own_settings_folder_is_kept(tmp_path) -> None:
    program = f"""
import os
os.environ["YOLO_CONFIG_DIR"] = {str(tmp_path / "own")!r}
from dclip_kit.models.yolo import *
with contained_ultralytics():
    from ultralytics.utils import SETTINGS_FILE
print(SETTINGS_FILE)
"""
    done = fresh_python(program, tmp_path)
    file = tmp_path / "own" / "Ultralytics" / "settings.json"
    assert done.stdout.strip() == str(file), done.stderr
    assert json.loads(file.read_text())["sync"] is True  # theirs to decide on; off in our process


def test_without_ultralytics_the_pip_line_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.utils", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dclip-kit\[detect\]'"):
        find_weights("yolov8n.pt")


def test_yaml_holds_no_more_than_the_architecture(folder) -> None:
    architecture = yaml.safe_load((folder / "model.yaml").read_text())
    assert (architecture["nc"], architecture["scale"]) == (3, "t")
    assert architecture["scales"] == {"t": [0.33, 0.125, 256]}
    assert "yaml_file" not in architecture


def test_usage_statistics_stay_off_when_somebody_else_imported_it(monkeypatch) -> None:
    with contained_ultralytics():
        from ultralytics.utils.events import events
    monkeypatch.setattr(events, "enabled", True)
    with contained_ultralytics():
        assert not events.enabled
    assert not events.enabled
