"""Commands on trained models: measuring them, and handing them on."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dclip_kit.commands.terminal import choose_device, require_writable
from dclip_kit.printing import printable


def export(arm: Positional[str], *, out: Path, pretrained: str | None, device: str = "cpu") -> int:
    """Writes a model as a folder that plain open_clip loads, without this kit.

    Args:
        arm: what distill wrote (runs/x/dclip), or any other model that evaluate takes.
        out: the folder to write.
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        device: auto, cpu, cuda:0, …
    """
    require_writable(out, "folder")
    from dclip_kit.encoders import MERGES_FILE, export_clip
    from dclip_kit.runs import load_model

    clip = load_model(arm, pretrained, choose_device(device))
    export_clip(clip, out)
    place = printable(out)
    print(f"Written to {place}. Load it without this kit:")
    print(f'  open_clip.create_model_and_transforms("local-dir:{place}")')
    more = f', bpe_path="{place}/{MERGES_FILE}"' if clip.merges else ""
    print(f'  open_clip.get_tokenizer("local-dir:{place}"{more})')
    return 0


def evaluate(
    *,
    model: tuple[str, ...],
    pretrained: str | None,
    data: str,
    zero_shot: str,
    templates: Literal["auto", "pocket", "imagenet", "paper"],
    images: Path | None = None,
    split: str = "test",
    seed: int = 0,
    json: Path | None = None,
    device: str = "auto",
) -> int:
    """Measures models: retrieval both ways with 95 % intervals, and zero-shot classification.

    Args:
        model: one or more, the first of which the others are compared with: "pocket", an
            architecture of open_clip, a folder that export wrote, or an arm that distill wrote
            (runs/x/dclip).
        pretrained: for architectures: a tag of open_clip, such as openai, or a file.
        data: captioned pictures, as inspect takes them, or "pocket".
        zero_shot: labelled pictures, all of which are classified: "pocket", imagenet:FOLDER,
            cifar10:FOLDER, cifar100:FOLDER, or a folder with a folder a class; "" leaves this out.
        images: the folder that the pictures' names are below; else it is looked for.
        split: "test" is what distill measures on, a tenth where the data has no splits; "all" is
            everything; formats with splits have more (val, test_1k_0, …).
        templates: what classes are put into: auto is CLIP's 80 except for the pocket, paper is one.
        seed: that distill was given.
        json: file for all figures.
        device: auto, cpu, cuda:0, …
    """
    if json:
        require_writable(json)
    from dclip_kit.checkpoint import write_atomically
    from dclip_kit.comparison import compare, format_retrieval, format_zero_shot, say_gain
    from dclip_kit.distributed import is_main_process
    from dclip_kit.evaluate import (
        TEMPLATE_SETS,
        ZeroShot,
        evaluate_retrieval,
        evaluate_zero_shot,
        prepare_retrieval,
        prepare_zero_shot,
    )
    from dclip_kit.profile_data import choose_templates, read_measured, read_zero_shot
    from dclip_kit.runs import load_model

    if not data:
        raise ValueError("Expected captioned pictures to measure on, got none; give --data.")
    captioned = read_measured(data, images, split, seed)
    labelled = read_zero_shot(zero_shot) if zero_shot else ()
    found = {}
    known: dict[str, dict[str, ZeroShot]] = {each.source: {} for each in labelled}
    for name in model:
        clip = load_model(name, pretrained, choose_device(device))
        found[name] = evaluate_retrieval(clip, prepare_retrieval(clip, captioned, read=False))
        for each in labelled:
            prompts = TEMPLATE_SETS[choose_templates(zero_shot, templates)]
            prepared = prepare_zero_shot(clip, each, False, prompts)
            known[each.source][name] = evaluate_zero_shot(clip, prepared)
    if not is_main_process():
        return 0
    gains = {name: compare(found[model[0]], found[name]) for name in model[1:]}
    if json:
        record = {
            "data": data,
            "split": split,
            "pictures": len(captioned),
            "captions": len(captioned.texts),
            "retrieval": {name: each.as_dict() for name, each in found.items()},
            "gains": {
                name: {way: [asdict(gain) for gain in each] for way, each in own.items()}
                for name, own in gains.items()
            },
            "zero_shot": {
                source: {name: {"top1": x.top1, "top5": x.top5} for name, x in results.items()}
                for source, results in known.items()
            },
        }
        write_atomically(json, json_format.dumps(record, indent=1) + "\n")
    what = f"{printable(data)} ({printable(split)})"
    print(f"{len(captioned):,} pictures, {len(captioned.texts):,} captions: {what}\n")
    print(format_retrieval({printable(name): each for name, each in found.items()}))
    for name, own in gains.items():
        print(f"\n{printable(name)} beside {printable(model[0])}")
        for way, (first, *_) in own.items():
            print(f"  {say_gain(first, f'{way} Recall@1')}")
    for source, results in known.items():
        print(f"\nZero-shot top-1, {printable(source)}")
        print(format_zero_shot({printable(name): each for name, each in results.items()}))
    return 0
