"""Words and pictures, as other libraries' files say how they are prepared."""

import open_clip
import pytest
import torch

from dclip_kit.models.clip import load_clip
from dclip_kit.models.hand_over import TEXTS, build_tokenizer, describe_preprocessing


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace", None])
def test_a_tokenizers_file_cleans_texts_as_open_clip_does(
    clean, make_siglip_folder, tmp_path
) -> None:
    from transformers import AutoTokenizer

    clip = load_clip(make_siglip_folder(tokenizer_kwargs={"clean": clean} if clean else {}))
    build_tokenizer(clip).save_pretrained(tmp_path / "out")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    given = words(list(TEXTS), padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(given["input_ids"], clip.tokenizer(list(TEXTS)))
    assert len(given["input_ids"][2].unique()) > 9  # words, and not what stands for the unknown


def test_words_that_are_split_otherwise_are_refused(clip) -> None:
    """By open_clip's own tokenizer with an option that transformers' has not."""
    merges = str(clip.merges)
    words = open_clip.SimpleTokenizer(merges, context_length=12, clean="canonicalize")
    object.__setattr__(clip, "tokenizer", words)
    with pytest.raises(ValueError, match=r"reads \"Two  red_cats.*\" as other tokens"):
        build_tokenizer(clip)


def test_pictures_of_a_resnet_are_described() -> None:
    given = describe_preprocessing(load_clip("pocket"))
    assert given["size"] == {"shortest_edge": 64} and given["crop_size"]["width"] == 64


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "longest"}, "48 × 48 by longest, bicubic"),
        ({"vision_cfg": {"image_size": [48, 32]}}, "48 × 32 by squash"),
    ],
)
def test_pictures_that_no_file_describes_are_refused(changes, reason, make_vit_folder) -> None:
    with pytest.raises(ValueError, match=f"squashed into a square, .*{reason}"):
        describe_preprocessing(load_clip(make_vit_folder(**changes)))
