"""Naming pictures by hand: what fine-tuning has forgotten, and what it has learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from dclip_kit.data import LabelledImages, open_picture
from dclip_kit.evaluation.evaluate import TEMPLATES, Templates, encode_classes
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.weights import interpolate
from dclip_kit.plots.style import encode_jpeg
from dclip_kit.widgets.page import MOST_BYTES, add_still, open_given, read_page

_SIDE = 224  # pixels of the picture's longer side
_ANSWERS = 6


class ZeroShotPlayground(anywidget.AnyWidget):
    """Two models name a picture, out of classes that somebody types.

    Attributes:
        classes: to choose among.
        picture: the number of the labelled picture; -1 for one that somebody gave.
        share: of fine-tuned weights in the second model.
        answers: for before and after the most probable classes, each with its probability.
        changes: the labelled classes that are named more or less often after than before, the most
            forgotten first, each with both accuracies and a picture for which the answer changed.
        message: both answers in words.
    """

    _esm, _css = read_page("playground")

    classes: traitlets.List[str] = traitlets.List(traitlets.Unicode()).tag(sync=True)
    picture = traitlets.Int(0).tag(sync=True)
    share = traitlets.Float(1.0).tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)
    changes: traitlets.List[Any] = traitlets.List().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    _told = traitlets.Dict().tag(sync=True)
    _shown = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        clip: ClipBundle,
        fine_tuned: ClipBundle,
        labelled: LabelledImages,
        image_features: Mapping[float, Float[Tensor, "image embed"]],
        recalls: Mapping[float, float],
        classes: Sequence[str] = (),
        templates: Templates = TEMPLATES,
        names: tuple[str, str] = ("clip", "fine-tuned"),
    ) -> None:
        """Names the first picture.

        Args:
            clip: the untouched one; its text tower is that of every mixture.
            fine_tuned: CLIP at the share 1.
            labelled: pictures with classes, by which forgetting is measured.
            image_features: of these pictures, by share of fine-tuned weights; 0 is the untouched
                CLIP.
            recalls: text→image Recall@1 by share, for what forgetting is paid for.
            classes: to begin with; left out, those of the labelled pictures.
            templates: that classes are put into.
            names: of the two models.

        Raises:
            ValueError: the untouched CLIP or any mixture is missing, or numbers of pictures differ.
        """
        sizes = {len(labelled.paths), *(len(each) for each in image_features.values())}
        if len(sizes) > 1 or 0 not in image_features or image_features.keys() != recalls.keys():
            raise ValueError(
                f"Expected features of {len(labelled.paths)} pictures and recalls for the share 0 "
                f"and others, got shares {sorted(image_features)} and {sorted(recalls)}, sizes "
                f"{sorted(sizes)}."
            )
        self._clip, self._fine_tuned, self._labelled = clip, fine_tuned, labelled
        self._features, self._templates = dict(sorted(image_features.items())), templates
        self._own: Image.Image | None = None
        known = encode_classes(clip, labelled.class_names, templates)
        labels = torch.tensor(labelled.labels)
        self._correct = {
            share: (each @ known.T).argmax(1) == labels for share, each in self._features.items()
        }
        accuracy = {share: float(each.float().mean()) for share, each in self._correct.items()}
        curve = [
            {
                "share": share,
                "gain": recalls[share] / max(recalls[0.0], 1e-9) - 1,
                "retention": accuracy[share] / max(accuracy[0.0], 1e-9),
            }
            for share in self._features
        ]
        told = {
            "names": list(names),
            "shares": [*self._features],
            "curve": curve,
            "pictures": len(labelled.paths),
            "most_bytes": MOST_BYTES,
        }
        super().__init__(
            classes=list(classes or labelled.class_names), share=max(self._features), _told=told
        )
        self.observe(self._name, ["classes", "picture", "share"])
        self.on_msg(self._answer)
        self._name({"name": "picture"})

    @traitlets.validate("classes", "picture", "share")
    def _check(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "classes":
            value = [" ".join(each.split()) for each in value if each.strip()]
            if not value:
                raise traitlets.TraitError("Expected at least one class, got none; type a name.")
        if name == "picture" and not -1 <= value < len(self._labelled.paths):
            raise traitlets.TraitError(
                f"Expected picture from 0 to {len(self._labelled.paths) - 1}, got {value}."
            )
        if name == "share" and value not in self._features:
            known = ", ".join(map(str, self._features))
            raise traitlets.TraitError(f"Expected share out of {known}, got {value}.")
        return value

    def ask_with(self, picture: bytes | Path | str) -> None:
        """Names a picture that is not among the labelled ones: its file, or what is in it.

        Raises:
            ValueError: it is too large, or no picture.
        """
        self._own = open_given(picture)
        self.picture = -1
        self._name({"name": "picture"})

    def _answer(self, _: object, content: Any, buffers: Sequence[Any]) -> None:
        if content.get("kind") == "picture" and buffers:
            try:
                self.ask_with(bytes(buffers[0]))
            except ValueError:
                self.message = "That is no picture that can be read; take another."

    def _name(self, change: Any) -> None:
        """Asks both models, and sends what they say to the page at once."""
        if self.picture == -1 and self._own is None:
            self.picture = 0
            return  # which asks again
        texts = encode_classes(self._clip, self.classes, self._templates)
        answers, first = {}, []
        for row, share in (("before", 0.0), ("after", self.share)):
            scores = self._clip.model.logit_scale.detach().exp() * (texts @ self._embed(share))
            best = scores.softmax(0).topk(min(_ANSWERS, len(texts)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            answers[row] = [[self.classes[i], round(each, 4)] for i, each in found]
            first.append(answers[row][0][0])
        said = f"Before: {first[0]}. After: {first[1]}."
        if self.picture >= 0:
            said += f" It is labelled {self._label(self.picture)}."
        with self.hold_sync():
            if change["name"] == "picture":
                self._shown = encode_jpeg(ImageOps.contain(self._open(), (_SIDE, _SIDE)))
            self.answers, self.message = answers, said
            self.changes = self._compare()

    def _label(self, picture: int) -> str:
        return self._labelled.class_names[self._labelled.labels[picture]]

    def _open(self) -> Image.Image:
        if self.picture < 0:
            assert self._own
            return self._own.convert("RGB")
        return open_picture(self._labelled.paths[self.picture])

    def _embed(self, share: float) -> Tensor:
        if self.picture >= 0:
            return self._features[share][self.picture]
        model = interpolate(self._clip, self._fine_tuned, share)
        return encode_images(model, [self._open()], progress=False)[0]

    def _compare(self) -> list[dict[str, Any]]:
        before, after = self._correct[0.0], self._correct[self.share]
        labels, rows = torch.tensor(self._labelled.labels), []
        for label, name in enumerate(self._labelled.class_names):
            own = (labels == label).nonzero()[:, 0]
            old, new = (float(each[own].float().mean()) for each in (before, after))
            if len(own) and old != new:
                moved = own[(before[own] > after[own]) if old > new else (after[own] > before[own])]
                row = {"name": name, "before": round(old, 4), "after": round(new, 4)}
                rows.append(row | {"picture": int(moved[0])})
        return sorted(rows, key=lambda row: row["after"] - row["before"])

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The widget; a picture and a sentence for readers who have no kernel."""
        said = f"ZeroShotPlayground, picture {self.picture}. {self.message}"
        return add_still(super()._repr_mimebundle_(**options), self._shown, said)
