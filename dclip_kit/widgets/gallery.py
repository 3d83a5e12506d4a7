"""Searching by hand: words or a picture, before and after fine-tuning side by side.

Whatever a person types or a caption says goes to ipywidgets' Text, Label and Dropdown, which show
it as it stands; nothing here is HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.models.boxes import draw_boxes
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector
from dclip_kit.models.encode import encode_texts, tokenize
from dclip_kit.models.regions import Regions
from dclip_kit.plots.panels import encode_jpeg, tile_pictures
from dclip_kit.search.index import rank_answer, search_images, shared_things

WORDS, PICTURE = "words", "a picture"
_SIDE = 128  # pixels that a picture is shown with; twice as many are sent, for dense screens


class PictureStrip:
    """A title and as many places for pictures as will ever be needed; text is never HTML.

    Attributes:
        title: a line above.
        images, notes: a picture and a line below it, for each place.
        cells: each place as a whole; hidden where nothing is shown.
        panel: all of it.
    """

    def __init__(self, size: int) -> None:
        self.title = ipywidgets.Label()
        self.images = [ipywidgets.Image(format="jpeg", width=_SIDE) for _ in range(size)]
        self.notes = [ipywidgets.Label(layout={"max_width": f"{_SIDE}px"}) for _ in range(size)]
        self.cells = [ipywidgets.VBox(pair) for pair in zip(self.images, self.notes, strict=True)]
        row = ipywidgets.HBox(self.cells, layout={"flex_flow": "row wrap"})
        self.panel = ipywidgets.VBox([self.title, row])

    def show(self, pictures: Sequence[Image.Image], notes: Sequence[str]) -> None:
        """Fills the first places and hides the others.

        Args:
            pictures: at most as many as there are places.
            notes: a plain text for each; pictures that have one also get a green frame.
        """
        for cell in self.cells:
            cell.layout.display = "none"
        for place, (picture, note) in enumerate(zip(pictures, notes, strict=True)):
            self.images[place].value = make_thumbnail(picture, bool(note))
            self.notes[place].value = note
            self.cells[place].layout.display = ""


def make_thumbnail(picture: Image.Image, ringed: bool = False) -> bytes:
    """The picture as a small square JPEG, perhaps with a green frame."""
    return encode_jpeg(tile_pictures([picture], 1, 2 * _SIDE, [0] if ringed else []))


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
            style={"description_width": "initial"},
            layout={"width": "30em"},
        )
        self.boxes = ipywidgets.Checkbox(False, description="draw boxes", indent=False)
        self.message = ipywidgets.Label()
        self.before, self.after = PictureStrip(most), PictureStrip(most)
        self._asked = ipywidgets.Image(format="jpeg", width=_SIDE)
        self._by_words = ipywidgets.HBox([self.words, self.example])
        self._by_picture = ipywidgets.HBox([self.picture, self._asked])
        settings = [self.top_k, self.step, *([self.boxes] if detector else [])]
        self.panel = ipywidgets.VBox(
            [
                self.kind,
                self._by_words,
                self._by_picture,
                ipywidgets.HBox(settings, layout={"flex_flow": "row wrap"}),
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
        self.before.title.value = "before: the untouched CLIP"
        self.after.title.value = f"after: {self.step.value:.0%} fine-tuned"
        rows = {self.before: self._features[0.0], self.after: self._features[self.step.value]}
        self.message.value = self._search_words(rows) if with_words else self._search_picture(rows)

    def _search_words(self, rows: Mapping[PictureStrip, Tensor]) -> str:
        """Fills the rows with what is found for the typed words; returns what to say about it."""
        text = " ".join(self.words.value.split())
        if not text:
            for strip in rows:
                strip.show([], [])
            return "Nothing to look for yet: type some words and press Enter."
        vector = encode_texts(self._clip, [text])[0]
        owners = self._dataset.image_of_text.tolist()
        answers = {owners[i] for i, caption in enumerate(self._dataset.texts) if caption == text}
        for strip, features in rows.items():
            found = search_images(vector, features, self.top_k.value).images
            notes = ["✓ the answer" if image in answers else "" for image in found]
            strip.show([self._draw(image) for image in found], notes)
        said = "Nobody has said which picture is right: judge for yourself."
        if answers:
            before, after = (rank_answer(vector, each, [*answers]) for each in rows.values())
            said = (
                f"The right picture: rank {before:,g} before, rank {after:,g} after, of "
                f"{len(self._dataset):,}."
            )
        ids = tokenize(self._clip, [text])[0]
        if int(ids.argmax()) == len(ids) - 1:  # the end token took the last place
            said += " It fills all that CLIP reads; what lies beyond counts for nothing."
        return said

    def _search_picture(self, rows: Mapping[PictureStrip, Tensor]) -> str:
        """Fills the rows with what is like the chosen picture; returns what to say about it."""
        number = self.picture.value
        self._asked.value = make_thumbnail(self._draw(number))
        things = self._things or [frozenset()] * len(self._dataset)
        counts = []
        for strip, features in rows.items():
            found = search_images(features[number], features, self.top_k.value, [number]).images
            shared = shared_things(found, things, number)
            counts.append(sum(map(bool, shared)))
            notes = [", ".join(sorted(each)) for each in shared]
            strip.show([self._draw(image) for image in found], notes)
        if self._things is None:
            return "The picture itself is left out."
        return f"Pictures that share a thing with yours: {counts[0]} before, {counts[1]} after."

    def _draw(self, index: int) -> Image.Image:
        picture = open_picture(self._dataset.paths[index])
        if self._detector is None or not self.boxes.value:
            return picture
        if index not in self._regions:
            found = self._detector.detect([picture], progress=False)
            self._regions[index] = found.regions[0]
        return draw_boxes(picture, self._regions[index], side=2 * _SIDE, font_size=20)
