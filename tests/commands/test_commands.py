"""The commands as a person types them, on small data: what they write, say and refuse."""

import json
import os
import shutil
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from dclip_kit.commands import COMMANDS, UNPROFILED, main
from dclip_kit.commands.terminal import require_writable
from dclip_kit.config import FORMATS, PROFILES
from dclip_kit.data.splits import read_splits, read_test
from dclip_kit.evaluation.evaluate import (
    evaluate_compositions,
)
from dclip_kit.evaluation.experiment import save_teacher_run
from dclip_kit.evaluation.inspection import probe_teacher, score_teachers
from dclip_kit.evaluation.profile_data import load_data
from dclip_kit.evaluation.seen import describe_seen
from dclip_kit.features.extract import extract_features
from dclip_kit.models import detector as detectors
from dclip_kit.models.clip import choose_device
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.teacher import build_teacher, kind_of
from dclip_kit.runtime.printing import printable
from dclip_kit.search.rescoring import rescore
from dclip_kit.training import TeacherRun
from dclip_kit.widgets import app as app_module
from dclip_kit.widgets import host
from dclip_kit.widgets.host import SharedPage
from tests.data.test_coco import write_coco
from tests.data.test_leaks import scene
from tests.data.test_splits import write_own

# inspect


def test_inspect_reports_to_a_person_and_in_json(own, run, tmp_path) -> None:
    shutil.copy(own / "1.png", own / "twin.png")
    with (own / "captions.csv").open("a") as file:
        file.write(f"\ntwin.png,{'word ' * 90},train")
    test = write_own(tmp_path / "test", range(18, 24))
    report = tmp_path / "deep" / "report.json"
    code, out, _ = run("inspect", own, "--against", test, "--json", report)
    assert code == 0
    assert out.splitlines()[:2] == ["Format: csv", "Pictures: 21 usable, 1 unusable"]
    assert "gone.png: Expected a whole picture" in out
    assert (
        "Captions: 41 usable (1 of them cut after CLIP's 77 tokens or at its end token), 1 empty"
        in out
    )
    assert f"Groups of equal pictures: 1\n  {own}/1.png = {own}/twin.png" in out
    assert "Leaks: 2 pictures that are evaluation pictures too" in out
    found = json.loads(report.read_text())
    keys = {"format", "pictures", "captions", "splits", "linked", "duplicates"}
    assert found.keys() == keys | {"leaks"}
    assert found["splits"] == {"from": "column", "train": 17, "val": 2, "test": 2}
    assert "Splits, from a column: train 17, val 2, test 2" in out
    assert found["pictures"]["usable"] == 21 and len(found["leaks"]) == 2


def test_inspect_fails_only_where_no_usable_picture_has_a_caption(tmp_path, run) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\ngone.png,a\n")
    code, out, _ = run("inspect", tmp_path)
    assert code == 1 and "Pictures: 0 usable, 1 unusable" in out
    scene(1).save(tmp_path / "gone.png")
    assert run("inspect", tmp_path)[0] == 0
    (tmp_path / "captions.csv").write_text("image,caption\ngone.png, \n")
    code, out, _ = run("inspect", tmp_path)
    assert code == 1 and "Pictures: 1 usable, 0 unusable\nCaptions: 0 usable" in out
    assert out.endswith("Nothing to train on: no usable picture has a caption.\n")


def test_inspect_fails_where_no_picture_has_a_caption(tmp_path, run) -> None:
    """COCO's instances look like its captions; a table may have rows and no text in them."""
    scene(1).save(tmp_path / "1.png")
    boxes = [{"image_id": 1, "id": 1, "category_id": 3, "bbox": [0, 0, 9, 9]}]
    record = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": boxes}
    (tmp_path / "instances.json").write_text(json.dumps(record))
    (tmp_path / "captions.csv").write_text("image,caption\n1.png, \n")
    for name, usable, says in (("instances.json", 0, "captions_"), ("captions.csv", 1, "")):
        options = ("--images", tmp_path, "--json", tmp_path / "report.json")
        code, out, _ = run("inspect", tmp_path / name, *options)
        assert code == 1 and says in out and "no usable picture has a caption" in out
        found = json.loads((tmp_path / "report.json").read_text())
        assert found["pictures"]["usable"] == usable and found["captions"]["usable"] == 0


def test_inspect_takes_pictures_and_format_and_tells_notes(own, run, tmp_path) -> None:
    (tmp_path / "list").mkdir()
    (own / "captions.csv").rename(tmp_path / "list/mine.txt")
    for picture in (own / "0.png", own / "3.png"):
        Image.new("RGB", (8, 8), "red").save(picture)
    options = ("--format", "csv", "--images", own, "--against", own.parent / "test")
    write_own(tmp_path / "test", range(40, 43))
    code, out, _ = run("inspect", tmp_path / "list/mine.txt", *options)
    assert code == 0 and "Pictures: 20 usable" in out
    assert "Note: 2 pictures were compared by name" in out


def test_metadata_that_nobody_can_read_is_no_note(tmp_path, run) -> None:
    broken = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0"
    for index in range(3):
        scene(index).save(tmp_path / f"{index}.jpg", exif=broken)
        (tmp_path / f"{index}.txt").write_text("a scene")
    code, out, _ = run("inspect", tmp_path)
    assert code == 0 and "Pictures: 3 usable" in out and "Note" not in out


def test_long_lists_are_cut_and_names_cannot_steer_the_terminal(tmp_path, run) -> None:
    rows = "".join(f'"gone{i}\x1b[31m.png",a\n' for i in range(15))
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    _, out, _ = run("inspect", tmp_path)
    # What all share is said once, whoever is the first.
    assert "\x1b" not in out and "gone0\\x1b[31m.png and 14 more: " in out
    rows = "".join(f'{i}.png,a,"split {i}\x1b[31m"\n' for i in range(15)) + "15.png,a,train\n"
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + rows)
    _, out, _ = run("inspect", tmp_path)
    assert "\x1b" not in out and "split 0\\x1b" in out and "… and 6 more" in out
    assert out.count("expected a split") == 10


# curate


def test_curate_draws_a_mixture_that_distill_takes(run, tmp_path) -> None:
    write_coco(tmp_path / "coco", "train2017", "", [*range(1, 32)])
    for number, path in enumerate(sorted(tmp_path.glob("coco/train2017/*"))):
        scene(500 + number).save(path)
    write_coco(tmp_path / "eval", "val2017", "", [1, 2])
    out = tmp_path / "mixture.json"
    test = write_own(tmp_path / "test", range(700, 703))
    options = ("--coco", tmp_path / "coco", "--against", tmp_path / "eval", test)
    code, said, err = run("curate", "--out", out, *options)
    assert code == 0, err
    # Of 31 pictures ten have no caption, and two are evaluation pictures by their number.
    assert said.startswith("coco: 17 for train, 2 for val\nLeft out: 2 evaluation pictures, 10 un")
    settings = replace(PROFILES["base"], data=str(out), test=str(test))
    assert len(load_data(settings).train) == 17
    code, _, err = run("curate", "--out", out, "--against", test)
    assert code == 2 and "Expected pictures to draw from" in err


# detect


def test_detect_writes_boxes_and_draws_them(run, fake_detector, pictures, tmp_path) -> None:
    place = tmp_path / "in" / "deep"
    place.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(place / f"{number}.png")
    (place / "bad.jpg").write_bytes(b"no")
    out = tmp_path / "found.json"
    plain = fake_detector.detect([p.convert("RGB") for p in pictures])

    def detect(images, skip_unreadable):
        assert skip_unreadable
        kept = [i for i, path in enumerate(images) if path.suffix == ".png"]
        bad = {i: "broken" for i in range(len(images)) if i not in kept}
        return detectors.Detections(plain.regions, plain.without_detections, bad)

    object.__setattr__(fake_detector, "detect", detect)
    code, said, _ = run("detect", tmp_path / "in", "--out", out, "--drawn", tmp_path / "drawn")
    assert code == 0 and said.startswith("Found 4 regions in 6 pictures, none in 3 of them; 1 can")
    record = json.loads(out.read_text())
    assert [len(each["regions"]) for each in record["pictures"]] == [
        0 if regions.is_whole_image else len(regions) for regions in plain.regions
    ]
    assert record["unreadable"] == [{"path": str(place / "bad.jpg"), "reason": "broken"}]
    shown = next(each for each in record["pictures"] if each["regions"])
    assert shown["regions"][0].keys() == {"label", "confidence", "xyxy"}
    for entry, picture in zip(record["pictures"], pictures, strict=True):
        name = Path(entry["path"]).name
        drawn = Image.open(tmp_path / "drawn" / "deep" / f"{name}.png")
        assert drawn.size == picture.size == (entry["width"], entry["height"])
        assert (drawn.tobytes() != picture.tobytes()) == bool(entry["regions"])


# evaluate


def test_evaluate_may_leave_zero_shot_out_and_take_everything(run, own, clip_folder) -> None:
    options = ("--model", clip_folder, "--data", own, "--zero-shot", "")
    code, said, _ = run("evaluate", *options, "--split", "all")
    assert code == 0 and "\n20 pictures, 40 captions" in said and "Zero-shot" not in said
    assert said.startswith("Of own: Pictures left out: 1 unusable")
    assert f"What {clip_folder} has trained on is not known" in said


def test_evaluate_says_which_of_several_models_cuts_captions(
    run, clip_folder, make_clip_folder, tmp_path
) -> None:
    data = write_own(tmp_path / "long", range(8))
    table = data / "captions.csv"
    table.write_text(table.read_text().replace(",picture", ",a long tale of which here is no end"))
    text = {"context_length": 77, "vocab_size": 714, "width": 32, "heads": 2, "layers": 2}
    longer = make_clip_folder(text_cfg=text)
    given = ("--data", data, "--zero-shot", "", "--split", "all")
    code, said, _ = run("evaluate", "--model", clip_folder, longer, *given)
    assert code == 0 and said.count("captions are longer than what") == 1
    assert f"longer than what {clip_folder} reads" in said


def test_evaluate_rescores_by_the_training_data(run, clip_folder, tmp_path) -> None:
    own, figures = write_own(tmp_path / "own", range(60)), tmp_path / "figures.json"
    options = ("--model", clip_folder, "--data", own, "--zero-shot", "", "--json", figures)
    code, said, err = run("evaluate", *options, "--rescore", "nnn")
    assert code == 0, err
    name, record = f"{clip_folder} by nnn", json.loads(figures.read_text())
    assert f"{name} beside {clip_folder}" in said
    assert list(record["retrieval"]) == [str(clip_folder), name]
    assert list(record["gains"]) == [name]
    best = record["rescoring_on_val"][str(clip_folder)]["text_to_image"][0]
    hubs = record["skewness_of_k_occurrence"][str(clip_folder)]["text_to_image"]
    assert f"text → image: k {best['k']}, " in said
    assert (
        f" ({100 * best['recall_at_1']:.1f} %); skewness of k-occurrence "
        f"{hubs['before']:.2f} → {hubs['after']:.2f}\n"
    ) in said


def test_evaluate_does_not_rescore_by_what_it_measures(run, own, clip_folder) -> None:
    options = ("--model", clip_folder, "--data", own, "--zero-shot", "", "--rescore", "nnn")
    code, out, err = run("evaluate", *options, "--split", "all")
    assert code == 2 and out
    assert all("Pictures left out: 1 unusable" in line for line in out.splitlines())
    assert "Expected a split without pictures of train and val, which rescoring works with" in err


# probe


@pytest.fixture
def taught(clip, clip_folder, fake_detector, tmp_path, monkeypatch) -> SimpleNamespace:
    """A run's folder with both kinds of teachers, which know two of its test pictures."""
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    data, folder = write_own(tmp_path / "drawn", range(60)), tmp_path / "taught"
    profile = replace(PROFILES["pocket"], clip=str(clip_folder), data=str(data))
    test = read_test(str(data), seed=0)
    seen = describe_seen(test.select([0, 1]), test.select([2]), (), by_content=False)
    runs = {}
    for settings in (profile.region_teacher, profile.teacher):
        runs[kind_of(settings)] = TeacherRun(build_teacher(32, settings), settings, [])
        place = folder / kind_of(settings)
        save_teacher_run(runs[kind_of(settings)], place, profile, clip, seen)
    unseen = test.select(range(2, len(test)))
    features = extract_features(clip, fake_detector, unseen, profile.regions)
    looks = {
        name: asdict(probe_teacher(each, clip, features, profile.regions))
        for name, each in runs.items()
    }
    return SimpleNamespace(folder=folder, runs=runs, looks=looks, regions=profile.regions)


def as_json(compositions) -> dict[str, dict[str, dict[str, float]]]:
    return {
        kind: {score: asdict(each) for score, each in scores.items()}
        for kind, scores in compositions.items()
    }


def test_probe_asks_teachers_for_compositions_and_whether_they_look(
    run, clip, clip_folder, taught, tmp_path
) -> None:
    """A run's all, each on the test pictures of the run that it has not trained on; or one."""
    figures = tmp_path / "figures.json"
    asked = ("probe", "--items", "4", "--json", figures, "--teacher")
    code, said, err = run(*asked, taught.folder, "--model", clip_folder)
    assert code == 0, err
    record = json.loads(figures.read_text())
    names = [str(clip_folder), *(f"{taught.folder}/{name}" for name in taught.runs)]
    found = [*record["compositions"]]
    assert found[0] == names[0] and {*found} == {*names}
    assert record["looks"] == {f"{taught.folder}/{x}": found for x, found in taught.looks.items()}
    for name, cosines in score_teachers(taught.runs, clip, taught.regions, 4).items():
        found = record["compositions"][f"{taught.folder}/{name}"]
        assert found == as_json(evaluate_compositions(cosines))
        assert said.count(f"/taught/{name} |") == len(cosines)
    one = taught.folder / "teacher"
    assert run(*asked, one)[0] == 0
    alone = json.loads(figures.read_text())
    assert alone["looks"] == {str(one): record["looks"][str(one)]}
    assert alone["compositions"] == {str(one): record["compositions"][str(one)]}


# search


@pytest.fixture
def searched(tmp_path, monkeypatch, clip_folder) -> list[object]:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    for seed in range(6):
        scene(seed).save(tmp_path / "in" / f"{seed}\n\x1b.png")
    return [tmp_path / "in", "a red ball", "--model", clip_folder]


def test_search_finds_the_nearest_and_remembers(run, searched, clip) -> None:
    code, out, err = run("search", *searched, "--top-k", "3")
    assert code == 0 and "Embedded 6 pictures now, 0 were known" in err
    paths = sorted(searched[0].iterdir())
    scores = encode_images(clip, paths) @ encode_texts(clip, ["a red ball"])[0]
    best = scores.argsort(descending=True)[:3].tolist()
    assert out.splitlines() == [f"{scores[i]:.3f}  {printable(paths[i])}" for i in best]
    assert "\x1b" not in out
    code, out, err = run("search", *searched, "--json", "--top-k", "2")
    assert (code, err) == (0, "")
    (searched[0].parent / "store").mkdir()
    scene(9).save(searched[0].parent / "store/9.png")
    (searched[0] / "linked").symlink_to(searched[0].parent / "store")
    assert "cannot be read. Links out of the folder led to 1.\n" in run("search", *searched)[2]
    shutil.rmtree(searched[0].parent / "store")
    found = json.loads(out)
    assert [hit["path"] for hit in found] == [str(paths[i]) for i in best[:2]]
    assert found[0]["score"] == pytest.approx(float(scores[best[0]]))


def test_search_rescores_by_training_captions(run, searched, own, clip) -> None:
    options = ("--rescore", "dual_softmax", "--references", own, "--top-k", "6", "--json")
    code, out, err = run("search", *searched, *options)
    assert code == 0, err
    paths = sorted(searched[0].iterdir())
    images = encode_images(clip, paths)
    # By the table's word: the caption of the picture that is gone, too.
    captions = encode_texts(clip, [*read_splits(own).train.texts, "a"])
    asked = encode_texts(clip, ["a red ball"])
    scores = rescore(asked @ images.T, captions @ images.T, "dual_softmax")[0]
    best = scores.argsort(descending=True).tolist()
    found = json.loads(out)
    assert [hit["path"] for hit in found] == [str(paths[i]) for i in best]
    assert [hit["score"] for hit in found] == pytest.approx(scores[best].tolist(), abs=1e-5)


def test_search_is_told_what_to_rescore_by(run, searched, tmp_path) -> None:
    code, _, err = run("search", *searched, "--rescore", "nnn")
    assert code == 2 and "name their data with --references" in err
    code, _, err = run("search", *searched, "--references", "pocket")
    assert code == 2 and "no --references without --rescore" in err
    write_coco(tmp_path / "coco", "val2017", "", [1, 2, 3])
    code, _, err = run("search", *searched, "--rescore", "nnn", "--references", tmp_path / "coco")
    assert code == 2 and "train" in err and err.count("\n") <= 2, err


# embed-shards


def test_shards_are_embedded_and_searched(run, tmp_path, clip_folder, clip) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(6):
        scene(seed).save(tmp_path / "in" / f"{seed}\n\x1b.png")
    (tmp_path / "in/bad.png").write_bytes(b"no")
    asked = ("embed-shards", tmp_path / "in", "--model", clip_folder)
    for layout in ("parquet", "clip-retrieval"):
        out = tmp_path / layout
        code, said, err = run(*asked, "--out", out, "--layout", layout)
        assert code == 0, err
        assert "Embedded 6 pictures now, in 1 shards; 0 shards were there. In all, 6" in said
        assert "1 broken" in said
        code, said, _ = run(*asked, "--out", out, "--layout", layout)
        assert code == 0 and "Embedded 0 pictures now, in 0 shards; 1 shards were there" in said
        question = ("search", "a red ball", "--index", out, "--model", clip_folder, "--top-k", "3")
        code, said, err = run(*question)
        assert code == 0, err
        paths = sorted((tmp_path / "in").glob("[0-9]*"))
        scores = encode_images(clip, paths) @ encode_texts(clip, ["a red ball"])[0]
        best = scores.argsort(descending=True)[:3].tolist()
        assert said.splitlines() == [f"{scores[i]:.3f}  {printable(paths[i].name)}" for i in best]
        found = json.loads(run(*question, "--json")[1])
        assert [hit["path"] for hit in found] == [paths[i].name for i in best]
    code, _, err = run(*asked, "--out", tmp_path / "parquet", "--precision", "fp16")
    assert code == 2 and "stored_in fp32, not fp16" in err


def test_failed_shards_are_told_and_end_with_an_error(
    run, tmp_path, clip_folder, monkeypatch
) -> None:
    (tmp_path / "in").mkdir()
    scene(0).save(tmp_path / "in/0.png")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("dclip_kit.search.shards.open_file", fail)
    asked = ("embed-shards", tmp_path / "in", "--model", clip_folder, "--out", tmp_path / "out")
    code, said, err = run(*asked)
    assert code == 2 and "Embedded 0 pictures now" in said
    assert "but 1 failed (the first, 00000: [Errno 5] Input/output error); mend that" in err


# app


@pytest.fixture
def served(monkeypatch) -> list[tuple[SharedPage, int, bool]]:
    """Each page that would be served, its port, and whether a browser opens it."""
    found = []
    monkeypatch.setattr(host, "serve", lambda *given: found.append(given))
    return found


@pytest.fixture
def opened(monkeypatch) -> list[tuple]:
    """What each folder's page would be built of."""
    found = []
    monkeypatch.setattr(
        app_module, "open_folder", lambda tell, *given: iter(found.append(given) or ())
    )
    return found


def build(page: SharedPage) -> dict:
    """What a page says once it has been built."""
    page._run()
    return page.state


def test_a_folders_page_is_served(run, served, opened, tmp_path, monkeypatch) -> None:
    """The folder as it was when the command was given."""
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    given = ["--model", "runs/mine/region_taught", "--port", "8123", "--no-browser"]
    assert run("app", ".", *given, "--before", "moved", "--device", "cpu")[0] == 0
    ((page, port, browser),) = served
    assert (port, browser) == (8123, False)
    assert build(page)["title"] == f"Search {tmp_path.name}, before and after fine-tuning"
    assert opened == [(tmp_path, "runs/mine/region_taught", "cpu", "moved")]


def test_without_a_folder_it_is_the_pockets(run, served, opened) -> None:
    assert run("app")[0] == 0
    ((page, port, browser),) = served
    assert (port, browser) == (8866, True) and not opened
    assert page._build.func is app_module.build_pocket
    assert page._build.keywords == {"device": choose_device("auto")}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "runs/mine/dclip"], "Expected a folder to search with runs/mine/dclip"),
        (["--before", "runs/clip"], "Expected no --before without a folder, got runs/clip"),
        (["--device", "gpu"], "got 'gpu'"),
        (["nowhere"], "Expected pictures ("),
        (["--port", "99999"], "Expected a --port from 1 to 65535, got 99999"),
        (["--port", "0"], "Expected a --port from 1 to 65535, got 0"),
        (["--port", "-1"], "Expected a --port from 1 to 65535, got -1"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments, says, run, served, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("app", *arguments)
    assert code == 2 and says in err and not served


def test_a_port_that_is_in_use_is_refused(run) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = run("app", "--port", port, "--no-browser")
    assert code == 2 and f"Expected a free port, got {port}" in err


@pytest.mark.parametrize("missing", ["uvicorn", "websockets", "anywidget"])
def test_a_missing_extra_names_the_line_that_brings_it(missing, run, served, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = run("app")
    assert code == 2 and "pip install 'dclip-kit[app]'" in err and not served


# Refusals: a sentence on stderr, exit code 2, no traceback


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "nowhere"], "Expected a file or folder at nowhere, found nothing"),
        (["inspect", "own", "--format", "xml"], "Expected a format of csv, jsonl"),
        (["inspect", "own", "--json", "own"], "Expected a file that can be written at own"),
        (["detect", "nowhere", "--out", "o.json"], "at nowhere or in folders below it, found none"),
        (["detect", "empty", "--out", "o.json"], "at empty or in folders below it, found none"),
        (["detect", "own", "--out", "own/0.png/o.json"], "Expected a file that can be written"),
        (["detect", "own", "--out", "o.json", "--drawn", "own/0.png"], "Expected a folder that"),
        (["search", "empty", "x"], "Expected pictures ("),
        (["search", "own", " "], "Expected a query with some text and a --top-k from 1, got ' '"),
        (["search", "own", "x", "--top-k", "0"], "a --top-k from 1"),
        (["search", "x"], "Expected a folder and a query, or, with --index"),
        (["search"], "Expected a folder and a query, or, with --index"),
        (["search", "own", "x", "--index", "own"], "a query alone, got 'own', 'x'"),
        (["search", "x", "--index", "own", "--rescore", "nnn"], "without --rescore, a query alone"),
        (["search", "x", "--index", "empty"], "Expected embeddings in empty, found none"),
        (["embed-shards", "nowhere", "--out", "o"], "Expected tars, parquet files or pictures at"),
        (["embed-shards", "own", "--out", "own/o"], "Expected --out outside"),
        (["embed-shards", "own", "--out", "o", "--workers", "2"], "with --ray, got 2"),
        (["search", "own", "x", "--model", "no-such-clip"], "got 'no-such-clip'"),
        (["search", "own", "x", "--device", "cuda:99"], "Expected a device of this machine"),
        (["evaluate", "--data", "own", "--json", "own"], "Expected a file that can be written"),
        (["probe", "--model", "no-such-clip"], "got 'no-such-clip'"),
        (["probe", "--model", "pocket", "--json", "own"], "Expected a file that can be written"),
        (["probe", "--teacher", "empty"], "Expected a trained teacher in empty, found none"),
        (["probe", "--model", "pocket", "--items", "0"], "--items from 1, got 0"),
        (["probe", "--teacher", "pocket", "--items", "0"], "--items from 1, got 0"),
        (["probe"], "got none; name some with --model or --teacher"),
        (["evaluate", "--data", "nowhere"], "found nothing"),
        (["evaluate", "--profile", "paper"], "give --data"),
        (["distill", "--out", "o", "--data", "nowhere"], "found nothing"),
        (["distill", "--out", "o", "--profile", "paper"], "give as data captioned pictures"),
        (["train-teacher", "--out", "own/0.png"], "Expected a folder that can be written"),
        (["distill", "--out", "o", "--uncaptioned", "nowhere"], "check --uncaptioned"),
        (["distill", "--out", "o", "--uncaptioned", "pocket:x"], "pocket:COUNT"),
        (["distill", "--out", "o", "--recipe", "rehearsal"], "(choose from 'region_taught', "),
        (["distill", "--out", "o", "--profile", "big"], "'big' (choose from 'pocket', 'base'"),
        (["distill"], "--out"),
        (["detect", "own", "--out", "o.json", "--confidnce", "1"], "--confidence FLOAT"),
        (["distill", "--out", "o", "--profil", "base"], "--profile {pocket,base,paper}"),
        (["evalute"], "Unrecognized options: evalute"),
        (["zzz"], "Available subcommands: inspect, curate, detect"),
        (["inspect", "own/captions.csv", "--format", "coco", "--images", "x"], "Expected a folder"),
        (["inspect", "own/0.png"], "say which with --format (format= in Python), or bring"),
        (["search", "own", "x", "--device", "meta"], "cuda:0, got 'meta' ("),
        (["search", "own", "x", "--device", "hpu"], "cuda:0, got 'hpu' ("),
        (["distill", "--out", "o", "--device", "cuda:99"], "Expected a device of this machine"),
        (["train-teacher", "--out", "o", "--device", "hpu"], "cuda:0, got 'hpu' ("),
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    arguments, says, own, run, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert says in " ".join(err.split()) and "Traceback" not in err
    new = {each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*")} - {
        each.relative_to(tmp_path).as_posix() for each in before
    }
    assert not new


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--student.train", "foo"],
            "student.train out of projection, attention, norms, last_blocks(n)",
        ),
        (["--regions.confidence", "5"], "regions.confidence to be a number from 0 to 1, got 5.0;"),
        (["--student.epochs", "0"], "student.epochs to be a whole number from 1, got 0;"),
        (["--selection.alphas"], "selection.alphas to be one or more numbers from 0 to 1, got ();"),
        (["--teacher.learning-rate", "nan"], "teacher.learning_rate to be a finite number"),
        (["--student.contrastive-weight", "-1"], "student.contrastive_weight to be a finite"),
        (["--teacher.heads", "0"], "teacher.heads to be a whole number from 1, got 0;"),
        (["--region-teacher.width", "0"], "region_teacher.width to be a whole number from 1"),
        (["--regions.margin", "-1"], "regions.margin to be a finite number from 0, got -1.0;"),
        (["--seed", "-1"], "seed to be a whole number from 0"),
        (
            ["--student.distillation-weight", "0"],
            "recipe region_taught, got 0.0; give another, or take --recipe contrastive_rehearsal.",
        ),
        (
            ["--recipe", "contrastive_rehearsal", "--student.distillation-weight", "1"],
            "got 1.0; give another, or take --recipe region_taught or crops_taught or whole",
        ),
        (
            ["--recipe", "contrastive_rehearsal", "--student.rehearsal-weight", "0"],
            "student.rehearsal_weight above 0 in the recipe contrastive_rehearsal",
        ),
        (
            ["--recipe", "dclip", "--student.rehearsal-weight", "4"],
            "student.rehearsal_weight to be 0 in the recipe dclip, got 4.0",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["train-teacher", "distill"])
def test_a_setting_is_refused_in_a_sentence_before_anything_is_done(
    command, arguments, says, run, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loader = "dclip_kit.evaluation.profile_data.load_data"
    monkeypatch.setattr(loader, lambda _: pytest.fail("data was read"))
    code, out, err = run(command, "--out", tmp_path / "o", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("python -m dclip_kit: Expected ") and says in err
    assert not list(tmp_path.iterdir())


def test_a_value_of_another_type_shows_the_option(run) -> None:
    code, _, err = run("distill", "--out", "o", "--student.epochs", "abc")
    assert code == 2 and "Error parsing --student.epochs: invalid literal" in err


def test_a_full_disk_is_said_in_a_sentence(run, options, tmp_path, monkeypatch) -> None:
    """safetensors raises an error of its own for it."""

    def fill(_, path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dclip_kit.runtime.files.save_file", fill)
    code, _, err = run("train-teacher", "--out", tmp_path / "o", *options)
    assert code == 2 and err.count("\n") == 1 and "No space left on device" in err
    assert ".safetensors, but it cannot be written" in err
    assert not list((tmp_path / "o").rglob("*.safetensors*"))


def test_too_little_memory_on_a_device_is_said_in_a_sentence(run, own, monkeypatch) -> None:
    def run_out(*_, **__):
        raise error

    monkeypatch.setattr("dclip_kit.data.inspect_data", run_out)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")
    code, _, err = run("inspect", own)
    assert code == 2 and "Tried to allocate 9 GiB.); take smaller batches, " in err
    error = RuntimeError("something that nobody has foreseen")
    with pytest.raises(RuntimeError, match="foreseen"):
        run("inspect", own)


def test_stopping_a_command_is_no_traceback(run, own, monkeypatch) -> None:
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dclip_kit.data.inspect_data", stop)
    code, _, err = run("inspect", own)
    assert code == 130 and "stopped" in err


# Help


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_given_and_flows(command, run) -> None:
    code, out, _ = run(*[command] * bool(command), "--help")
    assert code == 0 and "usage: python -m dclip_kit" in out
    assert run()[1].startswith("usage")  # nothing asked is help, too
    assert out.count("--profile {pocket,base,paper}") == (command not in ("", *UNPROFILED))
    assert ("--recipe STR" in out) is (command in ("pilot", "train-teacher", "distill"))


def test_help_says_what_each_format_needs(run) -> None:
    said = " ".join(run("inspect", "--help")[1].replace("│", "").split())
    assert all(f"{format} ({needs})" in said for format, needs in FORMATS.items())


def test_a_profile_sets_the_defaults(run) -> None:
    for arguments in (["--profile", "base"], ["--profile=base"]):
        out = " ".join(run("distill", *arguments, "--help")[1].replace("│", "").split())
        assert "(default: ViT-B-32-quickgelu)" in out and "(default: yolov8n.pt)" in out
        assert "(default: 1e-06)" in out
    assert "(default: base)" in " ".join(run("inspect", "--profile", "base", "--help")[1].split())
    detect = run("detect", "--help", "--profile", "paper")[1].replace("│", "")
    assert "(default: yolov8x.pt)" in " ".join(detect.split())
    assert "(default: auto)" in run("distill", "--help")[1]
    published = " ".join(run("distill", "--recipe", "official_code", "--help")[1].split())
    assert "(default: attention)" in published and "(default: official_code)" in published


# What commands share


def test_a_result_goes_where_it_can(tmp_path, monkeypatch) -> None:
    require_writable(tmp_path / "new/deep/o.json")
    require_writable(tmp_path / "new", "folder")
    require_writable(tmp_path, "folder")
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path / "locked")
    (tmp_path / "locked").mkdir()
    with pytest.raises(ValueError, match="Expected a folder that can be written"):
        require_writable(tmp_path / "locked", "folder")
    null = Path("/dev/null")
    for path, kind in [(tmp_path, "file"), (null, "file"), (null, "folder")]:
        with pytest.raises(ValueError, match=f"Expected a {kind} that can be written"):
            require_writable(path, kind)


def test_a_missing_package_is_said_in_a_sentence(run, monkeypatch, own) -> None:
    def lack(*_, **__):
        raise ImportError("Expected a CLIP, but its files need transformers.")

    monkeypatch.setattr("dclip_kit.models.clip.load_clip", lack)
    code, _, err = run("search", own, "x", "--model", "pocket")
    assert code == 2 and "need transformers" in err


def test_choosing_a_device_leaves_the_environment_as_it_is(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for variables in ({}, {"ACCELERATE_TORCH_DEVICE": "meta", "LOCAL_RANK": "1"}):
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
        before = dict(os.environ)
        assert choose_device("cpu") == "cpu"
        assert choose_device("auto") == f"cuda:{variables.get('LOCAL_RANK', 0)}"
        assert dict(os.environ) == before


def test_the_device_is_chosen(monkeypatch) -> None:
    assert choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == "cuda:3"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="got 'gpu'"):
        choose_device("gpu")


@pytest.mark.parametrize("command", [["app", "."], ["export", "pocket"]], ids=" ".join)
@pytest.mark.parametrize("option", [["--profile", "base"], ["--recipe", "dclip"]], ids=" ".join)
def test_what_a_command_would_not_heed_is_refused(command, option, capsys) -> None:
    for given in (command + option, option + command):
        assert main(given) == 2
        assert f"no --recipe for {command[0]}, got {option[1]}; its" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([command[0], "--help"])
    assert "--profile" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["search", "pilot", "inspect", "embed-shards"])
def test_one_process_is_asked_for_where_several_would_wait_for_each_other(
    command, run, monkeypatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run(command)
    assert code == 2 and f"Expected one process for {command}, got 2" in err


@pytest.mark.parametrize("command", ["inspect", "evaluate", "search", "embed-shards", "probe"])
def test_a_recipe_that_would_change_nothing_is_refused(command, run) -> None:
    code, _, err = run(command, "--recipe", "dclip")
    assert code == 2 and f"Expected no --recipe for {command}, got dclip" in err


def test_under_ray_no_device_is_chosen(run, tmp_path) -> None:
    given = ("--out", tmp_path / "out", "--ray", "local", "--device", "cpu")
    code, _, err = run("embed-shards", tmp_path, *given)
    assert code == 2 and "Expected no --device with --ray" in err
