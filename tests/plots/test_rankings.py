"""What searches find: the right pictures in the right places, and plain text beside them."""

import pytest
import torch
from PIL import Image

from dclip_kit import plots
from dclip_kit.metrics import ranks
from dclip_kit.plots.style import tile_pictures
from dclip_kit.search.index import search_images
from tests.plots.test_style import HOSTILE, assert_harmless, decode, look_alike, shown


def sheets(figure) -> list[Image.Image]:
    return [decode(trace.source) for trace in figure.data]


def sheet(pictures, rows, ringed=()) -> Image.Image:
    """What rows of numbers of pictures should look like; None is an empty place."""
    white = Image.new("RGB", (1, 1), "white")
    cells = [white if each is None else pictures[each] for row in rows for each in row]
    return tile_pictures(cells, len(rows[0]), 120, ringed)


def left_names(figure) -> list[str]:
    return [name for axis in figure.select_yaxes() for name in axis.ticktext]


class TestSearch:
    def search(
        self, pictures, correct=(2, 0), queries=("a", HOSTILE), top_k=3, labels=(), **models
    ):
        models = models or {"clip": torch.eye(6) + 0.1, "dclip": torch.eye(6).roll(1, 0)}
        query_features = torch.eye(6)[[2, 5]] + torch.arange(6) * 0.01
        return plots.plot_search(
            queries, query_features, pictures, models, torch.tensor(correct), top_k, labels
        )

    def test_rows_hold_the_best_and_state_the_rank(self, pictures) -> None:
        figure = self.search(pictures)
        features = torch.eye(6) + 0.1
        queries = torch.eye(6)[[2, 5]] + torch.arange(6) * 0.01
        scores = queries @ torch.nn.functional.normalize(features, dim=1).T
        expected = ranks(scores, torch.eye(6)[[2, 0]].bool()).tolist()
        assert expected == [1, 6]
        for number, image in enumerate(sheets(figure)):
            best = scores[number].argsort(descending=True)[:3].tolist()
            row = image.crop((0, 0, 360, 120))
            assert look_alike(row, sheet(pictures, [best], [0] if number == 0 else []))
            note = f"<b>clip</b><br>rank {expected[number]:g}<br>of 6"
            assert left_names(figure)[2 * number] == note

    def test_the_correct_picture_alone_is_ringed(self, pictures) -> None:
        figure = self.search(pictures, clip=torch.eye(6))
        first, second = sheets(figure)  # the other query finds its picture too late
        assert look_alike(first, sheet(pictures, [[2, 5, 4]], [0]))
        assert look_alike(second, sheet(pictures, [[5, 4, 3]]))

    def test_paths_are_read_only_if_shown(self, captioned, tmp_path) -> None:
        paths = [*captioned.paths[:5], tmp_path / "missing.png"]
        figure = self.search(paths, queries=("a", "b"), top_k=1, clip=torch.eye(6).roll(1, 0))
        assert [image.size for image in sheets(figure)] == [(120, 120)] * 2
        with pytest.raises(ValueError, match=r"missing\.png"):
            self.search(paths, queries=("a", "b"), top_k=6)

    def test_queries_and_names_are_plain_text(self, pictures) -> None:
        assert_harmless(self.search(pictures))
        assert_harmless(self.search(pictures, queries=("a", "b"), **{HOSTILE: torch.eye(6)}))

    def test_labels_stand_before_the_quoted_queries(self, pictures) -> None:
        figure = self.search(pictures, queries=("a", "b"), labels=("won", HOSTILE))
        assert "<b>won: “a”</b>" in [note.text for note in figure.layout.annotations]
        assert_harmless(figure)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"labels": ("won",)}, "argument 2 is longer"),
            ({"queries": ("a",)}, "argument 2 is longer"),
            ({"clip": torch.eye(6)[:5]}, r"of each of 6 pictures from every model.*got \[5, 6\]"),
            ({"correct": (0, 6)}, r"got \[6\] and \[0, 6\]; count the pictures from 0"),
            ({"correct": (-1, 0)}, r"got \[6\] and \[-1, 0\]"),
            ({"top_k": 0}, "top_k from 1"),
        ],
    )
    def test_bad_input_is_named(self, pictures, changes, says) -> None:
        with pytest.raises(ValueError, match=says):
            self.search(pictures, **changes)


class TestPictureRows:
    def test_rows_show_what_they_name(self, pictures) -> None:
        rows = [
            plots.PictureRow("clip", [2, 0], frozenset([0]), ["a note"], ["12 ×"]),
            plots.PictureRow("dclip", [1]),
        ]
        figure = plots.plot_picture_rows([("one", rows), ("two", rows[:1])], pictures)
        one, two = sheets(figure)
        assert look_alike(one, sheet(pictures, [[2, 0], [1, None]], [1]))
        assert look_alike(two, sheet(pictures, [[2, 0]], [1]))
        noted = "<b>clip</b><br>a note"
        assert left_names(figure) == [noted, "<b>dclip</b>", noted]
        tags = [note for note in figure.layout.annotations if note.text == "12 ×"]
        assert [(tag.xref, tag.yref) for tag in tags] == [("x", "y"), ("x2", "y2")]
        assert {"one", "two"} <= set(shown(figure))

    def test_a_heading_keeps_its_lines(self, pictures) -> None:
        rows = [plots.PictureRow("clip", [2])]
        figure = plots.plot_picture_rows([("1: a cow\n2: <b>", rows)], pictures)
        assert "<b>1: a cow<br>2: &lt;b&gt;</b>" in [x.text for x in figure.layout.annotations]

    def test_all_text_is_plain(self, pictures) -> None:
        row = plots.PictureRow(HOSTILE, [0], notes=[HOSTILE], tags=[HOSTILE])
        assert_harmless(plots.plot_picture_rows([(HOSTILE, [row])], pictures))

    @pytest.mark.parametrize("images", [[], [6], [-1]])
    def test_a_row_of_nothing_or_of_unknown_pictures_is_an_error(self, pictures, images) -> None:
        with pytest.raises(ValueError, match="pictures from 0 to 5"):
            plots.plot_picture_rows([("a", [plots.PictureRow("clip", images)])], pictures)
        with pytest.raises(ValueError, match="got 0 rows"):
            plots.plot_picture_rows([], pictures)


THINGS = [frozenset(names) for names in (("dog",), ("cup",), ("cup", "dog"), (), (), ("dog",))]


class TestPictureSearch:
    def test_each_model_searches_with_its_own_vector(self, pictures) -> None:
        features = {"clip": torch.randn(6, 4), "dclip": torch.randn(6, 4)}
        figure = plots.plot_picture_search(0, pictures, features, THINGS, 3)
        rows, right = [[0, None, None]], []
        for each in features.values():
            found = list(search_images(each[0], each, 3, [0]).images)
            right += [3 * len(rows) + i for i, image in enumerate(found) if image in (2, 5)]
            assert f"{len({2, 5} & set(found))} of 3" in " ".join(shown(figure))
            rows.append(found)
        (image,) = sheets(figure)
        assert look_alike(image, sheet(pictures, rows, right))
        assert "asked with this picture: dog" in shown(figure)
        assert shown(figure).count("dog") == len(right)

    def test_bad_input_is_named(self, pictures) -> None:
        features = {"clip": torch.randn(6, 4)}
        with pytest.raises(ValueError, match=r"got \[5, 6\] and \[0\]"):
            plots.plot_picture_search(0, pictures[:5], features, THINGS)
        with pytest.raises(ValueError, match=r"got \[6\] and \[6\]"):
            plots.plot_picture_search(6, pictures, features, THINGS)
        with pytest.raises(ValueError, match="things of each of 6 pictures, got 5"):
            plots.plot_picture_search(0, pictures, features, THINGS[:5])
