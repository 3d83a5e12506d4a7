"""Loading and exporting CLIP: plain open_clip computes the same, and bad files are refused."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from dclip_kit.assets import asset_path
from dclip_kit.embedding import encode_images, encode_texts
from dclip_kit.encoders import export_clip, load_clip

TEXTS = ["a red ball", "two dogs, seven boats & an apple on a long table by the sea!", "ünder"]

# What somebody without this kit does. Its features go to a file, to be compared to the last bit.
PLAIN = """
import sys
sys.modules["dclip_kit"] = None
import open_clip, torch
from PIL import Image
from safetensors.torch import save_file
torch.set_num_threads(1)
result, folder, *pictures = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=f"{folder}/merges.txt.gz")
model.eval()
model.visual.to(memory_format=torch.channels_last)  # as here: it orders a convolution's sums
with torch.no_grad():
    images = model.encode_image(torch.stack([preprocess(Image.open(p)) for p in pictures]), True)
    ids = tokenizer(TEXTS)
    save_file({"image": images, "text": model.encode_text(ids, True), "ids": ids}, result)
"""


def plain_features(folder: Path, paths: list[Path], tmp_path: Path) -> dict[str, torch.Tensor]:
    program = f"TEXTS = {TEXTS!r}\n{PLAIN}"
    arguments = [tmp_path / "plain.safetensors", folder, *paths]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "plain.safetensors")


def test_plain_open_clip_computes_what_was_exported(clip, captioned, tmp_path) -> None:
    with torch.no_grad():  # a fine-tuned tower
        for parameter in clip.model.visual.parameters():
            parameter *= 1.1
    folder = tmp_path / "exported"
    export_clip(clip, folder)
    assert {v.dtype for v in load_file(folder / "open_clip_model.safetensors").values()} == {
        torch.float32
    }
    plain = plain_features(folder, captioned.paths, tmp_path)
    assert torch.equal(plain["image"], encode_images(clip, captioned.paths))
    assert torch.equal(plain["text"], encode_texts(clip, TEXTS))
    assert torch.equal(plain["ids"], clip.tokenizer(TEXTS))


def test_plain_open_clip_loads_the_pocket_clip(captioned, tmp_path) -> None:
    clip = load_clip("pocket")
    plain = plain_features(asset_path("pocket_clip"), captioned.paths, tmp_path)
    assert torch.equal(plain["image"], encode_images(clip, captioned.paths))
    assert torch.equal(plain["text"], encode_texts(clip, TEXTS))


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"custom_text": True}], ids=str)
def test_an_export_loads_again_with_all_that_its_architecture_says(
    changes, make_clip_folder, clip, captioned, tmp_path
) -> None:
    original = load_clip(make_clip_folder(**changes))
    export_clip(original, tmp_path)
    again = load_clip(tmp_path)
    assert again.model_config == original.model_config
    for encode, what in ((encode_images, captioned.paths), (encode_texts, TEXTS)):
        assert torch.equal(encode(again, what), encode(original, what))
        if "quick_gelu" in changes:  # which computes something else with the same weights
            assert not torch.allclose(encode(clip, what), encode(original, what), atol=1e-4)
    assert again.preprocess.transforms[-1].mean == [0.4, 0.5, 0.6]


def test_an_export_takes_the_vocabulary_of_an_earlier_one_away(clip, clip_folder, tmp_path) -> None:
    merges = tmp_path / "merges.txt.gz"
    export_clip(clip, tmp_path)
    assert merges.read_bytes() == (clip_folder / "merges.txt.gz").read_bytes()
    export_clip(load_clip(tmp_path), tmp_path)  # onto itself
    assert merges.exists()
    export_clip(replace(clip, merges=None), tmp_path)
    assert not merges.exists()


def test_a_loaded_clip_is_ready_to_evaluate(clip_folder) -> None:
    clip = load_clip(str(clip_folder))
    assert clip.name == str(clip_folder)
    assert not clip.model.training
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    assert clip.device == torch.device("cpu")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_pixels_of_bytes_are_exactly_open_clips_preprocessing(mode, clip, pictures) -> None:
    pictures = [picture.convert(mode) for picture in pictures]
    kept = torch.stack([clip.to_pixels(picture) for picture in pictures])
    assert kept.dtype == torch.uint8
    plain = torch.stack([clip.preprocess(picture) for picture in pictures])
    assert torch.equal(clip.normalize(kept), plain)


# Bad input


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_architecture(path: Path) -> None:
    save_file({name: value[:1] for name, value in load_file(path).items() if value.ndim}, path)


@pytest.mark.parametrize(
    ("file", "harm", "kind"),
    [
        ("open_clip_config.json", Path.unlink, FileNotFoundError),
        ("open_clip_model.safetensors", Path.unlink, FileNotFoundError),
        ("open_clip_config.json", cut, ValueError),
        ("open_clip_config.json", lambda path: path.write_text("{}"), ValueError),
        ("open_clip_model.safetensors", cut, ValueError),
        ("open_clip_model.safetensors", other_architecture, ValueError),
        ("merges.txt.gz", cut, ValueError),
        ("merges.txt.gz", Path.unlink, ValueError),
    ],
)
def test_a_folder_that_is_not_whole_is_named(file, harm, kind, clip_folder, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(clip_folder, folder)
    harm(folder / file)
    with pytest.raises(kind, match=f"Expected .*{folder}"):
        load_clip(folder)


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder"])
def test_an_unknown_name_says_what_is_known(name) -> None:
    with pytest.raises(ValueError, match=f"'pocket', a folder or an architecture .*'{name}'"):
        load_clip(name)


def test_weights_that_are_not_on_disk_are_one_sentence_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match="'openai' of ViT-B-32-quickgelu") as caught:
        load_clip("ViT-B-32-quickgelu", "openai")
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_weights_of_the_other_activation_are_refused() -> None:
    with pytest.raises(ValueError, match="take ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", "openai")


@pytest.fixture
def tiny_name(clip_folder, tmp_path, monkeypatch) -> str:
    """The tiny architecture under a name, as open_clip's own have one."""
    config = json.loads((clip_folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-test.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    return "tiny-test"


def test_an_architecture_takes_weights_from_a_file_or_none(tiny_name, clip, clip_folder) -> None:
    loaded = load_clip(tiny_name, str(clip_folder / "open_clip_model.safetensors"))
    untrained = load_clip(tiny_name, "untrained").model.state_dict()
    assert loaded.merges is None and loaded.model_config == clip.model_config
    for name, value in clip.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert not torch.equal(untrained["visual.proj"], clip.model.visual.proj)


@pytest.mark.parametrize("harm", [cut, other_architecture, lambda p: p.write_bytes(b"x" * 99)])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_of_weights_that_does_not_fit_is_named(
    harm, suffix, tiny_name, clip_folder, tmp_path
) -> None:
    path = tmp_path / f"weights.{suffix}"
    shutil.copy(clip_folder / "open_clip_model.safetensors", path)
    harm(path)
    with pytest.raises(ValueError, match=f"Expected weights for tiny-test, but {path}"):
        load_clip(tiny_name, str(path))
