"""Several processes find what one finds: losses, weights, features; and end when one of them does.

Two processes on CPUs, each a fresh interpreter, run distributed_run.py.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from PIL import Image
from torch.nn import functional as F

from dclip_kit.runtime import processes as distributed
from dclip_kit.runtime.files import load_tensors, save_tensors
from dclip_kit.runtime.processes import (
    exists_for_all,
    gather_batch,
    gather_rows,
    is_main_process,
    own_share,
    training_device,
)
from tests.runtime import distributed_run

WORKER = Path(distributed_run.__file__)
VISION = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_clip_folder, make_features, captioned) -> Path:
    """All that both the one and the two are given."""
    folder = tmp_path_factory.mktemp("given")
    make_clip_folder().rename(folder / "clip")
    make_clip_folder(vision_cfg=VISION).rename(folder / "resnet")
    features = make_features()
    features.save(folder / "features.safetensors")
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8)
    targets = F.normalize(torch.randn_like(features.text), dim=1)
    save_tensors({"pixels": pixels, "targets": targets}, folder / "data.safetensors")
    (folder / "pictures").mkdir()
    for number, picture in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / "pictures" / f"{number:02}.png")
    odd = [str(path) for path in captioned.paths[:5]]
    (folder / "paths.json").write_text(json.dumps(odd))
    return folder


def launch(folder: Path, job: str, *launcher: str) -> subprocess.CompletedProcess:
    """Runs a job under a launcher's module and options, if any."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(WORKER.parents[2])
    return subprocess.run(
        [sys.executable, *launcher, str(WORKER), str(folder), job],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two(folder) -> list[dict[str, torch.Tensor]]:
    """What each of two processes found."""
    options = "--num_processes=2 --num_machines=1 --mixed_precision=no --dynamo_backend=no"
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port=0"]
    done = launch(folder, "work", *launcher, *options.split())
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    return [load_tensors(folder / f"found{rank}.safetensors") for rank in range(2)]


@pytest.fixture(scope="module")
def one(folder) -> dict[str, torch.Tensor]:
    """What one process found."""
    paths = [Path(path) for path in json.loads((folder / "paths.json").read_text())]
    return distributed_run.work(folder, paths)


def test_two_processes_find_what_one_finds(one, two) -> None:
    """Features of an odd number of pictures, ten steps' losses, and the weights after them."""
    assert len(one["losses of dclip"]) == len(one["losses of described"]) == 10
    for found in two:
        assert found.keys() == one.keys()
        for name, value in one.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
            difference = (found[name].double() - value.double()).abs().max()
            assert difference <= 1e-5, f"{name}: {difference}"
    for name, value in two[0].items():
        assert torch.equal(value, two[1][name]), name


def test_two_processes_share_the_shards_of_a_store(one, two, folder) -> None:
    """Their contents are compared above; each shard was written by one of them."""
    written = [line.split() for line in (folder / "store of 2.log").read_text().splitlines()]
    assert sorted(written) == [*([["0", n] for n in "024"]), *([["1", n] for n in "13"])]
    names = {path.name for path in (folder / "store of 2").iterdir()}
    assert names == {"features.safetensors", "source.json"}
    for name in ("source.json", "features.safetensors"):
        kept = [(folder / f"store of {count}" / name).read_bytes() for count in (1, 2)]
        assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_leaves_a_whole_checkpoint(folder, one) -> None:
    began = time.monotonic()
    launcher = "-m torch.distributed.run --standalone --nproc_per_node=2"
    done = launch(folder, "die", *launcher.split())
    assert time.monotonic() - began < 60
    assert done.returncode != 0
    assert "distributed_run.py FAILED" in done.stderr and "Signal 9 (SIGKILL)" in done.stderr
    path = folder / "state.safetensors"
    kept = json.loads(bytes(load_tensors(path)["progress"].tolist()))
    done_steps = 2 * len(kept["history"]) + kept["step"]  # two an epoch
    assert done_steps in (6, 7)  # the main process may have been ended before it wrote the seventh
    losses = one["losses of dclip"].tolist()[:done_steps]
    weights = distributed_run.train(folder, "dclip", losses, checkpoint=path)
    assert len(losses) == 10
    assert torch.allclose(weights, one["weights of dclip"], atol=1e-5)


@pytest.mark.slow
def test_a_notebook_trains_in_two_processes(folder, one) -> None:
    done = launch(folder, "notebook")
    assert done.returncode == 0, done.stderr
    weights = load_tensors(folder / "notebook.safetensors")["weights"]
    assert torch.allclose(weights, one["weights of dclip"], atol=1e-5)


def test_a_file_that_some_processes_lack_is_told_and_not_waited_for(tmp_path, monkeypatch) -> None:
    file = tmp_path / "file"
    assert not exists_for_all(file)
    file.touch()
    assert exists_for_all(file)
    both = torch.tensor([1, 0])  # what gathering gives where another machine has no such file
    monkeypatch.setattr(distributed, "gather_rows", lambda own: both)
    with pytest.raises(ValueError, match=r"see .*file, but 1 of 2 do; put it where every machine"):
        exists_for_all(file)


def test_one_process_has_everything_to_itself() -> None:
    rows, text = torch.randn(5, 2), torch.randn(3, 2)
    assert is_main_process()
    assert own_share(5).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(gather_rows(rows), rows)
    image, captions = gather_batch(rows, text, 5, 3)
    assert image is rows and captions is text


def test_one_process_trains_where_it_is_told_and_several_where_accelerate_says(monkeypatch) -> None:
    for wanted in ("cpu", torch.device("meta")):
        assert training_device(wanted) == torch.device(wanted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    state = PartialState.__new__(PartialState)  # without a group of processes
    state.device = torch.device("cuda:1")
    monkeypatch.setattr(distributed, "PartialState", lambda cpu: state)
    assert training_device("cpu") == state.device
