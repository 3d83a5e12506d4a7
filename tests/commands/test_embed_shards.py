"""`embed-shards` under a real Ray on this machine, whose processes are killed."""

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from dclip_kit.models.encode import encode_images
from dclip_kit.search.shards import embed_shards
from tests.data.test_shards import write_shard
from tests.search.test_shards import encode, read, reasons

MANY = 30


@pytest.fixture
def large(tmp_path) -> Path:
    """Shards that take a while, of pictures that are larger than the tiny CLIP's."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 24, 32, 3), dtype=torch.uint8, generator=generator).numpy()
    drawn = [encode(Image.fromarray(x).resize((1000, 701)), "JPEG") for x in noise]
    for number in range(MANY):
        members = {f"{i}.jpg": drawn[(number + i) % 4] for i in range(12)}
        write_shard(tmp_path / "in" / f"{number:05d}.tar", members | {"bad.jpg": b"no"})
    return tmp_path / "in"


@pytest.fixture
def start(large, clip_folder, tmp_path):
    """Starts the command, and waits until it has written some shards."""
    processes = []

    def begin(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dclip_kit", "embed-shards", large, *options]
        command += ["--out", tmp_path / "out", "--model", clip_folder]
        process = subprocess.Popen(
            [str(each) for each in command],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        until(lambda: written(tmp_path / "out") >= 3 or process.poll() is not None)
        assert process.poll() is None and written(tmp_path / "out") < MANY
        return process

    yield begin
    for process in processes:
        process.kill()


def written(out: Path) -> int:
    return len(list(out.glob("*.parquet")))


def until(is_so, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "Expected it sooner."
        time.sleep(0.01)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def workers(process: subprocess.Popen[str]) -> set[int]:
    """The actors' processes, which Ray renames."""
    found = set()
    for each in family(process):
        try:
            if "Embedder" in "".join(each.cmdline()):
                found.add(each.pid)
        except psutil.Error:  # it has just ended
            continue
    return found


def check_all(large: Path, out: Path, clip) -> None:
    """Nothing is doubled or lost, and all features are those of encode_images."""
    paths, embedded = read(out)
    expected = [f"{n:05d}.tar:{i}.jpg" for n in range(MANY) for i in range(12)]
    assert paths == expected
    assert set(reasons(out)) == {f"{n:05d}.tar:bad.jpg" for n in range(MANY)}
    with tarfile.open(large / "00000.tar") as archive:
        pictures = [Image.open(archive.extractfile(f"{i}.jpg")) for i in range(4)]
        # Opened as files are, so that large JPEGs are decoded at reduced size.
        for i, picture in enumerate(pictures):
            picture.save(out.parent / f"{i}.png")
    features = encode_images(clip, [out.parent / f"{i}.png" for i in range(4)])
    order = [(n + i) % 4 for n in range(MANY) for i in range(12)]
    torch.testing.assert_close(embedded, features[order], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_shards_of_killed_workers_are_done_by_others(start, large, clip, tmp_path) -> None:
    """By one that goes on, or by those that start in their place."""
    process = start("--ray", "local", "--workers", "2")
    running = workers(process)
    before = written(tmp_path / "out")
    for worker in running:
        os.kill(worker, signal.SIGKILL)
        until(lambda: written(tmp_path / "out") >= before + 3)
    assert written(tmp_path / "out") < MANY and len(running) == 2
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    # A worker may have been killed between writing a shard and saying so.
    assert re.fullmatch(
        rf"Embedded \d+ pictures now, in \d+ shards; [012] shards were there\. In all, {12 * MANY} "
        rf"pictures, and {MANY} broken\. Written to .*\n",
        out,
    )
    check_all(large, tmp_path / "out", clip)


@pytest.mark.slow
def test_after_a_killed_driver_any_loop_goes_on(start, large, clip, clip_folder, tmp_path) -> None:
    process = start("--ray", "local", "--workers", "2")
    embedding = [psutil.Process(worker) for worker in workers(process)]
    process.kill()
    gone, alive = psutil.wait_procs(embedding, timeout=120)
    assert len(gone) == 2 and not alive  # two agents of Ray's own stay for a minute
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert 3 <= len(before) < MANY
    done = embed_shards(large, tmp_path / "out", str(clip_folder))
    assert [x.new for x in done.counts.values()].count(False) == len(before)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    check_all(large, tmp_path / "out", clip)
