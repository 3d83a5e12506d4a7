"""The gallery, worked from Python as its page would, and what it then shows."""

import base64
import csv
import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
import traitlets
from PIL import Image

from dclip_kit.data import open_picture
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.weights import clone_clip, interpolate
from dclip_kit.search.index import search_images
from dclip_kit.search.rescoring import rescore
from dclip_kit.widgets import QueryGallery
from dclip_kit.widgets.gallery import shrink

HOSTILE = '<img src=x onerror="alert(1)">'
THINGS = [frozenset(names) for names in (("ball",), ("dog",), ("dog", "ball"), (), ("box",), ())]


@pytest.fixture
def features(clip, captioned):
    own = encode_images(clip, captioned.paths)
    return {0.0: own, 0.5: own.roll(1, 0), 1.0: own.roll(2, 0)}


@pytest.fixture
def make(clip, captioned, features):
    def build(**changes) -> QueryGallery:
        settings = {"things": THINGS, "examples": ["a red ball", "boats"]} | changes
        dataset = settings.pop("dataset", captioned)
        gallery = QueryGallery(clip, dataset, features, **settings)
        gallery.top_k = 4
        return gallery

    return build


def images(gallery: QueryGallery, row: str) -> list[int]:
    assert [hit["rank"] for hit in gallery.results[row]] == [
        *range(1, len(gallery.results[row]) + 1)
    ]
    return [hit["image"] for hit in gallery.results[row]]


def thumbnails(gallery: QueryGallery) -> dict[int, bytes]:
    found, start = {}, 0
    for image, size in gallery._sizes:
        found[image] = gallery._thumbnails[start : start + size]
        start += size
    assert start == len(gallery._thumbnails)
    return found


def test_it_opens_with_the_first_example_answered(make, clip, captioned, features) -> None:
    gallery = make()
    query = encode_texts(clip, ["a red ball"])[0]
    assert (gallery.query, gallery.picture, gallery.share) == ("a red ball", -1, 1.0)
    for row, share in (("before", 0.0), ("after", 1.0)):
        found = search_images(query, features[share], 4)
        assert images(gallery, row) == [*found.images]
        assert [hit["score"] for hit in gallery.results[row]] == pytest.approx(
            found.scores, abs=1e-4
        )
        assert [hit["right"] for hit in gallery.results[row]] == [i == 0 for i in found.images]
    rank = search_images(query, features[0.0], 6).images.index(0) + 1
    assert f"rank {rank} before" in gallery.message


def test_each_picture_that_is_shown_is_sent_once(make, captioned) -> None:
    gallery = make()
    shown = {*images(gallery, "before"), *images(gallery, "after")}
    sent = thumbnails(gallery)
    assert sent.keys() == shown and len(gallery._sizes) == len(shown)
    for image, found in sent.items():
        assert found == shrink(open_picture(captioned.paths[image]))


def test_a_picture_that_has_gone_is_ranked_and_not_seen(make, captioned, tmp_path) -> None:
    paths = [*captioned.paths]
    paths[2] = tmp_path / "gone.png"
    gallery = make(dataset=replace(captioned, paths=tuple(paths)))
    gallery.top_k, gallery.query = len(paths), "a blue ball"
    assert 2 in images(gallery, "before") and thumbnails(gallery).keys() == {*range(6)} - {2}
    assert "judge for yourself" in gallery.message


def test_each_hit_says_its_rank_in_the_other_row(make, features, clip, captioned) -> None:
    """Against a loop over all pictures, of which those asked with are left out."""
    gallery = make()
    for picture in (-1, 3):
        if picture < 0:
            gallery.query = "boats"
            queries = dict.fromkeys((0.0, 1.0), encode_texts(clip, ["boats"])[0])
        else:
            gallery.picture = picture
            queries = {share: features[share][picture] for share in (0.0, 1.0)}
        seen = 0
        for row, other in (("before", 1.0), ("after", 0.0)):
            scores = (features[other] @ queries[other]).tolist()
            for hit in gallery.results[row]:
                better = [
                    image
                    for image, score in enumerate(scores)
                    if image != picture and score > scores[hit["image"]] + 1e-7
                ]
                assert hit["other_rank"] == 1 + len(better)
                seen += hit["other_rank"] != hit["rank"]
        assert seen


def test_pictures_with_equal_scores_stay_where_they_are(make, features) -> None:
    for each in features.values():
        each[:] = features[0.0][0]
    gallery = make()
    for picture in (-1, 2):
        gallery.picture = picture
        for row in gallery.results.values():
            assert (
                [hit["other_rank"] for hit in row] == [hit["rank"] for hit in row] == [1, 2, 3, 4]
            )


def test_what_is_asked_stays_when_the_mixture_changes(make, clip, captioned) -> None:
    gallery = make(text_features=encode_texts(clip, captioned.texts))
    gallery.outcome = "both"
    if gallery.matching:
        gallery.position = gallery.matching - 1
        asked = gallery.query
        gallery.share = 0.5
        assert gallery.query == asked
        assert gallery.position < 0 or captioned.texts[gallery._matches[gallery.position]] == asked
    gallery.query = "my own words"
    gallery.share = 1.0
    assert (gallery.query, gallery.position) == ("my own words", -1)
    gallery.picture = 3
    gallery.outcome = "won"
    gallery.picture = 3
    gallery.share = 0.0  # where nothing is won
    assert gallery.picture == 3 and gallery.matching == 0
    assert gallery.message.startswith("No caption of this kind has this outcome")


def test_own_words_stay_though_the_caption_before_them_still_belongs(
    make, clip, captioned, features, monkeypatch
) -> None:
    gallery = make(text_features=encode_texts(clip, captioned.texts))
    always = torch.ones(len(captioned.texts), dtype=torch.bool)
    monkeypatch.setattr(gallery, "_is_first", lambda *_: always)
    gallery.outcome = "both"
    assert (gallery.query, gallery.position) == (captioned.texts[0], 0)
    gallery.query = "my own words"
    assert gallery.position == -1
    gallery.share = 0.5
    assert (gallery.query, gallery.position) == ("my own words", -1)
    gallery.position = 1
    gallery.picture = 2
    gallery.share = 1.0
    assert (gallery.query, gallery.picture, gallery.position) == ("", 2, -1)


def test_a_caption_is_answered_after_a_group_without_any(
    make, clip, captioned, monkeypatch
) -> None:
    kinds = ["all"] * len(captioned.texts)
    gallery = make(text_features=encode_texts(clip, captioned.texts), facets={"kind": kinds})
    first = torch.ones(len(kinds), dtype=torch.bool)
    monkeypatch.setattr(gallery, "_is_first", lambda share, _: first & (share > 0))
    gallery.outcome = "won"
    said = gallery.message
    gallery.outcome = "lost"
    assert gallery.message.startswith("No caption of this kind")
    gallery.outcome = "won"
    assert (gallery.message, gallery.position) == (said, 0)


def test_a_picture_that_has_gone_still_asks(make, captioned, tmp_path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(captioned))]
    for path in paths:
        Image.new("RGB", (8, 8), "red").save(path)
    Image.new("RGB", (2000, 1)).save(paths[1])
    gallery = make(dataset=replace(captioned, paths=tuple(paths)), things=None)
    gallery.picture = 1
    assert Image.open(io.BytesIO(thumbnails(gallery)[-1])).size == (256, 1)
    paths[2].unlink()
    gallery.picture = 2
    assert gallery.message.startswith("What is nearest") and -1 not in thumbnails(gallery)
    gallery.picture = 3
    data, _ = gallery._repr_mimebundle_()  # among whose hits is the one that has gone
    assert data["text/plain"].startswith("QueryGallery: asked with a picture among 6 pictures.")
    opened = []
    gallery.send = lambda content, buffers: opened.append(buffers)
    gallery._receive(gallery, {"kind": "open", "picture": 1}, [])
    assert Image.open(io.BytesIO(opened[0][0])).size == (1024, 1)


def test_files_that_change_or_go_meanwhile_are_shown_as_they_are(make, captioned, tmp_path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(len(captioned))]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)
    gallery = make(dataset=replace(captioned, paths=tuple(paths)), things=None)
    old = thumbnails(gallery)
    first, second = images(gallery, "before")[:2]
    Image.new("RGB", (16, 8), "green").save(paths[first])
    paths[second].unlink()
    gallery.query = "boats"
    gallery.query = "a red ball"
    new = thumbnails(gallery)
    assert new[first] != old[first] and second not in new
    paths[first].write_bytes(b"no picture")
    gallery.query = "boats"
    gallery.query = "a red ball"
    assert first not in thumbnails(gallery)
    answers = []
    gallery.send = lambda content, buffers=None: answers.append(content)
    for image in (first, second):
        gallery._receive(gallery, {"kind": "open", "picture": image}, [])
        assert gallery.message == f"{image}.png cannot be opened any more."
    assert answers == [{"kind": "gone"}] * 2  # else the page's view would wait for ever


def test_typed_words_have_no_known_answer(make, clip, features) -> None:
    gallery = make()
    gallery.query = "  a   blue\tball "
    found = search_images(encode_texts(clip, ["a blue ball"])[0], features[0.0], 4)
    assert images(gallery, "before") == [*found.images]
    hits = gallery.results["before"] + gallery.results["after"]
    assert not any(hit["right"] or hit["note"] for hit in hits)
    assert "judge for yourself" in gallery.message


def test_a_caption_of_several_pictures_has_several_answers(clip, captioned, features) -> None:
    twice = replace(captioned, captions=(*captioned.captions[:5], ("a red ball",)))
    gallery = QueryGallery(clip, twice, features, examples=["a red ball"])
    gallery.top_k = 6
    right = {hit["image"] for hit in gallery.results["after"] if hit["right"]}
    assert right == {0, 5}


def test_a_caption_is_known_whatever_blanks_it_has(clip, captioned, features) -> None:
    odd = replace(captioned, captions=(("a red \n ball",), *captioned.captions[1:]))
    gallery = QueryGallery(clip, odd, features, examples=[odd.texts[0]])
    assert gallery.message.startswith("The right picture: rank")


def test_a_picture_asks_with_each_models_own_vector(make, features, captioned) -> None:
    gallery = make()
    gallery.picture = 2
    assert gallery.query == ""
    for row, share in (("before", 0.0), ("after", 1.0)):
        found = search_images(features[share][2], features[share], 4, [2]).images
        assert images(gallery, row) == [*found]
        notes = [", ".join(sorted(THINGS[image] & THINGS[2])) for image in found]
        assert [hit["note"] for hit in gallery.results[row]] == notes
    assert "share a thing" in gallery.message
    assert thumbnails(gallery)[-1] == shrink(open_picture(captioned.paths[2]))
    gallery.query = "boats"
    assert gallery.picture == -1 and -1 not in thumbnails(gallery)


def test_without_known_things_pictures_are_asked_with_all_the_same(make) -> None:
    gallery = make(things=None)
    gallery.picture = 1
    assert len(images(gallery, "before")) == 4
    assert not any(hit["note"] for hit in gallery.results["before"])
    assert "left out" in gallery.message


def test_a_picture_from_outside_is_encoded_by_both_models(
    make, clip, captioned, features, tmp_path
) -> None:
    other = clone_clip(clip)
    with torch.no_grad():
        other.model.visual.proj += 0.05 * torch.randn(
            other.model.visual.proj.shape, generator=torch.Generator().manual_seed(0)
        )
    gallery = make(fine_tuned=other)
    gallery.share = 0.5
    file = tmp_path / "own.png"
    Image.new("RGB", (300, 200), "teal").save(file)
    gallery.ask_with(file)
    assert (gallery.query, gallery.picture) == ("", -1)
    for row, share in (("before", 0.0), ("after", 0.5)):
        vector = encode_images(interpolate(clip, other, share), [file])[0]
        assert images(gallery, row) == [*search_images(vector, features[share], 4).images]
    assert thumbnails(gallery)[-1] == shrink(Image.new("RGB", (300, 200), "teal"))
    # As the page sends it; and the page learns what cannot be read.
    gallery.query = "boats"
    gallery._handle_custom_msg({"kind": "picture", "name": "x"}, [memoryview(file.read_bytes())])
    assert gallery.query == "" and -1 in thumbnails(gallery)
    gallery._handle_custom_msg({"kind": "picture", "name": "x"}, [memoryview(b"no picture")])
    assert "no picture that can be read" in gallery.message
    with pytest.raises(ValueError, match="at most 20 MB, got 21"):
        gallery.ask_with(bytes(21 << 20))
    with pytest.raises(ValueError, match="a fine-tuned CLIP to encode"):
        make().ask_with(file)


def test_how_many_are_shown_and_by_which_mixture(make, clip, features) -> None:
    gallery = make()
    before = images(gallery, "before")
    gallery.top_k = 2
    assert images(gallery, "before") == before[:2] and len(images(gallery, "after")) == 2
    gallery.share = 0.5
    found = search_images(encode_texts(clip, ["a red ball"])[0], features[0.5], 2).images
    assert images(gallery, "after") == [*found] and images(gallery, "before") == before[:2]


def test_rescoring_takes_from_each_candidate_what_references_give_it(
    make, clip, captioned, features
) -> None:
    references = encode_texts(clip, [f"number {i}" for i in range(5)])
    gallery = make(references=references)
    plain = gallery.results
    gallery.rescored = True
    query = encode_texts(clip, ["a red ball"])
    for row, share in (("before", 0.0), ("after", 1.0)):
        own = features[share]
        scores = rescore(query @ own.T, references @ own.T)[0]
        best = scores.argsort(descending=True)[:4]
        assert images(gallery, row) == best.tolist()
        got = [hit["score"] for hit in gallery.results[row]]
        assert got == pytest.approx(scores[best].tolist(), abs=1e-4)
    gallery.rescored = False
    assert gallery.results == plain


def test_what_was_won_and_lost_is_stepped_through(make, clip, captioned, features) -> None:
    """Against a slow loop over all captions."""
    texts, owners = captioned.texts, captioned.image_of_text.tolist()
    vectors = encode_texts(clip, texts)
    kinds = ["short" if len(text) < 8 else "long" for text in texts]
    gallery = make(text_features=vectors, facets={"length": kinds})
    assert (gallery.matching, gallery.position) == (len(texts), -1)  # the first example is asked
    first = {
        share: [
            search_images(vector, features[share], 1).images[0] == owner
            for vector, owner in zip(vectors, owners, strict=True)
        ]
        for share in (0.0, 0.5, 1.0)
    }
    wanted = {
        "any": lambda old, new: True,
        "won": lambda old, new: new and not old,
        "lost": lambda old, new: old and not new,
        "both": lambda old, new: old and new,
    }
    seen = 0
    for share in (1.0, 0.5):
        gallery.share = share
        for group in ("any", "length: short"):
            gallery.group = group
            for outcome, belongs in wanted.items():
                gallery.outcome = outcome
                expected = [
                    text
                    for text, kind, old, new in zip(
                        texts, kinds, first[0.0], first[share], strict=True
                    )
                    if belongs(old, new) and (group == "any" or kind == "short")
                ]
                assert gallery.matching == len(expected)
                assert gallery.position == (0 if expected else -1) or seen == 0
                for position, text in enumerate(expected):
                    gallery.position = position
                    assert gallery.query == text
                    seen += 1
    assert seen > len(texts)


def test_boxes_are_found_once_and_only_on_demand(make, detector, captioned) -> None:
    asked = []

    class Counting(type(detector)):
        def detect(self, pictures, *settings, **more):
            asked.extend(pictures)
            return super().detect([*map(open_picture, pictures)], *settings, **more)

    gallery = make(detector=Counting(**vars(detector)))
    assert not asked and gallery._boxes == {}
    for _ in range(2):
        gallery._handle_custom_msg({"kind": "boxes", "picture": 3}, [])
    picture = open_picture(captioned.paths[3])
    assert asked == [captioned.paths[3]]
    expected = detector.detect([picture], progress=False).regions[0]
    found = gallery._boxes["3"]
    assert (found["width"], found["height"]) == picture.size
    assert [box[:4] for box in found["boxes"]] == expected.xyxy.tolist()
    words = [box[4].rpartition(" ")[0] for box in found["boxes"]]
    assert words == [*expected.label] and words
    gallery._handle_custom_msg({"kind": "boxes", "picture": 999}, [])
    assert gallery._boxes.keys() == {"3"}


def test_nothing_typed_is_said_and_shows_nothing(make) -> None:
    gallery = make()
    gallery.query = "   "
    assert "type some words" in gallery.message
    assert gallery.results == {"before": [], "after": []}
    gallery.query = "boats"
    assert len(images(gallery, "before")) == 4


def test_words_beyond_what_clip_reads_are_not_dropped_in_silence(make) -> None:
    gallery = make()
    assert "counts for nothing" not in gallery.message
    gallery.query = "a very long road to a far town by the sea with sand"
    assert "counts for nothing" in gallery.message


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("picture", 6, r"picture out of range\(-1, 6\), got 6"),
        ("top_k", 7, r"top_k out of range\(1, 7\), got 7"),
        ("share", 0.3, r"share out of 0.0, 0.5, 1.0, got 0.3"),
        ("rescored", True, "rescored out of False, got True"),
        ("outcome", "won", "outcome out of any, got 'won'"),
        ("group", "x", "group out of any, got 'x'"),
    ],
)
def test_what_cannot_be_asked_is_refused(make, name, value, says) -> None:
    gallery = make()
    before = gallery.results
    with pytest.raises(traitlets.TraitError, match=f"Expected {says}"):
        setattr(gallery, name, value)
    assert gallery.results == before


def test_results_can_be_observed(make) -> None:
    gallery, seen = make(), []
    gallery.observe(lambda change: seen.append(change["new"]), "results")
    gallery.query = "boats"
    assert seen == [gallery.results]


def test_a_picture_that_is_found_can_be_opened_larger(make, captioned, tmp_path) -> None:
    wide = tmp_path / "deep/<b>wide.png"
    wide.parent.mkdir()
    Image.new("RGB", (3000, 1500), "red").save(wide)
    paths = (wide, *captioned.paths[1:])
    gallery, sent = make(dataset=replace(captioned, paths=paths)), []
    gallery.send = lambda content, buffers: sent.append((content, buffers))
    for picture in (0, 6, -1, "0", None):
        gallery._handle_custom_msg({"kind": "open", "picture": picture}, [])
    ((content, (jpeg,)),) = sent
    assert content["kind"] == "opened" and content["file"].endswith("<b>wide.png")
    assert not content["file"].startswith("/")
    assert Image.open(io.BytesIO(jpeg)).size == (1024, 512)


def test_what_is_found_is_saved_as_a_table(make, captioned) -> None:
    gallery, sent = make(), []
    gallery.query = 'a "red", round ball'
    gallery.send = sent.append
    gallery._handle_custom_msg({"kind": "table"}, [])
    (content,) = sent
    rows = [*csv.DictReader(io.StringIO(content["text"]))]
    assert [row["row"] for row in rows] == ["before"] * 4 + ["after"] * 4
    assert {row["query"] for row in rows} == {'a "red", round ball'}
    for row, hit in zip(rows[:4], gallery.results["before"], strict=True):
        assert row["file"] == captioned.paths[hit["image"]].name
        assert (int(row["rank"]), float(row["score"])) == (hit["rank"], hit["score"])


def test_a_table_holds_no_formula_and_names_the_picture_that_asks(
    clip, captioned, features, tmp_path
) -> None:
    names = ["=1+1.png", "-2.png", *(f"{number}.png" for number in range(2, len(captioned)))]
    for name, path in zip(names, captioned.paths, strict=True):
        shutil.copy(path, tmp_path / name)
    data = replace(captioned, paths=tuple(tmp_path / name for name in names))
    gallery = QueryGallery(clip, data, features)
    gallery.top_k = len(names)
    gallery.picture = 2
    rows = [*csv.DictReader(io.StringIO(gallery.to_csv()))]
    assert {row["query"] for row in rows} == {"2.png"}
    assert {"'=1+1.png", "'-2.png", "3.png"} <= {row["file"] for row in rows}


def test_a_page_without_a_kernel_has_a_picture_and_a_sentence(make) -> None:
    gallery = make(examples=[HOSTILE])
    data, _ = gallery._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and "text/html" not in data
    assert data["text/plain"].startswith(f"QueryGallery: “{HOSTILE}” among 6 pictures. ")
    sheet = Image.open(io.BytesIO(base64.b64decode(data["image/jpeg"])))
    assert sheet.size == (4 * 128, 22 + 2 * 128)
    assert len(json.dumps(data)) < 200_000
    gallery.query = ""
    data, _ = gallery._repr_mimebundle_()
    assert "type some words" in data["text/plain"]


def test_a_thumbnail_is_small_and_keeps_the_shape() -> None:
    small = Image.open(io.BytesIO(shrink(Image.new("RGB", (1000, 500), "black"))))
    assert small.size == (256, 128)


def test_an_arm_whose_text_tower_was_trained_is_refused(clip, captioned, features) -> None:
    tuned = clone_clip(clip)
    with torch.no_grad():
        tuned.model.text_projection.add_(0.1)
    with pytest.raises(ValueError, match="with the text tower of the untouched one, got another"):
        QueryGallery(clip, captioned, features, fine_tuned=tuned)


def test_bad_input_is_named(clip, captioned, features) -> None:
    with pytest.raises(ValueError, match=r"share 0 and another, got shares \[0\.5, 1\.0\]"):
        QueryGallery(clip, captioned, {k: v for k, v in features.items() if k})
    with pytest.raises(ValueError, match=r"got shares \[0\.0\]"):
        QueryGallery(clip, captioned, {0.0: features[0.0]})
    with pytest.raises(ValueError, match=r"of 6 pictures.*sizes \[5, 6\]"):
        QueryGallery(clip, captioned, features | {1.0: features[1.0][:5]})
