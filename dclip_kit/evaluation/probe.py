"""The shortcut probe: does a teacher look at the picture, or read the caption?"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image

from dclip_kit.config import RegionSettings, RegionTeacherSettings
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, TeacherOutput
from dclip_kit.training import apply_teacher, choose_lenders, embed_pictures


@dataclass(frozen=True)
class ShortcutProbe:
    """The teacher's Recall@1 (embedding to caption) with its regions exchanged.

    Attributes:
        own: with the picture's own regions.
        shuffled: with another picture's regions.
        blank: without them: with a plain gray picture as the one region, or for a region teacher
            with the whole picture alone.
    """

    own: float
    shuffled: float
    blank: float


@torch.no_grad()
def shortcut_probe(
    teacher: MetaTeacher,
    bundle: ClipBundle,
    features: FrozenFeatures,
    regions: RegionSettings,
    seed: int = 0,
) -> ShortcutProbe:
    """Does the teacher look? One caption a picture; candidates are all these captions.

    If another picture's regions, or blank ones, score like its own, it reads the caption that it
    is given and ignores the picture (8 in `config.RECIPES`).

    Args:
        teacher: trained.
        bundle: the frozen CLIP; says what a blank picture looks like.
        features: of pictures that it was not trained on.
        regions: as in training.
        seed: of which other picture lends its regions.

    Raises:
        ValueError: there are not two captioned pictures to exchange the regions of.
    """
    teacher.eval()
    texts = features.first_texts()
    if len(texts) < 2:
        raise ValueError(f"Expected at least two captioned pictures, got {len(texts)}; give more.")
    own = features.image_of_text[texts]
    other = own[choose_lenders(len(own), seed)]
    gray = encode_images(bundle, [Image.new("RGB", (64, 64), (128, 128, 128))])
    count = len(features)
    blank = replace(  # with one region each, whose box says nothing
        features,
        region=gray.expand(count, -1),
        region_count=torch.ones(count, dtype=torch.long),
        xyxy=features.xyxy[:count],
        area=features.area[:count],
        confidence=features.confidence[:count],
        label=features.label[:count],
    )

    def score(output: TeacherOutput) -> float:
        embedding, candidates = output.embedding.cpu(), features.text[texts]
        found = retrieval_metrics(embedding, candidates, torch.arange(len(texts)))
        return found.image_to_text.recall_at[1]

    return ShortcutProbe(
        own=score(apply_teacher(teacher, features, texts, regions)),
        shuffled=score(apply_teacher(teacher, features, texts, regions, other)),
        blank=score(apply_teacher(teacher, blank, texts, regions)),
    )


def region_probe(
    teacher: RegionTeacher, features: FrozenFeatures, settings: RegionTeacherSettings
) -> ShortcutProbe:
    """Does the region teacher use the regions? All captions are candidates.

    Args:
        teacher: trained.
        features: of pictures that it was not trained on, with captions.
        settings: as in training.
    """

    def score(regions: Literal["own", "another", "none"]) -> float:
        embedding = embed_pictures(teacher, features, replace(settings, regions=regions))
        found = retrieval_metrics(embedding, features.text, features.image_of_text)
        return found.image_to_text.recall_at[1]

    return ShortcutProbe(own=score("own"), shuffled=score("another"), blank=score("none"))
