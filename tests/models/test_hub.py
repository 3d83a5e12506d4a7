"""Weights asked for: refused in one sentence, or known to be on disk or reachable."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest

from dclip_kit.models import hub
from dclip_kit.models.hub import (
    require_no_code,
    require_repository,
    require_text_files,
    require_weights,
)

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


WORDED = {"hf_tokenizer_name": "org/words"}
TOWERED = {"hf_model_name": "org/tower"}
ASKED = {
    "weights": (require_weights, OPENAI, "weights 'openai' of ViT-B-32-quickgelu"),
    "repository": (require_repository, ("hf-hub:org/name",), "CLIP hf-hub:org/name"),
    "tokenizer": (
        require_text_files,
        ("mine", WORDED, False),
        "tokenizer org/words of mine",
    ),
    "text tower": (require_text_files, ("mine", TOWERED, True), "tower org/tower of mine"),
}


@pytest.mark.parametrize("offline", [True, False], ids=["told", "found out"])
@pytest.mark.parametrize(("require", "asked", "says"), ASKED.values(), ids=ASKED)
def test_no_network_is_one_sentence_at_once(offline, require, asked, says, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", offline)
    set_endpoint("http://127.0.0.1:9", monkeypatch)
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"{says} on disk or .* go online once") as caught:
        require(*asked)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def set_endpoint(url: str, monkeypatch) -> None:
    """As the variable HF_ENDPOINT does, which huggingface_hub reads when it is imported."""
    template = hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(hub.constants.ENDPOINT)
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr(hub.constants, "ENDPOINT", url)


@contextmanager
def hub_that_answers(status: int, monkeypatch, after: float = 0.0) -> Iterator[list[str]]:
    """A hub of our own on this machine; gives the paths that it is asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            time.sleep(after)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_) -> None: ...

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        set_endpoint(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [200, 401, 404, 503])
def test_with_a_network_nothing_is_refused(status, monkeypatch) -> None:
    with hub_that_answers(status, monkeypatch) as asked:
        for require, arguments, _ in ASKED.values():
            require(*arguments)
    assert [path.rpartition("/")[2] for path in asked] == [
        "open_clip_model.safetensors",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer_config.json",
        "config.json",
    ]


def test_a_slow_answer_is_one(monkeypatch) -> None:
    with hub_that_answers(200, monkeypatch, after=3.2) as asked:  # seconds, as behind some proxies
        require_text_files("mine", TOWERED, True)
    assert len(asked) == 1


def test_a_hub_that_is_silent_is_asked_once_for_as_long_as_the_library_waits(
    monkeypatch, capfd
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    began = time.monotonic()
    with (
        hub_that_answers(200, monkeypatch, after=1) as asked,
        pytest.raises(FileNotFoundError, match=r"found neither \(.*timed out\); go online once"),
    ):
        require_repository("hf-hub:org/name")
    assert len(asked) == 1 and time.monotonic() - began < 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "config",
    [
        {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}},
        {"trust_remote_code": "yes"},
        {"text_cfg": [{"deeper": [[{"trust_remote_code": 1}]]}]},
        {"model_type": "bert", "auto_map": {"AutoModel": "planted.Model"}},
        {"text_config": {"auto_map": {}}},
    ],
    ids=str,
)
def test_a_configuration_that_asks_to_run_python_is_refused(config) -> None:
    with pytest.raises(ValueError, match=r"^Expected mine to load without trust_remote_code"):
        require_no_code("mine", config)


def test_a_configuration_may_say_that_nothing_is_run() -> None:
    require_no_code("mine", {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": False}}})


@pytest.mark.parametrize("place", ["", "a/b/c", "org/na me"])
def test_what_names_no_repository_is_refused(place) -> None:
    with pytest.raises(
        ValueError, match=f"CLIP hf-hub:{place} in a repository named organisation/name"
    ):
        require_repository(f"hf-hub:{place}")


@pytest.mark.parametrize(
    ("config", "in_folder"),
    [({}, False), (WORDED, True)],
)
def test_a_text_side_of_open_clips_own_needs_nothing(config, in_folder) -> None:
    require_text_files("mine", config, in_folder)


@pytest.fixture
def put_into_cache(tmp_path, monkeypatch) -> Callable[..., None]:
    """Makes files of a repository look downloaded."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def put(repository: str, file: str) -> None:
        cached = tmp_path / f"models--{repository.replace('/', '--')}"
        (cached / "snapshots/abc").mkdir(parents=True, exist_ok=True)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs/main").write_text("abc")
        (cached / "snapshots/abc" / file).touch()

    return put


@pytest.mark.parametrize(
    ("name", "tag", "file"),
    [
        (*OPENAI, "open_clip_model.safetensors"),
        (*OPENAI, "open_clip_pytorch_model.bin"),
        ("ViTamin-S", "datacomp1b", "pytorch_model.bin"),  # whose tag names the file
    ],
)
def test_weights_on_disk_need_no_network(name, tag, file, put_into_cache) -> None:
    with pytest.raises(FileNotFoundError):
        require_weights(name, tag)
    put_into_cache(open_clip.get_pretrained_cfg(name, tag)["hf_hub"].rpartition("/")[0], file)
    require_weights(name, tag)


@pytest.mark.parametrize(
    ("asked", "repository", "files"),
    [
        ("repository", "org/name", ("open_clip_config.json", "open_clip_model.safetensors")),
        ("repository", "org/name", ("open_clip_pytorch_model.bin", "open_clip_config.json")),
        ("tokenizer", "org/words", ("tokenizer.json",)),
        ("text tower", "org/tower", ("config.json",)),
    ],
)
def test_what_is_whole_on_disk_needs_no_network(asked, repository, files, put_into_cache) -> None:
    require, arguments, _ = ASKED[asked]
    for file in files:
        with pytest.raises(FileNotFoundError):
            require(*arguments)
        put_into_cache(repository, file)
    require(*arguments)


def test_a_file_is_taken_unless_its_name_is_a_tag(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.safetensors", "openai"):
        Path(name).touch()
    require_weights("ViT-B-32", "mine.safetensors")
    with pytest.raises(ValueError, match="activation"):  # open_clip would take the tag
        require_weights("ViT-B-32", "openai")
