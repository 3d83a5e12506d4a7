"""Builds assets/sprites/*.webp from free packages: `python -m assets.make.build_sprites`.

Needs npm and apt-get (to fetch the packages by name) and `pip install dclip-kit[pocket]`
(resvg, to draw SVG). The result is committed, so this is needed only after a change of the nouns.
"""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.pocket.sprites import ATLAS_COLUMNS, TILE, Noun, load_nouns
from dclip_kit.runtime.files import asset_path, replacing

PACKAGES = {  # style -> npm package; the photographs come from Debian (see `fetch`)
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@twemoji/svg@15.0.0",
    "openmoji": "openmoji@17.0.0",
}
PHOTO_PACKAGE = "tuxpaint-stamps-default"


def fetch(folder: Path) -> dict[str, Path]:
    """Downloads and unpacks the packages; returns the root of each style's pictures."""
    roots = {}
    for style, package in PACKAGES.items():
        result = subprocess.run(
            ["npm", "pack", "--silent", package],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(folder / result.stdout.split()[-1]) as archive:
            archive.extractall(folder / style, filter="data")
        roots[style] = folder / style / "package"
    subprocess.run(["apt-get", "download", PHOTO_PACKAGE], cwd=folder, check=True)
    deb = next(folder.glob(f"{PHOTO_PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", deb, folder / "photo"], check=True)
    roots["photo"] = folder / "photo/usr/share/tuxpaint/stamps"
    return roots


def draw_svg(svg: str) -> Image.Image:
    """Rasterises at twice the tile's side, so that trimming and resizing keep it sharp."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * TILE, height=2 * TILE)
    return Image.open(io.BytesIO(bytes(png)))


def drawers(roots: dict[str, Path]) -> dict[str, Callable[[Noun], Image.Image]]:
    """For each drawn style, a function that turns a noun's code point into a picture."""
    icons = json.loads((roots["noto"] / "icons.json").read_text())["icons"]
    icon_of = json.loads((roots["noto"] / "chars.json").read_text())

    def bare(noun: Noun) -> str:
        return noun.codepoint.replace("-fe0f", "")

    def fluent(noun: Noun) -> Image.Image:
        folder = roots["fluent"] / "assets"
        exact = folder / f"{noun.codepoint}.webp"
        return Image.open(exact if exact.exists() else folder / f"{bare(noun)}.webp")

    def noto(noun: Noun) -> Image.Image:
        body = icons[icon_of.get(noun.codepoint) or icon_of[bare(noun)]]["body"]
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return draw_svg(f'<svg {space} viewBox="0 0 128 128">{body}</svg>')

    return {
        "fluent": fluent,
        "noto": noto,
        "twemoji": lambda noun: draw_svg((roots["twemoji"] / f"{bare(noun)}.svg").read_text()),
        "openmoji": lambda noun: draw_svg(
            (roots["openmoji"] / f"color/svg/{bare(noun).upper()}.svg").read_text()
        ),
    }


def fit_tile(picture: Image.Image) -> Image.Image:
    """Trims transparent borders and centres the picture on one atlas tile."""
    picture = picture.convert("RGBA")
    # Faint shadows would widen the box beyond the visible object.
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
    picture = picture.crop(box)
    scale = TILE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    tile = Image.new("RGBA", (TILE, TILE))
    tile.paste(picture, ((TILE - width) // 2, (TILE - height) // 2))
    return tile


def save_atlas(tiles: list[Image.Image], path: Path) -> None:
    """Writes the tiles row by row into one picture, atomically."""
    rows = -(-len(tiles) // ATLAS_COLUMNS)
    atlas = Image.new("RGBA", (ATLAS_COLUMNS * TILE, rows * TILE))
    for index, tile in enumerate(tiles):
        atlas.paste(tile, (index % ATLAS_COLUMNS * TILE, index // ATLAS_COLUMNS * TILE))
    with replacing(path) as temporary:
        atlas.save(temporary, format="WEBP", quality=90, method=6)


def main() -> None:
    """Rebuilds every atlas."""
    if not shutil.which("npm") or not shutil.which("apt-get"):
        raise SystemExit("Building the sprites needs npm and apt-get to fetch their packages.")
    nouns = load_nouns()
    folder = asset_path("sprites")
    with tempfile.TemporaryDirectory() as scratch:
        roots = fetch(Path(scratch))
        for style, draw in drawers(roots).items():
            tiles = [fit_tile(draw(noun)) for noun in tqdm(nouns, desc=style)]
            save_atlas(tiles, folder / f"{style}.webp")
        photos = [photo for noun in nouns for photo in noun.photos]
        tiles = [
            fit_tile(Image.open(roots["photo"] / photo)) for photo in tqdm(photos, desc="photo")
        ]
        save_atlas(tiles, folder / "photo.webp")


if __name__ == "__main__":
    main()
