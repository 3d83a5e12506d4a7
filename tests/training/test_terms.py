"""Each term on a batch written by hand: what it compares, and that no other looks at it."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import RECIPES, StudentSettings, change_settings
from dclip_kit.losses import anchored_kl_loss, contrastive_loss, cosine_distillation_loss
from dclip_kit.training import PictureTargets, choose_terms
from dclip_kit.training.terms import (
    AnchoredTerm,
    Batch,
    Beside,
    CaptionTerm,
    CosineTerm,
    RehearsalTerm,
)
from tests.training.fine_tuning import join

ROWS = torch.tensor([[2, 5], [0, -1], [4, 1]])  # three pictures, of which one has one caption
CAPTIONS, OWNER = [2, 5, 0, 4, 1], [0, 0, 1, 2, 2]


def unit(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 8, generator=generator), dim=1)


TEACHER = unit(6, 1)  # of all captions


@pytest.fixture
def batch() -> Batch:
    beside = {"distillation": (unit(4, 2), unit(4, 3)), "rehearsal": (unit(7, 4), unit(7, 5))}
    image, text = unit(3, 6).requires_grad_(), unit(5, 7).requires_grad_()
    return Batch(9, ROWS, image, text, beside)


def test_a_batch_knows_its_captions_and_whose_they_are(batch) -> None:
    assert batch.captions.tolist() == CAPTIONS and batch.owner.tolist() == OWNER


def test_captions_find_their_pictures_and_a_pictures_captions_are_no_rivals(batch) -> None:
    same = torch.tensor(OWNER)[:, None] == torch.tensor(OWNER)
    expected = contrastive_loss(batch.image[OWNER], batch.text, 0.1, same)
    assert torch.equal(CaptionTerm(1.0, 0.1)(batch), expected)


@pytest.mark.parametrize("of_texts", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_vectors_are_drawn_to_the_teachers(of_texts, more, batch) -> None:
    """Of captions too where their tower trains, and then of no uncaptioned pictures."""
    if not more:
        del batch.beside["distillation"]
    target = TEACHER[CAPTIONS]
    own, aim = batch.image[OWNER], target
    if more and not of_texts:
        now, lesson = batch.beside["distillation"]
        own, aim = torch.cat([own, now]), torch.cat([target, lesson])
    expected = cosine_distillation_loss(own, aim)
    if of_texts:
        expected = expected + cosine_distillation_loss(batch.text, target)
    term = CosineTerm(1.0, TEACHER.requires_grad_(), of_texts)
    loss = term(batch)
    assert torch.allclose(loss, expected)
    loss.backward()
    assert TEACHER.grad is None and (batch.text.grad is not None) is of_texts


def test_anchors_are_ranked_as_the_teacher_ranks_them(batch) -> None:
    """Each picture counts once; anchors are a function of seed and batch."""
    texts, (now, aim) = unit(6, 8), batch.beside["distillation"]
    generator = torch.Generator().manual_seed(1_000_003 * 5 + 9)
    anchors = texts[torch.randint(6, (20,), generator=generator)]
    own = torch.cat([batch.image, now]), torch.cat([TEACHER[[2, 0, 4]], aim])
    term = AnchoredTerm(1.0, TEACHER, texts, 20, 0.1, 5)
    assert torch.equal(term(batch), anchored_kl_loss(*own, anchors, 0.1))
    assert not torch.equal(term(replace(batch, number=10)), term(batch))


def test_crops_keep_their_vectors(batch) -> None:
    expected = cosine_distillation_loss(*batch.beside["rehearsal"])
    assert torch.equal(RehearsalTerm(1.0)(batch), expected)


def test_what_comes_beside_a_batch_depends_on_its_number_and_seed_alone() -> None:
    targets, state = PictureTargets(torch.zeros(50, 3, 4, 4), unit(50, 9)), torch.get_rng_state()
    drawn = [Beside(targets, 20, seed).draw(number) for seed in (0, 1) for number in (0, 1)]
    again = [Beside(targets, 20, seed).draw(number) for seed in (0, 1) for number in (0, 1)]
    assert all(map(torch.equal, drawn, again))
    assert len({tuple(each.tolist()) for each in drawn}) == 4
    more = [Beside(targets, 20, 0).draw(number) for number in range(20)]
    assert torch.cat(more).unique().tolist() == [*range(50)]  # all, in time
    assert torch.equal(torch.get_rng_state(), state)


def test_no_weight_at_all_is_refused(features, pixels) -> None:
    settings = StudentSettings(distillation_weight=0.0, contrastive_weight=0.0)
    with pytest.raises(ValueError, match="weight above 0 for one term at least, got none"):
        choose_terms(settings, join(pixels, features))


def test_the_recipe_dclip_adds_up_what_the_paper_does(features, pixels, batch) -> None:
    """Cosine distance to the teacher and InfoNCE at 0.05, with equal weights."""
    settings = change_settings(StudentSettings(), RECIPES["dclip"]["student"])
    terms = choose_terms(settings, join(pixels, features), features.text)
    assert [(type(term), term.weight) for term in terms] == [(CaptionTerm, 1.0), (CosineTerm, 1.0)]
    same = torch.tensor(OWNER)[:, None] == torch.tensor(OWNER)
    expected = contrastive_loss(batch.image[OWNER], batch.text, 0.05, same)
    assert torch.equal(terms[0](batch), expected)
