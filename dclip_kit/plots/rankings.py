"""What searches find, before and after fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from dclip_kit.data import open_picture
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.plots.style import (
    INK,
    add_picture,
    add_tag,
    new_figure,
    tile_pictures,
    wrap_text,
)
from dclip_kit.search.index import search_images

_ROW = 120  # pixels that a row of pictures takes
_SIDE = 120  # pixels of a stored picture, with its margins
_LINE = 17  # pixels of a line of text


@dataclass(frozen=True)
class PictureRow:
    """A row of pictures.

    Attributes:
        name: of the model that found them, shown as plain text.
        images: indices of the pictures, from the left.
        ringed: indices of those to ring, such as the right answer.
        notes: lines below the name, shown as plain text.
        tags: a short plain text for each picture, or none.
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
    labels: Sequence[str] = (),
) -> go.Figure:
    """The pictures that each model finds first for a few queries, the correct one ringed.

    Each query has a row for each model, with the rank of the correct picture (ties count as their
    mean rank).

    Args:
        queries: shown as plain text.
        query_features: from `encode_texts`; the text tower is the same for all models.
        pictures: to search; only those shown are read.
        image_features: of these pictures, by the model's name, from `encode_images`.
        correct: index of each query's picture.
        top_k: the number of pictures in a row.
        labels: of each query, such as "won", shown before it as plain text; or none.

    Raises:
        ValueError: numbers of queries, labels or pictures differ or are 0, an index is out of
            range, or a picture cannot be read.
    """
    _require_pictures(correct.tolist(), pictures, image_features)
    sections, headings = [], [f"“{query}”" for query in queries]
    ranks = {
        name: retrieval_metrics(features, query_features, correct).text_to_image.ranks.tolist()
        for name, features in image_features.items()
    }
    if labels:
        headings = [f"{a}: {b}" for a, b in zip(labels, headings, strict=True)]
    entries = zip(headings, query_features, correct.tolist(), strict=True)
    for query, (heading, vector, answer) in enumerate(entries):
        rows = []
        for name, features in image_features.items():
            indices = search_images(vector, features, top_k).images
            notes = [f"rank {ranks[name][query]:,g}", f"of {len(pictures):,}"]
            rows.append(PictureRow(name, indices, frozenset([answer]), notes))
        sections.append((heading, rows))
    return plot_picture_rows(sections, pictures)


def plot_picture_search(
    query: int,
    pictures: Sequence[Path] | Sequence[Image.Image],
    image_features: Mapping[str, Float[Tensor, "image embed"]],
    things: Sequence[frozenset[str]],
    top_k: int = 5,
) -> go.Figure:
    """The pictures that each model finds most similar to one of them, which is left out.

    Args:
        query: index of the picture to search with.
        pictures: to search; only those shown are read.
        image_features: by the model's name; each searches with its own vector of the query.
        things: what each picture shows: those that share a thing with the query are ringed, and
            their tags name it.
        top_k: the number of pictures in a row.

    Raises:
        ValueError: numbers of pictures differ, or as `search_images` and `plot_picture_rows`.
    """
    _require_pictures([query], pictures, image_features)
    if len(things) != len(pictures):
        raise ValueError(
            f"Expected the things of each of {len(pictures):,} pictures, got {len(things):,}; give "
            "both of the same data."
        )
    heading = f"asked with this picture: {', '.join(sorted(things[query]))}"
    rows = [PictureRow("query", [query])]
    for name, features in image_features.items():
        indices = search_images(features[query], features, top_k, [query]).images
        shared = [things[image] & things[query] for image in indices]
        sharing = frozenset(image for image, common in zip(indices, shared, strict=True) if common)
        tags = [", ".join(sorted(common)) for common in shared]
        rows.append(
            PictureRow(name, indices, sharing, (f"{len(sharing)} of {len(indices)}",), tags)
        )
    return plot_picture_rows([(heading, rows)], pictures)


def _require_pictures(
    queries: Sequence[int],
    pictures: Sequence[Path] | Sequence[Image.Image],
    image_features: Mapping[str, Tensor],
) -> None:
    sizes = {len(pictures), *(len(features) for features in image_features.values())}
    if len(sizes) > 1 or not set(queries) <= set(range(len(pictures))):
        raise ValueError(
            f"Expected features of each of {len(pictures)} pictures from every model, and queries "
            f"among these pictures, got {sorted(sizes)} and {list(queries)}; count the pictures "
            "from 0."
        )


def plot_picture_rows(
    sections: Sequence[tuple[str, Sequence[PictureRow]]],
    pictures: Sequence[Path] | Sequence[Image.Image],
) -> go.Figure:
    """Rows of pictures under headings, such as what each model finds for one query.

    Args:
        sections: headings, shown as plain text with their line breaks, and their rows.
        pictures: that the rows' indices refer to; only those shown are read.

    Raises:
        ValueError: there is no section or no row, a row shows no picture, an index is out of range,
            or a picture cannot be read.
    """
    rows = [row for _, group in sections for row in group]
    indices = {image for row in rows for image in row.images}
    if not all(row.images for row in rows) or not rows or indices - set(range(len(pictures))):
        raise ValueError(
            f"Expected rows with pictures from 0 to {len(pictures) - 1}, got {len(rows)} rows with "
            f"{sorted(indices)[:5]}; count the pictures from 0."
        )
    titles = [
        "<b>{}</b>".format("<br>".join(wrap_text(line, 60, 2) for line in heading.splitlines()))
        for heading, _ in sections
    ]
    above = _LINE * max(title.count("<br>") + 1 for title in titles) + 12
    heights = [_ROW * len(group) for _, group in sections]
    height = sum(heights) + above * (len(sections) - 1)
    figure = new_figure(
        height, titles, rows=len(sections), row_heights=heights, vertical_spacing=above / height
    )
    figure.update_annotations(x=0, xanchor="left", align="left")
    columns = max(len(row.images) for row in rows)
    blank = Image.new("RGB", (1, 1), "white")
    for number, (_, group) in enumerate(sections, start=1):
        # A section's pictures are on one sheet, with the rows' names and notes on its left.
        cells: list[Image.Image] = []
        ringed, names = [], []
        for row in group:
            ringed += [len(cells) + i for i, image in enumerate(row.images) if image in row.ringed]
            row_pictures = [pictures[image] for image in row.images]
            cells += [
                picture if isinstance(picture, Image.Image) else open_picture(picture)
                for picture in row_pictures
            ]
            cells += [blank] * (columns - len(row_pictures))
            lines = [wrap_text(note, 20) for note in row.notes]
            names.append("<br>".join([f"<b>{wrap_text(row.name, 20)}</b>", *lines]))
        add_picture(figure, tile_pictures(cells, columns, _SIDE, ringed), row=number)
        for index, row in enumerate(group):
            for column, tag in enumerate(row.tags):
                if tag:
                    left, top = column * _SIDE + 6, index * _SIDE + 6
                    add_tag(figure, wrap_text(tag, 14, 1), left, top, INK, row=number)
        middles = [(index + 0.5) * _SIDE for index in range(len(group))]
        figure.update_yaxes(
            visible=True, showgrid=False, tickvals=middles, ticktext=names, row=number
        )
        figure.update_xaxes(constraintoward="left", row=number)
    return figure
