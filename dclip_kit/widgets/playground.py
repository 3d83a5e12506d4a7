"""Naming pictures by hand: what fine-tuning has forgotten and learned."""

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets
from jaxtyping import Float
from torch import Tensor

from dclip_kit.data import LabelledImages
from dclip_kit.evaluation.evaluate import (
    TEMPLATES,
    Templates,
    encode_classes,
    prepare_zero_shot,
)
from dclip_kit.models.clip import ClipBundle
from dclip_kit.plots.style import encode_jpeg, fit_picture
from dclip_kit.widgets.page import BeforeAfter, read_page

_SIDE = 224  # pixels of the picture's longer side
_ANSWERS = 6


class ZeroShotPlayground(BeforeAfter):
    """Two models name a picture, choosing among classes that a user types.

    Attributes:
        classes: to choose among.
        picture: the number of the labelled picture; -1 for one that a user gave.
        share: of the fine-tuned model in the mixture: 0 is the untouched CLIP, 1 the other.
        answers: for before and after the most probable classes, each with its probability.
        changes: the labelled classes whose accuracy changed, the most forgotten first, each with
            both accuracies and a picture for which the answer changed.
        message: both answers in words.
    """

    _esm, _css = read_page("playground")

    classes: traitlets.List[str] = traitlets.List(traitlets.Unicode()).tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)
    changes: traitlets.List[Any] = traitlets.List().tag(sync=True)
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
            clip: the untouched one; all mixtures have its text tower.
            fine_tuned: CLIP at the share 1.
            labelled: pictures with classes, to measure forgetting on.
            image_features: of these pictures, by share; 0 is the untouched CLIP.
            recalls: text→image Recall@1 of each share, the gain to weigh against forgetting.
            classes: at the start; by default those of the labelled pictures.
            templates: prompts for the classes.
            names: of the two models.

        Raises:
            ValueError: the untouched CLIP or all mixtures are missing, or picture counts differ.
        """
        super().__init__(clip, fine_tuned, labelled.paths, image_features, names)
        self._task = task = prepare_zero_shot(clip, labelled, read=False, templates=templates)
        self._encoded, self._class_features = [*task.class_names], task.class_features
        self._correct = {
            share: (features @ task.class_features.T).argmax(1) == task.labels
            for share, features in self._features.items()
        }
        accuracy = {share: float(each.float().mean()) for share, each in self._correct.items()}
        # Of nothing there is no share: recall itself is the gain then, and nothing is forgotten.
        curve = [
            {
                "share": share,
                "gain": recalls[share] / recalls[0.0] - 1 if recalls[0.0] else recalls[share],
                "retention": accuracy[share] / accuracy[0.0] if accuracy[0.0] else 1.0,
            }
            for share in self._features
        ]
        self._told = self._told | {
            "curve": curve,
            "gain_unit": "%" if recalls[0.0] else "points",
            "pictures": len(labelled.paths),
        }
        self.classes = list(classes or task.class_names)
        self.observe(self._ask, ["classes", "picture", "share"])
        self._ask({"name": "picture"})

    @traitlets.validate("classes")
    def _check_classes(self, proposal: Any) -> Any:
        classes = [" ".join(name.split()) for name in proposal["value"] if name.strip()]
        if not classes:
            raise traitlets.TraitError("Expected at least one class, got none; type a name.")
        return [*dict.fromkeys(classes)]  # one typed twice would share its probability with itself

    def _ask(self, change: Any) -> None:
        """Queries both models, and sends their answers to the page at once."""
        if self.picture == -1 and self._uploaded is None:
            self.picture = 0
            return  # the change triggers another call
        texts = self._encode_classes()
        answers = {}
        for row, share in (("before", 0.0), ("after", self.share)):
            scores = float(self._clip.model.logit_scale.detach().exp()) * (
                texts @ self._embed(share)
            )
            best = scores.softmax(0).topk(min(_ANSWERS, len(texts)))
            names = [self.classes[index] for index in best.indices.tolist()]
            probabilities = [round(value, 4) for value in best.values.tolist()]
            answers[row] = [list(pair) for pair in zip(names, probabilities, strict=True)]
        message = f"Before: {answers['before'][0][0]}. After: {answers['after'][0][0]}."
        if self.picture >= 0:
            label = self._task.class_names[int(self._task.labels[self.picture])]
            message += f" It is labelled {label}."
        with self.hold_sync():
            if change["name"] == "picture":
                self._shown = encode_jpeg(fit_picture(self._open(), _SIDE))
            self.answers, self.message = answers, message
            self.changes = self._compare()

    def _encode_classes(self) -> Float[Tensor, "class embed"]:
        """The classes' features, which are encoded again only if the classes have changed."""
        if self._encoded != self.classes:
            features = encode_classes(self._clip, self.classes, self._task.templates)
            self._encoded, self._class_features = [*self.classes], features
        return self._class_features

    def _compare(self) -> list[dict[str, Any]]:
        before, after = self._correct[0.0], self._correct[self.share]
        rows = []
        for label, name in enumerate(self._task.class_names):
            images = (self._task.labels == label).nonzero()[:, 0]
            old, new = (float(correct[images].float().mean()) for correct in (before, after))
            if len(images) and old != new:
                lost, won = before[images] > after[images], after[images] > before[images]
                changed = images[lost if old > new else won]
                row = {"name": name, "before": round(old, 4), "after": round(new, 4)}
                rows.append(row | {"picture": int(changed[0])})
        return sorted(rows, key=lambda row: row["after"] - row["before"])

    def _draw_still(self) -> tuple[bytes, str]:
        return self._shown, f"ZeroShotPlayground, picture {self.picture}. {self.message}"
