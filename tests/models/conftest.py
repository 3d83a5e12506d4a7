"""What tests of models share: a small SigLIP on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture
def make_siglip_folder(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Writes a SigLIP as open_clip's local-dir, with a T5's tokenizer; keywords change its text.

    Its image tower is timm's, by default that of ViT-B-16-SigLIP, made small.
    """
    import open_clip
    import timm
    from safetensors.torch import save_file

    build, small = timm.create_model, {"img_size": 48, "embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setattr(timm, "create_model", lambda name, **given: build(name, **given, **small))

    def make(name: str = "siglip", trunk: str = "vit_base_patch16_siglip_224", **changes) -> Path:
        folder = tmp_path / name
        config = open_clip.get_model_config("ViT-B-16-SigLIP") | {"embed_dim": 32}
        config["vision_cfg"] |= {"image_size": 48, "timm_model_name": trunk}
        config["text_cfg"] |= {"vocab_size": 200, "width": 32, "heads": 2, "layers": 2} | changes
        torch.manual_seed(1)
        model = open_clip.CustomTextCLIP(**{x: config[x] for x in config if x != "custom_text"})
        for parameter in model.parameters():  # at first, biases are 0 and many scales alike
            torch.nn.init.normal_(parameter, float(parameter.detach().mean()), 0.05)
        write_t5_tokenizer(folder)
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3}
        preprocess |= {"interpolation": "bicubic", "resize_mode": "squash"}
        record = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(record))
        return folder

    return make


def write_t5_tokenizer(folder: Path) -> None:
    """Pieces of words, as SigLIP's are, in the files of its repositories."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>"}
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, **special)
    texts = ["a photo of a dog", "two red cats beside a trees trunk", "word and 10 Words, Red!"]
    tokenizer.train_from_iterator(5 * texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 64}
    config |= {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
