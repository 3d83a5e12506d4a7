"""What every test runs under: no network, checked shapes, fixed seeds; and a tiny CLIP and data."""

import copy
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["YOLO_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image, ImageDraw

# Ultralytics writes settings at import; a test must not change those of the person who runs it.
_SETTINGS = tempfile.TemporaryDirectory(prefix="ultralytics-")
os.environ["YOLO_CONFIG_DIR"] = _SETTINGS.name

if "dclip_kit" in sys.modules:
    raise RuntimeError(
        "Expected to switch on the shape checks before dclip_kit is imported, but a pytest plugin "
        "imported it already; run pytest without that plugin."
    )
install_import_hook("dclip_kit", "beartype.beartype")

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


# What `make test` runs of notebooks, and of pages in a browser, which take minutes.
NOTEBOOKS = {"04_retrieval_evaluation", "05_query_gallery", "07_does_it_help"}
PAGES = {
    "test_gallery.py::test_enter_searches_with_two_models_and_marks_the_right_answer",
    "test_gallery.py::test_what_somebody_wrote_is_never_html",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the other notebooks and pages as slow."""
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        notebook = item.path.suffix == ".ipynb" and item.path.stem not in NOTEBOOKS
        page = item.path.parent.name == "browser" and name not in PAGES
        if notebook or page:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _own_memory(tmp_path_factory) -> Iterator[None]:
    """What tests' pictures look like is not remembered in the cache of the person who runs them."""
    from dclip_kit.data import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "cache_path", tmp_path_factory.mktemp("scans").joinpath)
        yield


# A CLIP in open_clip's own format, small enough to train in a blink. Every number in it is random,
# so that no bias or norm hides a mistake by being 0 or 1.
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 714, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def make_clip_folder(tmp_path_factory) -> Callable[..., Path]:
    """Writes a tiny CLIP as open_clip's local-dir; keywords change its `model_cfg`."""
    import open_clip

    from dclip_kit.runtime.files import save_tensors

    def make(**changes) -> Path:
        folder = tmp_path_factory.mktemp("clip")
        torch.manual_seed(1)
        config = TINY | changes
        custom = config.get("custom_text", False)
        build = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        model = build(**{name: value for name, value in config.items() if name != "custom_text"})
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            elif parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        save_tensors(model.state_dict(), folder / "open_clip_model.safetensors")
        preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}
        record = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(record), encoding="utf-8")
        merges = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).split(b"\n")
        (folder / "merges.txt.gz").write_bytes(gzip.compress(b"\n".join(merges[:201]), mtime=0))
        return folder

    return make


@pytest.fixture(scope="session")
def clip_folder(make_clip_folder) -> Path:
    """The tiny CLIP on disk; not to be changed."""
    return make_clip_folder()


@pytest.fixture(scope="session")
def _clip(clip_folder):
    from dclip_kit.models.clip import load_clip

    return load_clip(clip_folder)


@pytest.fixture
def clip(_clip):
    """The tiny CLIP, a test's own copy."""
    from dclip_kit.models.weights import clone_clip

    return clone_clip(_clip)


@pytest.fixture
def tuned(clip):
    """A copy of the tiny CLIP whose image tower has changed."""
    from dclip_kit.models.weights import clone_clip

    changed = clone_clip(clip)
    with torch.no_grad():
        for parameter in changed.model.visual.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return changed


@pytest.fixture
def make_vit_folder(tmp_path) -> Callable[..., Path]:
    """A small vision transformer's folder with the pocket's words, and with changes of it."""
    import open_clip
    from safetensors.torch import save_file

    from dclip_kit.runtime.files import asset_path

    vision = {"image_size": 48, "layers": 2, "width": 64, "patch_size": 16, "head_width": 16}
    text = {"context_length": 20, "vocab_size": 8514, "width": 32, "heads": 2, "layers": 2}
    vit = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}

    def make(name: str = "vit", mode: str = "squash", **changes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = copy.deepcopy(vit)
        for part, change in changes.items():
            if isinstance(change, dict):
                config[part] |= change
            else:
                config[part] = change
        torch.manual_seed(1)
        kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        model = kind(**config)
        for parameter in model.parameters():  # at first, biases are 0 and many scales alike
            torch.nn.init.normal_(parameter, float(parameter.detach().mean()), 0.05)
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()},
            folder / "open_clip_model.safetensors",
        )
        preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
        preprocess |= {"interpolation": "bicubic", "resize_mode": mode}
        if kind is open_clip.CustomTextCLIP:
            config["custom_text"] = True
        text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        (folder / "open_clip_config.json").write_text(text)
        shutil.copy(asset_path("pocket_clip", "merges.txt.gz"), folder)
        return folder

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Six drawn pictures of different shapes."""
    rng = random.Random(3)
    drawn = []
    for size in [(40, 30), (30, 40), (32, 32), (64, 50), (33, 47), (90, 31)]:
        picture = Image.new("RGB", size, tuple(rng.choices(range(256), k=3)))
        draw = ImageDraw.Draw(picture)
        for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
            left, top = rng.randrange(size[0] // 2), rng.randrange(size[1] // 2)
            box = (left, top, left + size[0] // 3, top + size[1] // 3)
            shape(box, fill=tuple(rng.choices(range(256), k=3)))
        drawn.append(picture)
    return drawn


@pytest.fixture(scope="session")
def captioned(pictures, tmp_path_factory):
    """These pictures on disk with two, one or no caption."""
    from dclip_kit.data import CaptionedImages

    folder = tmp_path_factory.mktemp("pictures")
    paths = tuple(folder / f"{index}.png" for index in range(len(pictures)))
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    captions = (
        ("a red ball", "the ball"),
        ("two dogs on a very long road to a far town by the sea with sand",),
        (),
        ("boats", "three boats at sea!?"),
        ("a box",),
        ("it", "an apple"),
    )
    return CaptionedImages(paths, captions, "train", "drawn")


@pytest.fixture(scope="session")
def make_detector() -> Callable[[], object]:
    """Makes detectors that find no, one or two boxes in a picture, by its width."""
    from dclip_kit.models.detector import Detections, Detector
    from dclip_kit.models.regions import Regions
    from dclip_kit.runtime.files import asset_path

    class Fake(Detector):
        def detect(self, images, batch_size=32, progress=True, skip_unreadable=False, paths=None):
            found = []
            for picture in images:
                count = picture.width % 3
                boxes = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11]])[:count]
                score = torch.tensor([0.9, 0.6])[:count]
                found.append(Regions.from_boxes(boxes, score, ["thing"] * count, picture.size))
            return Detections(tuple(found), sum(each.is_whole_image for each in found))

    return lambda: Fake(("thing",), 64, 0.25, 10, asset_path("pocket_yolo"), None)


@pytest.fixture
def detector(make_detector):
    """Finds no, one or two boxes in a picture, by its width."""
    return make_detector()


@pytest.fixture
def fake_detector(detector, monkeypatch):
    """Stands in for YOLO, which takes seconds to import: whoever asks for a detector gets it."""
    from dclip_kit.features import extract
    from dclip_kit.models import detector as detectors

    for module in (detectors, extract):
        monkeypatch.setattr(module, "load_detector", lambda *_, **__: detector)
    return detector


@pytest.fixture
def run_main(capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a program's main; gives its exit code, and what it wrote to stdout and stderr."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def make_features() -> Callable[..., object]:
    """Draws frozen features; captions stand in no order, and some pictures have none."""
    from dclip_kit.features.store import FrozenFeatures

    def make(images: int = 11, embed: int = 32, seed: int = 0) -> FrozenFeatures:
        generator, boxes = (torch.Generator().manual_seed(seed) for _ in range(2))

        def unit(count: int) -> torch.Tensor:
            return torch.nn.functional.normalize(torch.randn(count, embed, generator=generator))

        number = torch.arange(images)
        owners = torch.repeat_interleave(number, number % 3)
        owners = owners[torch.randperm(len(owners), generator=generator)]
        region_count, token_count = number % 4 + 1, torch.arange(len(owners)) % 3 + 1
        regions, tokens = int(region_count.sum()), int(token_count.sum())
        return FrozenFeatures(
            image=unit(images),
            size=torch.tensor([[100, 90]]).repeat(images, 1),
            region=unit(regions),
            region_count=region_count,
            xyxy=40 * torch.rand(regions, 4, generator=boxes) + torch.tensor([0.0, 0, 50, 50]),
            area=torch.rand(regions, generator=generator) + 0.01,
            confidence=torch.rand(regions, generator=generator),
            label=torch.arange(regions) % 5,
            text=unit(len(owners)),
            token=unit(tokens).half(),
            token_count=token_count,
            image_of_text=owners,
        )

    return make


@pytest.fixture
def features(make_features):
    """Eleven pictures' frozen features, as wide as the tiny CLIP's."""
    return make_features()


@pytest.fixture
def pixels() -> torch.Tensor:
    """The bytes of these eleven pictures, as the tiny CLIP takes them."""
    return torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The pocket's data as a walk begins with it, of a few pictures, in a cache of the tests'."""
    from dclip_kit.config import PROFILES
    from dclip_kit.data.pocket import world as pocket
    from dclip_kit.evaluation.profile_data import load_data

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(pocket, "SCENE_SPLITS", {"train": 11, "val": 6, "test": 8})
        singles = {split: (1, styles) for split, (_, styles) in pocket.SINGLE_SPLITS.items()}
        patch.setattr(pocket, "SINGLE_SPLITS", singles)
        return load_data(PROFILES["base"])  # real weights walk through the pocket's pictures
