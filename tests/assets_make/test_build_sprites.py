"""Building the atlases, on packages made up here, and what the committed licences must name."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assets.make import build_sprites as build_sprites
from assets.make.build_sprites import PACKAGES, drawers, fit_tile, save_atlas
from dclip_kit.data.pocket.sprites import ATLAS_COLUMNS, HELD_OUT_STYLE, TILE, Noun, load_nouns
from dclip_kit.runtime.files import asset_path

RED, BLUE = (255, 0, 0, 255), (0, 0, 255, 255)


@pytest.mark.parametrize(
    ("size", "box"),
    [((90, 30), (0, 42, 128, 85)), ((20, 60), (42, 0, 85, 128)), ((300, 300), (0, 0, 128, 128))],
)
def test_a_tile_shows_the_picture_whole_trimmed_and_centred(size, box) -> None:
    picture = Image.new("RGBA", (size[0] + 40, size[1] + 25), (9, 9, 9, 20))  # a faint shadow
    picture.paste(RED, (30, 5, 30 + size[0], 5 + size[1]))
    tile = fit_tile(picture)
    assert tile.size == (TILE, TILE)
    assert tile.getchannel("A").getbbox() == box
    assert tile.getpixel((TILE // 2, TILE // 2)) == RED


def test_an_atlas_holds_its_tiles_row_by_row(tmp_path) -> None:
    shades = range(0, 15 * 16, 16)  # more than a row
    tiles = [Image.new("RGBA", (TILE, TILE), (shade, 0, 255 - shade, 255)) for shade in shades]
    save_atlas(tiles, tmp_path / "mine.webp")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.webp"]
    atlas = np.asarray(Image.open(tmp_path / "mine.webp").convert("RGBA")).astype(int)
    assert atlas.shape == (2 * TILE, ATLAS_COLUMNS * TILE, 4)
    for index, shade in enumerate(shades):
        row, column = divmod(index, ATLAS_COLUMNS)
        middle = atlas[row * TILE + TILE // 2, column * TILE + TILE // 2]
        assert np.abs(middle - (shade, 0, 255 - shade, 255)).max() < 8
    assert (atlas[TILE:, 3 * TILE :, 3] == 0).all()


def noun(codepoint: str) -> Noun:
    return Noun("thing", "a thing", "things", "toy", codepoint, (), True)


@pytest.fixture
def roots(tmp_path) -> dict[str, Path]:
    """Packages of two emoji: 1f408 is red; 2708, in some packages 2708-fe0f, is blue."""
    draw = '<rect x="0" y="0" width="128" height="128" fill="{}"/>'.format
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">{draw("{}")}</svg>'.format
    files = {
        "noto/icons.json": json.dumps(
            {"icons": {"cat": {"body": draw("red")}, "plane": {"body": draw("blue")}}}
        ),
        "noto/chars.json": json.dumps({"1f408": "cat", "2708": "plane"}),
        "twemoji/1f408.svg": svg("red"),
        "twemoji/2708.svg": svg("blue"),
        "openmoji/color/svg/1F408.svg": svg("red"),
        "openmoji/color/svg/2708.svg": svg("blue"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "fluent/assets").mkdir(parents=True)
    for name, color in (("1f408", RED), ("2708-fe0f", BLUE)):
        picture = Image.new("RGBA", (256, 256), color)
        picture.save(tmp_path / f"fluent/assets/{name}.webp", lossless=True)
    return {style: tmp_path / style for style in PACKAGES}


@pytest.mark.parametrize("style", PACKAGES)
def test_each_style_finds_a_nouns_picture_by_its_code_point(roots, style) -> None:
    pytest.importorskip("resvg_py")
    draw = drawers(roots)[style]
    for codepoint, color in (("1f408", RED), ("2708-fe0f", BLUE)):
        tile = fit_tile(draw(noun(codepoint)))
        assert tile.getpixel((TILE // 2, TILE // 2)) == color
    with pytest.raises((KeyError, FileNotFoundError)):
        draw(noun("1f999"))


@pytest.mark.parametrize("missing", ["npm", "apt-get"])
def test_without_the_programs_that_fetch_packages_it_says_so(monkeypatch, missing) -> None:
    monkeypatch.setattr(
        shutil, "which", lambda program: None if program == missing else f"/bin/{program}"
    )
    with pytest.raises(SystemExit, match="needs npm and apt-get"):
        build_sprites.main()


# Licences


def test_the_licences_name_every_package_in_its_version_and_every_photograph() -> None:
    text = asset_path("sprites", "LICENSES.md").read_text(encoding="utf-8")
    for style, package in PACKAGES.items():
        (section,) = re.findall(rf"^## {style}\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        name, version = package.rsplit("@", 1)
        assert f"`{name}`" in section and version in section
        assert ("held out" in section) == (style == HELD_OUT_STYLE)
    assert "`tuxpaint-stamps-default` 2025.03.31-1" in text
    listed = re.findall(r"^\| `([^`]+\.png)` \|", text, re.MULTILINE)
    assert listed == [photo for entry in load_nouns() for photo in entry.photos]
