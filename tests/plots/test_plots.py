"""Figures hold the numbers they were given, stay small, and show what others wrote as it stands."""

import base64
import html
import io
import re
from itertools import pairwise

import pytest
import torch
from PIL import Image

from dclip_kit import plots
from dclip_kit.evaluation.arms import Arm, ArmResult, Candidate
from dclip_kit.evaluation.evaluate import ZeroShot
from dclip_kit.evaluation.probe import ShortcutProbe
from dclip_kit.metrics import paired_bootstrap, ranks, retrieval_metrics
from dclip_kit.models.regions import Regions
from dclip_kit.plots.panels import data_uri
from dclip_kit.plots.style import ARM_COLORS, PALETTE, arm_colors, escape_text, spread, wrap_text

HOSTILE = '<a href="javascript:alert(1)">x</a><b>y</b>'
OUR_TAGS = re.compile(r"</?b>|<br>")


def texts(figure) -> list[str]:
    """All strings of a figure that plotly would read as markup."""
    found = []

    def visit(value) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key not in ("source", "font"):
                    visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)
        elif isinstance(value, str):
            found.append(value)

    visit(figure.to_plotly_json())
    return found


def shown(figure) -> list[str]:
    """The annotations as a reader sees them, without line breaks."""
    return [html.unescape(OUR_TAGS.sub("", note.text)) for note in figure.layout.annotations]


def assert_harmless(figure) -> None:
    """The hostile text is there, and no markup but our own is."""
    every = texts(figure)
    assert any("javascript" in html.unescape(text.replace("<br>", "")) for text in every)
    assert not [text for text in every if re.search("[<>]", OUR_TAGS.sub("", text))]
    assert not [text for text in every if "<b>y" in text]


def decode(source: str) -> Image.Image:
    head, _, content = source.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def drawn_boxes(figure) -> list:
    return [trace for trace in figure.data if trace.type == "scatter" and trace.fill == "toself"]


@pytest.fixture
def regions(pictures) -> list[Regions]:
    """Two boxes in the first picture, one in the second, none found in the third."""
    two = torch.tensor([[2.0, 3, 20, 25], [5, 1, 29, 11]])
    return [
        Regions(two, torch.tensor([0.9, 0.25]), ("dog", "cat"), pictures[0].size),
        Regions(two[:1], torch.tensor([0.5]), (HOSTILE,), pictures[1].size),
        Regions.whole_image(pictures[2].size),
    ]


class TestStyle:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a <b>", "a &lt;b&gt;"),
            ("&lt;b&gt; & c", "&amp;lt;b&amp;gt; &amp; c"),
            ("costs $5$", "costs &#36;5&#36;"),  # would be a formula
            ("two\n lines\t\r", "two lines"),
            ('"it\'s"', '"it\'s"'),  # plotly knows no entity for quotes
        ],
    )
    def test_text_is_escaped_for_plotly(self, text, expected) -> None:
        assert escape_text(text) == expected

    def test_wrapping_never_cuts_an_entity(self) -> None:
        for width in range(3, 30):
            wrapped = wrap_text("<&>$" * 40, width, 3)
            lines = [html.unescape(line) for line in wrapped.split("<br>")]
            assert not set(wrapped.replace("<br>", "")) & set("<>$")
            assert len(lines) == 3 and all(len(line) <= width for line in lines)
            assert lines[-1].endswith("…")

    def test_arms_keep_their_colours_beside_any_other(self) -> None:
        colors = arm_colors(["mine", "dclip", "clip", "yours", "contrastive"])
        assert len(set(colors.values())) == 5
        assert ARM_COLORS.items() <= colors.items()
        assert arm_colors(["dclip"]) == {"dclip": ARM_COLORS["dclip"]}

    @pytest.mark.parametrize("color", PALETTE)
    def test_colours_are_dark_enough_for_text(self, color) -> None:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 4.5

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([], []),
            ([3.0, 1.0], [3.0, 1.0]),
            ([1.0, 1.0], [0.5, 1.5]),
            ([5.0, 0.0, 0.5, 0.25], [5.0, -0.75, 1.25, 0.25]),
            ([0.0, 0.9, 1.8], [-0.1, 0.9, 1.9]),
        ],
    )
    def test_labels_are_moved_apart_around_where_they_were(self, values, expected) -> None:
        assert spread(values, 1.0) == pytest.approx(expected)


class TestStoredPictures:
    @pytest.mark.parametrize(
        ("size", "stored"),
        [((32, 32), (256, 256)), ((500, 250), (256, 128)), ((200, 100), (200, 100))],
    )
    def test_no_side_exceeds_256_pixels(self, size, stored) -> None:
        picture = Image.new("RGB", size, "red")
        assert decode(data_uri(picture)).size == stored
        assert picture.size == size

    def test_a_small_picture_keeps_its_pixels_apart(self) -> None:
        picture = Image.new("L", (2, 1))
        picture.putpixel((1, 0), 255)
        large = decode(data_uri(picture)).convert("L")
        row = [large.getpixel((x, 60)) for x in range(256)]
        assert max(row[:128]) < 10 and min(row[128:]) > 245

    def test_noise_is_still_small(self) -> None:
        noise = torch.randint(0, 256, (1000, 1000, 3), dtype=torch.uint8)
        assert len(data_uri(Image.fromarray(noise.numpy()))) < 70_000


class TestRegions:
    def test_boxes_labels_and_areas_are_those_given(self, pictures, regions) -> None:
        figure = plots.plot_regions(pictures[:3], regions)
        boxes = drawn_boxes(figure)
        assert len(boxes) == 4 and len(figure.layout.images) == 3
        every = torch.cat([each.xyxy for each in regions]).tolist()
        for trace, (left, top, right, bottom) in zip(boxes, every, strict=True):
            assert (min(trace.x), max(trace.x)) == (left, right)
            assert (min(trace.y), max(trace.y)) == (top, bottom)
        assert boxes[1].text == "cat<br>confidence 0.25<br>area 20.0%"
        assert {"dog 0.90", "cat 0.25", "whole image 1.00"} <= set(shown(figure))
        axes = [(trace.xaxis, trace.yaxis) for trace in boxes]
        assert axes[0] == axes[1] and len(set(axes)) == 3
        for image, trace in zip(figure.layout.images, (boxes[0], *boxes[2:]), strict=True):
            assert (image.xref, image.yref) == (trace.xaxis, trace.yaxis)

    def test_captions_and_labels_are_plain_text(self, pictures, regions) -> None:
        figure = plots.plot_regions(pictures[:3], regions, [HOSTILE, "%{x} $y$", "c"], columns=2)
        assert_harmless(figure)
        assert {"%{x} $y$", "c"} <= set(shown(figure))
        assert HOSTILE in [text.replace("\n", "") for text in shown(figure)]

    def test_a_label_avoids_the_other_boxes(self) -> None:
        apart = torch.tensor([[20.0, 60, 60, 100], [20.0, 20, 60, 58]])
        found = Regions(apart, torch.tensor([0.9, 0.9]), ("a", "b"), (120, 120))
        figure = plots.plot_regions([Image.new("RGB", (120, 120))], [found])
        lower, upper = (note.y for note in figure.layout.annotations)
        assert lower == 100 and upper < 20  # below the lower box, above the upper one

    def test_a_page_of_pictures_is_small(self) -> None:
        noise = torch.randint(0, 256, (8, 256, 256, 3), dtype=torch.uint8)
        pictures = [Image.fromarray(each.numpy()).resize((32, 32)) for each in noise]
        found = [Regions.whole_image((32, 32))] * 8
        assert len(plots.plot_regions(pictures, found, ["a"] * 8).to_json()) < 400_000

    def test_bad_input_is_named(self, pictures, regions) -> None:
        with pytest.raises(ValueError, match=r"as many regions and captions.*got 2, 3, None"):
            plots.plot_regions(pictures[:2], regions)
        with pytest.raises(ValueError, match="got 3, 3, 1"):
            plots.plot_regions(pictures[:3], regions, ["a"])
        with pytest.raises(ValueError, match="got 0, 0"):
            plots.plot_regions([], [])
        with pytest.raises(ValueError, match="columns"):
            plots.plot_regions(pictures[:3], regions, columns=0)
        with pytest.raises(ValueError, match=r"regions' \(40, 30\) pixels, got \(32, 32\)"):
            plots.plot_regions([pictures[2]], regions[:1])


class TestStudentView:
    def test_it_shows_the_preprocessed_pixels(self, pictures, regions, clip) -> None:
        figure = plots.plot_student_view(pictures[0], regions[0], clip, margin=0.0)
        images = [decode(image.source) for image in figure.layout.images]
        assert len(images) == 2 + len(regions[0])
        assert images[1].size == (256, 256)  # 32 pixels a side, magnified eight times
        crop = pictures[0].crop((2, 3, 20, 25))
        for image, original in ((images[1], pictures[0]), (images[2], crop)):
            small = image.resize((32, 32), Image.Resampling.BOX)
            seen = torch.tensor(list(small.convert("RGB").tobytes())).reshape(32, 32, 3).float()
            expected = clip.to_pixels(original).permute(1, 2, 0).float()
            assert (seen - expected).abs().mean() < 8
        assert "The picture: 40 × 30pixels" in shown(figure)
        assert "What CLIP gets of eachregion: 32 × 32 again" in shown(figure)
        assert {"1", "2", "1 dog", "2 cat"} <= set(shown(figure))

    def test_crops_left_out_are_counted(self, pictures, regions, clip) -> None:
        figure = plots.plot_student_view(pictures[0], regions[0], clip, max_crops=1)
        assert len(figure.layout.images) == 3
        assert any("(1 of 2 shown)" in text for text in shown(figure))

    def test_labels_are_plain_text(self, pictures, regions, clip) -> None:
        assert_harmless(plots.plot_student_view(pictures[1], regions[1], clip))

    def test_bad_input_is_named(self, pictures, regions, clip) -> None:
        with pytest.raises(ValueError, match=r"\(40, 30\) pixels, got \(30, 40\)"):
            plots.plot_student_view(pictures[1], regions[0], clip)
        with pytest.raises(ValueError, match="max_crops from 1, got 0"):
            plots.plot_student_view(pictures[0], regions[0], clip, max_crops=0)


class TestRegionWeights:
    def plot(self, pictures, regions, caption="a cat", **changes):
        quantities = {
            "area": torch.tensor([0.3, 0.2]),
            "confidence": torch.tensor([0.9, 0.25]),
            "similarity": torch.tensor([0.0, 0.5]),
            "weight": torch.tensor([0.125, 0.875]),
        }
        return plots.plot_region_weights(
            pictures[0], regions[0], **quantities | changes, caption=caption
        )

    def test_bars_are_the_numbers_by_falling_weight(self, pictures, regions) -> None:
        figure = self.plot(pictures, regions)
        bars = [list(trace.x) for trace in figure.data if trace.type == "bar"]
        expected = [[0.2, 0.3], [0.25, 0.9], [0.5, 0.0], [0.875, 0.125]]
        assert torch.allclose(torch.tensor(bars), torch.tensor(expected))
        ticks = [axis.ticktext for axis in figure.select_yaxes() if axis.ticktext]
        assert ticks == [("1 cat", "2 dog")]
        dog, cat = drawn_boxes(figure)
        assert cat.line.width > dog.line.width
        tags = [note for note in figure.layout.annotations if note.bgcolor]
        assert [(tag.text, tag.bgcolor) for tag in tags] == [
            ("2", dog.line.color),
            ("1", cat.line.color),
        ]

    def test_uniform_and_zero_weights_are_drawn(self, pictures, regions) -> None:
        for value in (0.5, 0.0):
            self.plot(pictures, regions, weight=torch.full((2,), value))

    def test_the_caption_is_plain_text(self, pictures, regions) -> None:
        assert_harmless(self.plot(pictures, regions, HOSTILE))

    def test_bad_input_is_named(self, pictures, regions) -> None:
        with pytest.raises(ValueError, match="each of 2 regions, got 3 for weight"):
            self.plot(pictures, regions, weight=torch.ones(3))
        with pytest.raises(ValueError, match=r"finite.*similarity"):
            self.plot(pictures, regions, similarity=torch.tensor([0.1, float("nan")]))


def history(start: float, **more: float) -> list[dict[str, float]]:
    return [{"epoch": n, "loss": start / n, "seconds": 1.0, **more} for n in (1, 2, 3)]


class TestHistory:
    def test_a_line_for_each_arm_and_figure(self) -> None:
        more = {"val_recall_at_1": 0.2, "val_zero_shot": 0.6}
        figure = plots.plot_history({"dclip": history(3.0, **more), "teacher": history(6.0)})
        lines = [trace for trace in figure.data if trace.type == "scatter"]
        values = [(list(line.x), list(line.y), line.xaxis) for line in lines]
        assert values == [
            ([1, 2, 3], [3.0, 1.5, 1.0], "x"),
            ([1, 2, 3], [6.0, 3.0, 2.0], "x"),
            ([1, 2, 3], [0.2] * 3, "x2"),
            ([1, 2, 3], [0.6] * 3, "x3"),
        ]
        assert lines[0].line.color == lines[2].line.color == ARM_COLORS["dclip"]
        assert lines[0].line.color != lines[1].line.color

    def test_asked_panels_are_drawn_in_their_order(self) -> None:
        rows = history(3.0, contrastive=2.0, distillation=0.4)
        figure = plots.plot_history({"dclip": rows}, ["distillation", "contrastive"])
        assert [list(line.y) for line in figure.data] == [[0.4] * 3, [2.0] * 3]
        assert shown(figure)[:2] == ["distillation term", "contrastive term"]

    @pytest.mark.parametrize("panels", [[], ["distillation"], ["epoch"]])
    def test_panels_that_no_history_has_are_named(self, panels) -> None:
        with pytest.raises(ValueError, match="Expected panels out of loss, contrastive"):
            plots.plot_history({"dclip": history(3.0)}, panels)

    def test_each_arm_is_named_once(self) -> None:
        more = {"val_recall_at_1": 0.2}
        figure = plots.plot_history({"dclip": history(3.0, **more), "teacher": history(6.0)})
        names = {note.text: note.xref for note in figure.layout.annotations}
        assert names["dclip"] == "x2" and names["teacher"] == "x"
        assert len(figure.layout.annotations) == 4  # and two headings

    def test_names_of_lines_that_end_alike_stand_apart(self) -> None:
        figure = plots.plot_history({name: history(3.0) for name in ("a", "b", "c")})
        places = sorted(note.y for note in figure.layout.annotations if len(note.text) == 1)
        height = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
        assert min(b - a for a, b in pairwise(places)) * height >= 14
        assert {note.yref for note in figure.layout.annotations} == {"paper"}

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_history({HOSTILE: history(3.0)}))

    @pytest.mark.parametrize("histories", [{}, {"dclip": []}, {"dclip": [{"epoch": 1.0}]}])
    def test_bad_input_is_named(self, histories) -> None:
        with pytest.raises(ValueError, match="rows of epoch and loss"):
            plots.plot_history(histories)


class TestShares:
    def test_a_bar_for_each_share(self) -> None:
        figure = plots.plot_shares({"projection": 0.02, "all": 1.0}, "share that trains, %")
        assert list(figure.data[0].x) == [0.02, 1.0]
        assert list(figure.data[1].text) == [" 2.0", " 100.0"]
        assert figure.layout.xaxis.title.text == "share that trains, %"
        assert list(figure.layout.yaxis.ticktext) == ["projection", "all"]

    def test_names_are_plain_text(self) -> None:
        assert_harmless(plots.plot_shares({HOSTILE: 0.5}, "share"))

    @pytest.mark.parametrize("shares", [{}, {"all": 1.2}, {"all": float("nan")}])
    def test_bad_input_is_named(self, shares) -> None:
        with pytest.raises(ValueError, match="shares from 0 to 1"):
            plots.plot_shares(shares, "share")


@pytest.fixture
def results(clip) -> dict[str, ArmResult]:
    """Three arms' results on seven random pictures with two captions each."""
    image_of_text = torch.arange(7).repeat_interleave(2)
    captions = torch.randn(14, 8)
    nothing = ZeroShot(torch.tensor([True]), 1.0, 1.0, None)
    return {
        name: ArmResult(
            Arm(name, clip),
            retrieval_metrics(torch.randn(7, 8), captions, image_of_text, (1, 5)),
            nothing,
            nothing,
        )
        for name in ("clip", "contrastive", HOSTILE)
    }


class TestRecall:
    def test_bars_are_recalls_with_intervals_over_images(self, results) -> None:
        figure = plots.plot_recall(results)
        for bars, way in zip(
            [trace for trace in figure.data if trace.type == "bar"],
            ("text_to_image", "image_to_text"),
            strict=True,
        ):
            found = [getattr(result.retrieval, way) for result in results.values()]
            values = [each.recall_at[k] for k in (1, 5) for each in found]
            assert list(bars.x) == values
            hits = found[2].hits(1).float()
            interval = paired_bootstrap(0 * hits, hits, found[2].image_of_query)
            assert bars.x[2] + bars.error_x.array[2] == pytest.approx(interval.high)
            assert bars.x[2] - bars.error_x.arrayminus[2] == pytest.approx(interval.low)

    def test_numbers_are_written_beside_the_bars(self, results) -> None:
        figure = plots.plot_recall(results, resamples=0)
        bars, numbers = figure.data[:2]
        assert [float(text) for text in numbers.text] == [round(100 * x, 1) for x in bars.x]
        assert list(numbers.x) == list(bars.x) and not bars.error_x.visible

    @pytest.mark.parametrize("ceiling", [0.3, 0.93])
    def test_the_ceiling_is_drawn_across_recall_at_1(self, results, ceiling) -> None:
        figure = plots.plot_recall(results, ceiling)
        (line,) = figure.layout.shapes
        assert line.x0 == line.x1 == ceiling and line.line.dash == "dash"
        rows = figure.data[0].y
        assert line.xref == figure.data[0].xaxis
        assert line.y0 < min(rows[:3]) and max(rows[:3]) < line.y1 < min(rows[3:])
        assert f"ceiling {100 * ceiling:.1f}" in shown(figure)

    def test_names_are_plain_text(self, results) -> None:
        assert_harmless(plots.plot_recall(results))

    def test_bad_input_is_named(self, results, clip) -> None:
        with pytest.raises(ValueError, match="one set of k"):
            plots.plot_recall({})
        other = retrieval_metrics(torch.eye(3), torch.eye(3), torch.arange(3), (1,))
        mixed = ArmResult(
            Arm("x", clip), other, results["clip"].zero_shot, results["clip"].held_out
        )
        with pytest.raises(ValueError, match=r"\[\(1,\), \(1, 5\)\]"):
            plots.plot_recall({**results, "x": mixed})


class TestTradeoff:
    PATH = tuple(Candidate(a, 0.2 + a / 10, 1 - a / 5) for a in (0.0, 0.5, 1.0))

    def test_paths_rule_and_choice_are_those_given(self, clip) -> None:
        arms = {"clip": Arm("clip", clip), "dclip": Arm("dclip", clip, 0.5, self.PATH[::-1])}
        figure = plots.plot_tradeoff(arms, 0.88)
        path, ring = figure.data
        assert list(path.x) == [1.0, 0.9, 0.8] and list(path.y) == [0.2, 0.25, 0.2 + 0.1]
        assert path.line.color == ARM_COLORS["dclip"]
        assert (list(ring.x), list(ring.y)) == ([0.9], [0.25])
        assert ring.marker.symbol == "circle-open"
        (line,) = figure.layout.shapes
        assert line.x0 == line.x1 == 0.88 and line.xref == path.xaxis == "x"
        assert set(shown(figure)) == {"keep at least 88.0%", "dclip, α = 1", "clip", "α = 0.5"}

    @pytest.mark.parametrize(("retention", "anchor"), [(0.9, "left"), (1.0, "right")])
    def test_a_chosen_points_name_has_room(self, clip, retention, anchor) -> None:
        path = (Candidate(0.0, 0.2, 0.95), Candidate(0.5, 0.3, retention), Candidate(1.0, 0.2, 0.8))
        figure = plots.plot_tradeoff({"dclip": Arm("dclip", clip, 0.5, path)}, 0.88)
        (name,) = [each for each in figure.layout.annotations if each.text == "<b>α = 0.5</b>"]
        assert name.xanchor == anchor

    def test_arms_that_stayed_at_clip_are_drawn(self, clip) -> None:
        same = (Candidate(0.0, 0.2, 1.0),)
        arms = {"a": Arm("a", clip, 0.0, same), "b": Arm("b", clip, 0.0, same)}
        assert len(plots.plot_tradeoff(arms, 1.0).data) == 4

    def test_names_are_plain_text(self, clip) -> None:
        assert_harmless(plots.plot_tradeoff({HOSTILE: Arm("x", clip, 0.5, self.PATH)}, 0.9))

    def test_bad_input_is_named(self, clip) -> None:
        with pytest.raises(ValueError, match="an arm with candidates, got none"):
            plots.plot_tradeoff({"clip": Arm("clip", clip)}, 0.9)


class TestProbe:
    def test_bars_are_the_probes(self) -> None:
        probes = {HOSTILE: ShortcutProbe(1.0, 0.9, 0.8), "blind": ShortcutProbe(0.5, 0.0, 0.1)}
        figure = plots.plot_probe(probes)
        assert list(figure.data[0].x) == [1.0, 0.9, 0.8, 0.5, 0.0, 0.1]
        assert list(figure.data[1].text) == [" 100.0", " 90.0", " 80.0", " 50.0", " 0.0", " 10.0"]
        assert {HOSTILE, "blind"} == set(shown(figure))
        assert_harmless(figure)

    def test_a_probe_of_nothing_but_zeros_is_drawn(self) -> None:
        plots.plot_probe({"teacher": ShortcutProbe(0.0, 0.0, 0.0)})

    def test_no_probe_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="at least one teacher, got none"):
            plots.plot_probe({})


class TestSearch:
    def search(self, pictures, correct=(2, 0), queries=("a", HOSTILE), top_k=3, **models):
        models = models or {"clip": torch.eye(6) + 0.1, "dclip": torch.eye(6).roll(1, 0)}
        query_features = torch.eye(6)[[2, 5]] + torch.arange(6) * 0.01
        return plots.plot_search(
            queries, query_features, pictures, models, torch.tensor(correct), top_k
        )

    def test_rows_hold_the_best_and_state_the_rank(self, pictures) -> None:
        figure = self.search(pictures)
        features = torch.eye(6) + 0.1
        queries = torch.eye(6)[[2, 5]] + torch.arange(6) * 0.01
        scores = queries @ torch.nn.functional.normalize(features, dim=1).T
        sources = [image.source for image in figure.layout.images]
        assert len(sources) == 2 * 2 * 3
        for number, place in ((0, 0), (1, 6)):
            best = scores[number].argsort(descending=True)[:3].tolist()
            assert sources[place : place + 3] == [data_uri(pictures[i], 128) for i in best]
        expected = ranks(scores, torch.eye(6)[[2, 0]].bool()).tolist()
        assert expected == [1, 6]
        assert {f"cliprank {rank:g}of 6" for rank in expected} <= set(shown(figure))

    def test_the_correct_picture_alone_is_ringed(self, pictures) -> None:
        figure = self.search(pictures, clip=torch.eye(6))
        rings = figure.layout.shapes  # of the first query; the other finds its picture too late
        assert len(rings) == 2  # and a white rim
        ringed, image = rings[-1], figure.layout.images[0]
        assert (ringed.xref, ringed.yref) == (image.xref, image.yref)
        assert ringed.x0 <= image.x and image.x + image.sizex <= ringed.x1

    def test_a_picture_keeps_its_proportions(self, pictures) -> None:
        figure = self.search(pictures, clip=torch.eye(6), top_k=6)
        for image in figure.layout.images:
            width, height = decode(image.source).size
            assert image.sizex / image.sizey == pytest.approx(width / height, rel=0.05)

    def test_paths_are_read_only_if_shown(self, captioned, tmp_path) -> None:
        paths = [*captioned.paths[:5], tmp_path / "missing.png"]
        figure = self.search(paths, queries=("a", "b"), top_k=1, clip=torch.eye(6).roll(1, 0))
        assert len(figure.layout.images) == 2
        with pytest.raises(ValueError, match=r"missing\.png"):
            self.search(paths, queries=("a", "b"), top_k=6)

    def test_queries_and_names_are_plain_text(self, pictures) -> None:
        assert_harmless(self.search(pictures))
        assert_harmless(self.search(pictures, queries=("a", "b"), **{HOSTILE: torch.eye(6)}))

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"queries": ("a",)}, "for each query"),
            ({"clip": torch.eye(6)[:5]}, "each picture from every model"),
            ({"correct": (0, 6)}, r"from 0 to 5.*got \[0, 6\]"),
            ({"correct": (-1, 0)}, r"from 0 to 5"),
            ({"top_k": 0}, "top_k from 1"),
        ],
    )
    def test_bad_input_is_named(self, pictures, changes, says) -> None:
        with pytest.raises(ValueError, match=says):
            self.search(pictures, **changes)
