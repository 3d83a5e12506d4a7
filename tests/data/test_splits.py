"""Three splits from every kind of data, without twins, and a true word about what was left out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dclip_kit.data import curate, read_captioned
from dclip_kit.data.collect import UsableImages
from dclip_kit.data.formats import find_formats
from dclip_kit.data.leaks import OWN
from dclip_kit.data.pictures import CaptionedImages, LabelledImages
from dclip_kit.data.splits import (
    LeftOut,
    assign_splits,
    halve_labelled,
    read_splits,
    read_test,
    read_uncaptioned,
)
from tests.data.test_coco import write_coco
from tests.data.test_formats import STRAYS
from tests.data.test_karpathy import coco_entry
from tests.data.test_leaks import scene


def write_own(folder: Path, seeds: range, rows: tuple[str, ...] = (), split: bool = False) -> Path:
    """A captions.csv of one's own, with a picture a seed.

    Args:
        folder: to write into.
        seeds: of the pictures.
        rows: more of the table.
        split: whether a column says that the last two pictures are test, two before them val.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,caption" + ",split" * split]
    for place, seed in enumerate(seeds, start=1 - len(seeds)):
        own = f",{'test' if place > -2 else 'val' if place > -4 else 'train'}" * split
        # Bytes that no version of a library changes, as they decide a picture's split.
        scene(seed).save(folder / f"{seed}.png", format="BMP")
        lines += [f"{seed}.png,picture {seed}{own}", f"{seed}.png,again {seed}{own}"]
    lines += [row + ",train" * split for row in rows]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def names(dataset) -> list[str]:
    return [path.name for path in dataset.paths]


def test_data_without_splits_is_divided(tmp_path) -> None:
    splits = read_splits(write_own(tmp_path, range(100)))
    sizes = {part: len(getattr(splits, part)) for part in ("train", "val", "test")}
    assert sum(sizes.values()) == 100 and min(sizes["val"], sizes["test"]) > 2
    assert sorted(names(splits.train) + names(splits.val) + names(splits.test)) == sorted(
        f"{seed}.png" for seed in range(100)
    )
    assert [splits.train.split, splits.val.split, splits.test.split] == ["train", "val", "test"]
    assert str(splits.left_out) == ""
    assert read_splits(tmp_path, seed=1).test != splits.test == read_splits(tmp_path).test
    assert read_test(tmp_path).paths == splits.test.paths != read_test(tmp_path, seed=1).paths


@pytest.mark.parametrize("seed", [0, 1])
def test_a_column_says_the_splits(seed, tmp_path) -> None:
    splits = read_splits(write_own(tmp_path, range(20), split=True), seed=seed)
    assert names(splits.test) == ["18.png", "19.png"] and names(splits.val) == ["16.png", "17.png"]
    assert names(splits.train) == [f"{number}.png" for number in range(16)]
    assert read_test(tmp_path, seed=seed).paths == splits.test.paths
    # Where other data is measured on, the test is left alone and not trained on.
    elsewhere = read_splits(tmp_path, test=write_own(tmp_path / "other", range(30, 33)), seed=seed)
    assert elsewhere.train.paths == splits.train.paths and len(elsewhere.test) == 3
    given = read_splits(write_own(tmp_path / "mine", range(40, 140)), test=tmp_path, seed=seed)
    assert names(given.test) == ["18.png", "19.png"]  # its own test, and not all of it


def test_folders_say_the_splits(tmp_path) -> None:
    for folder, seeds in {"train": range(8), "validation": range(8, 11), "test": (20, 21)}.items():
        (tmp_path / folder).mkdir()
        for seed in seeds:
            scene(seed).save(tmp_path / folder / f"{seed}.png")
            (tmp_path / folder / f"{seed}.txt").write_text("a picture")
    splits = read_splits(tmp_path)
    assert (len(splits.train), names(splits.val)) == (8, ["10.png", "8.png", "9.png"])
    assert names(splits.test) == ["20.png", "21.png"]


def test_a_split_that_the_data_lacks_is_drawn_from_train(tmp_path) -> None:
    own = write_own(tmp_path, range(100), split=True)
    table = own / "captions.csv"
    table.write_text(table.read_text().replace(",val", ",train"))
    splits = read_splits(own)
    assert names(splits.test) == ["98.png", "99.png"]
    assert len(splits.val) > 2 and len(splits.train) + len(splits.val) == 98


def test_splits_that_got_too_few_pictures_are_refused(tmp_path) -> None:
    own = write_own(tmp_path, range(5), split=True)
    with pytest.raises(
        ValueError, match=r"2 pictures in each split.* train 1, val 2, test 2; give"
    ):
        read_splits(own)
    drawn = write_own(tmp_path / "drawn", range(4))
    with pytest.raises(ValueError, match=r"each split of drawn, got train \d, val \d, test \d"):
        read_splits(drawn)
    with pytest.raises(ValueError, match=r"2 pictures to measure on in .*drawn, got [01] of 4"):
        read_test(drawn)
    # A column that names a test alone says nothing of what to train on.
    table = own / "captions.csv"
    table.write_text(table.read_text().replace(",train", ",test").replace(",val", ",test"))
    with pytest.raises(ValueError, match="train 0, val 0, test 5"):
        read_splits(own)
    assert len(read_test(own)) == 5


def test_twins_leave_the_split_that_is_trained_on(tmp_path) -> None:
    """Every picture once more, smaller: whatever is in val or test has its twin out of train."""
    write_own(tmp_path, range(20))
    rows = []
    for seed in range(20):
        scene(seed).resize((80, 60)).save(tmp_path / f"small{seed}.png")
        rows.append(f"small{seed}.png,small {seed}")
    splits = read_splits(write_own(tmp_path, range(20), tuple(rows)))
    number = [
        {int(name.removeprefix("small")[:-4]) for name in names(part)}
        for part in (splits.train, splits.val, splits.test)
    ]
    assert not (number[0] & number[1] or number[0] & number[2] or number[1] & number[2])
    leaks = splits.left_out.leaks
    assert leaks and len(splits.train) + len(splits.val) + len(splits.test) + len(leaks) == 40
    assert all(leak.by.startswith("content") for leak in leaks)
    assert "in another split too (the first, " in str(splits.left_out)
    by_name = read_splits(tmp_path, by_content=False)
    assert not by_name.left_out.leaks and by_name.test == splits.test


def test_equal_names_in_two_folders_are_two_pictures(tmp_path) -> None:
    for place in ("cats", "dogs"):
        for seed in range(50):
            (tmp_path / place).mkdir(exist_ok=True)
            picture = scene(seed + 100 * (place == "dogs"))
            picture.save(tmp_path / place / f"{seed}.png", format="BMP")
            (tmp_path / place / f"{seed}.txt").write_text(f"one of {place}")
    splits = read_splits(tmp_path)
    assert not splits.left_out.leaks
    assert len(splits.train) + len(splits.val) + len(splits.test) == 100


def test_numbers_name_pictures_where_nothing_else_tells(tmp_path) -> None:
    own = write_own(tmp_path / "own", range(20))
    for seed in range(10):
        scene(50 + seed).save(own / f"{seed}.png")
    test = write_own(tmp_path / "test", range(3, 6))
    assert not read_splits(own, test=test).left_out.leaks
    by_name = read_splits(own, test=test, by_content=False).left_out.leaks
    assert sorted(leak.picture.name for leak in by_name) == ["3.png", "4.png", "5.png"]


def test_what_cannot_be_used_is_counted_and_named(tmp_path) -> None:
    rows = ("gone.png,a", "0.png,", "blank.png, ", "plain1.png,p", "plain2.png,p")
    for name, value in (("blank", 3), ("plain1", 40), ("plain2", 41)):
        Image.new("RGB", (9, 9), (value,) * 3).save(tmp_path / f"{name}.png")
    left_out = read_splits(write_own(tmp_path, range(12), rows, split=True)).left_out
    assert [Path(place).name for place in left_out.unusable] == ["gone.png"]
    assert (left_out.without_captions, left_out.empty_captions) == (1, 2)
    assert {Path(p).name for p in left_out.not_compared} <= {"plain1.png", "plain2.png"}
    said = str(left_out)
    assert said.startswith("Pictures left out: 1 unusable (the first, ")
    assert "1 without a caption." in said and said.endswith("Compared by name alone: 2.")
    record = json.loads(json.dumps(left_out.as_dict()))
    assert record["unusable"][0]["path"].endswith("gone.png") and record["not_compared"] == 2


def test_what_is_left_out_of_the_test_is_printed(tmp_path, capsys) -> None:
    """Of drawn splits nobody knows whose the unreadable pictures would have been."""
    own = write_own(tmp_path, range(60))
    assert len(read_test(own)) > 1
    assert capsys.readouterr().out == ""
    for seed in range(40, 60):
        (own / f"{seed}.png").unlink()
    assert read_test(own)
    assert "Pictures left out: 20 unusable (the first, " in capsys.readouterr().out
    shown = read_test(tmp_path, test=write_own(tmp_path / "other", range(3), ("gone.png,x",)))
    assert len(shown) == 3
    assert capsys.readouterr().out.startswith("Of other: Pictures left out: 1 unusable")


def test_copies_within_a_split_are_counted(tmp_path, capsys) -> None:
    """They tie, so that neither is found first, and are each other's wrong answers in training."""
    own = write_own(tmp_path, range(10), split=True)
    shutil.copy(own / "9.png", own / "copy.png")
    with (own / "captions.csv").open("a") as table:
        table.write("\ncopy.png,the same,test")
    says = "Copies of pictures in the same split, each of which counts: 1."
    left_out = read_splits(own).left_out
    assert left_out.copies == 1 and str(left_out) == says
    assert json.loads(json.dumps(left_out.as_dict()))["copies"] == 1
    assert len(read_test(own)) == 3
    assert says in capsys.readouterr().out


def test_karpathys_splits_serve_as_they_are_called(tmp_path) -> None:
    entries = []
    for number, split in enumerate(["train", "restval", "restval", "val", "val", "test", "test"]):
        entries.append(coco_entry(number + 1, "val2014", split, f"caption {number}"))
        (tmp_path / "val2014").mkdir(exist_ok=True)
        scene(number).save(tmp_path / "val2014" / entries[-1]["filename"])
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}))
    splits = read_splits(tmp_path / "dataset_coco.json")
    assert splits.train.image_ids == ("coco:1", "coco:2", "coco:3")
    assert (splits.val.image_ids, splits.test.image_ids) == (
        ("coco:4", "coco:5"),
        ("coco:6", "coco:7"),
    )
    (tmp_path / "val2014" / entries[0]["filename"]).unlink()  # not needed for the test alone
    assert read_test(tmp_path).paths == splits.test.paths
    scene(0).save(tmp_path / "val2014" / entries[0]["filename"])
    other = write_own(tmp_path / "own", range(50, 53))
    measured = read_splits(tmp_path, test=other)
    assert names(measured.test) == ["50.png", "51.png", "52.png"]
    # The test picture of the file is left alone, not trained on.
    assert measured.train.image_ids == splits.train.image_ids


def test_cocos_val_is_the_test_unless_another_is_given(tmp_path) -> None:
    numbers = [n for n in range(1, 151) if n % 3]  # picture 3n has no caption there
    write_coco(tmp_path, "train2017", "", numbers)
    write_coco(tmp_path, "val2017", "", [200, 202])
    for i, path in enumerate(sorted(tmp_path.glob("*2017/*.jpg"))):
        scene(i).save(path, format="BMP")
    splits = read_splits(tmp_path)
    assert splits.test.image_ids == ("coco:200", "coco:202")
    assert len(splits.train) + len(splits.val) == 100 and len(splits.val) > 2
    assert read_test(tmp_path).paths == splits.test.paths
    own = write_own(tmp_path / "own", range(250, 253))
    measured = read_splits(tmp_path, test=own)
    assert (len(measured.train), measured.val.image_ids) == (100, splits.test.image_ids)
    one_file = read_splits(tmp_path / "annotations/captions_train2017.json")
    parts = (one_file.train, one_file.val, one_file.test)
    assert sum(map(len, parts)) == 100 and min(map(len, parts)) > 2


def test_a_test_of_its_own_is_the_test_of_data_in_cocos_form(tmp_path) -> None:
    """COCO has none with captions; others have, in the same files."""
    for subset, numbers in (("train", [1, 2, 4]), ("val", [5, 7]), ("test", [8, 10])):
        write_coco(tmp_path, subset, "", numbers)
    for i, path in enumerate(sorted(tmp_path.glob("*/*.jpg"))):
        scene(i).save(path, format="BMP")
    splits = read_splits(tmp_path)
    found = {name: names(getattr(splits, name)) for name in ("train", "val", "test")}
    assert found == {
        name: [f"{number:012d}.jpg" for number in numbers]
        for name, numbers in (("train", [1, 2, 4]), ("val", [5, 7]), ("test", [8, 10]))
    }
    assert read_test(tmp_path).paths == splits.test.paths


@pytest.fixture
def manifest(tmp_path) -> Path:
    own = read_captioned(write_own(tmp_path / "own", range(20))).dataset
    curate({"own": own}, tmp_path / "mixture.json", [], mixture={"own": 20})
    return tmp_path / "mixture.json"


def test_a_manifest_says_the_splits_and_its_val_is_the_test_unless_another_is_given(
    manifest, tmp_path
) -> None:
    splits = read_splits(manifest, test=write_own(tmp_path / "test", range(30, 33)))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 2, 3)
    assert read_test(manifest).paths == splits.val.paths
    (tmp_path / "own/3.png").unlink()
    left_out = read_splits(manifest, test=tmp_path / "test").left_out
    assert [Path(place).name for place in left_out.unusable] == ["3.png"]


def test_test_pictures_that_a_manifest_holds_are_left_out(manifest, tmp_path) -> None:
    splits = read_splits(manifest, test=write_own(tmp_path / "test", range(18, 33)))
    assert {leak.picture.name for leak in splits.left_out.leaks} == {"18.png", "19.png"}
    assert not {"18.png", "19.png"} & {*names(splits.train), *names(splits.val)}
    assert len(splits.test) == 15


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p])
def test_no_data_says_so(make, tmp_path) -> None:
    with pytest.raises(ValueError, match="Expected"):
        read_splits(make(tmp_path))


def test_a_split_that_leaks_emptied_says_why(tmp_path) -> None:
    own = write_own(tmp_path / "own", range(8))
    with pytest.raises(ValueError, match=r"at least 2 .*train 0.* another split"):
        read_splits(own, test=write_own(tmp_path / "test", range(8)))


def test_nothing_left_out_says_nothing() -> None:
    assert str(LeftOut({}, 3, 0, (), {})) == ""


# Splits that a seed decides: of the right sizes, with copies together, the same everywhere


def write_files(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    """Files of these bytes; nothing here looks at the pictures themselves."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return write_files(tmp_path / "own", {f"{i}.jpg": f"picture {i}".encode() for i in range(500)})


def draw_splits(paths: list[Path], needed: list[str], seed: int = 0) -> list[str]:
    dataset = CaptionedImages(tuple(paths), ((),) * len(paths), "all", "own")
    return assign_splits(UsableImages(dataset, {}), seed, needed)


def drawn(paths: list[Path], splits: list[str], split: str) -> set[str]:
    return {path.name for path, own in zip(paths, splits, strict=True) if own == split}


def test_about_a_tenth_goes_to_each_split(paths) -> None:
    splits = draw_splits(paths, ["val", "test"])
    assert set(splits) == {"train", "val", "test"}
    for split in ("val", "test"):  # a binomial of 500: three standard deviations are 20
        assert 30 <= splits.count(split) <= 70


def test_what_exists_is_not_drawn(paths) -> None:
    assert set(draw_splits(paths, [])) == {"train"}
    both, val = draw_splits(paths, ["val", "test"]), draw_splits(paths, ["val"])
    assert set(val) == {"train", "val"}
    assert drawn(paths, val, "val") == drawn(paths, both, "val")  # the same, drawn alone
    test = draw_splits(paths, ["test"])
    assert drawn(paths, test, "test") == drawn(paths, both, "test")


def test_the_seed_decides_and_neither_names_nor_order_do(paths, tmp_path) -> None:
    first = drawn(paths, draw_splits(paths, ["val"], 7), "val")
    backwards = paths[::-1]
    assert drawn(backwards, draw_splits(backwards, ["val"], 7), "val") == first
    assert drawn(paths, draw_splits(paths, ["val"], 8), "val") != first
    renamed = write_files(tmp_path / "b", {f"x{p.name}": p.read_bytes() for p in paths})
    moved = drawn(renamed, draw_splits(renamed, ["val"], 7), "val")
    assert {name[1:] for name in moved} == first


def test_a_picture_keeps_its_split_whatever_is_added(paths, tmp_path) -> None:
    before = dict(zip(paths, draw_splits(paths, ["val", "test"]), strict=True))
    more = write_files(tmp_path / "own", {f"new {i}.jpg": f"more {i}".encode() for i in range(900)})
    after = dict(zip(paths + more, draw_splits(paths + more, ["val", "test"]), strict=True))
    assert {path: after[path] for path in paths} == before
    assert "test" in {after[path] for path in more}


def test_copies_of_a_file_stay_together(paths) -> None:
    copies = [path.with_name(f"copy of {path.name}") for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        shutil.copy(path, copy)
    splits = draw_splits(paths + copies, ["val", "test"])
    assert splits[: len(paths)] == splits[len(paths) :]


def test_a_picture_that_has_gone_is_of_no_split(paths) -> None:
    before = draw_splits(paths, ["val"])
    paths[3].unlink()
    assert draw_splits(paths, ["val"]) == [*before[:3], "", *before[4:]]


def labelled(labels: list[int]) -> LabelledImages:
    paths = tuple(Path(f"{i}.jpg") for i in range(len(labels)))
    return LabelledImages(paths, tuple(labels), ("a", "b", "c"), (True,) * 3, "own")


def test_labelled_pictures_are_halved_class_by_class() -> None:
    whole = labelled([0, 1, 2] * 20 + [0])
    val, test = halve_labelled(whole, 3)
    assert (len(val), len(test)) == (31, 30)
    assert set(val.paths) | set(test.paths) == set(whole.paths)
    assert not set(val.paths) & set(test.paths)
    labels = dict(zip(whole.paths, whole.labels, strict=True))
    for half in (val, test):
        assert all(abs(half.labels.count(label) - 10) <= 1 for label in range(3))
        assert half.labels == tuple(labels[path] for path in half.paths)
        assert (half.class_names, half.source) == (whole.class_names, whole.source)
    assert halve_labelled(whole, 3) == (val, test)
    assert halve_labelled(whole, 4)[0] != val


# Without captions


@pytest.fixture
def plain(tmp_path) -> Path:
    """A folder of pictures, one below another; two have a text, and one cannot be read."""
    folder = tmp_path / "plain"
    (folder / "test").mkdir(parents=True)  # no split: all of it is to learn from
    for seed in range(4):
        scene(seed).save(folder / f"{seed}.jpg")
    scene(4).save(folder / "test/0.jpg")
    for name in ("1.txt", "test/0.txt", "notes.txt"):
        (folder / name).write_text("what is to be seen")
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def test_all_pictures_of_a_folder_are_read_and_no_text_beside_them(plain) -> None:
    pictures, left_out = read_uncaptioned(plain, ())
    assert [str(path.relative_to(plain)) for path in pictures.paths] == [
        *(f"{seed}.jpg" for seed in range(4)),
        "test/0.jpg",
    ]
    assert pictures.captions == ((),) * 5 and pictures.texts == []
    assert (pictures.split, pictures.source, set(pictures.splits)) == ("uncaptioned", "plain", {""})
    assert list(left_out.unusable) == [str(plain / "bad.jpg")]
    assert not left_out.leaks and not left_out.linked
    (plain / "phone.HEIC").write_bytes(b"what Pillow does not read")
    assert str(plain / "phone.HEIC") in read_uncaptioned(plain, ())[1].unusable


def test_links_to_pictures_elsewhere_are_followed_and_counted(plain, tmp_path) -> None:
    (tmp_path / "store").mkdir()
    scene(9).save(tmp_path / "store/9.jpg")
    (plain / "linked").symlink_to(tmp_path / "store")
    pictures, left_out = read_uncaptioned(plain, ())
    assert len(pictures) == 6 and left_out.linked == 1


def test_pictures_that_a_table_does_not_know_are_read_too(tmp_path) -> None:
    own = write_own(tmp_path / "own", range(4))
    scene(9).save(own / "new.jfif", format="JPEG")
    pictures, left_out = read_uncaptioned(own, ())
    assert len(pictures) == 5 and own / "new.jfif" in pictures.paths and not str(left_out)
    for name, content in STRAYS.items():
        (own / name).write_text(content)
    assert read_uncaptioned(own, ())[0] == pictures
    (own / "captions.csv").unlink()
    assert not find_formats(own) and read_uncaptioned(own, ())[0] == pictures


def test_captions_of_any_format_are_not_kept(tmp_path) -> None:
    own = write_own(tmp_path / "own", range(6), ("gone.png,a",), split=True)
    pictures, left_out = read_uncaptioned(own, ())
    assert names(pictures) == [f"{seed}.png" for seed in range(6)]  # of all splits
    assert pictures.captions == ((),) * 6 and set(pictures.splits) == {""}
    assert not left_out.unusable
    listed, left_out = read_uncaptioned(own / "captions.csv", ())
    assert listed.paths == pictures.paths and len(left_out.unusable) == 1


@pytest.mark.parametrize("by_content", [True, False])
def test_pictures_to_choose_and_to_measure_on_are_not_learnt_from(
    by_content, plain, tmp_path
) -> None:
    """By what they show; a name that another data set has too is no leak."""
    splits = read_splits(write_own(tmp_path / "own", range(2, 22), split=True))
    scene(21).save(plain / "measured.jpg", quality=60)
    scene(19).save(plain / "chosen.jpg", quality=60)
    scene(30).save(plain / "20.jpg")
    evaluation = splits.val, splits.test
    pictures, left_out = read_uncaptioned(plain, evaluation, by_content)
    found = {leak.picture.name: leak.evaluation.name for leak in left_out.leaks}
    assert found == ({"measured.jpg": "21.png", "chosen.jpg": "19.png"} if by_content else {})
    assert len(pictures) == 8 - len(found) and "20.jpg" in names(pictures)
    assert not found.keys() & {*names(pictures)}
    # What is trained on with captions may come again.
    assert {"2.jpg", "3.jpg"} <= {*names(pictures)}


def test_where_names_alone_tell_a_number_does(plain, tmp_path) -> None:
    scene(20).save(plain / "36979.jpg")
    splits = read_splits(write_own(tmp_path / "own", range(2, 22), split=True), by_content=False)
    test = replace(splits.test, image_ids=("flickr:36979", *splits.test.image_ids[1:]))
    pictures, left_out = read_uncaptioned(plain, (test,), by_content=False)
    assert [leak.by for leak in left_out.leaks] == ["flickr 36979"]
    assert "36979.jpg" not in names(pictures)


def test_a_numbered_name_is_no_picture_of_a_data_set(plain) -> None:
    """1.jpg of a folder of one's own is not COCO's first picture."""
    assert {*read_uncaptioned(plain, ())[0].image_ids} == {OWN}


def test_nothing_to_learn_from_is_an_error(plain, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"folder at .*none, found nothing"):
        read_uncaptioned(tmp_path / "none", ())
    with pytest.raises(ValueError, match=r"in neither val nor test, found none; name others\.$"):
        (tmp_path / "empty").mkdir()
        read_uncaptioned(tmp_path / "empty", ())
    (tmp_path / "bad").mkdir()
    shutil.copy(plain / "bad.jpg", tmp_path / "bad")
    with pytest.raises(ValueError, match=r"left out: 1 unusable .*bad\.jpg: Expected a whole"):
        read_uncaptioned(tmp_path / "bad", ())
    everything, _ = read_uncaptioned(plain, ())
    with pytest.raises(ValueError, match=r"; 5 that are in another split too \(the first, .*jpg"):
        read_uncaptioned(plain, (everything,))
