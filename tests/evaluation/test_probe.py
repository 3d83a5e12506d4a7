"""The probes tell a teacher that looks from one that reads, or sees the whole picture alone."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import RegionSettings, RegionTeacherSettings
from dclip_kit.evaluation.probe import region_probe, shortcut_probe
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher, TeacherOutput
from dclip_kit.training import embed_pictures


class Looks(MetaTeacher):
    """Embeds the mean of the regions, and no word."""

    def forward(
        self,
        region_features,
        region_mask,
        token_features,
        token_mask,
        weights=None,
        check_values=True,
    ):
        share = region_mask / region_mask.sum(1, keepdim=True)
        return self.answer((share[..., None] * region_features).sum(1), share)

    def answer(self, embedding, share):
        return TeacherOutput(F.normalize(embedding, dim=-1), None, None, share)


class Reads(Looks):
    """Embeds the mean of the caption's tokens, and nothing that is to be seen."""

    def forward(
        self,
        region_features,
        region_mask,
        token_features,
        token_mask,
        weights=None,
        check_values=True,
    ):
        share = region_mask / region_mask.sum(1, keepdim=True)
        return self.answer(token_features.sum(1), share)


@pytest.fixture
def plain() -> FrozenFeatures:
    """Six pictures, five with captions; regions and tokens are each picture's own direction."""
    owners = torch.tensor([4, 0, 1, 4, 2, 5])  # picture 3 has none
    return FrozenFeatures(
        image=torch.eye(6, 32),
        size=torch.full((6, 2), 9),
        region=torch.eye(6, 32).repeat_interleave(2, 0),
        region_count=torch.full((6,), 2),
        xyxy=torch.tensor([0.0, 0.0, 5.0, 5.0]).expand(12, 4),
        area=torch.full((12,), 0.5),
        confidence=torch.ones(12),
        label=torch.zeros(12, dtype=torch.long),
        text=torch.eye(6, 32)[owners],
        token=torch.eye(6, 32)[owners].half(),
        token_count=torch.ones(6, dtype=torch.long),
        image_of_text=owners,
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_probe_tells_a_teacher_that_looks_from_one_that_reads(
    weighted, seed, clip, plain
) -> None:
    regions = RegionSettings(weighted=weighted)
    looks = shortcut_probe(Looks(32).train(), clip, plain, regions, seed)
    assert (looks.own, looks.shuffled) == (1, 0)  # so nobody kept its own regions
    assert looks.blank <= 1 / 5
    reads = shortcut_probe(Reads(32), clip, plain, regions, seed)
    assert (reads.own, reads.shuffled, reads.blank) == (1, 1, 1)


def test_blank_regions_are_one_gray_picture(clip, plain, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        Looks,
        "answer",
        lambda self, x, share: seen.append(x) or TeacherOutput(x, None, None, share),
    )
    shortcut_probe(Looks(32), clip, plain, RegionSettings(weighted=False))
    gray = clip.normalize(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8))
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_image(gray), dim=-1).expand(5, -1)
    assert sum(torch.allclose(x, expected, atol=1e-6) for x in seen) == 1


def test_the_probe_needs_two_pictures(clip, plain) -> None:
    one = replace(plain, image_of_text=torch.full((6,), 2))
    with pytest.raises(ValueError, match="two captioned pictures, got 1"):
        shortcut_probe(Looks(32), clip, one, RegionSettings())


def test_a_caption_free_teacher_is_probed_without_tokens(clip, plain, monkeypatch) -> None:
    monkeypatch.setattr(FrozenFeatures, "tokens_of", lambda *_: pytest.fail("nobody reads them"))
    found = shortcut_probe(MetaTeacher(32, 4, caption_free=True), clip, plain, RegionSettings())
    assert found.own > found.blank


# The region teacher


class SeesRegions(RegionTeacher):
    """Embeds the mean of the regions, or nearly nothing where there are none."""

    def forward(self, image_features, region_features, region_mask, region_boxes):
        share = region_mask / region_mask.sum(1, keepdim=True).clamp(min=1)
        return self.answer((share[..., None] * region_features).sum(1))

    def answer(self, embedding):
        return F.normalize(embedding + 1e-3, dim=-1), None


class SeesTheWhole(SeesRegions):
    """Embeds the whole picture alone."""

    def forward(self, image_features, region_features, region_mask, region_boxes):
        return self.answer(image_features)


@pytest.mark.parametrize("regions", ["own", "none"])
def test_the_probe_tells_a_teacher_of_regions_from_one_of_whole_pictures(regions, plain) -> None:
    """Whatever it was trained to see: the probe asks for all three."""
    settings = RegionTeacherSettings(regions=regions)
    found = region_probe(SeesRegions(32), plain, settings)
    assert (found.own, found.shuffled, found.blank) == (1, 0, 0)
    found = region_probe(SeesTheWhole(32), plain, settings)
    assert (found.own, found.shuffled, found.blank) == (1, 1, 1)


def test_what_else_a_region_teacher_does_not_see_it_does_not_see_in_the_probe(plain) -> None:
    found = region_probe(SeesTheWhole(32), plain, RegionTeacherSettings(whole_picture=False))
    assert (found.own, found.shuffled, found.blank) == (0, 0, 0)


def test_a_region_probe_finds_a_caption_of_its_own_among_all(features) -> None:
    teacher, settings = RegionTeacher(32, 24, 3), RegionTeacherSettings(width=24, heads=3)
    found = region_probe(teacher, features, settings)
    for name, regions in (("own", "own"), ("shuffled", "another"), ("blank", "none")):
        embedding = embed_pictures(teacher, features, replace(settings, regions=regions))
        hits = []
        for image in features.image_of_text.unique().tolist():
            best = max(range(len(features.text)), key=lambda i: embedding[image] @ features.text[i])
            hits.append(features.image_of_text[best] == image)
        assert getattr(found, name) == pytest.approx(sum(map(float, hits)) / len(hits))
