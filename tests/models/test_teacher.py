"""Teachers: against a slow loop; what may not change them: padding, order; and their folders."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dclip_kit.config import RegionTeacherSettings, TeacherSettings
from dclip_kit.models.teacher import (
    CrossModalAttention,
    MetaTeacher,
    RegionTeacher,
    build_teacher,
    kind_of,
    load_teacher,
    pool_by_agreement,
    require_teacher,
    save_teacher,
)

IMAGE, REGION, TOKEN, EMBED = 3, 4, 5, 8
REGIONS, TOKENS = (4, 2, 1), (1, 5, 3)  # real ones of each pair


@pytest.fixture
def pairs() -> dict[str, Tensor]:
    def masked(counts, length):
        return torch.arange(length) < torch.tensor(counts)[:, None]

    region_mask, token_mask = masked(REGIONS, REGION), masked(TOKENS, TOKEN)
    weights = torch.rand(IMAGE, REGION) * region_mask
    return {
        "region_features": torch.randn(IMAGE, REGION, EMBED) * region_mask[..., None],
        "region_mask": region_mask,
        "token_features": torch.randn(IMAGE, TOKEN, EMBED) * token_mask[..., None],
        "token_mask": token_mask,
        "region_weights": weights / weights.sum(1, keepdim=True),
    }


def make_teacher(**settings) -> MetaTeacher:
    """Every number random: no bias or norm hides a mistake by being 0 or 1."""
    teacher = MetaTeacher(EMBED, **{"heads": 2, **settings}).eval()
    for parameter in teacher.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return teacher


KINDS = [{}, {"layers": 2}]


# Against a slow loop


def slow_attention(layer: CrossModalAttention, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    heads, width = layer.attention.num_heads, x.shape[1] // layer.attention.num_heads
    weight, bias = layer.attention.in_proj_weight, layer.attention.in_proj_bias
    (wq, wk, wv), (bq, bk, bv) = weight.chunk(3), bias.chunk(3)
    seen, out = torch.zeros(len(x), len(keys)), torch.zeros_like(x)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            q = (wq @ x[i] + bq)[own]
            scores = [float(q @ (wk @ key + bk)[own]) / math.sqrt(width) for key in keys]
            total = sum(math.exp(score) for score in scores)
            for j, key in enumerate(keys):
                share = math.exp(scores[j]) / total
                seen[i, j] += share / heads
                out[i, own] += share * (wv @ key + bv)[own]
    rows = [layer.attention.out_proj.weight @ o + layer.attention.out_proj.bias for o in out]
    result = []
    for row in x + torch.stack(rows):
        centred = row - row.mean()
        normal = centred / torch.sqrt((centred**2).mean() + layer.norm.eps)
        result.append(normal * layer.norm.weight + layer.norm.bias)
    return torch.stack(result), seen


def slow_pool(x: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    mean = x.mean(0)
    powers = [math.exp(float(r @ mean / (r.norm() * mean.norm())) / temperature) for r in x]
    share = torch.tensor(powers) / sum(powers)
    return (share[:, None] * x).sum(0), share


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_teacher_is_what_a_slow_loop_computes(heads, kind, pairs) -> None:
    teacher = make_teacher(heads=heads, pooling_temperature=0.7, **kind)
    with torch.no_grad():
        output = teacher(**pairs)
        for i, (r, t) in enumerate(zip(REGIONS, TOKENS, strict=True)):
            weights = pairs["region_weights"][i, :r] * r
            regions = pairs["region_features"][i, :r] * weights[:, None]
            tokens = pairs["token_features"][i, :t]
            for layers in zip(teacher.regions, teacher.tokens, strict=True):
                before = regions, tokens
                regions, looked = slow_attention(layers[0], before[0], before[1])
                tokens, heard = slow_attention(layers[1], before[1], before[0])
            assert torch.allclose(output.region_to_token[i, :r, :t], looked, atol=1e-5)
            assert torch.allclose(output.token_to_region[i, :t, :r], heard, atol=1e-5)
            (pooled, share), (words, _) = slow_pool(regions, 0.7), slow_pool(tokens, 0.7)
            expected = (pooled + words) / 2
            assert torch.allclose(output.region_pooling[i, :r], share, atol=1e-5)
            assert torch.allclose(output.embedding[i], expected / expected.norm(), atol=1e-5)


# What may not change it


def lengthen(pairs: dict[str, Tensor], side: str, by: int, value: float) -> dict[str, Tensor]:
    longer = dict(pairs)
    for name in pairs:
        if name.startswith(side):
            shape = (IMAGE, by, *pairs[name].shape[2:])
            fill = value if name.endswith("features") else 0
            more = torch.full(shape, fill, dtype=pairs[name].dtype)
            longer[name] = torch.cat([pairs[name], more], dim=1)
    return longer


@pytest.mark.parametrize("side", ["region", "token"])
@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padding_changes_nothing(side, value, kind, pairs) -> None:
    teacher = make_teacher(**kind)
    before, after = teacher(**pairs), teacher(**lengthen(pairs, side, 3, value))
    assert torch.allclose(before.embedding, after.embedding, atol=1e-6)
    assert torch.allclose(before.region_pooling, after.region_pooling[:, :REGION], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_order_of_regions_changes_nothing(kind, pairs) -> None:
    teacher, order = make_teacher(**kind), torch.tensor([2, 0, 3, 1])
    shuffled = {n: x[:, order] if n.startswith("region") else x for n, x in pairs.items()}
    before, after = teacher(**pairs), teacher(**shuffled)
    assert torch.allclose(before.embedding, after.embedding, atol=1e-6)
    assert torch.allclose(before.region_pooling[:, order], after.region_pooling, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_even_weights_change_nothing_and_others_do(kind, pairs) -> None:
    teacher, mask = make_teacher(**kind), pairs["region_mask"]
    none, uneven = teacher(**pairs | {"region_weights": None}), teacher(**pairs)
    even = teacher(**pairs | {"region_weights": mask / mask.sum(1, keepdim=True)})
    assert torch.allclose(none.embedding, even.embedding, atol=1e-6)
    assert not torch.allclose(none.embedding[0], uneven.embedding[0], atol=1e-3)


# What it shows


def test_attention_and_pooling_share_out_one_among_the_real(pairs) -> None:
    output = make_teacher()(**pairs)
    for weights, mask in (
        (output.region_to_token, pairs["token_mask"][:, None, :]),
        (output.token_to_region, pairs["region_mask"][:, None, :]),
        (output.region_pooling, pairs["region_mask"]),
    ):
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert (weights[~mask.expand_as(weights)] == 0).all()
        assert (weights[mask.expand_as(weights)] > 0).all()
    assert torch.allclose(output.embedding.norm(dim=1), torch.ones(IMAGE))


def test_pooling_prefers_what_agrees() -> None:
    """By the softmax of cosines to the mean of the real ones, over a temperature."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, True, False]])
    _, soft = pool_by_agreement(x, mask, 2.0)
    _, hard = pool_by_agreement(x, mask, 0.01)
    cosines = torch.tensor([2, 2, 1]) / math.sqrt(5)  # to (2/3, 1/3)
    assert torch.allclose(soft[0, :3], (cosines / 2).softmax(0))
    assert hard[0].tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-6)


# Gradients and errors


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_weight_of_the_teacher_learns(kind, pairs) -> None:
    teacher = make_teacher(**kind)
    (teacher(**pairs).embedding * torch.randn(IMAGE, EMBED)).sum().backward()
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_training_mode_drops_nothing(pairs) -> None:
    teacher = make_teacher()
    evaluated = teacher(**pairs).embedding
    assert torch.allclose(teacher.train()(**pairs).embedding, evaluated, atol=1e-6)
    assert not any(isinstance(module, nn.Dropout) for module in teacher.modules())


@pytest.mark.parametrize(
    ("name", "index", "value", "says"),
    [
        ("region_mask", 1, False, r"real region .* got none in \[1\]; give"),
        ("token_mask", 2, False, r"real token .* got none in \[2\]; give"),
        ("region_features", (0, 0, 0), math.nan, "finite region features"),
        ("token_features", (1, 4, 7), math.inf, "finite token features"),
    ],
)
def test_pairs_that_make_no_embedding_are_refused(name, index, value, says, pairs) -> None:
    pairs[name][index] = value
    with pytest.raises(ValueError, match=says):
        make_teacher()(**pairs)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (TeacherSettings(heads=3), "divide the width 8, got 3"),
        (RegionTeacherSettings(width=12, heads=5), "divide the width 12, got 5"),
    ],
)
def test_heads_must_divide_the_width(settings, says) -> None:
    with pytest.raises(ValueError, match=says):
        build_teacher(EMBED, settings)


# The region teacher


@pytest.fixture
def scene() -> dict[str, torch.Tensor]:
    """Three pictures with two, four and no regions."""
    generator = torch.Generator().manual_seed(4)
    mask = torch.arange(4) < torch.tensor([2, 4, 0])[:, None]
    features = torch.randn(3, 5, 8, generator=generator)
    boxes = torch.rand(3, 4, 5, generator=generator)
    return {
        "image_features": F.normalize(features[:, 0], dim=-1),
        "region_features": F.normalize(features[:, 1:], dim=-1) * mask[..., None],
        "region_mask": mask,
        "region_boxes": boxes,
    }


def test_a_region_teacher_sees_the_set_and_not_its_order_or_padding(scene) -> None:
    torch.manual_seed(0)
    teacher = RegionTeacher(8, width=12, heads=3).eval()
    embedding, weights = teacher(**scene)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3))
    assert torch.allclose(weights.sum(2), torch.ones(3, 5))
    assert (weights[0, :, 3:] == 0).all() and (weights[2, :, 1:] == 0).all()
    order = torch.tensor([3, 1, 0, 2])
    moved = {k: v[:, order] if k.startswith("region") else v for k, v in scene.items()}
    assert torch.allclose(teacher(**moved)[0], embedding, atol=1e-6)
    padding = ~scene["region_mask"][..., None]
    filled = {k: scene[k].masked_fill(padding, 9.0) for k in ("region_features", "region_boxes")}
    assert torch.allclose(teacher(**scene | filled)[0], embedding, atol=1e-6)
    alone = {k: v[:1, :2] if k.startswith("region") else v[:1] for k, v in scene.items()}
    assert torch.allclose(teacher(**alone)[0], embedding[:1], atol=1e-6)


@pytest.mark.parametrize("name", ["image_features", "region_features", "region_boxes"])
def test_a_region_teacher_uses_what_it_is_given(name, scene) -> None:
    torch.manual_seed(0)
    teacher = RegionTeacher(8, width=12, heads=3).eval()
    before = teacher(**scene)[0]
    after = teacher(**scene | {name: scene[name].roll(1, 0)})[0]
    changed = (after - before).norm(dim=1) > 1e-3
    assert changed[:2].all() and changed[2] == (name == "image_features")  # it has no region


def test_gradients_reach_all_of_a_region_teacher(scene) -> None:
    teacher = RegionTeacher(8, width=12, heads=3)
    teacher(**scene)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in teacher.parameters())


# Their folders

SAVED = {
    "teacher": TeacherSettings(heads=2, layers=2, pooling_temperature=0.3, masked=False),
    "region_teacher": RegionTeacherSettings(width=12, heads=3, layers=1, boxes=False),
}


@pytest.fixture(params=SAVED)
def saved(request, tmp_path):
    """A teacher that was saved: its kind, what it is, and its folder."""
    settings, folder = SAVED[request.param], tmp_path / "taught"
    teacher = build_teacher(EMBED, settings)
    for parameter in teacher.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    save_teacher(teacher, settings, folder)
    return request.param, teacher, folder


def test_a_saved_teacher_is_the_same_in_a_folder_of_any_name(saved, scene, pairs) -> None:
    kind, teacher, folder = saved
    moved = folder.rename(folder.with_name("elsewhere"))
    assert {each.name for each in moved.iterdir()} == {"config.json", "model.safetensors"}
    again, settings = load_teacher(moved)
    assert settings == SAVED[kind] and kind_of(settings) == kind
    assert type(again) is type(teacher) and not again.training
    given = pairs if kind == "teacher" else scene
    with torch.no_grad():
        one, other = (model.eval()(**given) for model in (teacher, again))
    if kind == "teacher":
        one, other = ([*vars(each).values()] for each in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_teacher_in_half_precision_is_computed_with_in_single(saved) -> None:
    kind, teacher, folder = saved
    save_teacher(teacher.half(), SAVED[kind], folder)
    again, _ = load_teacher(folder)
    for name, value in again.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, teacher.state_dict()[name])


def test_a_runs_folder_names_its_teachers(saved, tmp_path) -> None:
    kind, teacher, folder = saved
    with pytest.raises(FileNotFoundError, match=f"a teacher at {tmp_path}, .* or train one"):
        load_teacher(tmp_path)
    folder.rename(tmp_path / kind)
    with pytest.raises(FileNotFoundError, match=f"got none; name {tmp_path}/{kind}\\.$"):
        load_teacher(tmp_path)
    for other in SAVED:
        save_teacher(teacher, SAVED[kind], tmp_path / other)
    both = f"name {tmp_path}/teacher or {tmp_path}/region_teacher"
    with pytest.raises(FileNotFoundError, match=both):
        load_teacher(tmp_path)


def test_a_model_that_is_no_teacher_is_refused(clip_folder) -> None:
    with pytest.raises(FileNotFoundError, match=f"the folder of a teacher at {clip_folder}"):
        load_teacher(clip_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "denoiser"},
        {"kind": ["teacher"]},
        {"embed_dim": "wide"},
        {"settings": {"heads": 2, "noses": 1}},
        {"settings": {"heads": 0}},
        {"settings": None},
        None,
    ],
    ids=str,
)
def test_a_damaged_record_is_named(change, saved) -> None:
    _, _, folder = saved
    path = folder / "config.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | change) if change else path.read_text()[:-9])
    with pytest.raises(ValueError, match=f"Expected {path} as it was written"):
        load_teacher(folder)


def test_weights_that_are_missing_cut_or_of_other_sizes_are_named(saved) -> None:
    kind, teacher, folder = saved
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"a safetensors file at {path}, found none"):
        load_teacher(folder)
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=f"{path} is damaged or cut short"):
        load_teacher(folder)
    save_teacher(teacher, replace(SAVED[kind], layers=3), folder)
    with pytest.raises(ValueError, match=f"{path} is of another architecture"):
        load_teacher(folder)


@pytest.mark.parametrize("kind", SAVED)
def test_a_teacher_of_another_kind_is_refused(kind) -> None:
    (other,) = SAVED.keys() - {kind}
    with pytest.raises(ValueError, match=f"Expected a {kind} in here, got a {other}; "):
        require_teacher(SAVED[other], SAVED[kind], "here")


@pytest.mark.parametrize(
    ("kind", "name", "value", "decides"),
    [
        ("teacher", "heads", 4, True),
        ("teacher", "layers", 1, True),
        ("teacher", "pooling_temperature", 0.5, True),
        ("teacher", "masked", True, True),
        ("teacher", "epochs", 99, False),
        ("teacher", "learning_rate", 0.5, False),
        ("region_teacher", "heads", 4, True),
        ("region_teacher", "layers", 2, True),
        ("region_teacher", "width", 24, True),
        ("region_teacher", "regions", "none", True),
        ("region_teacher", "boxes", True, True),
        ("region_teacher", "whole_picture", False, True),
        ("region_teacher", "epochs", 99, False),
        ("region_teacher", "region_dropout", 0.5, False),
    ],
)
def test_another_setting_is_refused_where_it_decides_what_is_computed(
    kind, name, value, decides
) -> None:
    own = SAVED[kind]
    assert asdict(own)[name] != value
    require_teacher(own, own, "here")
    if not decides:
        return require_teacher(own, replace(own, **{name: value}), "here")
    says = f"with {name}={value!r} in here, got {getattr(own, name)!r}; change the profile"
    with pytest.raises(ValueError, match=says):
        require_teacher(own, replace(own, **{name: value}), "here")
