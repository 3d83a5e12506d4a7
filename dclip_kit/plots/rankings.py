"""What a search finds, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dclip_kit.data import open_picture
from dclip_kit.metrics import ranks
from dclip_kit.plots.panels import Box, add_canvas, add_image, add_tag, references
from dclip_kit.plots.style import (
    SMALL,
    add_text,
    arm_colors,
    blank_figure,
    escape_text,
    label_room,
    wrap_text,
)
from dclip_kit.search.index import find_nearest, search_images, shared_things

_ROW, _GAP, _LINE = 96, 8, 17  # pixels
_THUMBNAIL = 128  # pixels a side that are stored
_RING = "#00A35C"


@dataclass(frozen=True)
class PictureRow:
    """A row of pictures.

    Attributes:
        name: what found them, shown as plain text; decides the colour.
        images: indices of the pictures, from the left.
        ringed: indices of those to ring, such as the right answer.
        notes: lines below the name, shown as plain text.
        tags: a short plain text on each picture, or none.
    """

    name: str
    images: Sequence[int]
    ringed: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    tags: Sequence[str] = ()


def plot_search(
    queries: Sequence[str],
    query_features: Float[Tensor, "_query embed"],
    pictures: Sequence[Path] | Sequence[Image.Image],
    image_features: Mapping[str, Float[Tensor, "image embed"]],
    correct: Int[Tensor, "_query"],
    top_k: int = 5,
) -> go.Figure:
    """The pictures that each model finds first for a few queries, the correct one ringed.

    Below each query stands a row for each model, with the rank that it gives the correct picture
    (ties count as their mean rank).

    Args:
        queries: shown as plain text.
        query_features: from `encode_texts`; the text tower is the same for all models.
        pictures: what is searched; only those shown are read.
        image_features: by the model's name, of these pictures, as `encode_images` gives them.
        correct: index of each query's picture.
        top_k: pictures shown a row.

    Raises:
        ValueError: numbers of queries or pictures differ or are 0, an index is out of range, or a
            picture cannot be read.
    """
    counts = {len(queries), len(query_features), len(correct)}
    sizes = {len(pictures), *(len(features) for features in image_features.values())}
    if len(counts) > 1 or len(sizes) > 1 or 0 in counts | sizes or not image_features:
        raise ValueError(
            f"Expected a text, features and the correct picture for each query, and features of "
            f"each picture from every model, got {sorted(counts)} and {sorted(sizes)}; "
            "give one of each."
        )
    if not (int(correct.min()) >= 0 and int(correct.max()) < len(pictures) and top_k >= 1):
        raise ValueError(
            f"Expected correct pictures from 0 to {len(pictures) - 1} and top_k from 1, got "
            f"{correct.tolist()} and {top_k}; count the pictures from 0."
        )
    top_k = min(top_k, len(pictures))
    positives = F.one_hot(correct, len(pictures)).bool()
    found = {}
    for name, features in image_features.items():
        asked, images = F.normalize(query_features, dim=-1), F.normalize(features, dim=-1)
        best = find_nearest(asked, [images], top_k)[1].tolist()
        found[name] = best, ranks(asked @ images.T, positives).tolist()
    sections = []
    for number, query in enumerate(queries):
        own = frozenset([int(correct[number])])
        rows = [
            PictureRow(
                name, best[number], own, (f"rank {rank[number]:,g}", f"of {len(pictures):,}")
            )
            for name, (best, rank) in found.items()
        ]
        sections.append((f"“{query}”", rows))
    return plot_picture_rows(sections, pictures)


def plot_picture_search(
    query: int,
    pictures: Sequence[Path] | Sequence[Image.Image],
    image_features: Mapping[str, Float[Tensor, "image embed"]],
    things: Sequence[frozenset[str]] | None = None,
    top_k: int = 5,
) -> go.Figure:
    """The pictures that each model finds most like one of them, which is left out.

    Args:
        query: index of the picture asked with.
        pictures: what is searched; only those shown are read.
        image_features: by the model's name; each searches with its own vector of the query.
        things: what each picture shows, if known: those that share a thing with the query are
            ringed and say what.
        top_k: pictures shown a row.

    Raises:
        ValueError: numbers of pictures differ, or as `search_images` and `plot_picture_rows`.
    """
    sizes = {len(each) for each in image_features.values()} | {len(pictures)}
    sizes |= {len(pictures if things is None else things)}
    if len(sizes) > 1 or not 0 <= query < len(pictures) or not image_features:
        raise ValueError(
            f"Expected features (and things) of {len(pictures)} pictures from every model, and a "
            f"query among them, got {sorted(sizes)} and {query}."
        )
    heading = "asked with this picture"
    rows = [PictureRow("query", [query])]
    if things is not None:
        heading += f": {', '.join(sorted(things[query]))}"
    for name, features in image_features.items():
        found = search_images(features[query], features, top_k, [query]).images
        if things is None:
            rows.append(PictureRow(name, found))
            continue
        shared = shared_things(found, things, query)
        right = frozenset(image for image, each in zip(found, shared, strict=True) if each)
        tags = [", ".join(sorted(each)) for each in shared]
        rows.append(PictureRow(name, found, right, (f"{len(right)} of {len(found)}",), tags))
    return plot_picture_rows([(heading, rows)], pictures)


def plot_picture_rows(
    sections: Sequence[tuple[str, Sequence[PictureRow]]],
    pictures: Sequence[Path] | Sequence[Image.Image],
) -> go.Figure:
    """Rows of pictures under headings, such as what each model finds for one query.

    Args:
        sections: a heading, shown as plain text, and its rows.
        pictures: what the rows' indices count; only those shown are read.

    Raises:
        ValueError: there is no section or no row, a row shows no picture, an index is out of range,
            or a picture cannot be read.
    """
    rows = [row for _, group in sections for row in group]
    shown = [image for row in rows for image in row.images]
    if (
        not rows
        or not all(row.images for row in rows)
        or not 0 <= min(shown) <= max(shown) < len(pictures)
    ):
        raise ValueError(
            f"Expected rows with pictures from 0 to {len(pictures) - 1}, got {len(rows)} rows with "
            f"{sorted(set(shown))[:5]}; count the pictures from 0."
        )
    texts = [wrap_text(heading, 60, 2) for heading, _ in sections]
    headings = [_LINE * (text.count("<br>") + 1) + 10 for text in texts]
    height = sum(headings) + len(rows) * (_ROW + _GAP)
    names = list(dict.fromkeys(row.name for row in rows))
    columns = max(len(row.images) for row in rows)
    left = max(label_room([*names, *(note for row in rows for note in row.notes)]), 96)
    figure = blank_figure(height + 16, left=left)
    colors = arm_colors(names)
    y: float = height
    place = {"xref": "paper", "yref": "paper", "xanchor": "left", "align": "left"}
    for text, heading, (_, group) in zip(texts, headings, sections, strict=True):
        y -= heading
        where = (y + 3) / height
        add_text(figure, f"<b>{text}</b>", 0, where, yanchor="bottom", xshift=8 - left, **place)
        for row in group:
            axes = add_canvas(
                figure, (0, 1), ((y - _ROW) / height, y / height), (columns, 1), toward="left"
            )
            _add_row(figure, row, pictures, axes, colors[row.name])
            y -= _ROW + _GAP
    return figure


def _add_row(
    figure: go.Figure,
    row: PictureRow,
    pictures: Sequence[Path] | Sequence[Image.Image],
    axes: dict[str, str],
    color: str,
) -> None:
    for column, image in enumerate(row.images):
        box = (column + 0.03, 0.03, column + 0.97, 0.97)
        shown = pictures[image]
        picture = shown if isinstance(shown, Image.Image) else open_picture(shown)
        add_image(figure, picture, axes, _fit(picture, box), _THUMBNAIL)
        if image in row.ringed:
            _ring(figure, box, axes)
    for column, tag in enumerate(row.tags):
        if tag:
            add_tag(figure, wrap_text(tag, 14, 1), axes, column + 0.05, 0.05, color)
    notes = "".join(f"<br>{escape_text(note)}" for note in row.notes)
    add_text(
        figure,
        f"<b>{escape_text(row.name)}</b>{notes}",
        0,
        0,
        xanchor="right",
        yanchor="top",
        xshift=-8,
        align="right",
        font={"color": color, "size": SMALL},
        **references(axes),
    )


def _fit(picture: Image.Image, box: Box) -> Box:
    """The part of a square box that a picture fills with its own proportions."""
    left, top, right, bottom = box
    longest = max(picture.size)
    half_width = (right - left) * picture.width / longest / 2
    half_height = (bottom - top) * picture.height / longest / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def _ring(figure: go.Figure, box: Box, axes: dict[str, str]) -> None:
    for color, width in (("white", 7), (_RING, 4)):
        corners = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        figure.add_shape(
            type="rect", line={"color": color, "width": width}, **corners, **references(axes)
        )
