"""Searching by hand: words or a picture, before and after fine-tuning side by side."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import anywidget
import torch
import traitlets
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.boxes import label_colors
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector
from dclip_kit.models.encode import encode_images, encode_texts, tokenize
from dclip_kit.models.weights import interpolate
from dclip_kit.plots.panels import encode_jpeg, tile_pictures
from dclip_kit.search.index import (
    add_bias,
    find_nearest,
    nnn_bias,
    rank_answer,
    search_images,
    shared_things,
    unit_vectors,
)
from dclip_kit.widgets.page import MOST_BYTES, add_still, open_given, read_page

_SIDE = 160  # pixels of a thumbnail's longer side
_LARGE = 1024  # the same, of a picture that is opened
_ANY = "any"
_OUTCOMES = {  # of a caption: whether its own picture comes first, before and after
    _ANY: "of any outcome",
    "won": "won: first only after",
    "lost": "lost: first only before",
    "both": "first before and after",
}
_ASKING = ("query", "picture", "top_k", "share", "rescored")


class QueryGallery(anywidget.AnyWidget):
    """Two rows of pictures, found by the untouched CLIP and by a mixture with the fine-tuned one.

    Whatever is asked can be set here as well as in the page, and what is found be read and
    observed: `gallery.query = "a red ball"`, then `gallery.results`.

    Attributes:
        query: the words that are asked with; empty where a picture asks.
        picture: the number of the picture that is asked with; -1 where words ask.
        top_k: how many pictures are shown.
        share: of fine-tuned weights in the model of the second row.
        rescored: whether both rows are rescored by nearest-neighbour normalisation.
        outcome, group: which captions to step through: won, lost or both, and of which kind.
        position: which of these is asked, from 0; -1 for none.
        matching: how many there are.
        results: for before and after a list of what is found, each with its image, file, rank and
            score, whether it is right, and a note.
        message: what came out, in words.
    """

    _esm, _css = read_page("gallery")

    query = traitlets.Unicode().tag(sync=True)
    picture = traitlets.Int(-1).tag(sync=True)
    top_k = traitlets.Int(5).tag(sync=True)
    share = traitlets.Float(1.0).tag(sync=True)
    rescored = traitlets.Bool(False).tag(sync=True)
    outcome = traitlets.Unicode(_ANY).tag(sync=True)
    group = traitlets.Unicode(_ANY).tag(sync=True)
    position = traitlets.Int(-1).tag(sync=True)
    matching = traitlets.Int(0).tag(sync=True)
    results = traitlets.Dict().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    _told = traitlets.Dict().tag(sync=True)
    _thumbnails = traitlets.Bytes().tag(sync=True)  # JPEGs, one behind the other
    _sizes: traitlets.List[Any] = traitlets.List().tag(
        sync=True
    )  # of each: its picture, and how many bytes
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
        most: int = 12,
    ) -> None:
        """Searches for the first example.

        Args:
            clip: the untouched one; its text tower is that of every mixture.
            dataset: what is searched.
            image_features: of its pictures, by share of fine-tuned weights; 0 is the untouched
                CLIP.
            fine_tuned: CLIP at the share 1, to ask with pictures that are not in the data set.
            detector: for boxes.
            things: what each picture shows, to tell which pictures resemble one asked with.
            text_features: of the data set's captions, to step through what was won and lost.
            facets: for each facet the group of each caption; as `query_facets` makes them.
            references: of training captions, by which to rescore; see `rescore`.
            examples: captions to suggest.
            names: of the two models.
            most: the largest number of pictures a row.

        Raises:
            ValueError: the untouched CLIP or any mixture is missing, or numbers of pictures or
                captions differ.
        """
        sizes = {len(dataset), *(len(features) for features in image_features.values())}
        sizes |= {len(dataset if things is None else things)}
        if len(sizes) > 1 or 0 not in image_features or len(image_features) < 2:
            raise ValueError(
                f"Expected features of {len(dataset)} pictures for the share 0 and another, got "
                f"shares {sorted(image_features)} and sizes {sorted(sizes)}."
            )
        lengths = {len(each) for each in (facets or {}).values()}
        lengths |= set() if text_features is None else {len(text_features)}
        if lengths - {len(dataset.texts)}:
            raise ValueError(
                f"Expected features and groups of the {len(dataset.texts)} captions, got "
                f"{sorted(lengths)}; give one for each."
            )
        self._clip, self._dataset, self._detector = clip, dataset, detector
        self._fine_tuned, self._things, self._text_features = fine_tuned, things, text_features
        self._facets = facets or {}
        self._features = {
            share: unit_vectors(image_features[share]) for share in sorted(image_features)
        }
        self._owners: dict[str, set[int]] = {}  # of each caption
        for text, owner in zip(dataset.texts, dataset.image_of_text.tolist(), strict=True):
            self._owners.setdefault(text, set()).add(owner)
        self._references = references
        self._root = os.path.commonpath([path.parent for path in dataset.paths])
        self._own: Image.Image | None = None  # a picture from outside that is asked with
        self._done: tuple[Any, ...] = ()
        self._matches: list[int] = []
        self._bias = lru_cache(None)(self._compute_bias)
        self._first = lru_cache(None)(self._find_first)
        self._thumbnail = lru_cache(4096)(self._make_thumbnail)
        groups = {
            facet: [[f"{facet}: {group}", group] for group in dict.fromkeys(found)]
            for facet, found in self._facets.items()
        }
        most = min(most, len(dataset))
        told = {
            "id": f"dclip-{uuid4().hex[:8]}",
            "names": list(names),
            "shares": [*self._features],
            "most": most,
            "most_bytes": MOST_BYTES,
            "examples": list(examples),
            "outcomes": [[*each] for each in _OUTCOMES.items()]
            if text_features is not None
            else [],
            "groups": [["", [[_ANY, "any kind"]]], *([*each] for each in groups.items())],
            "has_boxes": detector is not None,
            "rescores": references is not None,
            "takes_pictures": fine_tuned is not None,
        }
        super().__init__(
            query=examples[0] if examples else "",
            top_k=min(5, most),
            share=max(self._features),
            _told=told,
        )
        if text_features is not None:
            self._matches = [*range(len(dataset.texts))]
            self.matching = len(self._matches)
        self.observe(self._ask, list(_ASKING))
        self.observe(self._filter, ["outcome", "group"])
        self.observe(self._step, "position")
        self.on_msg(self._answer)
        self._search()

    @traitlets.validate("picture", "top_k", "share", "rescored", "outcome", "group", "position")
    def _check(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if not hasattr(self, "_features"):
            return value
        groups = [value for _, options in self._told["groups"] for value, _ in options]
        allowed: Any = {
            "picture": range(-1, len(self._dataset)),
            "top_k": range(1, self._told["most"] + 1),
            "share": list(self._features),
            "rescored": [False, True] if self._references is not None else [False],
            "outcome": list(_OUTCOMES) if self._text_features is not None else [_ANY],
            "group": groups,
            "position": range(-1, len(self._matches)),
        }[name]
        if value not in allowed:
            known = str(allowed) if isinstance(allowed, range) else ", ".join(map(str, allowed))
            raise traitlets.TraitError(f"Expected {name} out of {known}, got {value!r}.")
        return value

    # What is asked

    def _ask(self, change: Any) -> None:
        """Words, a picture of the data set and one from outside put each other out."""
        if change["name"] == "query" and self.query:
            self._own = None
            self.picture = -1
        elif change["name"] == "picture" and self.picture >= 0:
            self._own = None
            self.query = ""
        if change["name"] in ("share", "rescored") and self.outcome != _ANY:
            self._filter()
        self._search()

    def _filter(self, _: Any = None) -> None:
        """Finds the captions of an outcome and a group, and asks with the first of them."""
        share = self.share
        before, after = self._first(0.0, self.rescored), self._first(share, self.rescored)
        chosen = {
            _ANY: torch.ones_like(before),
            "won": after & ~before,
            "lost": before & ~after,
            "both": before & after,
        }[self.outcome]
        if self.group != _ANY:
            facet, _, group = self.group.partition(": ")
            chosen = chosen & torch.tensor([each == group for each in self._facets[facet]])
        self._matches = chosen.nonzero().flatten().tolist()
        with self.hold_sync():
            self.matching = len(self._matches)
            self.position = -1
            if self._matches:
                self.position = 0
            else:
                self.message = "No caption of this kind came out so; choose another kind."

    def _step(self, _: Any) -> None:
        if self.position >= 0:
            self.query = self._dataset.texts[self._matches[self.position]]

    def _answer(self, _: object, content: Any, buffers: Sequence[Any]) -> None:
        """Takes what the page sends beside its traits: what to ask with, box or open."""
        kind = content.get("kind")
        if kind == "boxes" and self._detector:
            self._detect(int(content["picture"]))
        if kind == "open" and content.get("picture") in range(len(self._dataset)):
            path = self._dataset.paths[content["picture"]]
            opened = encode_jpeg(ImageOps.contain(open_picture(path, _LARGE), (_LARGE, _LARGE)))
            self.send({"kind": "opened", "file": self._name(content["picture"])}, [opened])
        if kind == "table":
            self.send({"kind": "table", "text": self.to_csv()})
        if kind == "picture" and self._fine_tuned and buffers:
            try:
                self.ask_with(bytes(buffers[0]))
            except ValueError:
                self.message = "That is no picture that can be read; take another."

    def ask_with(self, picture: bytes | Path | str) -> None:
        """Asks with a picture that is not in the data set.

        Args:
            picture: its file, or what is in it.

        Raises:
            ValueError: it is too large or no picture, or there is no model to encode it.
        """
        if self._fine_tuned is None:
            raise ValueError("Expected a fine-tuned CLIP to encode the picture, got none; give it.")
        self._own = open_given(picture)
        with self.hold_sync():
            self.picture, self.query = -1, ""
            self._done = ()
            self._search()

    # What is found

    def to_csv(self) -> str:
        """What is found, as a table: query, row (before, after), rank, score and file."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["query", "row", "rank", "score", "file"])
        for row, hits in self.results.items():
            for hit in hits:
                writer.writerow([self.query, row, hit["rank"], hit["score"], hit["file"]])
        return table.getvalue()

    def _search(self) -> None:
        """Searches with what is asked, and sends what is found to the page, at once."""
        asked = (*(getattr(self, name) for name in _ASKING), id(self._own))
        if asked == self._done:
            return
        self._done = asked
        rows = {"before": 0.0, "after": self.share}
        if self._own is not None or self.picture >= 0:
            results, said = self._search_picture(rows)
        else:
            results, said = self._search_words(rows)
        shown = dict.fromkeys(hit["image"] for row in results.values() for hit in row)
        thumbnails = {image: self._thumbnail(image) for image in shown}
        if self._own is not None:
            thumbnails[-1] = shrink(self._own)
        elif self.picture >= 0:
            thumbnails[-1] = self._thumbnail(self.picture)
        with self.hold_sync():
            self._sizes = [[image, len(each)] for image, each in thumbnails.items()]
            self._thumbnails = b"".join(thumbnails.values())
            self.message = said
            self.results = results

    def _search_words(self, rows: Mapping[str, float]) -> tuple[dict[str, Any], str]:
        text = " ".join(self.query.split())
        if not text:
            said = "Nothing to look for yet: type some words, then press Enter."
            return {row: [] for row in rows}, said
        vector = unit_vectors(encode_texts(self._clip, [text]))[0]
        right = self._owners.get(text, set())
        results, ranks = {}, []
        for row, share in rows.items():
            query, images = self._widen(vector[None], share)
            found = find_nearest(query, [images], self.top_k)[1][0].tolist()
            bias = self._bias(share)[found] if self.rescored else 0
            scores = self._features[share][found] @ vector - bias
            results[row] = self._list_hits(found, scores, right)
            ranks += [rank_answer(query[0], images, [*right])] if right else []
        said = "Nobody has said which picture is right: judge for yourself."
        if right:
            before, after = ranks
            said = (
                f"The right picture: rank {before:,g} before, rank {after:,g} after, of "
                f"{len(self._dataset):,}."
            )
        ids = tokenize(self._clip, [text])[0]
        if int(ids.argmax()) == len(ids) - 1:  # the end token took the last place
            said += " It fills all that CLIP reads; what lies beyond counts for nothing."
        return results, said

    def _search_picture(self, rows: Mapping[str, float]) -> tuple[dict[str, Any], str]:
        """By each model's own vector of the picture; scores as they are, since references are
        captions."""
        results, counts = {}, []
        for row, share in rows.items():
            features, own = self._features[share], []
            if self._own is None:
                vector, own = features[self.picture], [self.picture]
            else:
                assert self._fine_tuned
                model = interpolate(self._clip, self._fine_tuned, share)
                vector = encode_images(model, [self._own], progress=False)[0]
            found = search_images(vector, features, self.top_k, own)
            notes = [""] * len(found.images)
            if self._things and self._own is None:
                shared = shared_things(found.images, self._things, self.picture)
                notes = [", ".join(sorted(each)) for each in shared]
                counts.append(sum(map(bool, shared)))
            results[row] = self._list_hits(found.images, torch.tensor(found.scores), (), notes)
        if self._own is not None:
            return results, "What is nearest to your picture."
        if not counts:
            return results, "What is nearest to this picture, itself left out."
        before, after = counts
        return (
            results,
            f"Pictures that share a thing with this one: {before} before, {after} after.",
        )

    def _widen(self, queries: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Queries and pictures whose cosines rank as they are to be ranked."""
        features = self._features[share]
        return (
            add_bias(queries, features, self._bias(share)) if self.rescored else (queries, features)
        )

    def _compute_bias(self, share: float) -> Tensor:
        assert self._references is not None
        return nnn_bias(self._references @ self._features[share].T)

    def _find_first(self, share: float, rescored: bool) -> Tensor:
        """For each caption of the data set whether its own picture comes first."""
        assert self._text_features is not None
        queries, images = self._widen(self._text_features, share)
        found = retrieval_metrics(images, queries, self._dataset.image_of_text)
        return found.text_to_image.hits(1)

    def _list_hits(
        self, images: Sequence[int], scores: Tensor, right: Any, notes: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        found = zip(images, scores, notes or [""] * len(images), strict=True)
        return [
            {
                "image": image,
                "file": self._name(image),
                "rank": rank,
                "score": round(float(score), 4),
                "right": image in right,
                "note": note,
            }
            for rank, (image, score, note) in enumerate(found, start=1)
        ]

    # Pictures

    def _name(self, image: int) -> str:
        """A picture's file, as seen from the folder that has all of them."""
        return self._dataset.paths[image].relative_to(self._root).as_posix()

    def _make_thumbnail(self, image: int) -> bytes:
        return shrink(open_picture(self._dataset.paths[image], _SIDE))

    def _detect(self, image: int) -> None:
        key = str(image)
        if key in self._boxes or not 0 <= image < len(self._dataset):
            return
        assert self._detector
        picture = open_picture(self._dataset.paths[image])
        found = self._detector.detect([picture], progress=False).regions[0]
        labels = [
            f"{label} {confidence:.2f}"
            for label, confidence in zip(found.label, found.confidence.tolist(), strict=True)
        ]
        rows = zip(found.xyxy.tolist(), labels, label_colors(found.label), strict=True)
        boxes = [[*box, label, color] for box, label, color in rows]
        size = {"width": picture.width, "height": picture.height}
        self._boxes = self._boxes | {key: size | {"boxes": boxes}}

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; a picture and a sentence for readers who have no kernel."""
        said = f"QueryGallery: “{self.query}” among {len(self._dataset):,} pictures. {self.message}"
        return add_still(super()._repr_mimebundle_(**options), encode_jpeg(self._draw()), said)

    def _draw(self) -> Image.Image:
        """What is asked, and both rows, as one picture."""
        font, room = ImageFont.load_default(14), 22
        sheets = []
        for row, name in zip(("before", "after"), self._told["names"], strict=True):
            hits = self.results[row]
            pictures = [open_picture(self._dataset.paths[hit["image"]], _SIDE) for hit in hits]
            ringed = [number for number, hit in enumerate(hits) if hit["right"]]
            sheet = tile_pictures(pictures, max(len(hits), 1), 128, ringed)
            sheet = ImageOps.expand(sheet, (0, room, 0, 0), "white")
            ImageDraw.Draw(sheet).text((4, 3), f"{row}: {name}", fill="black", font=font)
            sheets.append(sheet)
        width = max(sheet.width for sheet in sheets)
        heights = [room, *(sheet.height for sheet in sheets)]
        whole = Image.new("RGB", (width, sum(heights)), "white")
        asked = f"“{self.query}”" if self.query else "asked with a picture"
        ImageDraw.Draw(whole).text((4, 3), asked, fill="black", font=font)
        for number, sheet in enumerate(sheets, start=1):
            whole.paste(sheet, (0, sum(heights[:number])))
        return whole


def shrink(picture: Image.Image) -> bytes:
    """A small JPEG of the whole picture."""
    return encode_jpeg(ImageOps.contain(picture.convert("RGB"), (_SIDE, _SIDE)))
