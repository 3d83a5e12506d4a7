"""Features: independent of batches, normalised, and of the tokens that they claim to be of.

Reading ahead: all items in order, a batch early, and errors where they belong.
"""

import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dclip_kit.config import RegionSettings
from dclip_kit.data import open_picture
from dclip_kit.features.extract import RegionCrops, extract_features
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import (
    encode_images,
    encode_texts,
    encode_tokens,
    read_ahead,
    read_batches,
    read_pixels,
    read_tokens,
    real_tokens,
    shortened,
    token_batches,
)

TEXTS = ["a red ball", "sea!?", "two dogs on a very long road to a far town by the sea", "it"]
TINY_TEXT = {"context_length": 12, "vocab_size": 714, "width": 32, "heads": 2, "layers": 2}
START, END = 712, 713  # the two last of the tiny CLIP's vocabulary


# Pictures


def test_image_features_do_not_depend_on_batches(clip, pictures) -> None:
    together = encode_images(clip, pictures)
    for size in (1, 4, 6):
        assert torch.allclose(encode_images(clip, pictures, batch_size=size), together, atol=1e-6)
    assert torch.allclose(encode_images(clip, pictures[::-1]), together.flip(0), atol=1e-6)
    assert together.diff(dim=0).norm(dim=1).min() > 0.05  # and tell the pictures apart


def test_image_features_are_open_clips_own(clip, pictures) -> None:
    batch = torch.stack([clip.preprocess(picture) for picture in pictures])
    with torch.no_grad():
        plain = F.normalize(clip.model.encode_image(batch), dim=-1)
    assert torch.equal(encode_images(clip, pictures), plain)


def test_pictures_may_come_as_paths_pictures_or_bytes(clip, pictures, captioned) -> None:
    pixels = read_pixels(clip, captioned.paths)
    assert torch.equal(pixels, torch.stack([clip.to_pixels(picture) for picture in pictures]))
    assert read_pixels(clip, pixels) is pixels
    expected = encode_images(clip, pictures)
    for given in (captioned.paths, list(captioned.paths), pixels):
        assert torch.equal(encode_images(clip, given), expected)


@pytest.mark.parametrize("kind", ["16 bits", "transparent", "turned"])
def test_an_opened_picture_is_seen_as_its_file_is(kind, clip, tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    picture, exif, path = Image.fromarray(noise, "RGBA"), Image.Exif(), tmp_path / "a.png"
    if kind == "16 bits":
        picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
    elif kind == "turned":
        picture, exif[0x0112] = picture.convert("RGB"), 6
    picture.save(path, exif=exif)
    with Image.open(path) as opened:
        assert torch.equal(encode_images(clip, [opened]), encode_images(clip, [path]))
        assert opened.size == (60, 40)  # the user's own is left as it was


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: (x.float() - 120) / 60, "float32"),  # normalised already
        (lambda x: x.float() / 255, "float32"),
        (lambda x: x.long(), "int64"),
        (lambda x: x > 120, "bool"),
    ],
)
def test_tensors_that_are_no_pixels_are_refused(make, says, clip, pictures) -> None:
    pixels = read_pixels(clip, pictures)
    with pytest.raises(ValueError, match=f"Expected pixels as bytes, got {says}; give"):
        encode_images(clip, make(pixels))


@pytest.mark.parametrize("encode", [read_pixels, encode_images])
def test_unreadable_or_missing_pictures_are_named(encode, clip, captioned, tmp_path) -> None:
    bad = tmp_path / "cut.png"
    bad.write_bytes(captioned.paths[0].read_bytes()[:-60])
    for path in (bad, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=path.name):
            encode(clip, [captioned.paths[0], path])


def test_no_picture_at_all_is_refused(clip) -> None:
    with pytest.raises(ValueError, match="at least one picture, got none"):
        encode_images(clip, [])


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), Image.new("RGB", (8, 8))])
def test_a_picture_by_itself_is_no_sequence(one, clip, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as people's programs run
    with pytest.raises(ValueError, match="or one by itself; give a list"):
        encode_images(clip, one)


# Texts


def test_text_features_do_not_depend_on_batches(clip) -> None:
    together = encode_texts(clip, TEXTS)
    assert torch.allclose(encode_texts(clip, TEXTS, batch_size=1), together, atol=1e-6)
    with torch.no_grad():
        plain = F.normalize(clip.model.encode_text(clip.tokenizer(TEXTS)), dim=-1)
    assert torch.allclose(together, plain, atol=1e-6)
    assert together.diff(dim=0).norm(dim=1).min() > 0.05


def test_many_texts_come_back_in_their_order(clip) -> None:
    texts = [f"{text} {number}" for number in range(9) for text in TEXTS]
    one_by_one = torch.cat([encode_texts(clip, [text]) for text in texts])
    assert torch.allclose(encode_texts(clip, texts, batch_size=2), one_by_one, atol=1e-6)
    tokens = encode_tokens(clip, texts, batch_size=2)
    assert torch.allclose(tokens.text, one_by_one, atol=1e-6)
    assert tokens.mask.sum(1).tolist() == [
        int(encode_tokens(clip, [text]).mask.sum()) for text in texts
    ]


@pytest.mark.parametrize("encode", [encode_texts, encode_tokens])
@pytest.mark.parametrize(
    ("texts", "says"),
    [([], "at least one text"), (["a", "b", "", "c", " \n"], r"\[2, 4\]")],
)
def test_empty_texts_are_named_before_any_work(encode, texts, says, clip) -> None:
    with pytest.raises(ValueError, match=says):
        encode(replace(clip, tokenizer=pytest.fail), texts, batch_size=2)


@pytest.mark.parametrize("encode", [encode_texts, encode_tokens])
@pytest.mark.parametrize("other", [7, float("nan"), None])
def test_what_is_no_text_is_named(encode, other, clip, monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as people's programs run
    with pytest.raises(ValueError, match=rf"Expected texts .*got {other} at \[1\]; "):
        encode(clip, ["a", other])


@pytest.mark.parametrize("encode", [encode_texts, encode_tokens])
def test_a_text_alone_is_not_read_letter_by_letter(encode, clip) -> None:
    with pytest.raises(TypeError, match=r"sequence of texts, got one; give \['dog'\]"):
        encode(clip, "dog")


# Tokens


@pytest.mark.parametrize("custom_text", [False, True])
def test_token_features_are_those_of_a_walk_through_the_tower(custom_text, make_clip_folder):
    """The tower by hand, one caption at a time; its end token is CLIP's own text feature."""
    clip = load_clip(make_clip_folder(custom_text=custom_text))
    tower = clip.model.text if custom_text else clip.model
    tokens = encode_tokens(clip, TEXTS, batch_size=3)
    assert tokens.mask.shape == (4, int(tokens.mask.sum(1).max()))
    texts = encode_texts(clip, TEXTS)
    for number, ids in enumerate(clip.tokenizer(TEXTS)):
        end = ids.tolist().index(END)
        x = tower.token_embedding(ids[: end + 1]) + tower.positional_embedding[: end + 1]
        for block in tower.transformer.resblocks:
            q, k, v = F.linear(
                block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias
            ).chunk(3, dim=-1)
            heads = []
            for columns in torch.arange(32).chunk(2):
                score = q[:, columns] @ k[:, columns].T / 4
                seen = torch.ones(end + 1, end + 1).tril() > 0  # no token sees a later one
                heads.append(score.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, columns])
            x = x + block.attn.out_proj(torch.cat(heads, dim=-1))
            x = x + block.mlp(block.ln_2(x))
        features = F.normalize(tower.ln_final(x) @ tower.text_projection, dim=-1)
        assert torch.allclose(features[end], texts[number], atol=1e-5)
        mask = tokens.mask[number]
        assert mask.tolist() == [i < end - 1 for i in range(len(mask))]
        assert torch.allclose(tokens.features[number][mask], features[1:end], atol=1e-5)
        assert (tokens.features[number][~mask] == 0).all()


def test_token_features_do_not_depend_on_batches(clip) -> None:
    together, alone = encode_tokens(clip, TEXTS), encode_tokens(clip, TEXTS, batch_size=1)
    assert torch.equal(together.mask, alone.mask)
    assert torch.allclose(together.features, alone.features, atol=1e-6)


def test_a_text_without_any_token_is_named(clip) -> None:
    assert clip.tokenizer.encode("&nbsp;") == []
    with pytest.raises(ValueError, match=r"token each, got .*nbsp"):
        encode_tokens(clip, ["a ball", "&nbsp;"])


def test_a_text_tower_that_pools_otherwise_has_no_such_tokens(clip) -> None:
    clip.model.text_pool_type = "last"
    with pytest.raises(ValueError, match="end token's pooling"):
        encode_tokens(clip, TEXTS)


# All of them


def test_encoding_leaves_the_model_alone(clip, pictures) -> None:
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    for features in (
        encode_images(clip, pictures),
        encode_texts(clip, TEXTS),
        encode_tokens(clip, TEXTS).features[:, 0],
    ):
        assert not features.requires_grad
        assert torch.allclose(features.norm(dim=1), torch.ones(len(features)))
    assert all(torch.equal(value, before[n]) for n, value in clip.model.state_dict().items())


@pytest.mark.parametrize("weight", ["visual.proj", "text_projection"])
def test_features_that_are_not_finite_are_refused(weight, clip, pictures) -> None:
    clip.model.get_parameter(weight).data[3, 3] = torch.nan
    kinds = {"visual.proj": [(encode_images, pictures)]}
    for encode, what in kinds.get(weight, [(encode_texts, TEXTS), (encode_tokens, TEXTS)]):
        with pytest.raises(ValueError, match=r"finite .* NaN or infinity in [1-9]"):
            encode(clip, what)


# Texts as tokens


@pytest.mark.parametrize(
    ("ids", "real"),
    [
        ([START, 5, 0, 7, END, 0, 0], [0, 1, 1, 1, 0, 0, 0]),  # 0 is a token, and the padding
        ([START, 5, 6, 7, 8, 9, END], [0, 1, 1, 1, 1, 1, 0]),  # cut off
        ([START, 5, END, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]),
        ([START, END, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_real_tokens_stand_between_start_and_end(ids, real) -> None:
    both = torch.tensor([ids, [START, 1, END, 0, 0, 0, 0]])  # rows do not mix
    assert real_tokens(both).tolist() == [[bool(x) for x in real], [False, True] + [False] * 5]


def test_real_tokens_are_the_captions_own_however_long_it_is(clip) -> None:
    ids = clip.tokenizer(TEXTS)
    for text, row, mask in zip(TEXTS, ids, real_tokens(ids), strict=True):
        own = clip.tokenizer.encode(text)
        assert row[mask].tolist() == own[: ids.shape[1] - 2]
    assert real_tokens(ids).sum(1).max() == ids.shape[1] - 2  # one was cut off
    assert 0 in ids[1, :4]  # "!" before "?": a real token 0


@pytest.mark.parametrize(
    "text", ["a red ball", "the Trumpet!", "two dogs on a very long road to a far town by the sea"]
)
def test_tokens_are_read_in_the_order_of_their_features(text, clip) -> None:
    words = read_tokens(clip, text)
    assert len(words) == int(encode_tokens(clip, [text]).mask.sum())
    whole = text.lower().replace(" ", "")
    assert whole.startswith("".join(words)) and all(words)
    if len(text) < 20:  # else the context cuts it
        assert "".join(words) == whole


def test_a_tokenizer_of_transformers_is_read(clip) -> None:
    class Wrapped:
        """As open_clip wraps those of the hub."""

        def __init__(self, **parts) -> None:
            vars(self).update(parts)

        def __call__(self, texts):
            return clip.tokenizer(texts)

    wrapped = replace(clip, tokenizer=Wrapped(tokenizer=clip.tokenizer))
    assert read_tokens(wrapped, "a red ball") == read_tokens(clip, "a red ball")


# Batches, and how far they are read


def test_batches_hold_each_text_once_beside_those_of_its_length(clip) -> None:
    texts = [TEXTS[index % 4] for index in range(11)]
    found = list(token_batches(clip, texts, 3))
    places = torch.cat([chosen for chosen, _ in found])
    assert sorted(places.tolist()) == list(range(11))
    assert [len(ids) for _, ids in found] == [3, 3, 3, 2]
    assert torch.equal(torch.cat([ids for _, ids in found]), clip.tokenizer(texts)[places])
    lengths = [len(texts[place]) for place in places]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_tower_reads_to_the_last_end_token_and_says_the_same(custom_text, make_clip_folder):
    clip = load_clip(make_clip_folder(custom_text=custom_text))
    ids = clip.tokenizer(["a red ball", "it"])
    length = 2 + int(real_tokens(ids).sum(1).max())  # start and end
    assert length < ids.shape[1]
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    with torch.no_grad():
        whole = clip.model.encode_text(ids)
        with shortened(clip.model, ids) as given:
            assert torch.equal(given, ids[:, :length])
            found = clip.model.encode_text(given)
            deep = clip.model.forward_intermediates(text=given, text_indices=1)
        torch.testing.assert_close(found, whole)
        assert deep["text_intermediates"][-1].shape[1] == length
        assert torch.equal(clip.model.encode_text(ids), whole)  # as it was
    after = clip.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_tower_that_reads_less_learns_the_same(custom_text, make_clip_folder) -> None:
    clip = load_clip(make_clip_folder(custom_text=custom_text))
    tower = clip.model.requires_grad_(True)
    ids = clip.tokenizer(["a red ball", "it"])
    gradients = []
    for reading in (nullcontext(ids), shortened(tower, ids)):
        tower.zero_grad()
        with reading as given:
            tower.encode_text(given).square()[:, 0].sum().backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    whole, found = gradients
    assert found.keys() == whole.keys() and any("positional" in name for name in found)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_a_tower_is_shortened_by_one_thread_at_a_time(clip) -> None:
    """As a page's are, that encodes in the background while somebody searches."""
    texts, found = ["it is a long story", "so"], []
    expected = encode_texts(clip, texts)
    thread = threading.Thread(target=lambda: found.append(encode_texts(clip, texts)))
    with shortened(clip.model, clip.tokenizer(["it"])):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and len(clip.model.positional_embedding) == 3
    thread.join(60)
    assert torch.equal(found[0], expected)


def test_a_tower_is_whole_again_after_an_error(clip) -> None:
    positions, mask = clip.model.positional_embedding, clip.model.attn_mask
    with pytest.raises(RuntimeError), shortened(clip.model, clip.tokenizer(["it"])):
        assert len(clip.model.positional_embedding) == 3
        raise RuntimeError
    assert clip.model.positional_embedding is positions and clip.model.attn_mask is mask


@pytest.mark.parametrize(
    "text_cfg", [{"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}]
)
def test_towers_that_look_at_padding_read_all_of_it(text_cfg, make_clip_folder) -> None:
    text_cfg = TINY_TEXT | text_cfg
    clip = load_clip(make_clip_folder(text_cfg=text_cfg, custom_text=True))
    ids = clip.tokenizer(["it"])
    with shortened(clip.model, ids) as given:
        assert torch.equal(given, ids)
        assert clip.model.encode_text(given).isfinite().all()


# Reading ahead

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("busy", [CPU, GPU])
@pytest.mark.parametrize("sizes", [(), (1,), (3, 1, 4), (2, 0, 2)])
def test_all_items_come_in_their_batches_and_order(sizes, busy) -> None:
    batches = [[10 * number + item for item in range(size)] for number, size in enumerate(sizes)]
    read = list(read_ahead(lambda item: -item, batches, busy))
    assert read == [[-item for item in batch] for batch in batches]


def test_the_next_batch_is_read_meanwhile_and_none_after_it() -> None:
    read, second = [], threading.Event()

    def one(item: int) -> int:
        read.append(item)
        if item == 1:
            second.set()
        return item

    ahead = read_ahead(one, ([number] for number in range(9)), GPU)
    assert next(ahead) == [0]
    assert second.wait(timeout=60)  # though nobody has asked for it
    assert next(ahead) == [1]
    assert next(ahead) == [2]
    assert max(read) <= 3  # two batches in memory
    ahead.close()


def test_on_busy_processors_a_batch_is_read_when_it_is_asked_for() -> None:
    read: list[int] = []
    batches = ([number, -number] for number in range(4))
    ahead = read_ahead(lambda item: read.append(item) or item, batches, CPU)
    for number in range(4):
        assert next(ahead) == [number, -number]
        assert len(read) == 2 * number + 2
    assert next(ahead, None) is None


@pytest.mark.parametrize("busy", [CPU, GPU])
def test_an_error_comes_with_its_batch(busy) -> None:
    ahead = read_ahead(lambda item: 1 / item, [[2, 4], [1, 0], [8]], busy)
    assert next(ahead) == [0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_batches_are_the_same_of_paths_pictures_and_bytes(clip, pictures, captioned) -> None:
    pixels = torch.stack([clip.to_pixels(picture) for picture in pictures])
    batches = [torch.tensor(chosen) for chosen in ([4, 0], [5, 5, 1])]
    for given in (captioned.paths, pictures, pixels):
        read = list(read_batches(clip, given, batches))
        for chosen, batch in zip(batches, read, strict=True):
            assert torch.equal(batch, pixels[chosen])


def test_pictures_are_laid_out_as_models_read_them_fast(clip, pictures) -> None:
    pixels = read_pixels(clip, pictures)
    assert len(pixels) == len(pictures)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_batches_of_regions_are_the_same_in_any_order(clip, detector, captioned) -> None:
    features = extract_features(clip, detector, captioned, RegionSettings(whole_image=True))
    regions = RegionCrops(captioned.paths, features, RegionSettings())
    expected = read_pixels(clip, list(regions))
    batches = [torch.tensor([5, 0, 1, 5]), torch.arange(len(regions))]
    for batch, read in zip(batches, read_batches(clip, regions, batches), strict=True):
        assert torch.equal(read, expected[batch])


def test_big_jpegs_are_read_reduced_and_small_ones_as_they_are(clip, tmp_path, monkeypatch) -> None:
    paths = [tmp_path / "big.jpg", tmp_path / "small.jpg"]
    for path, side in zip(paths, (2048, 200), strict=True):
        Image.effect_mandelbrot((side, side), (-2, -1.5, 1, 1.5), 100).convert("RGB").save(path)
    whole = torch.stack([clip.to_pixels(open_picture(path)) for path in paths])
    found = read_pixels(clip, paths)
    assert torch.equal(found[1], whole[1]) and not torch.equal(found[0], whole[0])
    assert (found[0].float() - whole[0].float()).abs().mean() < 3
    given = torch.stack([clip.preprocess(open_picture(path)) for path in paths])
    expected = clip.model.encode_image(given, normalize=True)
    assert (encode_images(clip, paths) * expected).sum(1).min() > 0.999
