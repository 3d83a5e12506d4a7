"""The two loops: against loops written by hand, what they leave alone, and continued exactly."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.func import functional_call
from torch.nn import functional as F

from dclip_kit.config import (
    RECIPES,
    RegionSettings,
    RegionTeacherSettings,
    StudentSettings,
    TeacherSettings,
)
from dclip_kit.losses import anchored_kl_loss, contrastive_loss, cosine_distillation_loss
from dclip_kit.models import encode
from dclip_kit.models.adapters import attach_adapters
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, read_pixels
from dclip_kit.models.regions import pad_rows, region_weights
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.models.weights import choose_parameters, clone_clip
from dclip_kit.runtime import processes
from dclip_kit.training import (
    PictureTargets,
    apply_teacher,
    choose_lenders,
    choose_terms,
    distill,
    draw_captions,
    embed_pictures,
    embed_with_teacher,
    plan_epoch,
    train_teacher,
)
from dclip_kit.training import checkpoint as checkpoint_module
from dclip_kit.training import distillation as student_module
from dclip_kit.training import loop as loop_module
from dclip_kit.training.terms import Beside
from tests.models.test_denoiser import make_denoiser
from tests.training.fine_tuning import fine_tune, join

CAPTIONED = [1, 2, 4, 5, 7, 8, 10]  # of the eleven pictures
REGIONS = RegionSettings()
# So much decay that what it draws to zero, and what not, is seen in a few steps.
TEACHER = TeacherSettings(heads=4, batch_size=3, epochs=4, learning_rate=0.01, weight_decay=5.0)
STUDENT = StudentSettings(
    batch_size=2, epochs=3, learning_rate=1e-3, weight_decay=5.0, mixed_precision="no"
)
CONTROL = replace(STUDENT, distillation_weight=0.0)
REHEARSED = replace(STUDENT, rehearsal_weight=3.0, rehearsal_batch=5)
ANCHORED = replace(
    REHEARSED, distillation="anchored_kl", anchors=7, uncaptioned_batch=4, contrastive_weight=0.5
)
REGION_TEACHER = RegionTeacherSettings(
    width=24, heads=3, batch_size=3, epochs=4, captions_per_image=2, region_dropout=0.3
)


@pytest.fixture
def targets(features) -> torch.Tensor:
    return F.normalize(torch.randn_like(features.text), dim=1)


@pytest.fixture
def rehearsal(clip) -> PictureTargets:
    """Seven other pictures, and features that the untouched CLIP does not have of them."""
    shown = torch.randint(256, (7, 3, 32, 32), dtype=torch.uint8)
    return PictureTargets(shown, F.normalize(torch.randn(7, 32), dim=1))


@pytest.fixture
def uncaptioned(clip) -> PictureTargets:
    """Six pictures without captions, and what a teacher makes of them."""
    shown = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    return PictureTargets(shown, F.normalize(torch.randn(6, 32), dim=1))


def weights(module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in module.state_dict().values()])


def decayed(parameters, weight_decay: float) -> list[dict]:
    """Groups of an optimizer: biases and norms, and matrices, which alone shrink."""
    both = [[], []]
    for parameter in parameters:
        both[parameter.ndim > 1].append(parameter)
    return [{"params": x, "weight_decay": weight_decay * n} for n, x in enumerate(both)]


# The order of data


def test_an_epoch_shows_each_captioned_picture_once_with_one_of_its_captions(features) -> None:
    state = torch.get_rng_state()
    orders = [draw_captions(features, seed=3, epoch=epoch)[:, 0] for epoch in range(60)]
    for order in orders:
        assert sorted(features.image_of_text[order].tolist()) == CAPTIONED
    assert torch.cat(orders).unique().tolist() == list(range(len(features.text)))
    assert torch.equal(draw_captions(features, seed=3, epoch=1)[:, 0], orders[1])
    different = [*orders, draw_captions(features, seed=4, epoch=0)[:, 0]]
    assert len({tuple(order.tolist()) for order in different}) == len(different)
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_with_many_captions_come_no_earlier(features) -> None:
    """As when COCO, with five, is joined with data that has one."""
    owned = torch.cat([torch.arange(400).repeat_interleave(5), torch.arange(400, 800)])
    mixed = replace(
        features,
        image=torch.zeros(800, 32),
        size=torch.ones(800, 2, dtype=torch.long),
        region_count=torch.ones(800, dtype=torch.long),
        text=torch.zeros(len(owned), 32),
        token_count=torch.ones(len(owned), dtype=torch.long),
        image_of_text=owned,
    )
    for epoch in range(5):
        first = owned[draw_captions(mixed, 3, epoch)[:400, 0]]
        assert 150 < (first < 400).sum() < 250  # of 400, half of them; seven deviations


@pytest.mark.parametrize("captions", [1, 2, 3, 9])
def test_an_epoch_draws_several_captions_of_each_picture_where_it_has_them(
    captions, features
) -> None:
    drawn = [draw_captions(features, 3, epoch, captions) for epoch in range(60)]
    first = [draw_captions(features, 3, epoch)[:, 0].tolist() for epoch in range(60)]
    assert [rows[:, 0].tolist() for rows in drawn] == first  # more of them change no order
    owned = features.image_of_text.bincount()
    for rows in drawn:
        assert rows.shape == (len(CAPTIONED), captions)
        for row in rows.tolist():
            (image,) = {int(features.image_of_text[text]) for text in row if text >= 0}
            count = min(captions, int(owned[image]))
            assert len({*row[:count]}) == count and row[count:] == [-1] * (captions - count)
    assert torch.cat(drawn).unique().tolist()[-len(features.text) :] == [*range(len(features.text))]
    assert not torch.equal(drawn[0].sort().values, drawn[1].sort().values)


@pytest.mark.parametrize(
    ("images", "lengths"), [(15, [4, 4, 2]), (14, [4, 5]), (13, [4, 4]), (2, [1])]
)
def test_no_batch_is_of_one_pair_if_there_are_more(images, lengths, make_features) -> None:
    """Every third picture has no caption."""
    features = make_features(images)
    batches = [rows for (rows,) in plan_epoch(features, replace(TEACHER, batch_size=4), 3, 1)]
    assert [len(batch) for batch in batches] == lengths
    assert torch.equal(torch.cat(batches), draw_captions(features, 3, 1))


def test_a_tower_that_gives_tokens_too_learns_the_same(clip, pixels, features) -> None:
    """As CoCa's does."""
    expected = fine_tune(clip, pixels, features, CONTROL)
    clip.model.visual.output_tokens = True
    found = fine_tune(clip, pixels, features, CONTROL)
    assert torch.equal(weights(found.student.model), weights(expected.student.model))


def test_pictures_on_disk_are_read_a_batch_at_a_time_and_train_alike(
    clip, features, targets, tmp_path, monkeypatch
) -> None:
    """With what is rehearsed: each batch when its turn comes, by a call for all of an epoch."""
    paths = [tmp_path / f"{number}.png" for number in range(18)]
    for path in paths:
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    shown, again = paths[:11], paths[11:]
    pixels = read_pixels(clip, shown), read_pixels(clip, again)
    repeated = F.normalize(torch.randn(7, 32), dim=1)
    expected = fine_tune(
        clip, pixels[0], features, REHEARSED, targets, rehearsal=PictureTargets(pixels[1], repeated)
    )
    opened: list[Path] = []
    plain = encode.open_picture
    monkeypatch.setattr(
        encode, "open_picture", lambda path, side: opened.append(path) or plain(path, side)
    )
    read: list[int] = []
    found = fine_tune(
        clip,
        shown,
        features,
        REHEARSED,
        targets,
        rehearsal=PictureTargets(again, repeated),
        on_step=lambda step, loss: read.append(len(opened)),
    )
    assert torch.equal(weights(found.student.model), weights(expected.student.model))
    # An epoch has batches of two, two and three pictures, each with five that are rehearsed.
    assert read[:3] == [7, 14, 22]


def test_all_arms_see_the_same_batches(clip, pixels, features, targets, monkeypatch) -> None:
    def seen(settings, teacher, seed=0):
        shown = []

        def watched(bundle, pixels, batches, busy):
            return (shown.append(images) or pixels[images] for images in batches)

        monkeypatch.setattr(student_module, "read_batches", watched)
        fine_tune(clip, pixels, features, settings, teacher, seed=seed)
        return [batch.tolist() for batch in shown]

    control, dclip = seen(CONTROL, None), seen(STUDENT, targets)
    assert control == dclip != seen(STUDENT, targets, seed=1)
    assert [len(batch) for batch in control] == [2, 2, 3] * 3


@pytest.mark.parametrize(
    ("each", "sizes"), [(1, [[2], [2], [3]]), (2, [[2, 2], [3]]), (3, [[2, 2, 3]])]
)
def test_an_epoch_is_planned_in_steps_of_several_batches(each, sizes, features) -> None:
    settings = replace(STUDENT, gradient_accumulation=each, captions_per_image=2)
    steps = plan_epoch(features, settings, 3, 1)
    assert [[len(rows) for rows in batches] for batches in steps] == sizes
    planned = torch.cat([rows for batches in steps for rows in batches])
    assert torch.equal(planned, draw_captions(features, 3, 1, 2))


# The teacher


@pytest.mark.parametrize("weighted", [True, False])
def test_the_teacher_is_given_weights_where_they_are_asked_for(weighted, features) -> None:
    teacher = MetaTeacher(32, 4)
    texts, images = torch.tensor([4, 0, 4]), torch.tensor([7, 3, 1])
    settings = RegionSettings(weighted=weighted)
    output = apply_teacher(teacher, features, texts, settings, images)
    (region, region_mask), (token, token_mask) = (
        features.regions_of(images),
        features.tokens_of(texts),
    )
    area, _ = pad_rows(features.area, features.region_count, images)
    confidence, _ = pad_rows(features.confidence, features.region_count, images)
    expected = region_weights(region, token, area, confidence, region_mask, token_mask)
    by_hand = teacher(
        region,
        region_mask,
        token,
        token_mask,
        expected if weighted else None,
    )
    assert torch.equal(output.embedding, by_hand.embedding)
    own = apply_teacher(teacher, features, texts, settings)
    assert torch.equal(
        own.embedding,
        apply_teacher(teacher, features, texts, settings, features.image_of_text[texts]).embedding,
    )


def test_each_caption_is_embedded_once_in_order_whatever_the_batches(features) -> None:
    teacher = MetaTeacher(32, 4).train()
    together = embed_with_teacher(teacher, features, REGIONS)
    assert together.shape == features.text.shape and not together.requires_grad
    assert torch.allclose(embed_with_teacher(teacher, features, REGIONS, 3), together, atol=1e-6)
    alone = apply_teacher(teacher, features, torch.tensor([5]), REGIONS).embedding[0]
    assert torch.allclose(together[5], alone, atol=1e-6)


def test_the_teachers_training_is_a_plain_loop(features) -> None:
    torch.manual_seed(8)
    teacher = MetaTeacher(32, 4)
    optimizer = torch.optim.AdamW(decayed(teacher.parameters(), 5.0), fused=True, lr=0.01)
    history = []
    for epoch in range(4):
        order, losses = draw_captions(features, 8, epoch)[:, 0], []
        for texts in (order[:3], order[3:]):  # seven: a last one alone joins
            embedding = apply_teacher(teacher, features, texts, REGIONS).embedding
            loss = contrastive_loss(embedding, features.text[texts], 0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / 2)
    run = train_teacher(features, TEACHER, REGIONS, seed=8)
    assert torch.equal(weights(run.teacher), weights(teacher))
    assert [row["loss"] for row in run.history] == pytest.approx(history)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert history[-1] < history[0] - 0.1
    assert not run.teacher.training


SEEN = {
    "all": {},
    "no regions": {"regions": "none"},
    "another's regions": {"regions": "another"},
    "no boxes": {"boxes": False},
    "no whole picture": {"whole_picture": False},
}


def look(teacher, features, images, settings, kept=None) -> torch.Tensor:
    """The region teacher's embeddings of what settings let it see, written down."""
    lenders = images
    if settings.regions == "another":
        lenders = choose_lenders(len(features))[images]
    region, mask = features.regions_of(lenders)
    boxes, whole = features.boxes_of(lenders), features.image[images]
    if kept is not None:
        mask = mask & kept[:, : mask.shape[1]]
    if settings.regions == "none":
        mask = torch.zeros_like(mask)
    if not settings.boxes:
        boxes = torch.zeros_like(boxes)
    if not settings.whole_picture:
        whole = torch.zeros_like(whole)
    return teacher(whole, region, mask, boxes)[0]


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
def test_the_region_teachers_training_is_a_plain_loop(seen, features) -> None:
    settings = replace(REGION_TEACHER, **seen)
    torch.manual_seed(8)
    teacher = RegionTeacher(32, 24, 3)
    optimizer = torch.optim.AdamW(decayed(teacher.parameters(), settings.weight_decay), fused=True)
    history, most = [], int(features.region_count.max())
    for epoch in range(4):
        rows, losses = draw_captions(features, 8, epoch, 2), []
        for step, own in enumerate((rows[:3], rows[3:]), start=2 * epoch):
            texts, owner = own[own >= 0], (own >= 0).nonzero()[:, 0]
            images = features.image_of_text[own[:, 0]]
            generator = torch.Generator().manual_seed(1_000_003 * 8 + step)
            kept = torch.rand(len(own), most, generator=generator) >= 0.3
            embedding = look(teacher, features, images, settings, kept)[owner]
            same = owner[:, None] == owner
            loss = contrastive_loss(embedding, features.text[texts], 0.05, same)
            optimizer.zero_grad()
            loss.backward()
            done = step / 8
            share = (done + 1e-3) / (0.1 + 1e-3)
            if done >= 0.1:
                share = (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * share
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / 2)
    run = train_teacher(features, settings, REGIONS, seed=8)
    assert torch.allclose(weights(run.teacher), weights(teacher), atol=1e-6)
    assert [row["loss"] for row in run.history] == pytest.approx(history)


def test_pictures_are_embedded_without_their_captions(features) -> None:
    teacher, bare = RegionTeacher(32, 24, 3), without_captions(features)
    embedding = embed_pictures(teacher, bare, REGION_TEACHER)
    assert embedding.shape == (11, 32) and not embedding.requires_grad
    few = embed_pictures(teacher, features, REGION_TEACHER, batch_size=3)
    assert torch.allclose(few, embedding, atol=1e-6)


def test_pictures_are_embedded_from_what_the_settings_let_the_teacher_see(features) -> None:
    """No region is left out at random, as in training."""
    teacher, found = RegionTeacher(32, 24, 3), {}
    for name, seen in SEEN.items():
        settings = replace(REGION_TEACHER, **seen)
        found[name] = embed_pictures(teacher, features, settings, batch_size=4)
        expected = look(teacher, features, torch.arange(11), settings)
        assert torch.allclose(found[name], expected, atol=1e-6), name
    for name, other in found.items():
        near = [each for each in found if torch.allclose(found[each], other, atol=1e-4)]
        assert near == [name]


@pytest.mark.parametrize("count", [2, 3, 11, 500])
def test_each_picture_lends_its_regions_once_and_never_to_itself(count) -> None:
    state = torch.get_rng_state()
    lenders = choose_lenders(count)
    assert sorted(lenders.tolist()) == [*range(count)]
    assert (lenders != torch.arange(count)).all()
    assert torch.equal(choose_lenders(count), lenders)
    assert count < 11 or not torch.equal(choose_lenders(count, seed=1), lenders)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_leaves_the_frozen_features_alone(features, clip, pixels, targets) -> None:
    given = {**vars(features), "targets": targets, "pixels": pixels}
    before = {name: tensor.clone() for name, tensor in given.items()}
    train_teacher(features, TEACHER, REGIONS)
    fine_tune(clip, pixels, features, STUDENT, targets)
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.items())


# The student


def texts_of(features) -> list[str]:
    """Captions, some of which have a word with an opposite."""
    return [f"box {i} {'a box' if i % 3 else 'above'}" for i in range(len(features.text))]


def by_hand(clip, pixels, features, settings, targets, seed, uncaptioned, rehearsal):
    """Fine-tuning as one would write it down: AdamW, warm-up, cosine, clipped gradients."""
    student = clone_clip(clip)
    tower = student.model.visual
    after = [tower.proj, *tower.ln_post.parameters()]
    blocks = [p for p in tower.parameters() if all(p is not other for other in after)]
    groups = [
        {**group, "share": share}
        for share, parameters in ((settings.block_rate, blocks), (1.0, after))
        for group in decayed(parameters, settings.weight_decay)
    ]
    words = [*student.model.transformer.parameters(), *student.model.ln_final.parameters()]
    words += [student.model.token_embedding.weight, student.model.positional_embedding]
    words.append(student.model.text_projection)
    if settings.train_text:
        groups += [
            {**group, "share": 1.0}
            for group in decayed([p.requires_grad_() for p in words], settings.weight_decay)
        ]
    tokens = student.tokenizer(texts_of(features))
    optimizer = torch.optim.AdamW(groups)
    plan = []
    for epoch in range(settings.epochs):
        rows = draw_captions(features, seed, epoch, settings.captions_per_image)
        order = [row[row >= 0] for row in rows]  # a picture's captions
        batches = [torch.cat(order[start:end]) for start, end in ((0, 2), (2, 4), (4, 7))]
        each = settings.gradient_accumulation
        plan += [batches[start : start + each] for start in range(0, 3, each)]
    losses = []
    for number, batches in enumerate(plan):
        done, warmup = number / len(plan), settings.warmup_share
        share = (done + 1e-3) / (warmup + 1e-3)
        if done >= warmup:
            share = (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
        total = torch.zeros(())
        for batch, texts in enumerate(batches, number * settings.gradient_accumulation):
            image = tower(student.normalize(pixels[features.image_of_text[texts]]))
            image = F.normalize(image, dim=-1)
            owner = features.image_of_text[texts]
            text = features.text[texts]
            if settings.train_text:
                text = student.model.encode_text(tokens[texts])
            same = owner[:, None] == owner
            loss = contrastive_loss(image, text, settings.temperature, same)
            if settings.distillation == "anchored_kl":
                first = [i for i in range(len(texts)) if i == 0 or owner[i] != owner[i - 1]]
                other = Beside(uncaptioned, 4, seed + 500_009).draw(batch)
                more = F.normalize(tower(student.normalize(uncaptioned.pictures[other])), dim=-1)
                generator = torch.Generator().manual_seed(1_000_003 * seed + batch)
                anchors = torch.randint(len(features.text), (7,), generator=generator)
                distance = anchored_kl_loss(
                    torch.cat([image[first], more]),
                    torch.cat([targets[texts[first]], uncaptioned.features[other]]),
                    features.text[anchors],
                )
                loss = loss * 0.5 + settings.distillation_weight * distance
            elif settings.distillation_weight:
                distance = cosine_distillation_loss(image, targets[texts])
                loss = loss + settings.distillation_weight * distance
            if settings.rehearsal_weight:
                again = Beside(rehearsal, 5, seed).draw(batch)
                now = F.normalize(tower(student.normalize(rehearsal.pictures[again])), dim=-1)
                moved = 1 - (now * rehearsal.features[again]).sum(1)
                loss = loss + settings.rehearsal_weight * moved.mean()
            losses.append(loss.item())
            total = total + loss / len(batches)
        optimizer.zero_grad()
        total.backward()
        trained = [*tower.parameters(), *(words if settings.train_text else ())]
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * share * group["share"]
        optimizer.step()
    return student, losses


@pytest.mark.parametrize(("accumulation", "captions"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 9)])
@pytest.mark.parametrize(
    "settings",
    [
        CONTROL,
        STUDENT,
        replace(STUDENT, block_rate=0.2),
        REHEARSED,
        ANCHORED,
        replace(ANCHORED, train_text=True),
    ],
    ids=["contrastive", "dclip", "slow blocks", "rehearsal", "anchored", "both towers"],
)
def test_fine_tuning_is_a_plain_loop(
    settings, accumulation, captions, clip, pixels, features, targets, uncaptioned, rehearsal
) -> None:
    """Accumulated steps descend the mean of their batches' losses; an epoch's last may be short.

    Teacher and pictures are there for all, and matter where they weigh something.
    """
    settings = replace(settings, gradient_accumulation=accumulation, captions_per_image=captions)
    beside = {"uncaptioned": uncaptioned, "rehearsal": rehearsal}
    run = fine_tune(
        clip, pixels, features, settings, targets, seed=6, texts=texts_of(features), **beside
    )
    expected, losses = by_hand(clip, pixels, features, settings, targets, 6, *beside.values())
    for bundle in (run.student, expected, clip):
        blocks = [*bundle.model.visual.transformer.resblocks, *bundle.model.transformer.resblocks]
        for block in blocks:
            # A key's bias shifts all scores alike: AdamW blows its gradient, rounding alone, up.
            block.attn.in_proj_bias.data[32:64] = 0
    assert torch.allclose(weights(run.student.model), weights(expected.model), atol=1e-6)
    assert not torch.allclose(weights(clip.model), weights(expected.model), atol=1e-4)
    means = torch.tensor(losses).reshape(3, 3).mean(1).tolist()
    assert [row["loss"] for row in run.history] == pytest.approx(means, rel=1e-4)


def test_rehearsed_features_stay_near_the_untouched_clips(clip, pixels, features, targets) -> None:
    """The other losses draw its features away; the more it weighs, the less far they go."""
    shown = pixels.flip(3)
    before = encode_images(clip, shown)
    settings = replace(STUDENT, rehearsal_batch=16, epochs=6)
    moved = {}
    for weight in (0.0, 2.0, 50.0):
        run = fine_tune(
            clip,
            pixels,
            features,
            replace(settings, rehearsal_weight=weight),
            targets,
            rehearsal=PictureTargets(shown, before),
        )
        moved[weight] = 1 - float((encode_images(run.student, shown) * before).sum(1).mean())
        assert ("rehearsal" in run.history[0]) is (weight > 0)
    assert moved[50.0] < 0.7 * moved[2.0] < 0.7 * 0.9 * moved[0.0]


def test_blocks_at_rate_0_stay_as_they_are(clip, pixels, features, targets) -> None:
    run = fine_tune(clip, pixels, features, replace(STUDENT, block_rate=0.0), targets)
    before = dict(clip.model.visual.named_parameters())
    moved = {
        name
        for name, value in run.student.model.visual.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved == {"proj", "ln_post.weight", "ln_post.bias"}


@pytest.mark.parametrize("policy", ["projection", "attention", "last_blocks(1)", "all"])
def test_gradients_reach_what_trains_and_nothing_else(policy, clip, pixels, features) -> None:
    teacher = MetaTeacher(32, 4)
    every = torch.arange(len(features.text))
    live = apply_teacher(teacher, features, every, REGIONS).embedding  # its graph still hangs on it
    assert live.requires_grad
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    run = fine_tune(clip, pixels, features, replace(STUDENT, train=policy), live)
    changed = {
        name for name, value in run.student.model.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert changed == {f"visual.{name}" for name in choose_parameters(clip, policy)}
    assert all(torch.equal(value, before[n]) for n, value in clip.model.state_dict().items())
    for module in (teacher, clip.model):
        assert all(parameter.grad is None for parameter in module.parameters())
    assert not run.student.model.training
    assert not any(parameter.requires_grad for parameter in run.student.model.parameters())


@pytest.mark.parametrize("policy", ["attention", "last_blocks(1)", "all"])
def test_training_adapters_changes_their_matrices_alone(policy, clip, pixels, features) -> None:
    """Not the text tower, nor biases, norms and the projection; each by a matrix of their rank."""
    settings = replace(CONTROL, train=policy, lora=2, learning_rate=1e-2)
    run = fine_tune(clip, pixels, features, settings)
    before, after = clip.model.state_dict(), run.student.model.state_dict()
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    ends = ("attn.in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
    names = choose_parameters(clip, policy)
    assert changed == {f"visual.{name}" for name in names if name.endswith(ends)}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) == 2, name
    assert not any(parameter.requires_grad for parameter in run.student.model.parameters())


@pytest.mark.parametrize("recipe", RECIPES)
def test_adapters_train_by_every_recipe(
    recipe, clip, pixels, features, targets, uncaptioned, rehearsal
) -> None:
    """With sds, in place of its norms; where the text tower trains, all of it does."""
    wanted = RECIPES[recipe]["student"]
    policy = "all" if recipe == "sds" else wanted.get("train", "all")
    settings = replace(STUDENT, **wanted | {"learning_rate": 1e-2, "train": policy, "lora": 2})
    run = fine_tune(
        clip,
        pixels,
        features,
        settings,
        targets,
        texts=texts_of(features),
        uncaptioned=uncaptioned,
        rehearsal=rehearsal,
        denoiser=make_denoiser(clip) if recipe == "sds" else None,
    )
    before, after = clip.model.state_dict(), run.student.model.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    image = {name for name in changed if name.startswith("visual.")}
    assert len(image) == (4 if policy == "attention" else 8)
    texts = {name for name in before if not name.startswith(("visual.", "logit_"))}
    assert changed - image == (texts if settings.train_text else set())


def test_training_adapters_is_a_plain_loop(clip, pixels, features) -> None:
    """With factors written down, from where peft's begin."""
    settings = replace(CONTROL, lora=2, learning_rate=1e-2, clip_norm=0.05, block_rate=0.5)
    run = fine_tune(clip, pixels, features, settings, seed=6)

    torch.manual_seed(6)
    drawn = clone_clip(clip)
    attach_adapters(drawn, "all", 2)
    factors = {n: p for n, p in drawn.model.visual.named_parameters() if p.requires_grad}
    tower = clone_clip(clip).model.visual.requires_grad_(False)
    downs = {  # by the name of the matrix
        "attn.in_proj_weight": "attn",
        "attn.out_proj.weight": "attn.base_layer.out_proj",
        "mlp.c_fc.weight": "mlp.c_fc",
        "mlp.c_proj.weight": "mlp.c_proj",
    }
    pairs = {}
    for block in (f"transformer.resblocks.{number}" for number in (0, 1)):
        for matrix, layer in downs.items():
            down, up = (factors[f"model.{block}.{layer}.lora_{x}.default.weight"] for x in "AB")
            assert not up.any() and down.any()
            pairs[f"{block}.{matrix}"] = [x.detach().clone().requires_grad_() for x in (up, down)]
    trained = [factor for pair in pairs.values() for factor in pair]
    assert len(trained) == len(factors) == 16
    optimizer = torch.optim.AdamW(trained, weight_decay=settings.weight_decay)
    number = 0
    for epoch in range(3):
        order = draw_captions(features, 6, epoch)[:, 0]
        for texts in (order[:2], order[2:4], order[4:]):
            weights_now = {
                name: tower.get_parameter(name) + up @ down for name, (up, down) in pairs.items()
            }
            shown = clip.normalize(pixels[features.image_of_text[texts]])
            image = F.normalize(functional_call(tower, weights_now, (shown,)), dim=-1)
            optimizer.zero_grad()
            contrastive_loss(image, features.text[texts], settings.temperature).backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
            done = number / 9
            share = (done + 1e-3) / (0.1 + 1e-3)
            if done >= 0.1:
                share = (1 + math.cos(math.pi * (done - 0.1) / 0.9)) / 2
            optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.5 * share
            optimizer.step()
            number += 1
    found = dict(run.student.model.visual.named_parameters())
    for name, (up, down) in pairs.items():
        expected = tower.get_parameter(name) + up @ down
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(expected, tower.get_parameter(name), atol=1e-3)


@pytest.mark.parametrize("policy", ["projection", "last_blocks(1)", "all"])
def test_looking_in_an_epoch_changes_nothing(policy, clip, pixels, features, monkeypatch) -> None:
    """Frozen blocks compute by another way if they are left in evaluation mode."""
    settings = replace(CONTROL, train=policy)
    expected = fine_tune(clip, pixels, features, settings)
    monkeypatch.setattr(student_module, "LOOKED_AT", 3)
    modes = []

    def look(student) -> None:
        modes.append(student.model.visual.training)

    found = fine_tune(clip, pixels, features, settings, on_look=look)
    assert modes == [False, False]
    assert torch.equal(weights(found.student.model), weights(expected.student.model))


@pytest.mark.parametrize("policy", ["last_blocks(1)", "all"])
def test_whoever_looks_at_adapters_in_training_sees_a_clip_and_changes_nothing(
    policy, clip, pixels, features, monkeypatch
) -> None:
    """At each of its looks, and after each epoch, whose weights are those of the end at last."""
    settings = replace(CONTROL, train=policy, lora=2, learning_rate=1e-2)
    expected = fine_tune(clip, pixels, features, settings)
    monkeypatch.setattr(student_module, "LOOKED_AT", 3)
    seen = []

    def look(student, history=None) -> None:
        assert list(student.model.state_dict()) == list(clip.model.state_dict())
        assert not student.model.visual.training
        seen.append(encode_images(student, pixels))
        for value in student.model.parameters():
            value.data.zero_()

    run = fine_tune(clip, pixels, features, settings, on_epoch=look, on_look=look)
    assert len(seen) == 2 + 3
    assert torch.equal(weights(run.student.model), weights(expected.student.model))
    assert torch.equal(seen[-1], encode_images(run.student, pixels))
    assert not any(torch.allclose(one, other) for one, other in itertools.pairwise(seen))


def test_batch_norm_keeps_clips_statistics(make_clip_folder, pixels, features, targets) -> None:
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    resnet = load_clip(make_clip_folder(vision_cfg=vision))
    tuned = fine_tune(resnet, pixels, features, STUDENT, targets).student
    before, after = (bundle.model.visual.state_dict() for bundle in (resnet, tuned))
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert len(statistics) > 30
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    learnt = [name for name in before if name not in statistics]
    assert all(not torch.equal(before[name], after[name]) for name in learnt if "bn" in name)


def test_pictures_may_come_as_paths(clip, captioned, make_features) -> None:
    features = replace(make_features(6), image_of_text=captioned.image_of_text[:6])
    students = [
        fine_tune(clip, pictures, features, CONTROL).student
        for pictures in (captioned.paths, read_pixels(clip, captioned.paths))
    ]
    assert torch.equal(weights(students[0].model), weights(students[1].model))


def test_each_epoch_can_add_figures_to_its_row(clip, pixels, features, targets) -> None:
    shown = []

    def on_epoch(student, history) -> None:
        assert not student.model.visual.training
        history[-1]["val"] = float(student.model.visual.proj.detach().sum())
        shown.append((history[-1]["val"], len(history)))

    settings = replace(STUDENT, distillation_weight=0.5, contrastive_weight=2.0)
    run = fine_tune(clip, pixels, features, settings, targets, on_epoch=on_epoch)
    assert shown == [(row["val"], row["epoch"]) for row in run.history]
    for row in run.history:
        parts = 0.5 * row["distillation"] + 2 * row["contrastive"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)


def test_bf16_is_for_training_only_and_auto_asks_the_hardware(
    clip, pixels, features, monkeypatch
) -> None:
    train_teacher(features, replace(TEACHER, epochs=1), REGIONS)  # whose precision does not stick

    def train(precision):
        settings = replace(CONTROL, mixed_precision=precision)
        return fine_tune(clip, pixels, features, settings).student

    full, half = train("no"), train("bf16")
    assert not torch.equal(weights(full.model), weights(half.model))
    assert torch.allclose(weights(full.model), weights(half.model), atol=0.02)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    again = clone_clip(clip)
    again.model.load_state_dict(half.model.state_dict())
    assert torch.equal(encode_images(again, pixels), encode_images(half, pixels))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has, same in ((True, half), (False, full)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert torch.equal(weights(train("auto").model), weights(same.model))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert student_module.choose_precision("auto", "cuda") == "no"


# Continuing


class Stop(Exception):
    pass


def run_student(settings=STUDENT, seed=0):
    def run(clip, pixels, features, targets, checkpoint=None, on_epoch=None, **more):
        more |= {"seed": seed, "checkpoint": checkpoint, "on_epoch": on_epoch}
        more |= {"texts": [f"picture {index}" for index in range(len(features.text))]}
        more |= {"rehearsal": PictureTargets(pixels.flip(3), features.image)}
        more |= {"uncaptioned": PictureTargets(pixels.flip(2), features.image.flip(0))}
        more |= {"denoiser": make_denoiser(clip)} if settings.sds_weight else {}
        done = fine_tune(clip, pixels, features, settings, targets, **more)
        return done.student.model, done.history

    return run


def run_teacher(settings=TEACHER, regions=REGIONS, seed=0):
    def run(clip, pixels, features, targets, checkpoint=None, **more):
        done = train_teacher(features, settings, regions, seed, checkpoint, **more)
        return done.teacher, done.history

    return run


RUNS = {
    "region teacher": run_teacher(REGION_TEACHER),
    "teacher": run_teacher(),
    "deep teacher": run_teacher(replace(TEACHER, layers=2)),
    "student": run_student(),
    "student in bf16": run_student(replace(STUDENT, mixed_precision="bf16")),
    "student that accumulates": run_student(replace(STUDENT, gradient_accumulation=2)),
    "student's attention": run_student(replace(STUDENT, train="attention")),
    "student's text": run_student(replace(STUDENT, train_text=True)),
    "student's adapters": run_student(replace(REHEARSED, lora=3, gradient_accumulation=2)),
    "student's adapters and text": run_student(replace(STUDENT, lora=3, train_text=True)),
    "student of uncaptioned pictures": run_student(ANCHORED),
    "student of a denoiser": run_student(replace(CONTROL, sds_weight=0.5, train="norms")),
    "student that rehearses": run_student(replace(REHEARSED, gradient_accumulation=2)),
}


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("name", [name for name in RUNS if "student" in name])
def test_a_run_stopped_after_an_epoch_continues_exactly(
    name, stop_after, clip, pixels, features, targets, tmp_path
) -> None:
    given, run = (clip, pixels, features, targets), RUNS[name]
    path = tmp_path / "state.safetensors"

    def stop(_, history) -> None:
        if len(history) == stop_after:
            raise Stop

    whole, history = run(*given)
    with pytest.raises(Stop):
        run(*given, path, stop)
    torch.manual_seed(123)  # another process has drawn other numbers
    resumed, its_history = run(*given, path)
    assert torch.equal(weights(resumed), weights(whole))
    assert its_history == history
    again, its_history = run(*given, path, pytest.fail)  # it is done: nothing is trained
    assert torch.equal(weights(again), weights(whole))
    assert its_history == history


@pytest.mark.parametrize("stop_after", [1, 3])  # of three epochs
def test_who_was_interrupted_after_an_epoch_is_told_of_it_again(
    stop_after, clip, pixels, features, targets, tmp_path
) -> None:
    given, path, told = (clip, pixels, features, targets), tmp_path / "state.safetensors", []
    run, raising = run_student(replace(STUDENT, epochs=3)), [True, True, False]

    def look(_, history) -> None:
        told.append(len(history))
        if len(history) == stop_after and raising.pop(0):
            raise Stop
        history[-1]["val"] = 0.5

    for _ in range(2):
        with pytest.raises(Stop):
            run(*given, path, look)
    _, history = run(*given, path, look)
    assert [row["val"] for row in history] == [0.5] * 3
    assert told == sorted([1, 2, 3, stop_after, stop_after])


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_within_an_epoch_continues_exactly(
    name, stop_after, clip, pixels, features, targets, tmp_path, monkeypatch
) -> None:
    """From what was written when it was time, and from what the stop itself wrote, a step later."""
    monkeypatch.setattr(loop_module, "MINUTES", 0.0)
    given, run = (clip, pixels, features, targets), RUNS[name]
    stopped, timed, expected = tmp_path / "stopped.safetensors", tmp_path / "timed", []

    def stop(step, loss) -> None:
        if step == stop_after:
            shutil.copy(stopped, timed)  # before the stop writes over it
            raise Stop

    whole, history = run(*given, on_step=lambda *step: expected.append(step))
    with pytest.raises(Stop):
        run(*given, stopped, on_step=stop)
    steps = []
    for path in (timed, stopped):
        torch.manual_seed(123)  # another process has drawn other numbers
        resumed, its_history = run(*given, path, on_step=lambda *step: steps.append(step))
        assert torch.equal(weights(resumed), weights(whole))
        assert its_history == history
    assert steps == expected[stop_after:] + expected[stop_after + 1 :]


def test_a_checkpoint_is_written_when_it_is_time(features, tmp_path, monkeypatch) -> None:
    clock, path, written = [1000.0], tmp_path / "state.safetensors", []
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: clock[0])

    def on_step(step, loss) -> None:
        written.append(path.exists())
        path.unlink(missing_ok=True)
        clock[0] += 50  # seconds

    settings = replace(TEACHER, epochs=1, batch_size=2)
    train_teacher(features, settings, REGIONS, checkpoint=path, on_step=on_step)
    assert written == [False] * 3
    settings = replace(settings, epochs=3)
    path.unlink()
    monkeypatch.setattr(loop_module, "MINUTES", 1.5)
    train_teacher(features, settings, REGIONS, checkpoint=path, on_step=on_step)
    assert written[3:] == [False, False, True, True, False, True, True, False, True]
    assert path.exists()


def test_processes_of_which_some_see_no_checkpoint_are_refused(
    features, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(processes, "gather_rows", lambda own: torch.tensor([[1], [0]]))
    with pytest.raises(ValueError, match=r"see .*state\.safetensors, but 1 of 2 do; put it where"):
        train_teacher(features, TEACHER, REGIONS, checkpoint=tmp_path / "state.safetensors")


def test_processes_that_would_go_on_from_different_places_are_refused(
    features, tmp_path, monkeypatch
) -> None:
    checkpoint = tmp_path / "state.safetensors"
    train_teacher(features, TEACHER, REGIONS, checkpoint=checkpoint)
    places = torch.tensor([[2, 1], [0, 0]])
    monkeypatch.setattr(checkpoint_module, "gather_rows", lambda own: places)
    with pytest.raises(ValueError, match=r"one place, .*\[\[2, 1\], \[0, 0\]\]; put it where"):
        train_teacher(features, TEACHER, REGIONS, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (run_teacher(), run_teacher(replace(TEACHER, epochs=5)), "differ in epochs;"),
        (run_teacher(), run_teacher(replace(TEACHER, heads=2)), "differ in heads;"),
        (run_teacher(), run_teacher(seed=1), "differ in seed;"),
        (run_teacher(), run_teacher(regions=RegionSettings(weighted=False)), "differ in weighted;"),
        (run_teacher(), run_teacher(replace(TEACHER, layers=2)), "another architecture"),
        (run_teacher(), run_student(), "another architecture"),
        (run_student(), run_student(CONTROL), "differ in distillation_weight, term_names;"),
        (run_student(), run_student(seed=1), "differ in seed;"),
        (
            run_student(),
            run_student(REHEARSED),
            "differ in rehearsal_batch, rehearsal_weight, term_names, terms.reh",
        ),
        (
            run_student(),
            run_student(replace(STUDENT, train="projection", learning_rate=1.0)),
            "differ in learning_rate, train;",
        ),
        (run_student(), run_student(replace(STUDENT, lora=3)), "another architecture"),
        (
            run_student(replace(STUDENT, lora=3)),
            run_student(replace(STUDENT, lora=3, epochs=2)),
            "differ in epochs;",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    first, second, says, clip, pixels, features, targets, tmp_path
) -> None:
    path = tmp_path / "state.safetensors"
    first(clip, pixels, features, targets, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=says) as caught:
        second(clip, pixels, features, targets, path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("run", [run_teacher(), run_student()], ids=["teacher", "student"])
def test_a_checkpoint_of_other_data_or_cut_short_is_refused(
    run, clip, pixels, features, make_features, targets, tmp_path
) -> None:
    path = tmp_path / "state.safetensors"
    run(clip, pixels, features, targets, path)
    with pytest.raises(ValueError, match="differ in data;"):
        run(clip, pixels, make_features(seed=1), targets, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        run(clip, pixels, features, targets, path)


@pytest.mark.parametrize(
    "change", [{"regions": "none"}, {"boxes": False}, {"whole_picture": False}], ids=str
)
def test_a_checkpoint_of_a_region_teacher_that_saw_otherwise_is_refused(
    change, clip, pixels, features, targets, tmp_path
) -> None:
    given = clip, pixels, features, targets, tmp_path / "state.safetensors"
    run_teacher(REGION_TEACHER)(*given)
    with pytest.raises(ValueError, match=f"differ in {next(iter(change))};"):
        run_teacher(replace(REGION_TEACHER, **change))(*given)


@pytest.mark.parametrize(
    "run", [run_teacher(), run_teacher(REGION_TEACHER)], ids=["reads", "regions"]
)
def test_a_teacher_that_was_told_other_confidences_is_refused(
    run, clip, pixels, features, targets, tmp_path
) -> None:
    path = tmp_path / "state.safetensors"
    run(clip, pixels, features, targets, path)
    other = replace(features, confidence=features.confidence / 2)
    with pytest.raises(ValueError, match="differ in data;"):
        run(clip, pixels, other, targets, path)


def test_a_student_of_other_terms_is_refused(clip, pixels, features, targets, tmp_path) -> None:
    captioned = join(pixels, features)
    terms = choose_terms(STUDENT, captioned, targets)
    path = tmp_path / "state.safetensors"
    distill(clip, captioned, terms, STUDENT, checkpoint=path)
    heavier = [replace(terms[0], weight=2 * terms[0].weight), *terms[1:]]
    for others in (heavier, terms[:1], terms[1:]):
        with pytest.raises(ValueError, match=r"differ in term"):
            distill(clip, captioned, others, STUDENT, checkpoint=path)
    assert len(terms) == 2


def test_a_student_of_another_clip_is_refused(clip, pixels, features, targets, tmp_path) -> None:
    path = tmp_path / "state.safetensors"
    fine_tune(clip, pixels, features, STUDENT, targets, checkpoint=path)
    other = replace(features, image=features.image.flip(0))  # what another image tower sees
    with pytest.raises(ValueError, match="differ in data;"):
        fine_tune(clip, pixels, other, STUDENT, targets, checkpoint=path)


def test_a_student_of_another_teacher_is_refused(clip, pixels, features, targets, tmp_path) -> None:
    path = tmp_path / "state.safetensors"
    fine_tune(clip, pixels, features, STUDENT, targets, checkpoint=path)
    with pytest.raises(ValueError, match=r"differ in terms\.distillation;"):
        fine_tune(clip, pixels, features, STUDENT, targets.flip(0), checkpoint=path)
    # What is computed anew on another processor differs in its last digits.
    rounded = targets * (1 + 1e-6 * torch.randn(targets.shape))
    fine_tune(clip, pixels, features, STUDENT, rounded, checkpoint=path)


# Bad input


@pytest.mark.parametrize("name", ["region", "token", "text", "area"])
def test_train_teacher_refuses_features_that_are_not_finite(name, features) -> None:
    getattr(features, name)[1::2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        train_teacher(features, TEACHER, REGIONS)


def without_captions(features):
    """The same pictures, as if nobody had captioned them."""
    empty = {name: getattr(features, name)[:0] for name in ("text", "token", "token_count")}
    return replace(features, image_of_text=features.image_of_text[:0], **empty)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_teacher_that_reads_captions_needs_their_tokens(weighted, features) -> None:
    bare = replace(features, token=features.token[:0], token_count=0 * features.token_count)
    regions = RegionSettings(weighted=weighted)
    for apply in (
        lambda: train_teacher(bare, TEACHER, regions),
        lambda: embed_with_teacher(MetaTeacher(32, 4), bare, regions),
    ):
        with pytest.raises(ValueError, match=r"each caption's tokens .* none for 10 of 10"):
            apply()


def test_no_teacher_is_trained_without_captions(features) -> None:
    bare = without_captions(features)
    for apply in (
        lambda: train_teacher(bare, TEACHER, REGIONS),
        lambda: train_teacher(bare, REGION_TEACHER, REGIONS),
        lambda: embed_with_teacher(MetaTeacher(32, 4), bare, REGIONS),
    ):
        with pytest.raises(ValueError, match=r"pictures with captions .* got 11 without"):
            apply()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda given: given.update(pictures=given["pictures"][:9]),
            "11 pictures.* 9 pictures and",
        ),
        (
            lambda given: given.update(teacher_embeddings=None),
            r"teacher embeddings of shape \(10, 32\), .*, got None",
        ),
        (
            lambda given: given.update(teacher_embeddings=given["teacher_embeddings"][:5]),
            r"shape \(10, 32\), .*, got \(5, 32\)",
        ),
        (lambda given: given["teacher_embeddings"].fill_(math.nan), "finite"),
        (lambda given: given.update(settings=REHEARSED), "something to rehearse, got None; give"),
        (
            lambda given: given.update(
                settings=replace(STUDENT, train_text=True, uncaptioned_batch=2),
                uncaptioned=PictureTargets(given["pictures"], given["features"].image),
            ),
            "no uncaptioned pictures, .*got some; set uncaptioned_batch=0",
        ),
        (lambda given: given["features"].text.fill_(math.nan), "finite"),
        (lambda given: given.update(settings=replace(STUDENT, learning_rate=1e30)), "finite"),
    ],
)
def test_distill_refuses_bad_input(change, says, clip, pixels, features, targets) -> None:
    given = {"pictures": pixels, "features": features, "settings": STUDENT}
    given["teacher_embeddings"] = targets
    change(given)
    with pytest.raises(ValueError, match=says):
        fine_tune(clip, **given)


@pytest.mark.parametrize("pictures", [0, 6])
def test_rehearsal_needs_one_feature_for_each_picture(pictures, rehearsal) -> None:
    says = f"got {pictures} pictures and 7 features; give"
    with pytest.raises(ValueError, match=says):
        PictureTargets(rehearsal.pictures[:pictures], rehearsal.features)


def test_features_of_another_width_are_refused(clip, pixels, make_features) -> None:
    wide = make_features(embed=16)
    with pytest.raises(ValueError, match=r"features of 32 numbers, .*, got 16; give"):
        fine_tune(clip, pixels, wide, CONTROL)
