"""Tokens: the texts' own, and towers that read no further than they have to."""

from dataclasses import replace

import pytest
import torch

from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_tokens
from dclip_kit.models.tokens import read_tokens, real_tokens, shortened, token_batches, tokenize

TEXTS = ["a red ball", "sea!?", "two dogs on a very long road to a far town by the sea", "it"]
TINY_TEXT = {"context_length": 12, "vocab_size": 714, "width": 32, "heads": 2, "layers": 2}
START, END = 712, 713  # the two last of the tiny CLIP's vocabulary


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
    ids = tokenize(clip, TEXTS)
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


def test_a_tokenizer_of_another_kind_is_read_or_named(clip) -> None:
    class Wrapped:
        """As open_clip wraps those of the hub."""

        def __init__(self, **parts) -> None:
            vars(self).update(parts)

        def __call__(self, texts):
            return clip.tokenizer(texts)

    wrapped = replace(clip, tokenizer=Wrapped(tokenizer=clip.tokenizer))
    assert read_tokens(wrapped, "a red ball") == read_tokens(clip, "a red ball")
    with pytest.raises(ValueError, match="has none"):
        read_tokens(replace(clip, tokenizer=Wrapped()), "a red ball")


# Batches, and how far they are read


def test_batches_hold_each_text_once_beside_those_of_its_length(clip) -> None:
    texts = [TEXTS[index % 4] for index in range(11)]
    found = list(token_batches(clip, texts, 3))
    places = torch.cat([chosen for chosen, _ in found])
    assert sorted(places.tolist()) == list(range(11))
    assert [len(ids) for _, ids in found] == [3, 3, 3, 2]
    assert torch.equal(torch.cat([ids for _, ids in found]), tokenize(clip, texts)[places])
    lengths = [len(texts[place]) for place in places]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_tower_reads_to_the_last_end_token_and_says_the_same(custom_text, make_clip_folder):
    clip = load_clip(make_clip_folder(custom_text=custom_text))
    ids = tokenize(clip, ["a red ball", "it"])
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


def test_a_tower_is_whole_again_after_an_error(clip) -> None:
    positions, mask = clip.model.positional_embedding, clip.model.attn_mask
    with pytest.raises(RuntimeError), shortened(clip.model, tokenize(clip, ["it"])):
        assert len(clip.model.positional_embedding) == 3
        raise RuntimeError
    assert clip.model.positional_embedding is positions and clip.model.attn_mask is mask


@pytest.mark.parametrize(
    "text_cfg", [{"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}]
)
def test_towers_that_look_at_padding_read_all_of_it(text_cfg, make_clip_folder) -> None:
    text_cfg = TINY_TEXT | text_cfg
    clip = load_clip(make_clip_folder(text_cfg=text_cfg, custom_text=True))
    ids = tokenize(clip, ["it"])
    with shortened(clip.model, ids) as given:
        assert torch.equal(given, ids)
        assert clip.model.encode_text(given).isfinite().all()
