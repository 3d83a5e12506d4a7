"""Searching by hand: words or a picture, before and after fine-tuning side by side."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import traitlets
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.data.pictures import file_state
from dclip_kit.data.splits import count_truncated
from dclip_kit.metrics import ranks, retrieval_metrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector
from dclip_kit.models.encode import encode_texts
from dclip_kit.models.regions import label_colors
from dclip_kit.plots.style import encode_jpeg, fit_picture, tile_pictures
from dclip_kit.search.rescoring import NNN, add_bias
from dclip_kit.widgets.page import BeforeAfter, read_page, require_known

_SIDE = 256  # pixels of a thumbnail's longer side
_LARGE = 1024  # the same, of a picture that is opened
_MOST = 12  # pictures a row
_ANY = "any"
_NO_MATCH = "No caption of this kind has this outcome; choose another kind."
_OUTCOMES = {  # whether a caption's own picture comes first, before and after
    _ANY: "of any outcome",
    "won": "won: first only after",
    "lost": "lost: first only before",
    "both": "first before and after",
}
_QUERY_TRAITS = ("query", "picture", "top_k", "share", "rescored")


class QueryGallery(BeforeAfter):
    """Two rows of pictures, found by the untouched CLIP and by a mixture with the fine-tuned one.

    Queries can be set in Python as well as in the page, and results can be read and observed:
    `gallery.query = "a red ball"`, then `gallery.results`.

    Attributes:
        query: the words to search for; empty if a picture is the query.
        picture: the number of the picture to search with; -1 if words are the query.
        top_k: how many pictures to show.
        share: of the fine-tuned model in the mixture: 0 is the untouched CLIP, 1 the other.
        rescored: whether both rows are rescored by nearest-neighbour normalisation.
        outcome, group: which captions to step through: won, lost or both, and of which kind.
        position: the current one of these, from 0; -1 for none.
        matching: their number.
        results: for before and after a list of hits, each with its image, file, rank, score and
            rank in the other row, whether it is right, and a note.
        message: the result in words.
    """

    _esm, _css = read_page("gallery")

    query = traitlets.Unicode().tag(sync=True)
    picture = traitlets.Int(-1).tag(sync=True)
    top_k = traitlets.Int(5).tag(sync=True)
    rescored = traitlets.Bool(False).tag(sync=True)
    outcome = traitlets.Unicode(_ANY).tag(sync=True)
    group = traitlets.Unicode(_ANY).tag(sync=True)
    position = traitlets.Int(-1).tag(sync=True)
    matching = traitlets.Int(0).tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    _thumbnails = traitlets.Bytes().tag(sync=True)  # concatenated JPEGs
    # Of each JPEG: its picture, and its number of bytes.
    _sizes: traitlets.List[Any] = traitlets.List().tag(sync=True)
    _boxes = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        clip: ClipBundle,
        dataset: CaptionedImages,
        image_features: Mapping[float, Float[Tensor, "image embed"]],
        *,
        fine_tuned: ClipBundle | None = None,
        detector: Detector | None = None,
        things: Sequence[frozenset[str]] | None = None,
        text_features: Float[Tensor, "text embed"] | None = None,
        facets: Mapping[str, Sequence[str]] | None = None,
        references: Float[Tensor, "reference embed"] | None = None,
        examples: Sequence[str] = (),
        names: tuple[str, str] = ("clip", "fine-tuned"),
    ) -> None:
        """Searches for the first example.

        Args:
            clip: the untouched one; all mixtures have its text tower.
            dataset: the pictures to search.
            image_features: of its pictures, by share; 0 is the untouched CLIP.
            fine_tuned: CLIP at the share 1, for queries with pictures outside the data set.
            detector: for boxes.
            things: the things in each picture, to say which pictures resemble the query picture.
            text_features: of the data set's captions, to step through those won and lost.
            facets: for each facet the group of each caption, from `query_facets`.
            references: features of training captions, to rescore with; see `rescore`.
            examples: captions to suggest.
            names: of the two models.

        Raises:
            ValueError: the untouched CLIP or all mixtures are missing, or picture counts differ.
        """
        super().__init__(clip, fine_tuned, dataset.paths, image_features, names)
        self._dataset, self._detector, self._things = dataset, detector, things or ()
        self._text_features, self._facets = text_features, facets or {}
        self._bias = {
            share: NNN.measure_bias(references, each)
            for share, each in self._features.items()
            if references is not None
        }
        self._root = os.path.commonpath([path.parent for path in dataset.paths])
        self._last_inputs: tuple[Any, ...] = ()
        self._matches = [*range(len(dataset.texts))] if text_features is not None else []
        self._is_first = lru_cache(None)(self._find_first)
        groups = [
            [facet, [[f"{facet}: {group}", group] for group in dict.fromkeys(caption_groups)]]
            for facet, caption_groups in self._facets.items()
        ]
        self._told = self._told | {
            "id": f"dclip-{self.model_id}",
            "most": min(_MOST, len(dataset)),
            "examples": list(examples),
            "outcomes": [] if text_features is None else [[*each] for each in _OUTCOMES.items()],
            "groups": [["", [[_ANY, "any kind"]]], *groups],
            "has_boxes": detector is not None,
            "rescores": references is not None,
            "takes_pictures": fine_tuned is not None,
        }
        self.matching = len(self._matches)
        self.query = examples[0] if examples else ""
        self.top_k = min(self.top_k, self._told["most"])
        self.observe(self._ask, list(_QUERY_TRAITS))
        self.observe(self._filter, ["outcome", "group"])
        self.observe(self._step, "position")
        self._search()

    @traitlets.validate("top_k", "rescored", "outcome", "group", "position")
    def _check(self, proposal: Any) -> Any:
        allowed: dict[str, Any] = {
            "top_k": range(1, self._told["most"] + 1),
            "rescored": [False, True] if self._bias else [False],
            "outcome": list(_OUTCOMES) if self._text_features is not None else [_ANY],
            "group": [value for _, options in self._told["groups"] for value, _ in options],
            "position": range(-1, len(self._matches)),
        }
        return require_known(proposal, allowed[proposal["trait"].name])

    # Queries

    def _ask(self, change: Any) -> None:
        """Searches; words, a picture of the data set and one from outside replace each other."""
        if self.position >= 0 and self.query != self._dataset.texts[self._matches[self.position]]:
            self.position = -1  # somebody asks for something else
        if change["name"] == "query" and self.query:
            self._uploaded = None
            self.picture = -1
        elif change["name"] == "picture" and self._is_pictured():
            self._uploaded = self._uploaded if self.picture < 0 else None
            self.query = ""
        changed = change["name"] in ("share", "rescored") and self.outcome != _ANY
        if changed:  # what is asked stays, and so does its caption, if it still belongs to them
            current = self._matches[self.position] if self.position >= 0 else None
            self._match()
            with self.hold_sync():
                self.position = -1
                self.matching = len(self._matches)
                if current in self._matches:
                    self.position = self._matches.index(current)
        self._search()
        if changed and not self._matches:
            self.message = _NO_MATCH

    def _is_pictured(self) -> bool:
        """Whether the query is a picture, not words."""
        return self.picture >= 0 or self._uploaded is not None

    def _match(self) -> None:
        """Finds the captions of an outcome and a group."""
        before, after = (self._is_first(share, self.rescored) for share in (0.0, self.share))
        matches = {
            _ANY: torch.ones_like(before),
            "won": after & ~before,
            "lost": before & ~after,
            "both": before & after,
        }[self.outcome]
        if self.group != _ANY:
            facet, _, group = self.group.partition(": ")
            matches = matches & torch.tensor([each == group for each in self._facets[facet]])
        self._matches = matches.nonzero().flatten().tolist()

    def _filter(self, _: Any) -> None:
        """Searches for the first caption of an outcome and a group."""
        self._match()
        with self.hold_sync():
            self.matching = len(self._matches)
            self.position = -1
            if self._matches:
                self._last_inputs = ()  # the message may be another, also if the caption is not
                self.position = 0
                self._search()
            else:
                self.message = _NO_MATCH

    def _find_first(self, share: float, rescored: bool) -> Bool[Tensor, "text"]:
        """Whether the own picture of each caption of the data set comes first."""
        queries, images = self._text_features, self._features[share]
        assert queries is not None
        if rescored:
            queries, images = add_bias(queries, images, self._bias[share])
        return retrieval_metrics(images, queries, self._dataset.image_of_text).text_to_image.hits(1)

    def _step(self, _: Any) -> None:
        if self.position >= 0:
            self.query = self._dataset.texts[self._matches[self.position]]

    def _receive(self, _: object, content: Any, buffers: Sequence[Any]) -> None:
        """Handles the page's messages: a picture to box, to open or to search with, or a table."""
        kind, picture = content.get("kind"), content.get("picture")
        if kind == "table":
            self.send({"kind": "table", "text": self.to_csv()})
        elif picture not in range(len(self._paths)):
            super()._receive(self, content, buffers)
        elif kind == "boxes":
            self._detect(picture)
        elif kind == "open":
            self._show(picture)

    # Results

    def to_csv(self) -> str:
        """The results as a CSV table: query, row (before, after), rank, score and file."""
        table = io.StringIO()
        query = self.query
        if self._is_pictured():
            query = self._name(self.picture) if self.picture >= 0 else "a picture from outside"
        rows = [
            [_as_cell(query), row, hit["rank"], hit["score"], _as_cell(hit["file"])]
            for row, hits in self.results.items()
            for hit in hits
        ]
        header = ["query", "row", "rank", "score", "file"]
        csv.writer(table, lineterminator="\n").writerows([header, *rows])
        return table.getvalue()

    def _search(self) -> None:
        """Searches for the current query, and sends all results to the page at once."""
        inputs = (*(getattr(self, name) for name in _QUERY_TRAITS), id(self._uploaded))
        if inputs == self._last_inputs:
            return
        self._last_inputs = inputs
        text = " ".join(self.query.split())
        shares = {"before": 0.0, "after": self.share}
        if self._is_pictured():
            results, message = self._search_picture(shares)
        elif text:
            results, message = self._search_words(text, shares)
        else:
            results = {row: [] for row in shares}
            message = "Nothing to look for yet: type some words, then press Enter."
        hits = [hit for row in results.values() for hit in row]
        thumbnails = {}
        for image in dict.fromkeys(hit["image"] for hit in hits):
            path = self._paths[image]
            with suppress(OSError, ValueError):  # ranked, but not shown
                thumbnails[image] = make_thumbnail(path, file_state(path))
        if self._is_pictured():
            with suppress(ValueError):  # its file has gone, and its vector is known
                thumbnails[-1] = shrink(self._open())
        with self.hold_sync():
            self._sizes = [[image, len(jpeg)] for image, jpeg in thumbnails.items()]
            self._thumbnails = b"".join(thumbnails.values())
            self.message = message
            self.results = results

    def _search_words(self, text: str, shares: Mapping[str, float]) -> tuple[dict[str, Any], str]:
        vector = encode_texts(self._clip, [text])[0]
        scores = {row: self._features[share] @ vector for row, share in shares.items()}
        if self.rescored:
            scores = {row: values - self._bias[shares[row]] for row, values in scores.items()}
        right = _answers(self._dataset).get(text, ())
        message = "Nobody has said which picture is right: judge for yourself."
        if right:
            answers = torch.zeros(2, len(self._dataset), dtype=torch.bool)
            answers[:, list(right)] = True
            before, after = ranks(torch.stack([*scores.values()]), answers).tolist()
            message = (
                f"The right picture: rank {before:,g} before, rank {after:,g} after, of "
                f"{len(self._dataset):,}."
            )
        if count_truncated([text], self._clip.tokenizer):
            message += " It is longer than what CLIP reads; the rest of it counts for nothing."
        return self._list_rows(scores, right), message

    def _search_picture(self, shares: Mapping[str, float]) -> tuple[dict[str, Any], str]:
        """Searches with each model's own vector of the picture.

        Scores are not rescored, since references are captions.
        """
        results = self._list_rows(
            {row: self._features[share] @ self._embed(share) for row, share in shares.items()}
        )
        if self.picture < 0:
            return results, "What is nearest to your picture."
        if not self._things:
            return results, "What is nearest to this picture, itself left out."
        before, after = (sum(bool(hit["note"]) for hit in hits) for hits in results.values())
        return (
            results,
            f"Pictures that share a thing with this one: {before} before, {after} after.",
        )

    def _list_rows(
        self, scores: Mapping[str, Float[Tensor, "image"]], right: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Hits of both rows, each with its picture's rank in the other row."""
        rows = {row: self._list_hits(values, right) for row, values in scores.items()}
        for row, other in (("before", "after"), ("after", "before")):
            values = scores[other].clone()
            if self.picture >= 0:
                values[self.picture] = -torch.inf  # is in neither row
            for hit in rows[row]:
                own, ahead = values[hit["image"]], values[: hit["image"]]
                hit["other_rank"] = 1 + int((values > own).sum() + (ahead == own).sum())
        return rows

    def _list_hits(
        self, scores: Float[Tensor, "image"], right: Sequence[int] = ()
    ) -> list[dict[str, Any]]:
        """The best pictures without the query picture; of equal ones, the first."""
        order = scores.sort(descending=True, stable=True).indices[: self.top_k + 1].tolist()
        best = [image for image in order if image != self.picture][: self.top_k]
        things = self._things[self.picture] if self._things and self.picture >= 0 else frozenset()
        return [
            {
                "image": image,
                "file": self._name(image),
                "rank": rank,
                "score": round(float(scores[image]), 4),
                "right": image in right,
                "note": ", ".join(sorted(things & self._things[image])) if things else "",
            }
            for rank, image in enumerate(best, start=1)
        ]

    # Pictures

    def _show(self, image: int) -> None:
        try:
            large = fit_picture(open_picture(self._paths[image], _LARGE), _LARGE)
        except (OSError, ValueError):
            self.message = f"{self._name(image)} cannot be opened any more."
            self.send({"kind": "gone"})  # or the page would take the next view's answer for its own
            return
        self.send({"kind": "opened", "file": self._name(image)}, [encode_jpeg(large)])

    def _name(self, image: int) -> str:
        """A picture's file, relative to the folder that has all of them."""
        return self._paths[image].relative_to(self._root).as_posix()

    def _detect(self, image: int) -> None:
        if self._detector is None or str(image) in self._boxes:
            return
        regions = self._detector.detect([self._paths[image]], progress=False).regions[0]
        width, height = regions.image_size
        rows = zip(
            regions.xyxy.tolist(),
            regions.label,
            regions.confidence.tolist(),
            label_colors(regions.label),
            strict=True,
        )
        boxes = [[*box, f"{label} {score:.2f}", color] for box, label, score, color in rows]
        self._boxes = self._boxes | {str(image): {"width": width, "height": height, "boxes": boxes}}

    def _open_or_blank(self, image: int) -> Image.Image:
        try:
            return open_picture(self._paths[image], _SIDE)
        except ValueError:
            return Image.new("RGB", (_SIDE, _SIDE), "lightgray")

    def _draw_still(self) -> tuple[bytes, str]:
        """Both rows, one below the other, under a line with the query."""
        hits = [hit for row in self.results.values() for hit in row]
        pictures = [self._open_or_blank(hit["image"]) for hit in hits]
        right_hits = [number for number, hit in enumerate(hits) if hit["right"]]
        sheet = tile_pictures(pictures, max(len(hits) // 2, 1), 128, right_hits)
        sheet = ImageOps.expand(sheet, (0, 22, 0, 0), "white")
        asked = "asked with a picture" if self._is_pictured() else "nothing asked"
        query = f"“{self.query}”" if self.query else asked
        text = "{}: {} above, {} below".format(query, *self._told["names"])
        ImageDraw.Draw(sheet).text((4, 3), text, fill="black", font=ImageFont.load_default(14))
        alt_text = f"QueryGallery: {query} among {len(self._dataset):,} pictures. {self.message}"
        return encode_jpeg(sheet), alt_text


@lru_cache(4)
def _answers(dataset: CaptionedImages) -> dict[str, list[int]]:
    """The pictures of each caption; captions are like queries, without doubled spaces."""
    images: dict[str, list[int]] = {}
    for image, captions in enumerate(dataset.captions):
        for caption in dict.fromkeys(" ".join(text.split()) for text in captions):
            images.setdefault(caption, []).append(image)
    return images


@lru_cache(4096)
def make_thumbnail(path: Path, state: str) -> bytes:
    """A small JPEG of a picture file in this state (`file_state`)."""
    return shrink(open_picture(path, _SIDE))


def shrink(picture: Image.Image) -> bytes:
    """A small JPEG of the whole picture."""
    return encode_jpeg(fit_picture(picture.convert("RGB"), _SIDE))


def _as_cell(text: str) -> str:
    """The text, marked where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
