"""Searching by hand: words or a picture, before and after fine-tuning side by side.

Whatever a person types or a caption says goes to ipywidgets' Text, Label and Dropdown, which show
it as it stands; nothing here is HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
from jaxtyping import Float
from torch import Tensor

from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector
from dclip_kit.models.encode import encode_texts, tokenize
from dclip_kit.models.regions import Regions
from dclip_kit.search.hits import Found, rank_answer, search_images, shared_things
from dclip_kit.widgets.strip import SIDE, PictureStrip, draw_boxes, make_thumbnail

WORDS, PICTURE = "words", "a picture"


@dataclass(frozen=True)
class _Query:
    """What is searched for: a vector for each model, and what is known to be right."""

    vectors: tuple[Tensor, Tensor]
    answers: tuple[int, ...]
    leave_out: tuple[int, ...] = ()
    remark: str = ""


class QueryGallery:
    """Two rows of pictures, found by the untouched CLIP and by a mixture with the fine-tuned one.

    Works with mouse and keyboard: Tab goes from control to control, arrows move a slider, Enter
    searches, Space presses a button and opens the list (JupyterLab keeps the arrow keys of a closed
    list to itself). Show it by naming it last in a cell.

    Attributes:
        kind: what is asked with: words or a picture.
        words: the text asked with.
        example: captions to take; they are the ones whose right picture is known.
        picture: the number of the picture asked with.
        top_k: how many pictures to show.
        step: how much of the fine-tuned weights the lower row has.
        boxes: whether the detector's boxes are drawn.
        message: what came out, in words.
        before, after: the two rows.
        panel: all of it.
    """

    def __init__(
        self,
        clip: ClipBundle,
        dataset: CaptionedImages,
        image_features: Mapping[float, Float[Tensor, "image embed"]],
        detector: Detector | None = None,
        things: Sequence[frozenset[str]] | None = None,
        examples: Sequence[str] = (),
        most: int = 8,
    ) -> None:
        """Makes the controls and searches for the first example.

        Args:
            clip: encodes words; its text tower is that of every mixture.
            dataset: what is searched.
            image_features: of its pictures, by share of fine-tuned weights; 0 is the untouched
                CLIP.
            detector: for boxes; without one there is no such control.
            things: what each picture shows, to tell which pictures resemble one asked with.
            examples: captions to choose from.
            most: the largest number of pictures a row.

        Raises:
            ValueError: the untouched CLIP or any mixture is missing, or numbers of pictures differ.
        """
        sizes = {len(dataset), *(len(features) for features in image_features.values())}
        sizes |= {len(dataset if things is None else things)}
        if len(sizes) > 1 or 0 not in image_features or len(image_features) < 2:
            raise ValueError(
                f"Expected features of {len(dataset)} pictures for the share 0 and another, got "
                f"shares {sorted(image_features)} and sizes {sorted(sizes)}."
            )
        self._clip, self._dataset, self._detector = clip, dataset, detector
        self._features, self._things = image_features, things
        self._regions: dict[int, Regions] = {}
        shares = sorted(image_features)
        most = min(most, len(dataset))
        narrow = {"description_width": "initial"}
        self.kind = ipywidgets.ToggleButtons(options=[WORDS, PICTURE], description="ask with")
        self.words = ipywidgets.Text(
            examples[0] if examples else "",
            placeholder="type, then press Enter",
            continuous_update=False,
            layout={"width": "26em"},
        )
        self.example = ipywidgets.Dropdown(
            options=[("… or take a caption", ""), *((text, text) for text in examples)],
            layout={"width": "22em"},
        )
        self.picture = ipywidgets.IntSlider(
            0, 0, len(dataset) - 1, description="picture", continuous_update=False
        )
        self.top_k = ipywidgets.IntSlider(
            min(5, most), 1, most, description="show", continuous_update=False
        )
        self.step = ipywidgets.SelectionSlider(
            options=[(f"{share:.0%}", share) for share in shares],
            value=shares[-1],
            description="share of fine-tuned weights",
            continuous_update=False,
            style=narrow,
            layout={"width": "30em"},
        )
        self.boxes = ipywidgets.Checkbox(False, description="draw boxes", indent=False)
        self.message = ipywidgets.Label()
        self.before, self.after = PictureStrip(most), PictureStrip(most)
        self._asked = ipywidgets.Image(format="webp", width=SIDE)
        self._by_words = ipywidgets.HBox([self.words, self.example])
        self._by_picture = ipywidgets.HBox([self.picture, self._asked])
        settings = [self.top_k, self.step, *([self.boxes] if detector else [])]
        wrap = {"flex_flow": "row wrap"}
        self.panel = ipywidgets.VBox(
            [
                self.kind,
                self._by_words,
                self._by_picture,
                ipywidgets.HBox(settings, layout=wrap),
                self.message,
                self.before.panel,
                self.after.panel,
            ]
        )
        for control in (self.kind, self.words, self.picture, self.top_k, self.step, self.boxes):
            control.observe(lambda _: self.search(), names="value")
        self.example.observe(self._take_example, names="value")
        self.search()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The controls; and a sentence for readers who have no kernel."""
        said = (
            f"QueryGallery of {len(self._dataset):,} pictures: run this cell in Jupyter to use it."
        )
        return self.panel._repr_mimebundle_(**options) | {"text/plain": said}

    def _take_example(self, _: object) -> None:
        if self.example.value:
            self.words.value = self.example.value

    def search(self) -> None:
        """Searches with what the controls say, and shows what comes out."""
        with_words = self.kind.value == WORDS
        self._by_words.layout.display = "" if with_words else "none"
        self._by_picture.layout.display = "none" if with_words else ""
        if self.example.value not in ("", self.words.value):
            self.example.value = ""  # something else was typed
        try:
            query = self._query_words() if with_words else self._query_picture()
        except ValueError as error:
            self.message.value = str(error)
            for row in (self.before, self.after):
                row.show([], [], [])
            return
        said = []
        models = (0.0, self.step.value)
        names = "before: the untouched CLIP", f"after: {self.step.value:.0%} fine-tuned"
        rows = zip((self.before, self.after), models, names, query.vectors, strict=True)
        for row, model, name, vector in rows:
            features = self._features[model]
            found = search_images(vector, features, self.top_k.value, query.leave_out)
            row.title.value = name
            self._show(row, found, query)
            if with_words and query.answers:
                said.append(f"rank {rank_answer(vector, features, query.answers):,g}")
            else:
                said.append(f"{sum(image in query.answers for image in found.images)}")
        self.message.value = self._conclude(query, said)

    def _conclude(self, query: _Query, said: Sequence[str]) -> str:
        before, after = said
        if self.kind.value == WORDS and query.answers:
            text = f"The right picture: {before} before, {after} after, of {len(self._dataset):,}."
        elif self.kind.value == WORDS:
            text = "Nobody has said which picture is right: judge for yourself."
        elif self._things is not None:
            text = f"Pictures that share a thing with yours: {before} before, {after} after."
        else:
            text = "The picture itself is left out."
        return f"{text} {query.remark}".strip()

    def _query_words(self) -> _Query:
        text = " ".join(self.words.value.split())
        if not text:
            raise ValueError("Nothing to look for yet: type some words and press Enter.")
        vector = encode_texts(self._clip, [text])[0]
        owners = self._dataset.image_of_text.tolist()
        answers = {owners[i] for i, caption in enumerate(self._dataset.texts) if caption == text}
        ids = tokenize(self._clip, [text])[0]
        full = int(ids.argmax()) == len(ids) - 1  # the end token took the last place
        remark = (
            "It fills all that CLIP reads; what lies beyond counts for nothing." if full else ""
        )
        return _Query((vector, vector), tuple(sorted(answers)), remark=remark)

    def _query_picture(self) -> _Query:
        number = self.picture.value
        self._asked.value = self._draw(number)
        vectors = self._features[0.0][number], self._features[self.step.value][number]
        answers: tuple[int, ...] = ()
        if self._things is not None:
            every = shared_things(range(len(self._dataset)), self._things, number)
            answers = tuple(i for i, shared in enumerate(every) if shared and i != number)
        return _Query(vectors, answers, (number,))

    def _show(self, row: PictureStrip, found: Found, query: _Query) -> None:
        right = [image in query.answers for image in found.images]
        if self.kind.value == PICTURE and self._things is not None:
            shared = shared_things(found.images, self._things, self.picture.value)
            notes = [", ".join(sorted(each)) or "–" for each in shared]
        else:
            notes = ["✓ the answer" if each else "" for each in right]
        row.show([self._draw(image) for image in found.images], notes, right)

    def _draw(self, index: int) -> bytes:
        picture = open_picture(self._dataset.paths[index])
        if self._detector and self.boxes.value:
            if index not in self._regions:
                found = self._detector.detect([picture], progress=False)
                self._regions[index] = found.regions[0]
            picture = draw_boxes(picture, self._regions[index])
        return make_thumbnail(picture)
