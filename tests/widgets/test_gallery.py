"""The gallery's controls, worked as a person would, and what it then shows."""

import io
from dataclasses import replace

import ipywidgets
import pytest
from PIL import Image

from dclip_kit.data import open_picture
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.search.index import search_images
from dclip_kit.widgets import QueryGallery
from dclip_kit.widgets.gallery import PICTURE, WORDS, PictureStrip, make_thumbnail

HOSTILE = '<img src=x onerror="alert(1)">'
THINGS = [frozenset(names) for names in (("ball",), ("dog",), ("dog", "ball"), (), ("box",), ())]


def decode(value: bytes) -> Image.Image:
    return Image.open(io.BytesIO(value))


@pytest.fixture
def features(clip, captioned):
    own = encode_images(clip, captioned.paths)
    return {0.0: own, 0.5: own.roll(1, 0), 1.0: own.roll(2, 0)}


@pytest.fixture
def make(clip, captioned, features):
    def build(**changes) -> QueryGallery:
        settings = {"things": THINGS, "examples": ["a red ball", "boats"], "most": 4} | changes
        return QueryGallery(clip, captioned, features, **settings)

    return build


def shown(strip: PictureStrip) -> list[bytes]:
    return [
        image.value
        for image, cell in zip(strip.images, strip.cells, strict=True)
        if cell.layout.display != "none"
    ]


def thumbnails(captioned, images, ringed=()) -> list[bytes]:
    return [make_thumbnail(open_picture(captioned.paths[i]), i in ringed) for i in images]


def test_it_opens_with_the_first_example_answered(make, clip, captioned, features) -> None:
    gallery = make()
    query = encode_texts(clip, ["a red ball"])[0]
    assert gallery.words.value == "a red ball" and gallery.kind.value == WORDS
    for strip, step in ((gallery.before, 0.0), (gallery.after, 1.0)):
        found = search_images(query, features[step], 4)
        assert shown(strip) == thumbnails(captioned, found.images, [0])
        notes = [note.value for note in strip.notes]
        assert notes == ["✓ the answer" if image == 0 else "" for image in found.images]
    every = search_images(query, features[0.0], 6).images.index(0) + 1
    assert f"rank {every} before" in gallery.message.value


def test_typed_words_have_no_known_answer(make, clip, captioned, features) -> None:
    gallery = make()
    gallery.words.value = "  a   blue\tball "
    found = search_images(encode_texts(clip, ["a blue ball"])[0], features[0.0], 4)
    assert shown(gallery.before) == thumbnails(captioned, found.images)
    assert not any(note.value for note in gallery.before.notes + gallery.after.notes)
    assert "judge for yourself" in gallery.message.value


def test_an_example_taken_is_typed_and_forgotten_when_something_else_is(make) -> None:
    gallery = make()
    gallery.example.value = "boats"
    assert gallery.words.value == "boats" and "right picture" in gallery.message.value
    gallery.words.value = "ships"
    assert gallery.example.value == "" and gallery.words.value == "ships"
    gallery.example.value = "boats"
    assert gallery.words.value == "boats"


def test_a_caption_of_several_pictures_has_several_answers(clip, captioned, features) -> None:
    twice = replace(captioned, captions=(*captioned.captions[:5], ("a red ball",)))
    gallery = QueryGallery(clip, twice, features, examples=["a red ball"])
    vector = encode_texts(clip, ["a red ball"])[0]
    found = search_images(vector, features[0.0], gallery.top_k.value).images
    assert shown(gallery.before) == thumbnails(captioned, found, [0, 5])


def test_a_picture_asks_with_each_models_own_vector(make, captioned, features) -> None:
    gallery = make()
    gallery.kind.value = PICTURE
    gallery.picture.value = 2
    for strip, step in ((gallery.before, 0.0), (gallery.after, 1.0)):
        found = search_images(features[step][2], features[step], 4, [2]).images
        shared = {image: sorted(THINGS[image] & THINGS[2]) for image in found}
        alike = [image for image in found if shared[image]]
        assert shown(strip) == thumbnails(captioned, found, alike)
        assert [note.value for note in strip.notes] == [", ".join(shared[i]) for i in found]
    assert "share a thing" in gallery.message.value
    assert gallery._by_words.layout.display == "none"


def test_without_known_things_pictures_are_asked_with_all_the_same(make) -> None:
    gallery = make(things=None)
    gallery.kind.value = PICTURE
    assert len(shown(gallery.before)) == 4
    assert not any(note.value for note in gallery.before.notes)
    assert "left out" in gallery.message.value


def test_sliders_set_how_many_are_shown_and_by_which_mixture(make, clip, captioned, features):
    gallery = make()
    before = shown(gallery.before)
    gallery.top_k.value = 2
    assert shown(gallery.before) == before[:2] and len(shown(gallery.after)) == 2
    gallery.step.value = 0.5
    found = search_images(encode_texts(clip, ["a red ball"])[0], features[0.5], 2).images
    assert shown(gallery.after) == thumbnails(captioned, found, [0])
    assert shown(gallery.before) == before[:2]
    assert "50%" in gallery.after.title.value
    gallery.top_k.value = 4
    assert shown(gallery.before) == before


def test_boxes_are_found_once_and_only_on_demand(make, detector) -> None:
    asked = []

    class Counting(type(detector)):
        def detect(self, images, *settings, **more):
            asked.append(images[0].size)
            return super().detect(images, *settings, **more)

    gallery = make(detector=Counting(**vars(detector)))
    plain = shown(gallery.before)
    assert not asked and gallery.boxes in gallery.panel.children[3].children
    gallery.boxes.value = True
    assert asked and all(a != b for a, b in zip(plain, shown(gallery.before), strict=True))
    count = len(asked)
    gallery.boxes.value = False
    assert shown(gallery.before) == plain
    gallery.boxes.value = True
    assert len(asked) == count


def test_without_a_detector_there_is_no_control_for_boxes(make) -> None:
    gallery = make()
    assert gallery.boxes not in gallery.panel.children[3].children


def test_nothing_typed_is_said_and_shows_nothing(make) -> None:
    gallery = make()
    gallery.words.value = "   "
    assert "type some words" in gallery.message.value
    assert shown(gallery.before) == shown(gallery.after) == []
    gallery.words.value = "boats"
    assert len(shown(gallery.before)) == 4


def test_words_beyond_what_clip_reads_are_not_dropped_in_silence(make) -> None:
    gallery = make()
    assert "counts for nothing" not in gallery.message.value
    gallery.words.value = "a very long road to a far town by the sea with sand"
    assert "counts for nothing" in gallery.message.value


def test_text_is_never_html(make) -> None:
    gallery = make(examples=[HOSTILE])
    todo, seen = [gallery.panel], []
    while todo:
        widget = todo.pop()
        seen.append(type(widget))
        todo += getattr(widget, "children", ())
    assert not {ipywidgets.HTML, ipywidgets.HTMLMath, ipywidgets.Output} & set(seen)
    # What was typed is in the field it was typed in, and in no other text.
    labels = [gallery.message, gallery.before.title, gallery.after.title]
    labels += [*gallery.before.notes, *gallery.after.notes]
    assert gallery.words.value == HOSTILE
    assert not [label for label in labels if "<" in label.value]
    assert not any(getattr(w, "description_allow_html", False) for w in (gallery.words,))


def test_keyboard_users_reach_every_control(make, detector) -> None:
    gallery = make(detector=detector)
    controls = (gallery.kind, gallery.words, gallery.example, gallery.picture, gallery.top_k)
    for control in (*controls, gallery.step, gallery.boxes):
        assert control.tabbable is not False and not control.disabled
    assert not gallery.words.continuous_update  # Enter searches, and not each letter


def test_readers_without_a_kernel_get_a_sentence(make) -> None:
    bundle = make()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith("QueryGallery of 6 pictures: run this cell")


def test_thumbnails_are_small_and_keep_a_pictures_shape() -> None:
    small = decode(make_thumbnail(Image.new("RGB", (1000, 500), "black")))
    assert small.size == (256, 256)
    assert small.getpixel((128, 20))[0] > 200 and small.getpixel((128, 90))[0] < 50
    assert small.getpixel((20, 128))[0] < 50


def test_bad_input_is_named(clip, captioned, features) -> None:
    with pytest.raises(ValueError, match=r"share 0 and another, got shares \[0\.5, 1\.0\]"):
        QueryGallery(clip, captioned, {k: v for k, v in features.items() if k})
    with pytest.raises(ValueError, match=r"got shares \[0\.0\]"):
        QueryGallery(clip, captioned, {0.0: features[0.0]})
    with pytest.raises(ValueError, match=r"of 6 pictures.*sizes \[5, 6\]"):
        QueryGallery(clip, captioned, features | {1.0: features[1.0][:5]})
    with pytest.raises(ValueError, match=r"sizes \[5, 6\]"):
        QueryGallery(clip, captioned, features, things=THINGS[:5])
