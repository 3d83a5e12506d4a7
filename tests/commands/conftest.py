"""What tests of commands share: a command as a person types it, and small data."""

from functools import partial
from pathlib import Path

import pytest

from dclip_kit.commands import main
from tests.data.test_splits import write_own
from tests.evaluation.test_profile_data import write_classes


@pytest.fixture
def own(tmp_path) -> Path:
    return write_own(tmp_path / "own", range(20), ("gone.png,a", "0.png, "), split=True)


@pytest.fixture
def run(run_main):
    """Runs a command; gives its exit code, and what it wrote to stdout and stderr."""
    return partial(run_main, main)


SMALL = (
    *("--teacher.epochs", "2", "--teacher.heads", "2", "--student.epochs", "2"),
    *("--region-teacher.epochs", "2", "--region-teacher.heads", "3"),
    *("--region-teacher.width", "24", "--student.captions-per-image", "1"),
    *("--selection.alphas", "0.5", "1"),
    *("--selection.least-retention", "0"),
)


@pytest.fixture
def options(own, clip_folder, tmp_path, fake_detector) -> list[object]:
    """Of a small run without uncaptioned pictures."""
    classes = write_classes(tmp_path / "classes", 12)
    given = ["--data", own, "--zero-shot", classes, "--clip", clip_folder, "--uncaptioned", ""]
    return [*given, *SMALL]
