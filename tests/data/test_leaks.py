"""The leak guard on pictures and names that were made to leak, and on some that were not."""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from dclip_kit.data.leaks import (
    OWN,
    EvaluationIndex,
    Leak,
    find_leaks,
    hash_name,
    index_evaluation,
    picture_names,
    remove_leaks,
)
from dclip_kit.data.pictures import CaptionedImages

pytest.importorskip("imagehash")


def scene(seed: int) -> Image.Image:
    """A picture with structure at several sizes, as photographs have."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    picture = rough.resize((160, 120), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = (int(v) for v in rng.integers(0, 100, 2))
        draw.ellipse((x, y, x + 40, y + 30), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return picture


def dataset(folder: Path, names: list[str], ids: tuple[str, ...] = ()) -> CaptionedImages:
    captions = tuple((f"caption of {name}",) for name in names)
    return CaptionedImages(tuple(folder / name for name in names), captions, "x", folder.name, ids)


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    train, test = tmp_path / "train", tmp_path / "test"
    train.mkdir()
    test.mkdir()
    for seed in range(5):
        scene(seed).save(train / f"own{seed}.jpg")
        scene(seed + 100).save(test / f"test{seed}.png")
    return train, test


def test_copies_are_found_by_content_whatever_they_are_called(folders) -> None:
    train, test = folders
    scene(101).save(train / "quality.jpg", quality=30)
    scene(102).resize((80, 60)).save(train / "small.webp", quality=60)
    scene(103).convert("L").save(train / "gray.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    scene(104).transpose(Image.Transpose.ROTATE_90).save(train / "turned.jpg", exif=turned)
    copies = {"quality.jpg": 1, "small.webp": 2, "gray.png": 3, "turned.jpg": 4}
    own = [f"own{i}.jpg" for i in range(5)]
    training = dataset(train, [own[0], *copies, *own[1:]])
    evaluation = dataset(test, [f"test{i}.png" for i in range(5)])

    report = find_leaks(training, [evaluation])
    assert [(leak.picture.name, leak.evaluation.name) for leak in report.leaks] == [
        (name, f"test{number}.png") for name, number in copies.items()
    ]
    assert all(leak.by.startswith("content (") for leak in report.leaks)
    assert report.not_compared == {}

    clean = remove_leaks(training, report.leaks)
    assert [path.name for path in clean.paths] == own
    assert clean.texts[0] == "caption of own0.jpg"
    assert find_leaks(clean, [evaluation]).leaks == ()
    assert find_leaks(training, [evaluation], by_content=False).leaks == ()


def test_names_tell_even_where_no_picture_can_be_read(tmp_path) -> None:
    training = dataset(
        tmp_path / "train2017",
        ["000000391895.jpg", "000000000009.jpg", "1000092795.jpg", "mine.jpg"],
    )
    coco = dataset(tmp_path / "val2014", ["COCO_val2014_000000391895.jpg"], ("coco:391895",))
    flickr = dataset(tmp_path / "flickr", ["1000092795.jpg"], ("flickr:1000092795",))
    report = find_leaks(training, [coco, flickr])
    first = Leak(training.paths[0], coco.paths[0], "coco 391895")
    assert first.as_dict() == {
        "picture": str(training.paths[0]),
        "evaluation": str(coco.paths[0]),
        "by": "coco 391895",
    }
    assert report.leaks == (
        first,
        Leak(training.paths[2], flickr.paths[0], "flickr 1000092795"),
    )
    assert set(report.not_compared) == {*coco.paths, *flickr.paths}


def test_the_same_file_leaks_by_its_path(folders) -> None:
    train, _ = folders
    training = dataset(train, ["own0.jpg", "own1.jpg"])
    report = find_leaks(training, [training.select([1])])
    assert report.leaks == (Leak(train / "own1.jpg", train / "own1.jpg", "path"),)


def test_plain_and_unreadable_pictures_are_not_compared_and_named(folders) -> None:
    train, test = folders
    Image.new("RGB", (50, 50), "navy").save(train / "plain.png")
    Image.new("RGB", (50, 50), "red").save(test / "plain.png")
    (train / "broken.png").write_bytes(b"no picture")
    training = dataset(train, ["plain.png", "broken.png", "own0.jpg"])
    report = find_leaks(training, [dataset(test, ["plain.png", "test0.png"])])
    assert report.leaks == ()
    assert list(report.not_compared) == [test / "plain.png", *training.paths[:2]]
    assert "too plain" in report.not_compared[train / "plain.png"]


def test_an_index_serves_many_times_and_reads_evaluation_once(folders) -> None:
    train, test = folders
    scene(100).save(train / "copy.jpg")
    evaluation = dataset(test, ["test0.png", "test1.png"])
    index = index_evaluation([evaluation, evaluation])
    assert tuple(index.phash.values()) == evaluation.paths
    (test / "test0.png").unlink()
    for _ in range(2):
        assert len(find_leaks(dataset(train, ["copy.jpg"]), index).leaks) == 1
    by_name = index_evaluation([evaluation], by_content=False)
    assert find_leaks(dataset(train, ["copy.jpg"]), by_name).leaks == ()


def test_mirrored_copies_are_found(folders) -> None:
    train, test = folders
    for number in range(5):
        mirrored = ImageOps.mirror(scene(100 + number))
        mirrored.resize((96, 72)).save(train / f"mirrored{number}.jpg", quality=60)
    names = [f"own{i}.jpg" for i in range(5)] + [f"mirrored{i}.jpg" for i in range(5)]
    report = find_leaks(dataset(train, names), [dataset(test, [f"test{i}.png" for i in range(5)])])
    assert [(leak.picture.name, leak.evaluation.name) for leak in report.leaks] == [
        (f"mirrored{i}.jpg", f"test{i}.png") for i in range(5)
    ]
    assert all(leak.by.startswith("mirrored content (") for leak in report.leaks)


def write_hash(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


@pytest.mark.parametrize(("flipped", "found"), [(4, True), (5, False)])
def test_the_threshold_is_four_bits(flipped, found) -> None:
    from dclip_kit.data import leaks

    bits = np.random.default_rng(0).random(64) < 0.5
    other = bits.copy()
    other[:flipped] ^= True
    others = {write_hash(~bits): Path("far"), write_hash(other): Path("near")}
    near = leaks._find_near({Path("own"): write_hash(bits)}, others)
    assert list(near.values()) == (
        [Leak(Path("own"), Path("near"), "content (4 bits)")] if found else []
    )


def test_blocks_of_training_pictures_keep_their_numbers() -> None:
    from dclip_kit.data import leaks

    bits = np.random.default_rng(0).random((2500, 64)) < 0.5
    hashes = {Path(f"{number}"): write_hash(each) for number, each in enumerate(bits)}
    others = {write_hash(bits[number]): Path(f"other {number}") for number in (2100, 7)}
    assert [
        (leak.picture.name, leak.evaluation.name)
        for leak in leaks._find_near(hashes, others).values()
    ] == [
        ("7", "other 7"),
        ("2100", "other 2100"),
    ]


def test_a_missing_extra_names_the_pip_line_and_the_way_around(folders, monkeypatch) -> None:
    train, test = folders
    monkeypatch.setitem(sys.modules, "imagehash", None)
    training, evaluation = dataset(train, ["own0.jpg"]), dataset(test, ["test0.png"])
    with pytest.raises(ImportError, match=r"'dclip-kit\[data\]'.*by name alone"):
        find_leaks(training, [evaluation])
    assert find_leaks(training, [evaluation], by_content=False).leaks == ()


def test_a_record_of_an_index_finds_the_same_without_paths_and_names(folders) -> None:
    train, test = folders
    scene(101).save(train / "copy.jpg", quality=60)
    ids = ("coco:391895", "http://a/cat.jpg", "")
    evaluation = dataset(test, ["test0.png", "test1.png", "test2.png"], ids)
    training = dataset(train, ["own0.jpg", "own1.jpg", "copy.jpg", "own2.jpg"], (*ids[:2], "", ""))
    index = index_evaluation([evaluation])
    record = json.dumps(index.as_dict())
    for said in ("391895", "cat.jpg", "http", test.name, "test0", str(test)):
        assert said not in record
    again = EvaluationIndex.from_dict(json.loads(record))
    expected = find_leaks(training, index).leaks
    assert [leak.by.split(" (")[0] for leak in expected] == [
        "coco 391895",
        "url http://a/cat.jpg",
        "content",
    ]
    found = find_leaks(training, again).leaks
    assert [(leak.picture, leak.by) for leak in found] == [(x.picture, x.by) for x in expected]
    assert {leak.evaluation for leak in found} == {None}
    assert found[0].as_dict() == {"picture": str(training.paths[0]), "by": "coco 391895"}


def test_a_record_does_not_know_pictures_by_their_place(folders) -> None:
    train, _ = folders
    training = dataset(train, ["own0.jpg", "own1.jpg"])
    index = index_evaluation([training], by_content=False)
    assert len(find_leaks(training, index).leaks) == 2
    again = EvaluationIndex.from_dict(index.as_dict())
    assert find_leaks(training, again).leaks == ()


def test_hashed_names_are_equal_where_names_are_and_keep_their_kind() -> None:
    names = ["coco 391895", "coco 391896", "flickr 391895", "path /a/\udcff.png"]
    hashed = [hash_name(name) for name in names]
    assert hashed == [hash_name(name) for name in names] and len({*hashed}) == 4
    for name, said in zip(names, hashed, strict=True):
        kind, rest = name.split(" ")
        assert said.startswith(f"{kind} ") and rest not in said
    assert hash_name("bytes 0a1b") == "bytes 0a1b"  # a digest already


# Which names are one picture's, and which only look alike

COCO = [
    ("COCO_val2014_000000391895.jpg", ""),
    ("000000391895.jpg", ""),
    ("391895.jpg", ""),
    ("x.jpg", "391895"),
    ("x.jpg", "coco:391895"),
    ("x.jpg", "coco:COCO_val2014_000000391895.jpg"),
    ("x.jpg", "COCO_train2014_000000391895"),
    ("000000012.jpg", "http://images.cocodataset.org/val2017/000000391895.jpg"),
]
FLICKR = [
    ("1000092795.jpg", ""),
    ("x.jpg", "flickr:1000092795"),
    ("1000092795_693b08cb0e.jpg", ""),  # Flickr8k's way
    ("x.jpg", "1000092795.jpg"),
    ("x.jpg", "https://farm4.staticflickr.com/3153/1000092795_164f0c0b83_z.jpg"),
]


@pytest.mark.parametrize("same", [COCO, FLICKR], ids=["coco", "flickr"])
def test_all_ways_to_name_a_picture_meet(same) -> None:
    for number, (one, other) in enumerate(combinations(same, 2)):
        # In folders of their own, so that no path is shared.
        first = set(picture_names(Path(f"one/{number}") / one[0], one[1]))
        second = set(picture_names(Path(f"other/{number}") / other[0], other[1]))
        assert first & second, (one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # Flickr30k has a picture 36979, and so has COCO: ids of the readers keep them apart.
        (("36979.jpg", "flickr:36979"), ("000000036979.jpg", "coco:36979")),
        (("000000012.jpg", ""), ("000000000012.jpg", "")),  # img2dataset's count is no id
        (("00012.jpg", ""), ("000000000012.jpg", "")),
        (("12.jpg", "http://a/12.jpg"), ("000000000012.jpg", "coco:12")),
        (("a.jpg", ""), ("a.jpg", "")),
        (("holiday-391895.jpg", ""), ("000000391895.jpg", "")),
        (("a.jpg", "http://a/cat.jpg"), ("a.jpg", "http://b/cat.jpg")),
        (("a.jpg", "http://[broken"), ("a.jpg", "")),
        (("12.jpg", OWN), ("000000000012.jpg", "coco:12")),
        (("12.jpg", OWN), ("12.jpg", OWN)),
        (("036000291452.jpg", ""), ("036000291452.jpg", OWN)),  # of a product, not of COCO's
    ],
)
def test_names_that_only_look_alike_do_not_meet(one, other) -> None:
    first = picture_names(Path("one") / one[0], one[1])
    assert not set(first) & set(picture_names(Path("other") / other[0], other[1]))


def test_names_are_readable_and_the_path_comes_last() -> None:
    path = Path("/data/COCO_val2014_000000391895.jpg")
    assert picture_names(path, "http://a/cat.jpg") == [
        "url http://a/cat.jpg",
        "coco 391895",
        "path /data/COCO_val2014_000000391895.jpg",
    ]
