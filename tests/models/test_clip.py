"""Loading and saving CLIP: plain open_clip computes the same, and bad files are refused."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dclip_kit.config import get_profile
from dclip_kit.evaluation.arms import Arm, describe_origin, save_arm
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.models import clip as clips
from dclip_kit.models.clip import (
    choose_precision,
    find_folder,
    load_clip,
    require_weights,
    save_clip,
    tag_for,
)
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.weights import clone_clip
from dclip_kit.runtime.files import asset_path
from dclip_kit.search.folder_index import index_pictures

TEXTS = ["a red ball", "two dogs, seven boats & an apple on a long table by the sea!", "ünder"]

# What somebody without this kit does. Its features go to a file, to be compared to the last bit.
PLAIN = """
import sys
sys.modules["dclip_kit"] = None
from pathlib import Path
import open_clip, torch
from PIL import Image
from safetensors.torch import save_file
torch.set_num_threads(1)
result, folder, *pictures = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
merges = Path(folder, "merges.txt.gz")
vocabulary = {"bpe_path": str(merges)} if merges.exists() else {}
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", **vocabulary)
model.eval()
with torch.no_grad():
    images = model.encode_image(torch.stack([preprocess(Image.open(p)) for p in pictures]), True)
    ids = tokenizer(TEXTS)
    save_file({"image": images, "text": model.encode_text(ids, True), "ids": ids}, result)
"""


@pytest.fixture(scope="module")
def pocket():
    return load_clip("pocket")


def plain_features(folder: Path, paths: list[Path], tmp_path: Path) -> dict[str, torch.Tensor]:
    program = f"TEXTS = {TEXTS!r}\n{PLAIN}"
    arguments = [tmp_path / "plain.safetensors", folder, *paths]
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "plain.safetensors")


def check_texts(clip, plain: torch.Tensor) -> None:
    """To the last bit with all the context; read no further than the texts go, all but that."""
    with torch.no_grad():
        whole = clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True)
    assert torch.equal(plain, whole)
    assert torch.allclose(plain, encode_texts(clip, TEXTS), atol=1e-6)


@pytest.mark.slow
def test_plain_open_clip_computes_what_was_saved(clip, captioned, tmp_path) -> None:
    with torch.no_grad():  # a fine-tuned tower
        for parameter in clip.model.visual.parameters():
            parameter *= 1.1
    folder = tmp_path / "saved"
    save_clip(clip, folder)
    assert {v.dtype for v in load_file(folder / "open_clip_model.safetensors").values()} == {
        torch.float32
    }
    plain = plain_features(folder, captioned.paths, tmp_path)
    assert torch.equal(plain["image"], encode_images(clip, captioned.paths))
    assert torch.equal(plain["ids"], clip.tokenizer(TEXTS))
    check_texts(clip, plain["text"])


@pytest.mark.parametrize("towers", ["visual.", ""], ids=["image tower", "both towers"])
def test_plain_open_clip_computes_what_an_arm_does(towers, clip, captioned, tmp_path) -> None:
    """Its text features are the untouched CLIP's to the last bit unless its text tower trained."""
    tuned, folder = clone_clip(clip), tmp_path / "tuned"
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            if name.startswith(towers):
                parameter += 0.1 * torch.randn_like(parameter)
    origin = describe_origin(replace(get_profile("pocket"), clip=clip.name), clip)
    seen = describe_seen(captioned, captioned, (), by_content=False)
    save_arm(Arm(tuned, 0.5), folder, origin, seen)
    arm = load_clip(folder)
    for what, given in (("image", captioned.paths), ("text", TEXTS)):
        encode = {"image": encode_images, "text": encode_texts}[what]
        assert torch.equal(encode(arm, given), encode(tuned, given))
        same = torch.allclose(encode(arm, given), encode(clip, given), atol=1e-2)
        assert same == (what == "text" and towers == "visual.")
    plain = plain_features(folder, captioned.paths, tmp_path)
    assert torch.equal(plain["image"], encode_images(arm, captioned.paths))
    check_texts(clip if towers == "visual." else arm, plain["text"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [("pocket_clip",), ("pocket_vit",), ("pocket_arms", "region_taught")],
    ids=lambda parts: parts[-1],
)
def test_plain_open_clip_loads_the_pockets_models(parts, captioned, tmp_path) -> None:
    clip = load_clip(asset_path(*parts))
    plain = plain_features(asset_path(*parts), captioned.paths, tmp_path)
    pictures = torch.stack([clip.preprocess(Image.open(path)) for path in captioned.paths])
    with torch.no_grad():
        assert torch.equal(plain["image"], clip.model.encode_image(pictures, normalize=True))
    # With its numbers in the order that convolutions are quick in, the last bits are others.
    assert torch.allclose(plain["image"], encode_images(clip, captioned.paths), atol=1e-6)
    check_texts(clip, plain["text"])
    check_texts(load_clip("pocket"), plain["text"])  # the arm's text tower did not train


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True}, {"custom_text": True}], ids=str)
def test_what_was_saved_loads_again_with_all_that_its_architecture_says(
    changes, make_clip_folder, clip, captioned, tmp_path
) -> None:
    original = load_clip(make_clip_folder(**changes))
    save_clip(original, tmp_path)
    again = load_clip(tmp_path)
    assert again.model_config == original.model_config
    for encode, what in ((encode_images, captioned.paths), (encode_texts, TEXTS)):
        assert torch.equal(encode(again, what), encode(original, what))
        if "quick_gelu" in changes:  # which computes something else with the same weights
            assert not torch.allclose(encode(clip, what), encode(original, what), atol=1e-4)
    assert again.preprocess.transforms[-1].mean == [0.4, 0.5, 0.6]


@torch.no_grad()
def test_half_precision_keeps_only_what_it_has_exactly(clip, tmp_path) -> None:
    weights = clip.model.state_dict()
    short = {"visual.proj", "token_embedding.weight", "logit_scale"}
    # Of each of these one number has a bit too many, is too large, or too small.
    odd = {"ln_final.bias": 1 + 2**-11, "visual.ln_pre.bias": 65536.0, "text_projection": 2.0**-26}
    for name in short | odd.keys():
        weights[name].copy_(weights[name].half())
    for name, value in odd.items():
        weights[name].flatten()[3] = value
    save_clip(clip, tmp_path)
    kept = load_file(tmp_path / "open_clip_model.safetensors")
    assert {name for name, each in kept.items() if each.dtype == torch.float16} == short
    again = load_clip(tmp_path)
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert again.digest == clip.digest


def test_the_pocket_clip_is_saved_as_short_as_it_was(pocket, tmp_path) -> None:
    """Its counters of batches are whole numbers, and stay so."""
    save_clip(pocket, tmp_path)
    kept, before = (
        load_file(folder / "open_clip_model.safetensors")
        for folder in (tmp_path, asset_path("pocket_clip"))
    )
    assert {name: x.dtype for name, x in kept.items()} == {n: x.dtype for n, x in before.items()}
    assert {x.dtype for x in kept.values()} == {torch.float16, torch.int64}
    assert load_clip(tmp_path).digest == pocket.digest


def test_saving_leaves_nothing_else_behind(clip, tmp_path) -> None:
    save_clip(clip, tmp_path)
    names = {"open_clip_config.json", "open_clip_model.safetensors", "merges.txt.gz"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.fixture
def worded_folder(make_clip_folder) -> Path:
    """A CLIP whose tokenizer is transformers', of whole words, as SigLIP's is of pieces."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["a", "red", "ball", "dogs", "sea"]
    ids = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = {"hf_tokenizer_name": "timm/no-such-tokenizer", "tokenizer_kwargs": {"clean": "lower"}}
    folder = make_clip_folder(text_cfg=TINY_TEXT | text)
    (folder / "merges.txt.gz").unlink()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


TINY_TEXT = {"context_length": 12, "vocab_size": 714, "width": 32, "heads": 2, "layers": 2}


def test_a_tokenizer_of_transformers_travels_with_its_model(
    worded_folder, captioned, tmp_path
) -> None:
    clip = load_clip(worded_folder)
    save_clip(clip, tmp_path / "saved")
    plain = plain_features(tmp_path / "saved", captioned.paths, tmp_path)
    assert plain["ids"][0, :4].tolist() == [3, 4, 5, 0] and torch.equal(
        plain["ids"], clip.tokenizer(TEXTS)
    )
    check_texts(clip, plain["text"])
    assert torch.equal(plain["image"], encode_images(clip, captioned.paths))


def test_open_clips_own_push_takes_a_loaded_clip(
    worded_folder, captioned, tmp_path, monkeypatch
) -> None:
    """All of it but the network: what would be uploaded loads again and computes the same."""
    network = {
        "create_repo": lambda repo_id, **_: repo_id,
        "repo_type_and_id_from_hf_id": lambda url: (None, *url.split("/")),
        "list_repo_files": lambda _: [],
        "get_hf_file_metadata": lambda _: None,
        "upload_folder": lambda folder_path, **_: shutil.copytree(folder_path, tmp_path / "up"),
    }
    for name, function in network.items():  # huggingface_hub 2 lacks some of them
        module = sys.modules["open_clip.push_to_hf_hub"]  # whose function has taken its name
        monkeypatch.setattr(module, name, function, raising=False)
    clip = load_clip(worded_folder)
    open_clip.push_to_hf_hub(
        clip.model, clip.tokenizer, clip.model_config, "org/name", safe_serialization=True
    )
    again = load_clip(tmp_path / "up")
    assert again.model_config == clip.model_config
    assert torch.equal(encode_texts(again, TEXTS), encode_texts(clip, TEXTS))
    assert torch.equal(encode_images(again, captioned.paths), encode_images(clip, captioned.paths))


def test_a_package_that_a_tokenizer_needs_is_named(worded_folder, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"do not load \(import of transformers"):
        load_clip(worded_folder)


def test_saving_takes_the_vocabulary_of_an_earlier_model_away(clip, clip_folder, tmp_path) -> None:
    merges = tmp_path / "merges.txt.gz"
    save_clip(clip, tmp_path)
    assert merges.read_bytes() == (clip_folder / "merges.txt.gz").read_bytes()
    save_clip(load_clip(tmp_path), tmp_path)  # onto itself
    assert merges.exists()
    save_clip(replace(clip, merges=None), tmp_path)
    assert not merges.exists()


def test_a_loaded_clip_is_ready_to_evaluate(clip_folder) -> None:
    clip = load_clip(str(clip_folder))
    assert clip.name == str(clip_folder)
    assert not clip.model.training
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    assert clip.device == torch.device("cpu")


@pytest.mark.parametrize(
    "device", ["nonsense", "", "meta", "cuda:99", torch.device("cuda:99"), "cuda", "mps"], ids=str
)
def test_a_device_that_the_machine_lacks_is_named_and_not_the_files(device, clip_folder) -> None:
    if device in ("cuda", "mps") and getattr(torch, device).is_available():
        pytest.skip(f"this machine has {device}")
    for name in (clip_folder, "pocket"):
        with pytest.raises(ValueError, match=f"a device of this machine.*{device}.*name") as error:
            load_clip(name, device=device)
        assert "fetch" not in str(error.value) and "\n" not in str(error.value)


def test_a_folder_may_be_given_as_open_clip_names_it(clip, clip_folder) -> None:
    again = load_clip(f"local-dir:{clip_folder}")
    assert again.embed_dim == clip.embed_dim == 32 and again.merges == clip.merges
    assert torch.equal(encode_texts(again, TEXTS), encode_texts(clip, TEXTS))


def test_a_run_of_several_models_names_them(clip, tmp_path) -> None:
    for name in ("region_taught", "contrastive_rehearsal"):
        save_clip(clip, tmp_path / "mine" / name)
    with pytest.raises(FileNotFoundError, match="a folder of several; name one of them") as error:
        load_clip(tmp_path / "mine")
    places = [str(tmp_path / "mine" / x) for x in ("contrastive_rehearsal", "region_taught")]
    assert ", ".join(places) in str(error.value)
    assert torch.equal(load_clip(places[0]).model.visual.proj, clip.model.visual.proj)


def test_an_arm_of_an_earlier_version_is_refused_in_a_sentence(clip, tmp_path, monkeypatch) -> None:
    """Which was the weights of a tower beside a record, both of the arm's name."""
    tower = {name: each.clone() for name, each in clip.model.visual.state_dict().items()}
    save_file(tower, tmp_path / "dclip.safetensors")
    (tmp_path / "dclip.json").write_text('{"alpha": 0.5, "candidates": []}')
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "dclip", "dclip", "dclip.safetensors"):
        with pytest.raises(ValueError, match=f"got {name}, the weights of a tower alone") as error:
            load_clip(name)
        assert "train it again" in str(error.value) and "\n" not in str(error.value)


def test_a_digest_is_of_the_weights_as_they_are(clip, clip_folder) -> None:
    first = clip.digest
    assert load_clip(clip_folder).digest == clone_clip(clip).digest == first
    with torch.no_grad():
        clip.model.visual.proj[0, 0] += 1  # in place, as an optimizer does
    second = clip.digest
    assert second not in (first, load_clip("pocket").digest)
    clip.model.load_state_dict(load_clip(clip_folder).model.state_dict())
    assert clip.digest == first
    clip.model.visual.proj = torch.nn.Parameter(clip.model.visual.proj + 1)  # another tensor
    assert clip.digest not in (first, second)


def test_a_digest_is_computed_once(clip, monkeypatch) -> None:
    first = clip.digest
    monkeypatch.setattr(clips, "fingerprint", lambda *_: pytest.fail("computed again"))
    assert clip.digest == first


def test_a_tag_is_for_architectures_alone(clip_folder) -> None:
    assert tag_for("ViT-B-32-quickgelu", "openai") == "openai"
    for name in ("pocket", str(clip_folder), f"local-dir:{clip_folder}", "hf-hub:org/name"):
        assert tag_for(name, "openai") is None


def test_a_folder_is_found_by_its_name(clip_folder) -> None:
    assert find_folder("pocket") == asset_path("pocket_clip")
    assert find_folder("pocket_vit") == asset_path("pocket_vit")
    assert find_folder(str(clip_folder)) == find_folder(f"local-dir:{clip_folder}") == clip_folder
    for name in ("ViT-B-32", "hf-hub:org/name", str(clip_folder / "open_clip_config.json")):
        assert find_folder(name) is None


@pytest.fixture
def repository(clip_folder, tmp_path, monkeypatch) -> Path:
    """A place for a CLIP in the cache of downloads."""
    cached = tmp_path / "models--org--name"
    (cached / "snapshots/abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return cached / "snapshots/abc"


@pytest.fixture
def full_text_folder(make_clip_folder) -> Path:
    """A tiny CLIP with open_clip's own vocabulary."""
    return make_clip_folder(text_cfg=TINY_TEXT | {"vocab_size": 49408})


def test_what_was_saved_may_be_uploaded_and_loads_from_a_repository(
    full_text_folder, repository, captioned
) -> None:
    (full_text_folder / "merges.txt.gz").unlink()
    clip = load_clip(full_text_folder)
    save_clip(clip, repository)
    again = load_clip("hf-hub:org/name")  # as it is on disk once it was downloaded
    assert again.name == "hf-hub:org/name" and again.model_config == clip.model_config
    assert torch.equal(encode_texts(again, TEXTS), encode_texts(clip, TEXTS))
    assert torch.equal(encode_images(again, captioned.paths), encode_images(clip, captioned.paths))


def test_a_shortened_vocabulary_cannot_come_from_a_repository(clip_folder, repository) -> None:
    for file in ("open_clip_config.json", "open_clip_model.safetensors"):
        shutil.copy(clip_folder / file, repository)
    with pytest.raises(ValueError, match="714 tokens for hf-hub:org/name, got 49408; load a fold"):
        load_clip("hf-hub:org/name")


@pytest.mark.parametrize("cached", [(), ("open_clip_config.json",)], ids=str)
def test_a_repository_that_is_not_whole_on_disk_is_one_sentence_at_once(
    cached, clip_folder, repository
) -> None:
    for file in cached:
        shutil.copy(clip_folder / file, repository)
    began = time.monotonic()
    with pytest.raises(ValueError, match="files of hf-hub:org/name and its weights") as caught:
        load_clip("hf-hub:org/name")
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_the_middle_of_a_sliver_is_what_is_left_of_it(clip) -> None:
    """Resized by its shorter side, this one would take gigabytes."""
    for size in ((1, 3_000_000), (3_000_000, 1)):
        assert clip.to_pixels(Image.new("RGB", size, "navy")).unique().tolist() == [0, 128]
    sliver = Image.new("RGB", (2, 300), "red")
    sliver.paste("blue", (0, 140, 2, 160))
    (*resize, _, _), side = clip.preprocess.transforms, clip.side
    whole = resize[0](sliver)
    for step in resize[1:]:
        whole = step(whole)
    found = clip.to_pixels(sliver).permute(1, 2, 0).int()
    assert found.shape == (side, side, 3)
    assert (found - torch.tensor(np.asarray(whole)).int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_pixels_of_bytes_are_exactly_open_clips_preprocessing(mode, clip, pictures) -> None:
    pictures = [picture.convert(mode) for picture in pictures]
    kept = torch.stack([clip.to_pixels(picture) for picture in pictures])
    assert kept.dtype == torch.uint8
    plain = torch.stack([clip.preprocess(picture) for picture in pictures])
    assert torch.equal(clip.normalize(kept), plain)


# Other people's files

PLANTED = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast
Path({mark!r}).touch()
class Tokenizer(PreTrainedTokenizerFast): ...
class Config(PretrainedConfig): model_type = "planted"
"""


@pytest.fixture
def planted(worded_folder, tmp_path, monkeypatch) -> Callable[..., Path]:
    """A CLIP whose folder has a tokenizer in Python, which leaves a mark wherever it is run."""
    dynamic = pytest.importorskip("transformers.dynamic_module_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    mark = tmp_path / "mark"

    def plant(clip_text: dict, **files: dict) -> Path:
        (worded_folder / "planted.py").write_text(PLANTED.format(mark=str(mark)))
        path = worded_folder / "open_clip_config.json"
        record = json.loads(path.read_text())
        record["model_cfg"]["text_cfg"] |= clip_text
        path.write_text(json.dumps(record))
        for name, content in files.items():
            path = worded_folder / f"{name}.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | content))
        return worded_folder

    yield plant
    assert not mark.exists(), "a model's own Python was run"


CODE_TOKENIZER = {
    "tokenizer_class": "Tokenizer",
    "auto_map": {"AutoTokenizer": [None, "planted.Tokenizer"]},
}


@pytest.mark.parametrize("told", [True, False], ids=["told to", "not told"])
@pytest.mark.parametrize("place", ["{}", "local-dir:{}", "hf-hub:org/name", "an architecture"])
def test_python_that_comes_with_a_model_is_refused_before_anything_is_loaded(
    told, place, planted, repository, tmp_path, monkeypatch
) -> None:
    text = {"hf_tokenizer_name": "org/name"}
    if told:
        text["tokenizer_kwargs"] = {"clean": "lower", "trust_remote_code": True}
    folder = planted(text, tokenizer_config=CODE_TOKENIZER, config={})
    shutil.copytree(folder, repository, dirs_exist_ok=True)
    if place == "an architecture":
        place = add_config(folder, "planted", tmp_path, monkeypatch)
    monkeypatch.setattr(
        open_clip, "create_model_and_transforms", lambda *_, **__: pytest.fail("loaded")
    )
    pretrained = "untrained" if place == "planted" else None
    with pytest.raises(ValueError, match=r"contains custom code .*; fetch them again") as caught:
        load_clip(place.format(folder), pretrained)
    assert "\n" not in str(caught.value)


def test_python_that_is_not_needed_is_not_asked_for(planted) -> None:
    """As in repositories that hold a model of transformers beside open_clip's."""
    code = {"model_type": "planted", "auto_map": {"AutoConfig": "planted.Config"}}
    clip = load_clip(planted({}, config=code))
    assert clip.tokenizer("a red ball")[0, :3].tolist() == [3, 4, 5]


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_text_tower_with_python_of_its_own_is_refused(
    in_folder, planted, repository, worded_folder
) -> None:
    tower = str(worded_folder) if in_folder else "org/name"
    folder = planted(
        {"hf_model_name": tower},
        config={"model_type": "planted", "auto_map": {"AutoConfig": "planted.Config"}},
    )
    shutil.copytree(folder, repository, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=rf"{tower} contains custom code"):
        load_clip(folder)


PICKLES = ["open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"]
PICKLES += ["pytorch_model.bin", "pytorch_model.pth", "model.pth"]


class Poison:
    """Something that, in a pickle, is run when that is read."""

    def __reduce__(self):
        return Path.touch, (Path("poisoned"),)


@pytest.mark.parametrize(
    ("good", "refused"),
    [
        ("open_clip_model", ()),
        ("model", ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")),
        ("zzz", PICKLES),
    ],
)
@pytest.mark.parametrize("poison", [*PICKLES, "a.bin"])
def test_a_pickle_beside_safetensors_is_never_read(
    good, refused, poison, clip_folder, tmp_path, monkeypatch
) -> None:
    """Where open_clip prefers it, its weights would be taken for those of the other file."""
    folder = shutil.copytree(clip_folder, tmp_path / "folder")
    (folder / "open_clip_model.safetensors").rename(folder / f"{good}.safetensors")
    torch.save({"weights": Poison()}, folder / poison)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read a pickle"))
    if poison not in refused:
        assert load_clip(folder).embed_dim == 32
    else:
        with pytest.raises(FileNotFoundError, match=f"open_clip would take {poison} for weights"):
            load_clip(folder)


def test_a_pickle_in_a_repository_is_not_read_either(
    full_text_folder, repository, monkeypatch
) -> None:
    shutil.copytree(full_text_folder, repository, dirs_exist_ok=True)
    torch.save({"weights": Poison()}, repository / "open_clip_pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read a pickle"))
    assert load_clip("hf-hub:org/name").embed_dim == 32


def test_a_folder_with_only_a_pickle_is_refused(clip_folder, tmp_path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "folder")
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"a \.safetensors file of weights in"):
        load_clip(folder)


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
        ("open_clip_config.json", lambda path: path.write_text('{"model_cfg": []}'), ValueError),
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


@pytest.mark.parametrize("folder", ["/no/such/folder", ""])
def test_a_reference_to_no_folder_is_named(folder) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected open_clip_config.json and"):
        load_clip(f"local-dir:{folder}")


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder"])
def test_an_unknown_name_says_what_is_known(name) -> None:
    with pytest.raises(ValueError, match=f"'pocket_vit', a folder or an architecture .*'{name}'"):
        load_clip(name)


@pytest.mark.parametrize("place", ["{}", "local-dir:{}", "hf-hub:org/name"])
@pytest.mark.parametrize("pretrained", ["openai", "untrained"])
def test_weights_for_what_has_its_own_are_refused(place, pretrained, clip_folder) -> None:
    with pytest.raises(ValueError, match=f"no `pretrained` for .*'{pretrained}'; leave it out"):
        load_clip(place.format(clip_folder), pretrained)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_a_text_side_that_is_not_on_disk_is_one_sentence_at_once(name) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"files of {name} .* on disk or on the network"):
        load_clip(name, "untrained")
    assert time.monotonic() - began < 5


def test_weights_that_are_not_on_disk_are_one_sentence_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"ViT-B-32-quickgelu and its weights \(openai\)"
    ) as caught:
        load_clip("ViT-B-32-quickgelu", "openai")
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_weights_of_the_other_activation_are_refused() -> None:
    with pytest.raises(ValueError, match="take ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", "openai")


@pytest.fixture
def tiny_name(full_text_folder, tmp_path, monkeypatch) -> str:
    """The tiny architecture under a name, as open_clip's own have one."""
    return add_config(full_text_folder, "tiny-test", tmp_path, monkeypatch)


def add_config(folder: Path, name: str, tmp_path: Path, monkeypatch) -> str:
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(tmp_path / f"{name}.json")
    return name


def test_an_architecture_takes_weights_from_a_file_or_none(tiny_name, full_text_folder) -> None:
    weights = full_text_folder / "open_clip_model.safetensors"
    loaded = load_clip(tiny_name, str(weights))
    untrained = load_clip(tiny_name, "untrained").model.state_dict()
    assert loaded.merges is None and loaded.model_config["text_cfg"]["vocab_size"] == 49408
    for name, value in load_file(weights).items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert not torch.equal(untrained["visual.proj"], loaded.model.visual.proj)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("place", ["a folder", "a file", "a pickle"])
def test_weights_in_half_precision_are_computed_with_in_single(
    place, dtype, full_text_folder, tiny_name, captioned, tmp_path
) -> None:
    def load(folder: Path):
        name = {"a file": "open_clip_model.safetensors", "a pickle": "weights.pt"}.get(place)
        return load_clip(tiny_name, str(folder / name)) if name else load_clip(folder)

    for folder, kind in ((tmp_path / "whole", torch.float32), (tmp_path / "half", dtype)):
        shutil.copytree(full_text_folder, folder, ignore=shutil.ignore_patterns("merges*"))
        weights = load_file(folder / "open_clip_model.safetensors")
        weights = {name: value.to(kind) for name, value in weights.items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        if place == "a pickle":
            torch.save(weights, folder / "weights.pt")
    clip, whole = load(tmp_path / "half"), load(tmp_path / "whole")
    assert {p.dtype for p in clip.model.parameters()} == {torch.float32}
    for features, expected in (
        (encode_images(clip, captioned.paths), encode_images(whole, captioned.paths)),
        (encode_texts(clip, TEXTS), encode_texts(whole, TEXTS)),
    ):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features, expected, atol=1e-2, rtol=0)
        assert not torch.equal(features, expected)
    found = index_pictures(clip, captioned.paths[0].parent, tmp_path / "cache")
    assert len(found.search(encode_texts(clip, TEXTS[:1]), top_k=3).images) == 3


def test_an_architecture_without_a_vocabulary_to_fit_is_refused(
    clip_folder, tmp_path, monkeypatch
) -> None:
    name = add_config(clip_folder, "short", tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="714 tokens for short, got 49408; load a folder"):
        load_clip(name, "untrained")


def test_a_table_of_embeddings_may_have_rows_to_spare(
    make_clip_folder, tmp_path, monkeypatch
) -> None:
    spare = make_clip_folder(text_cfg=TINY_TEXT | {"vocab_size": 50000})
    name = add_config(spare, "spare", tmp_path, monkeypatch)
    assert encode_texts(load_clip(name, "untrained"), TEXTS).isfinite().all()
    with pytest.raises(ValueError, match=r"50000 tokens .*got 714"):  # another model's merges
        load_clip(spare)


@pytest.mark.parametrize("harm", [cut, other_architecture, lambda p: p.write_bytes(b"x" * 99)])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_of_weights_that_does_not_fit_is_named(
    harm, suffix, tiny_name, full_text_folder, tmp_path
) -> None:
    path = tmp_path / f"weights.{suffix}"
    shutil.copy(full_text_folder / "open_clip_model.safetensors", path)
    harm(path)
    with pytest.raises(
        ValueError, match=rf"Expected the files of tiny-test and its weights \({path}\)"
    ) as caught:
        load_clip(tiny_name, str(path))
    assert "\n" not in str(caught.value)


# What is asked of files before they are loaded


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
    """All that open_clip knows: taken, or refused with good advice."""
    refused = 0
    for name, tag in open_clip.list_pretrained():
        try:
            require_weights(name, tag)
        except ValueError as error:
            refused += 1
            require_weights(re.search(r"take (\S+)\.$", str(error))[1], tag)
    assert refused > 20


@pytest.mark.parametrize("place", ["", "a/b/c", "org/na me"])
def test_what_names_no_repository_is_refused(place) -> None:
    with pytest.raises(ValueError, match=f"Expected the files of hf-hub:{place} .*do not load"):
        load_clip(f"hf-hub:{place}")


@pytest.mark.parametrize("asked", [("hf-hub:org/name",), ("ViT-B-32-quickgelu", "openai")])
def test_a_silent_hub_is_asked_once(asked, tmp_path, monkeypatch, capfd) -> None:
    """A download would ask six times, and print a page of warnings."""
    calls = []

    def give_up(url: str, timeout: float) -> None:
        calls.append((url, timeout))
        raise ConnectionError("timed out")

    monkeypatch.setattr(clips, "get_hf_file_metadata", give_up)
    monkeypatch.setattr(clips.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(clips.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=r"on disk or on the network.* \(timed out\); fetch"):
        load_clip(*asked)
    ((url, timeout),) = calls
    assert url.endswith(("open_clip_config.json", "open_clip_model.safetensors")) and timeout == 10
    assert capfd.readouterr() == ("", "")


def test_a_file_is_taken_unless_its_name_is_a_tag(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.safetensors", "openai"):
        Path(name).touch()
    require_weights("ViT-B-32", "mine.safetensors")
    with pytest.raises(ValueError, match="activation"):  # open_clip would take the tag
        require_weights("ViT-B-32", "openai")


# What models compute in


@pytest.mark.parametrize("name", ["tiny", "pocket"])
def test_half_precision_is_for_pictures_and_gives_whole_features(name, clip, pocket) -> None:
    bundle = {"tiny": clip, "pocket": pocket}[name]
    side = bundle.model_config["vision_cfg"]["image_size"]
    pixels = torch.randint(256, (9, 3, side, side), dtype=torch.uint8)
    full, half = (encode_images(replace(bundle, precision=p), pixels) for p in ("no", "bf16"))
    assert torch.equal(encode_images(bundle, pixels), full)  # the default
    assert half.dtype == torch.float32
    assert torch.allclose(half.norm(dim=1), torch.ones(9), atol=1e-6)
    apart = 1 - (full * half).sum(1)
    assert 0 < apart.max() < 1e-3


def test_a_precision_that_nothing_computes_in_is_refused(clip) -> None:
    pixels = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with pytest.raises(ValueError, match="no or bf16 to compute in, got 'fp16'; give"):
        encode_images(replace(clip, precision="fp16"), pixels)


def test_the_launchers_precision_holds_where_the_settings_leave_it_open(monkeypatch) -> None:
    # A GPU that the training is not on says nothing.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert choose_precision("auto", "cpu") == "bf16"
    assert choose_precision("no", "cpu") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert choose_precision("bf16", "cpu") == "bf16"
    with pytest.raises(ValueError, match="no or bf16, got 'fp16'; launch it"):
        choose_precision("auto", "cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert choose_precision("auto", "cpu") == "no"
    assert choose_precision("auto", torch.device("cuda", 1)) == "bf16"
