"""Which names are one picture's, and which only look alike."""

from itertools import combinations
from pathlib import Path

import pytest

from dclip_kit.data.identity import picture_names

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
