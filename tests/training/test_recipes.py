"""Recipes: what they change of a profile, and that each switch does what it says."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from dclip_kit.config import (
    RECIPES,
    RegionSettings,
    StudentSettings,
    TeacherSettings,
    apply_recipe,
    get_profile,
)
from dclip_kit.evaluation.compare import describe_arm
from dclip_kit.features.extract import extract_features
from dclip_kit.losses import contrastive_loss, cosine_distillation_loss
from dclip_kit.metrics import retrieval_metrics
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.models.regions import crop_regions
from dclip_kit.training import (
    apply_teacher,
    draw_captions,
    train_teacher,
)
from tests.training.fine_tuning import fine_tune

OFFICIAL = apply_recipe(get_profile("pocket"), "official_code")
TEXTS = ("a red ball", "two dogs", "sea", "a box", "boats", "it", "an apple", "a town", "x", "sand")
STUDENT = StudentSettings(
    train_text=True, batch_size=99, epochs=1, warmup_share=0.0, mixed_precision="no"
)


def flat(settings: dict, above: str = "") -> dict[str, object]:
    found = {}
    for name, value in settings.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{above}{name}.") if inner else {above + name: value}
    return found


# What they change


@pytest.mark.parametrize("name", ["base", "paper"])
def test_a_recipe_changes_what_it_names_and_nothing_else(name) -> None:
    profile = get_profile(name)
    before = flat(asdict(profile))
    for recipe, changes in RECIPES.items():
        after = flat(asdict(apply_recipe(profile, recipe)))
        assert after == before | flat(changes) | {"recipe": recipe}, recipe


def test_the_official_code_differs_from_the_paper_in_seven_places() -> None:
    described = flat(asdict(apply_recipe(get_profile("base"), "dclip")))
    official = flat(asdict(apply_recipe(get_profile("base"), "official_code")))
    assert {name for name in described if described[name] != official[name]} == {
        "regions.weighted",
        "regions.normalized_crops",
        "teacher.masked",
        "regions.undetected_as_zeros",
        "student.train_text",
        "student.train",
        "reciprocal_rank_as_map",
        "recipe",
    }


# 3: attended padding


def test_the_teacher_is_trained_so(features) -> None:
    settings = replace(OFFICIAL.teacher, heads=4, epochs=1)
    teacher = train_teacher(features, settings, OFFICIAL.regions).teacher
    assert not teacher.masked and len(teacher.tokens) == 1
    careful = train_teacher(features, replace(settings, masked=True), OFFICIAL.regions).teacher
    assert careful.masked
    assert not torch.equal(teacher.regions[0].norm.weight, careful.regions[0].norm.weight)


# 2: crops not normalised; 4: zeros where nothing was detected


def test_crops_are_given_to_clip_without_its_normalisation(
    clip, detector, captioned, pictures
) -> None:
    usual, features = (
        extract_features(clip, detector, captioned, replace(RegionSettings(), normalized_crops=n))
        for n in (True, False)
    )
    found = detector.detect(pictures).regions
    crops = [
        crop for pair in zip(pictures, found, strict=True) for crop in crop_regions(*pair, 0.1)
    ]
    pixels = torch.stack([clip.to_pixels(crop) for crop in crops]).float() / 255
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_image(pixels), dim=-1)
    assert torch.allclose(features.region, expected, atol=1e-6)
    assert not torch.allclose(features.region, usual.region, atol=1e-2)
    assert torch.equal(features.image, usual.image)  # whole pictures are normalised there too


def test_a_picture_without_detections_is_a_zero_vector(clip, detector, captioned) -> None:
    settings = RegionSettings()
    usual, features = (
        extract_features(clip, detector, captioned, replace(settings, undetected_as_zeros=zeros))
        for zeros in (False, True)
    )
    assert features.without_detections == usual.without_detections == 3
    silent = torch.repeat_interleave(
        torch.tensor([path_has_none(picture) for picture in range(6)]), features.region_count
    )
    assert silent.sum() == 3
    assert (features.region[silent] == 0).all()
    assert torch.equal(features.region[~silent], usual.region[~silent])
    teacher = train_teacher(
        features, TeacherSettings(heads=4, epochs=1), settings
    ).teacher  # with weights that are all 0 there
    every = torch.arange(len(features.text))
    assert apply_teacher(teacher, features, every, settings).embedding.isfinite().all()


def path_has_none(picture: int) -> bool:
    """What the fake detector says of the six drawn pictures."""
    return picture in (1, 4, 5)


# 5: the text tower trains


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("distillation_weight", [2.0, 0.0])
def test_the_text_tower_trains_with_a_loss_of_its_own(
    custom_text, distillation_weight, make_clip_folder, pixels, features
) -> None:
    clip = load_clip(make_clip_folder(custom_text=custom_text))
    targets = F.normalize(torch.randn_like(features.text), dim=1)
    settings = replace(STUDENT, distillation_weight=distillation_weight)
    run = fine_tune(clip, pixels, features, settings, targets, texts=TEXTS)

    def loss(bundle) -> float:
        drawn = draw_captions(features, 0, 0)[:, 0]
        image = encode_images(bundle, pixels[features.image_of_text[drawn]])
        text = encode_texts(bundle, [TEXTS[index] for index in drawn.tolist()])
        distances = [cosine_distillation_loss(x, targets[drawn]) for x in (image, text)]
        return float(contrastive_loss(image, text) + distillation_weight * sum(distances))

    assert run.history[0]["loss"] == pytest.approx(loss(clip), rel=1e-4)
    assert loss(run.student) < loss(clip) - 0.01
    before = clip.model.state_dict()
    still = {n for n, x in run.student.model.state_dict().items() if torch.equal(x, before[n])}
    assert still <= {"logit_scale", "text.attn_mask", "attn_mask"}
    assert not any(parameter.requires_grad for parameter in run.student.model.parameters())


def test_the_text_tower_stays_as_it_is_unless_it_is_to_train(clip, pixels, features) -> None:
    settings = replace(STUDENT, train_text=False, distillation_weight=0.0)
    run = fine_tune(clip, pixels, features, settings, texts=TEXTS)
    assert torch.equal(encode_texts(run.student, TEXTS), encode_texts(clip, TEXTS))


@pytest.mark.parametrize(("texts", "got"), [((), "0"), (TEXTS[:3], "3")])
def test_a_text_tower_cannot_train_without_the_captions(texts, got, clip, pixels, features) -> None:
    with pytest.raises(
        ValueError, match=rf"10 captions of the features, got .* and {got} captions; give"
    ):
        fine_tune(clip, pixels, features, STUDENT, features.text, texts=texts)


# 7: another figure under the name of MAP


def test_reports_call_the_reciprocal_rank_mean_average_precision(clip) -> None:
    from tests.evaluation.test_compare import OWNERS, result

    shown = result(clip, "dclip", [0, 2, 5], [1, 1, 0], [1, 0])
    measured = retrieval_metrics(torch.eye(4), torch.eye(4)[OWNERS.roll(1)], OWNERS)
    shown = replace(shown, retrieval=measured)
    for switch in (False, OFFICIAL.reciprocal_rank_as_map):
        entry = describe_arm(shown, shown, switch)
        for name in ("text_to_image", "image_to_text"):
            direction = getattr(measured, name)
            means = direction.mean_average_precision, direction.mean_reciprocal_rank
            assert entry[name]["mean_average_precision"] == means[switch]
            assert entry[name]["mean_reciprocal_rank"] == means[1]
    assert measured.image_to_text.mean_average_precision != pytest.approx(means[1])
