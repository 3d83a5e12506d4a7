"""CLIP_benchmark's own program measures an arm's folder, and finds what `evaluate` finds."""

import json
import subprocess
import sys

import pytest
import torch

from dclip_kit.commands import main
from dclip_kit.config import PROFILES
from dclip_kit.evaluation.arms import Arm, describe_origin, save_arm
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.models.clip import load_clip
from dclip_kit.models.weights import clone_clip, round_changed
from tests.data.test_leaks import dataset, scene
from tests.data.test_shards import write_shard

PICTURES = 40


@pytest.mark.slow
def test_clip_benchmark_finds_the_same_recalls(make_clip_folder, tmp_path) -> None:
    # open_clip reads a shortened vocabulary only if it is told where; its program tells it nothing.
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    base = make_clip_folder(text_cfg=text)
    (base / "merges.txt.gz").unlink()
    clip = load_clip(base)
    tuned = clone_clip(clip)
    with torch.no_grad():
        for parameter in tuned.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    round_changed(clip, tuned)
    scene(999).save(tmp_path / "trained.png")
    trained = dataset(tmp_path, ["trained.png"])
    seen = describe_seen(trained, trained, (), by_content=False)
    arm = tmp_path / "region_taught"
    save_arm(Arm(tuned, 0.5), arm, describe_origin(PROFILES["pocket"], clip), seen)

    members: dict[str, bytes | str] = {}
    for number in range(PICTURES):
        scene(number).save(tmp_path / "scene.png")
        members[f"{number:04d}.png"] = (tmp_path / "scene.png").read_bytes()
        captions = [f"thing {number} at {5 * number}", f"{number * number} dogs"][: 1 + number % 2]
        members[f"{number:04d}.txt"] = "\n".join(captions).encode()
    data = tmp_path / "data"
    data.mkdir()
    write_shard(data / "test/0.tar", members)
    (data / "test/nshards.txt").write_text("1")
    (data / "dataset_type.txt").write_text("retrieval")

    command = [sys.executable, "-m", "clip_benchmark.cli", "eval", "--dataset", "wds/mine"]
    command += ["--dataset_root", str(data), "--task", "zeroshot_retrieval", "--no_amp"]
    command += ["--model", f"local-dir:{arm}", "--pretrained", "", "--recall_k", "1", "5", "10"]
    command += ["--num_workers", "0", "--output", str(tmp_path / "theirs.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "theirs.json").read_text())["metrics"]

    ours = tmp_path / "ours.json"
    given = ["--data", str(data), "--zero-shot", "", "--model", str(arm), "--json", str(ours)]
    assert main(["evaluate", *given]) == 0
    record = json.loads(ours.read_text())
    assert (record["pictures"], record["captions"]) == (PICTURES, PICTURES * 3 // 2)
    (found,) = record["retrieval"].values()
    for their_way, way in (("image", "text_to_image"), ("text", "image_to_text")):
        recalls = {k: theirs[f"{their_way}_retrieval_recall@{k}"] for k in (1, 5, 10)}
        assert {int(k): x for k, x in found[way]["recall_at"].items()} == pytest.approx(recalls)
        assert 0 < recalls[1] < recalls[5] < recalls[10] < 1
