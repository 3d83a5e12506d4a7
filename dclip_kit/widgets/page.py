"""Shared parts of widgets: page files, numbered pictures, and two models side by side."""

import base64
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from dclip_kit.data import open_picture
from dclip_kit.data.pictures import decode_picture
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import interpolate, same_text_tower
from dclip_kit.search.index import unit_vectors

MOST_BYTES = 20 << 20  # of an uploaded picture


def read_page(name: str) -> tuple[str, str]:
    """A widget's script and styles, each after those that all widgets share."""
    folder = resources.files(__package__)
    script, styles = (
        "\n".join(folder.joinpath(f"{part}.{ending}").read_text("utf-8") for part in parts)
        for ending, parts in (("js", ("elements", name)), ("css", ("elements", name)))
    )
    return script, styles


def open_given(picture: bytes | Path | str) -> Image.Image:
    """Reads a picture that a user gave.

    Args:
        picture: its file, or the file's content.

    Raises:
        ValueError: it is too large, or not a picture.
    """
    content = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"Expected a picture of at most {MOST_BYTES >> 20} MB, got {len(content) >> 20}; take "
            "a smaller one."
        )
    return decode_picture(content)


def require_known(proposal: Any, known: Collection[Any]) -> Any:
    """Returns a trait's new value if it is one of the known values.

    Raises:
        TraitError: it is not.
    """
    name, value = proposal["trait"].name, proposal["value"]
    if value not in known:
        all_known = str(known) if isinstance(known, range) else ", ".join(map(str, known))
        raise traitlets.TraitError(f"Expected {name} out of {all_known}, got {value!r}.")
    return value


class PictureWidget(anywidget.AnyWidget):
    """A widget over numbered pictures.

    Attributes:
        picture: the number of the current picture.
        message: the result in words.
    """

    picture = traitlets.Int(0).tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    _told = traitlets.Dict().tag(sync=True)  # constants for the page
    _paths: Sequence[Path]

    @traitlets.validate("picture")
    def _check_picture(self, proposal: Any) -> Any:
        return require_known(proposal, range(-1, len(self._paths)))

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget, with a picture and a sentence for readers without a kernel."""
        data, metadata = super()._repr_mimebundle_(**options) or ({}, {})
        jpeg, alt_text = self._draw_still()
        return data | {
            "image/jpeg": base64.b64encode(jpeg).decode("ascii"),
            "text/plain": alt_text,
        }, metadata

    def _draw_still(self) -> tuple[bytes, str]:
        """A JPEG and a sentence, each widget's own; traitlets' classes cannot be abstract."""
        raise NotImplementedError


class BeforeAfter(PictureWidget):
    """Queries the untouched CLIP and a mixture with the fine-tuned one.

    Attributes:
        picture: -1 for a picture that a user gave, or none.
        share: of the fine-tuned model in the mixture: 0 is the untouched CLIP, 1 the other.
    """

    share = traitlets.Float(1.0).tag(sync=True)

    def __init__(
        self,
        clip: ClipBundle,
        fine_tuned: ClipBundle | None,
        paths: Sequence[Path],
        image_features: Mapping[float, Float[Tensor, "image embed"]],
        names: tuple[str, str],
    ) -> None:
        """Sets up the models, without a query.

        Args:
            clip: the untouched one.
            fine_tuned: CLIP at the share 1, for pictures that users give.
            paths: of the numbered pictures.
            image_features: of these, by share; 0 is the untouched CLIP.
            names: of the two models.

        Raises:
            ValueError: the untouched CLIP or every mixture is missing, numbers of pictures differ,
                or the text tower was trained too, so that one query vector cannot serve both.
        """
        if fine_tuned and not same_text_tower(clip, fine_tuned):
            raise ValueError(
                "Expected a fine-tuned CLIP with the text tower of the untouched one, got another "
                "text tower; take an arm of another recipe."
            )
        sizes = {len(paths), *(len(features) for features in image_features.values())}
        if len(sizes) > 1 or 0 not in image_features or len(image_features) < 2:
            raise ValueError(
                f"Expected features of {len(paths)} pictures for the share 0 and another, got "
                f"shares {sorted(image_features)} and sizes {sorted(sizes)}."
            )
        self._clip, self._fine_tuned, self._paths = clip, fine_tuned, paths
        self._features = {
            share: unit_vectors(image_features[share]) for share in sorted(image_features)
        }
        self._uploaded: Image.Image | None = None  # given by a user
        self._uploaded_vectors: dict[float, Tensor] = {}  # its own, by share
        super().__init__(
            share=max(self._features),
            _told={"names": [*names], "shares": [*self._features], "most_bytes": MOST_BYTES},
        )
        self.on_msg(self._receive)

    @traitlets.validate("share")
    def _check_share(self, proposal: Any) -> Any:
        return require_known(proposal, self._features)

    def ask_with(self, picture: bytes | Path | str) -> None:
        """Queries with a picture that is not one of the numbered ones.

        Args:
            picture: its file, or the file's content.

        Raises:
            ValueError: it is too large or not a picture, or there is no model to encode it.
        """
        if self._fine_tuned is None:
            raise ValueError("Expected a fine-tuned CLIP to encode the picture, got none; give it.")
        self._uploaded, self._uploaded_vectors = open_given(picture), {}
        self.picture = -1
        self._ask({"name": "picture"})

    def _ask(self, change: Any) -> None:
        """Queries both models again after a trait has changed."""
        raise NotImplementedError

    def _receive(self, _: object, content: Any, buffers: Sequence[Any]) -> None:
        """Handles the page's messages: a picture to query with."""
        if content.get("kind") == "picture" and buffers:
            try:
                self.ask_with(bytes(buffers[0]))
            except ValueError:
                self.message = "That is no picture that can be read; take another."

    def _open(self) -> Image.Image:
        """The query picture."""
        if self.picture < 0 and self._uploaded is not None:
            return self._uploaded
        return open_picture(self._paths[self.picture])

    def _embed(self, share: float) -> Float[Tensor, "embed"]:
        """The query picture's vector from the mixture of a share."""
        if self.picture >= 0:
            return self._features[share][self.picture]
        if share not in self._uploaded_vectors:
            assert self._fine_tuned
            model = {0.0: self._clip, 1.0: self._fine_tuned}.get(share)  # without a copy
            model = model or interpolate(self._clip, self._fine_tuned, share)
            vectors = encode_images(model, [self._open()], progress=False)
            self._uploaded_vectors[share] = vectors[0]
        return self._uploaded_vectors[share]
