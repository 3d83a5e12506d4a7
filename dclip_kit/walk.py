"""What every notebook begins with: the data of a profile, read and ready to embed."""

from dataclasses import dataclass

import torch

from dclip_kit.arms import EvaluationSets
from dclip_kit.config import Profile
from dclip_kit.datasets import CaptionedImages, LabelledImages
from dclip_kit.embedding import encode_texts, read_pixels
from dclip_kit.encoders import ClipBundle
from dclip_kit.evaluate import RetrievalSet, ZeroShotSet, encode_classes
from dclip_kit.metrics import recall_ceiling
from dclip_kit.pocket import data as pocket


@dataclass(frozen=True, eq=False)
class WalkData:
    """A profile's data.

    Attributes:
        train, val, test: captioned pictures.
        zero_shot_val, zero_shot, zero_shot_held_out: labelled pictures.
        ceiling: text→image Recall@1 on test that a perfect model could reach.
    """

    train: CaptionedImages
    val: CaptionedImages
    test: CaptionedImages
    zero_shot_val: LabelledImages
    zero_shot: LabelledImages
    zero_shot_held_out: LabelledImages
    ceiling: float


def load_data(profile: Profile) -> WalkData:
    """Reads a profile's data; the pocket's is drawn on first use.

    Raises:
        ValueError: the profile's data must be given by the user.
    """
    if profile.name != "pocket":
        raise ValueError(
            f"Expected the profile 'pocket', whose data comes with the kit, got "
            f"{profile.name!r}; make a WalkData of your own pictures instead."
        )
    return WalkData(
        train=pocket.load_captioned("train"),
        val=pocket.load_captioned("val"),
        test=pocket.load_captioned("test"),
        zero_shot_val=pocket.load_labelled("zero_shot_val"),
        zero_shot=pocket.load_labelled("zero_shot"),
        zero_shot_held_out=pocket.load_labelled("zero_shot_held_out"),
        ceiling=recall_ceiling(torch.tensor(pocket.caption_matches("test"))),
    )


def prepare_evaluation(clip: ClipBundle, data: WalkData) -> EvaluationSets:
    """Reads val's and test's pictures once, and encodes their texts once: the tower is frozen."""

    def retrieval(dataset: CaptionedImages) -> RetrievalSet:
        return RetrievalSet(
            read_pixels(clip, dataset.paths),
            encode_texts(clip, dataset.texts),
            dataset.image_of_text,
        )

    classes = encode_classes(clip, data.zero_shot.class_names)

    def zero_shot(dataset: LabelledImages) -> ZeroShotSet:
        return ZeroShotSet(
            read_pixels(clip, dataset.paths),
            torch.tensor(dataset.labels),
            classes,
            torch.tensor(dataset.in_domain),
        )

    return EvaluationSets(
        retrieval(data.val),
        retrieval(data.test),
        zero_shot(data.zero_shot_val),
        zero_shot(data.zero_shot),
        zero_shot(data.zero_shot_held_out),
    )
