"""Commands on data that would hang them, be strewn over, or be taken for something else."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from threading import Event, Thread

import pytest
import torch
from filelock import FileLock

from dclip_kit.models.encode import encode_images, encode_texts
from tests.data.test_splits import write_own


def put_special_files(folder: Path) -> Path:
    """Three files of a data set that never end or are none."""
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    with (folder / "captions.csv").open("a") as file:
        file.writelines(f"\n{name}.png,a {name}" for name in ("pipe", "zero", "folder"))
    return folder


@pytest.mark.parametrize("split", ["test", "all"])
def test_special_files_are_left_out_and_told(run, clip_folder, tmp_path, split) -> None:
    own = put_special_files(write_own(tmp_path / "own", range(40)))
    code, said, err = run(
        *("evaluate", "--model", clip_folder, "--data", own, "--zero-shot", "", "--split", split)
    )
    assert code == 0, err
    assert "3 unusable" in said and "it is no file" in said
    code, said, _ = run("search", own, "a dog", "--model", clip_folder)
    assert code == 0 and len(said.splitlines()) == 5
    code, said, _ = run("inspect", own)
    assert code == 0 and "40 usable, 3 unusable" in said


@pytest.mark.parametrize("beside", ["0.txt", "0.json", "captions.csv", "captions.jsonl"])
def test_a_pipe_in_place_of_annotations_is_told(run, tmp_path, beside) -> None:
    own = write_own(tmp_path / "own", range(2))
    (own / "captions.csv").unlink()
    (own / "1.txt").write_text("a dog")
    os.mkfifo(own / beside)
    _, said, err = run("inspect", own)
    assert "it is no file" in said + err


@pytest.mark.parametrize(
    "command",
    [
        ("distill", "--data", "own"),
        ("train-teacher", "--data", "own"),
    ],
    ids=lambda command: command[0],
)
def test_results_are_not_strewn_among_other_files(command, run, own, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(*command, "--out", "own")
    assert code == 2 and "at own that is empty or that this command began, got one with" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_features_are_not_strewn_among_other_files(run, own, tmp_path) -> None:
    options = ("--data", own, "--out", tmp_path / "run", "--features", own)
    code, _, err = run("distill", *options)
    assert code == 2 and f"at {own} that is empty" in err and not (tmp_path / "run").exists()


def test_an_empty_folder_and_one_that_was_begun_are_taken(run, options, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()
    (out / ".settings.json.1a2b3c4d.tmp").touch()  # of a run that was killed at once
    for _ in range(2):
        code, _, err = run("train-teacher", "--out", out, *options)
        assert code == 0, err


def test_what_rescoring_makes_is_not_called_a_cosine(run, own, clip, clip_folder) -> None:
    asked = ("search", own, "a dog", "--model", clip_folder, "--top-k", "4", "--json")
    given = ("--rescore", "nnn", "--references", own)
    plain, rescored = (json.loads(run(*asked, *more)[1]) for more in ((), given))
    query = encode_texts(clip, ["a dog"])
    for hit in plain:
        assert hit.keys() == {"path", "score"}
        cosine = float(query @ encode_images(clip, [Path(hit["path"])]).T)
        assert hit["score"] == pytest.approx(cosine, abs=1e-5)
    for hit in rescored:
        cosine = float(query @ encode_images(clip, [Path(hit["path"])]).T)
        assert hit["cosine"] == pytest.approx(cosine, abs=1e-5)
        assert hit["score"] < hit["cosine"] - 0.01
    scores = torch.tensor([hit["score"] for hit in rescored])
    assert scores.equal(scores.sort(descending=True).values)


def test_labelled_pictures_that_are_not_there_are_told(run, own, clip_folder) -> None:
    given = ("--model", clip_folder, "--data", own, "--zero-shot")
    for place in ("imagenet:/nonexistent", "imagenet:", "nowhere"):
        code, _, err = run("evaluate", *given, place)
        folder = place.removeprefix("imagenet:") or place
        assert (
            code == 2 and f"Expected a folder of labelled pictures at {folder}, found none" in err
        )


def test_a_folder_that_cannot_be_read_is_told(run, own, monkeypatch) -> None:
    (own / "locked").mkdir()
    scan = os.scandir

    def refuse(place):
        if Path(place).name == "locked":
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    code, _, err = run("search", own, "a dog")
    assert code == 2 and "locked cannot be read (Permission denied)" in err and "name a" in err


def test_a_caption_of_nothing_stops_no_encoding(run, own, options, tmp_path) -> None:
    with (own / "captions.csv").open("a") as file:
        file.write("\n1.png,&nbsp;,train\n2.png,<end_of_text> a dog,train")
    code, said, err = run("train-teacher", "--out", tmp_path / "out", *options)
    assert code == 0 and "3 unusable" in said, err
    code, said, _ = run("inspect", own)
    assert "captions.csv:44" in said and "captions.csv:45" in said


def test_captions_with_their_end_inside_are_told_as_cut(run, own, clip_folder) -> None:
    table = own / "captions.csv"
    table.write_text(table.read_text().replace("again 19", "a dog <end_of_text> on grass"))
    given = ("--model", clip_folder, "--data", own, "--zero-shot", "", "--split", "all")
    code, said, _ = run("evaluate", *given)
    assert code == 0 and f"1 captions are longer than what {clip_folder} reads" in said
    assert "(1 of them cut" in run("inspect", own)[1]


def test_a_shard_replaced_in_place_is_unpacked_again(run, own, tmp_path) -> None:
    def pack(text: str) -> None:
        folder = tmp_path / "packed"
        folder.mkdir()
        shutil.copy(own / "1.png", folder / "1.png")
        (folder / "1.txt").write_text(text)
        shutil.make_archive(str(tmp_path / "data"), "tar", folder)
        shutil.rmtree(folder)
        os.utime(tmp_path / "data.tar", ns=(5, 5))

    from dclip_kit.data import read_captioned

    for text in ("a dog", "a cat"):
        pack(text)
        assert read_captioned(tmp_path / "data.tar").dataset.texts == [text]


def test_captions_to_rescore_by_need_no_look_at_pictures(
    run, own, clip_folder, tmp_path, monkeypatch
) -> None:
    """They are read by the table's word: neither leaks nor broken pictures matter to them."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(own / "1.png", pictures)
    for file in own.glob("*.png"):
        file.write_bytes(b"no picture")
    monkeypatch.setitem(sys.modules, "imagehash", None)
    given = ("--model", clip_folder, "--rescore", "nnn", "--references", own)
    code, said, err = run("search", pictures, "a dog", *given)
    assert code == 0 and "1.png" in said, err


def test_waiting_for_another_search_is_no_hit(run, own, clip_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DCLIP_CACHE", str(tmp_path / "cache"))
    asked = ("search", own, "a dog", "--model", clip_folder, "--json")
    expected = json.loads(run(*asked)[1])
    (lock,) = (tmp_path / "cache/locks").glob("*.lock")
    taken = Event()

    def hold() -> None:
        with FileLock(lock):
            taken.set()
            time.sleep(1)

    Thread(target=hold).start()
    assert taken.wait(60)
    code, said, err = run(*asked)
    assert code == 0 and json.loads(said) == expected and "waiting for it" in err
