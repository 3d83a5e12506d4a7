"""The README's figures are those of a study whose records are committed."""

import json
import math
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import dclip_kit
from assets.make.study import has_record, read_study
from assets.make.study_summary import summarise
from dclip_kit.commands import _parse
from dclip_kit.config import CONTROL, Profile
from dclip_kit.evaluation.study_table import format_study
from dclip_kit.features.store import digest_record

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "assets/studies/README.md"])
def test_the_table_is_the_one_that_the_study_prints(page) -> None:
    """In the README of a few arms, on the studies' page of all."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pattern = r"<!-- study: (\S+?)( chosen)?(?:: (.+?))? -->\n(.*?)<!-- /study -->"
    blocks = re.findall(pattern, text, re.DOTALL)
    assert blocks, f"Expected {page} to hold a study's table, found none."
    assert text.count("<!-- study: ") == len(blocks)
    for path, chosen, listed, table in blocks:
        result = json.loads((ROOT / path).read_text(encoding="utf-8"))
        names = listed.split(", ") if listed else list(result["arms"])
        compared = {"full_1", "lora_2"} if "lora" in path else {CONTROL, "region_taught"}
        assert {"clip", *compared} <= {*names}
        shown = {name: result["arms"][name] for name in names}
        at = "chosen" if chosen else "at_95_5"
        assert table.strip() == format_study(result | {"arms": shown}, at)


def test_the_version_has_one_source() -> None:
    """The changelog's first heading; the package reads it there, and a citation repeats it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["hatch"]["version"]
    changelog = (ROOT / settings["path"]).read_text(encoding="utf-8")
    version = re.search(settings["pattern"], changelog, re.MULTILINE)
    assert version and "version" in project["project"]["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version["version"]]


def test_the_readme_is_short() -> None:
    words = [word for word in README.split() if re.search("[A-Za-z]", word)]
    assert 300 < len(words) <= 1200


def test_what_the_readme_writes_in_python_is_there_in_the_kit() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    names = {name for block in blocks for name in re.findall(r"\bkit\.(\w+)", block)}
    assert len(names) > 3 and all(hasattr(dclip_kit, name) for name in names)
    for block in blocks:
        compile(block, "README.md", "exec")


def test_what_the_readme_writes_in_a_shell_is_understood() -> None:
    """Each command's options, as the command line reads them; nothing is run."""
    joined = README.replace("\\\n", " ")
    lines = re.findall(r"^python -m dclip_kit (.+?)(?:\s+#.*)?$", joined, re.MULTILINE)
    assert len(lines) > 3
    for line in lines:
        assert callable(_parse(shlex.split(line)))


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^):]+)\)", README)
    assert len(links) > 5 and all((ROOT / link).exists() for link in links)
    assert re.search(r"!\[[^\]]+\]\([^):]+\)", README)  # a picture among them


@pytest.mark.slow
def test_committed_studies_are_what_their_records_say() -> None:
    paths = sorted((ROOT / "assets" / "studies").glob("*.toml"))
    assert paths
    for path in paths:
        study = read_study(path)
        said = flatten(json.loads(study.path.with_suffix(".json").read_text(encoding="utf-8")))
        now = flatten(summarise(study))
        assert said.keys() == now.keys()
        assert [name for name in now if not alike(said[name], now[name])] == []
        rows = [(arm, seed) for arm in study.arms for seed in study.seeds_of(arm)]
        known = {study.record_of(*row) for row in rows if has_record(study, *row)}
        assert set(path.with_suffix("").glob("*.json")) == known != set()


def test_only_records_of_what_is_no_longer_trained_have_settings_that_are_gone() -> None:
    known = Profile("", "", None).as_dict()
    paths = sorted((ROOT / "assets" / "studies").glob("*/*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["settings_digest"] == digest_record(record["settings"]), path
        profile = record["settings"]["profile"] or {}
        gone = profile.keys() - known.keys()
        for part, settings in profile.items():
            if isinstance(settings, dict):
                gone |= {f"{part}.{name}" for name in settings.keys() - known[part]}
        if "_negatives-" in path.name:
            assert "student.hard_negatives" in gone
        else:
            assert gone == set(), path


def flatten(found: Any) -> dict[str, Any]:
    """JSON's leaves, by where they are."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found)
    flat = {}
    for key, value in pairs:
        if isinstance(value, dict | list) and value:
            flat |= {f"{key}/{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def alike(one: Any, other: Any) -> bool:
    """Processors differ in a mean's last digits."""
    numbers = isinstance(one, float) and isinstance(other, float)
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) if numbers else one == other


def test_the_page_on_clusters_is_linked_and_its_examples_are_read(tmp_path: Path) -> None:
    name = "dclip_kit/commands/CLUSTER.md"
    assert f"]({name})" in (ROOT / "README.md").read_text(encoding="utf-8")
    page = (ROOT / name).read_text(encoding="utf-8")
    machines = []
    for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        (tmp_path / "config.yaml").write_text(text)
        found = load_config_from_file(str(tmp_path / "config.yaml"))
        assert found.distributed_type == "MULTI_GPU" and found.num_processes
        machines.append(found.num_machines)
    assert machines == [1, 2]
    (script,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    assert run_script(script, tmp_path) == [
        "--multi_gpu --mixed_precision bf16 --dynamo_backend no --num_machines 2 "
        f"--num_processes 8 --machine_rank {rank} --main_process_ip node1 "
        "--main_process_port 20077 -m dclip_kit"
        for rank in (0, 1)
    ]


def run_script(script: str, folder: Path) -> list[str]:
    """What each node of a job launches, by stand-ins for Slurm and accelerate."""
    stand_ins = {
        "scontrol": "printf 'node1\\nnode2\\n'",
        "srun": 'shift; for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; done',
        ".venv/bin/accelerate": 'shift; echo "${@:1:17}"',
    }
    for name, text in stand_ins.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    environment = os.environ | job | {"SLURM_JOB_NODELIST": "node[1-2]"}
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
