"""The nouns' grammar, and whether every atlas holds the picture that the table promises."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dclip_kit.data.pocket import sprites
from dclip_kit.data.pocket.sprites import (
    ATLAS_COLUMNS,
    HELD_OUT_STYLE,
    KNOWN_STYLES,
    TILE,
    choose_sprite,
    load_categories,
    load_nouns,
    load_sprites,
)
from dclip_kit.runtime.files import asset_path

STYLES = (*KNOWN_STYLES, HELD_OUT_STYLE)
IRREGULAR = {"mouse": "mice", "loaf": "loaves", "snowman": "snowmen", "cactus": "cacti"}
UNCHANGED = {"fish", "sheep", "tropical fish"}


def plural(noun: str) -> str:
    """English as the dictionary has it, for this table's words."""
    head, of, rest = noun.partition(" of ")
    if head in IRREGULAR or head in UNCHANGED:
        return IRREGULAR.get(head, head) + of + rest
    if head.endswith(("s", "x", "ch", "sh")):
        return head + "es" + of + rest
    if head.endswith("y") and head[-2] not in "aeou":
        return head[:-1] + "ies" + of + rest
    if head in ("tomato",):
        return head + "es" + of + rest
    return head + "s" + of + rest


# Nouns


def test_articles_and_plurals_are_english() -> None:
    for noun in load_nouns():
        article = "an" if noun.noun[0] in "aeiou" else "a"
        assert noun.singular == f"{article} {noun.noun}"
        assert noun.plural == plural(noun.noun)
        assert noun.noun == noun.noun.lower().strip()


def test_nouns_pictures_and_phrases_are_each_there_once() -> None:
    nouns = load_nouns()
    assert 130 <= len(nouns) <= 150
    for field in ("noun", "codepoint"):
        counts = Counter(getattr(noun, field) for noun in nouns)
        assert counts.most_common(1)[0][1] == 1, counts.most_common(1)
    photos = Counter(photo for noun in nouns for photo in noun.photos)
    assert photos.most_common(1)[0][1] == 1
    assert sum(bool(noun.photos) for noun in nouns) >= 60


def test_categories_are_about_a_dozen_and_all_well_filled() -> None:
    counts = Counter(noun.category for noun in load_nouns())
    assert list(load_categories()) == list(counts)  # a Counter keeps the order of appearance
    assert 12 <= len(counts) <= 18
    assert min(counts.values()) >= 3


def test_about_a_hundred_nouns_are_the_domain_and_each_category_is_in_it() -> None:
    domain = [noun for noun in load_nouns() if noun.domain]
    assert 90 <= len(domain) <= 110
    assert {noun.category for noun in domain} == set(load_categories())


# Atlases


@pytest.mark.parametrize("style", STYLES)
def test_an_atlas_has_every_picture_once_and_no_other(style) -> None:
    pictures = load_sprites(style)
    expected = [len(noun.photos) if style == "photo" else 1 for noun in load_nouns()]
    assert [len(own) for own in pictures] == expected
    with Image.open(asset_path("sprites", f"{style}.webp")) as opened:
        atlas = opened.convert("RGBA")
    rows = -(-sum(expected) // ATLAS_COLUMNS)
    assert atlas.size == (ATLAS_COLUMNS * TILE, rows * TILE)
    for index in range(sum(expected), rows * ATLAS_COLUMNS):  # behind the last picture
        x, y = index % ATLAS_COLUMNS * TILE, index // ATLAS_COLUMNS * TILE
        assert atlas.crop((x, y, x + TILE, y + TILE)).getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize("style", STYLES)
def test_tiles_are_filled_trimmed_and_all_different(style) -> None:
    seen = set()
    for noun, own in zip(load_nouns(), load_sprites(style), strict=True):
        for picture in own:
            alpha = np.asarray(picture.getchannel("A"))
            assert picture.mode == "RGBA"
            assert TILE - 4 <= max(picture.size) <= TILE, noun.noun
            assert (alpha > 128).mean() > 0.08, noun.noun  # a lobster is all legs
            for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
                assert edge.max() > 24, noun.noun
            seen.add(picture.tobytes())
    assert len(seen) == sum(map(len, load_sprites(style)))


def test_photographs_stand_with_their_own_nouns() -> None:
    """Told by their colours: a shift by one tile would turn the lemon into a carrot."""

    def mean_color(name: str) -> np.ndarray:
        index = [noun.noun for noun in load_nouns()].index(name)
        pixels = np.asarray(load_sprites("photo")[index][0]).reshape(-1, 4).astype(float)
        return pixels[pixels[:, 3] > 128, :3].mean(0)

    for name, low, high in [
        ("lemon", (150, 130, 0), (255, 255, 110)),
        ("tomato", (150, 0, 0), (255, 110, 110)),
        ("head of broccoli", (20, 50, 0), (130, 160, 100)),
        ("toilet", (170, 170, 160), (255, 255, 255)),
    ]:
        assert (mean_color(name) > low).all() and (mean_color(name) < high).all(), name


def test_an_unknown_style_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"fluent, noto, twemoji, photo, openmoji, got 'apple'"):
        load_sprites("apple")


# Choosing


def test_every_style_that_has_the_noun_is_chosen_about_equally_and_no_other() -> None:
    names = [noun.noun for noun in load_nouns()]
    rng = np.random.default_rng(0)

    def styles_of(name: str) -> Counter:
        return Counter(choose_sprite(names.index(name), KNOWN_STYLES, rng) for _ in range(1200))

    cat, pig = styles_of("cat"), styles_of("pig")
    assert set(cat) == {("fluent", 0), ("noto", 0), ("twemoji", 0)}
    assert set(pig) == set(cat) | {("photo", 0), ("photo", 1), ("photo", 2)}
    assert all(330 < count < 470 for count in cat.values())
    assert all(240 < pig[style, 0] < 360 for style in ("fluent", "noto", "twemoji"))
    assert 240 < sum(pig["photo", number] for number in range(3)) < 360


def test_the_held_out_style_comes_only_when_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert HELD_OUT_STYLE not in KNOWN_STYLES
    assert choose_sprite(0, (HELD_OUT_STYLE,), rng) == (HELD_OUT_STYLE, 0)


def test_nouns_are_read_as_the_file_has_them(tmp_path, monkeypatch) -> None:
    (tmp_path / "nouns.json").write_text(
        '[{"noun": "yak", "singular": "a yak", "plural": "yaks", "category": "animal", '
        '"codepoint": "1f402", "photos": ["yak.png"], "domain": false}]'
    )
    monkeypatch.setattr(sprites, "asset_path", lambda *parts: tmp_path / parts[-1])
    (noun,) = load_nouns.__wrapped__()
    assert (noun.noun, noun.photos, noun.domain) == ("yak", ("yak.png",), False)
