"""Weights asked for: refused in one sentence, or known to be on disk or reachable."""

import re
import time
from pathlib import Path

import open_clip
import pytest

from dclip_kit import hub
from dclip_kit.hub import require_weights

OPENAI = "ViT-B-32-quickgelu", "openai"


@pytest.mark.parametrize(
    ("name", "tag", "says"),
    [
        ("ViT-B-32", "openai", "take ViT-B-32-quickgelu"),
        ("ViT-L-14", "openai", "take ViT-L-14-quickgelu"),
        ("ViT-B-32", "no-such-tag", "'no-such-tag'"),
        ("ViT-B-32", "no-such-tag", "laion2b_s34b_b79k"),  # the known ones are listed
        ("ViT-B-32", None, "'untrained'"),
        ("ViT-B-32", "/no/such/file.safetensors", "a file that exists"),
        ("coca_base", "openai", r"\(none\)"),
    ],
)
def test_what_does_not_fit_is_refused(name, tag, says) -> None:
    with pytest.raises(ValueError, match=says):
        require_weights(name, tag)


def test_each_refused_activation_comes_with_an_architecture_that_has_the_right_one() -> None:
    """All that open_clip knows: refused with good advice, or only not on disk."""
    refused = 0
    for name, tag in open_clip.list_pretrained():
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            require_weights(name, tag)
        if caught.type is ValueError:
            refused += 1
            advice = re.search(r"take (\S+)\.$", str(caught.value))[1]
            with pytest.raises(FileNotFoundError):
                require_weights(advice, tag)
    assert refused > 20


@pytest.mark.parametrize("offline", [True, False], ids=["told", "found out"])
def test_no_network_is_one_sentence_at_once(offline, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"'openai'.*go online once") as caught:
        require_weights(*OPENAI)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_with_a_network_nothing_is_refused(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "is_reachable", lambda url: asked.append(url) or True)
    require_weights(*OPENAI)
    assert asked == [hub.constants.ENDPOINT]


@pytest.mark.parametrize(
    ("name", "tag", "file"),
    [
        (*OPENAI, "open_clip_model.safetensors"),
        (*OPENAI, "open_clip_pytorch_model.bin"),
        ("ViTamin-S", "datacomp1b", "pytorch_model.bin"),  # whose tag names the file
    ],
)
def test_weights_on_disk_need_no_network(name, tag, file, tmp_path, monkeypatch) -> None:
    repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")[0]
    cached = tmp_path / f"models--{repository.replace('/', '--')}"
    (cached / "snapshots/abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        require_weights(name, tag)
    (cached / "snapshots/abc" / file).touch()
    require_weights(name, tag)


def test_a_file_is_taken_unless_its_name_is_a_tag(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.safetensors", "openai"):
        Path(name).touch()
    require_weights("ViT-B-32", "mine.safetensors")
    with pytest.raises(ValueError, match="activation"):  # open_clip would take the tag
        require_weights("ViT-B-32", "openai")
