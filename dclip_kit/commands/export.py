"""The command that hands a model over to other libraries."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional

from dclip_kit.commands.terminal import require_own_folder, require_writable
from dclip_kit.config import PROFILES
from dclip_kit.runtime.printing import printable


def export(
    model: Positional[str],
    *,
    out: Path,
    to: Literal["transformers", "onnx"] = "transformers",
    int8: FlagCreatePairsOff[bool] = False,
    data: str = "",
    pretrained: str = "",
) -> None:
    """Writes a model for those who have neither open_clip nor this kit.

    Whether the other library computes the same vectors is checked before anything is written.

    Args:
        model: an arm's folder, or another name of a CLIP.
        out: the folder to write to.
        to: the library: transformers' CLIPModel or SiglipModel, which sentence-transformers opens,
            too; or onnx, of any CLIP, for onnxruntime and transformers.js.
        int8: of onnx, also writes the towers with 8-bit weights, of a quarter of the size, and
            measures what these find, and how fast, beside the others: on the val pictures of the
            arm's run, or else of the pocket.
        data: captioned pictures whose val to measure on instead, as of distill.
        pretrained: of an architecture: a tag of open_clip, or a file of weights.
    """
    require_writable(out, "folder")
    if int8 and to != "onnx":
        raise ValueError(f"Expected --int8 with --to onnx, got --to {to}; leave --int8 out.")
    if data and not int8:
        raise ValueError("Expected --data with --int8, which measures on them; leave --data out.")
    from dclip_kit.models.clip import find_folder, load_clip, tag_for

    folder = find_folder(model)
    if folder and out.resolve() == folder.resolve():
        raise ValueError(
            f"Expected an --out of its own, got the model's folder {printable(out)}, whose card "
            "would be lost; name another."
        )
    if not _wrote(out):
        require_own_folder(out)
    other = out / {"transformers": "onnx", "onnx": "model.safetensors"}[to]
    if other.exists():
        raise ValueError(
            f"Expected an --out for {to} alone, got {printable(out)}, which has {other.name} of an "
            "earlier export, beside another config.json; name another."
        )
    val = _read_val(model, data) if int8 else None
    clip = load_clip(model, tag_for(model, pretrained or None))
    if to == "onnx":
        from dclip_kit.models.hand_over_onnx import write_onnx

        cosine = write_onnx(clip, out, int8)
        print(f"onnxruntime's vectors have a cosine of at least {cosine:.6f} with PyTorch's.")
    else:
        from dclip_kit.models.hand_over_transformers import write_transformers

        write_transformers(clip, out)
    print(f"Written to {printable(out)}, as its README.md shows. seen.json stays behind.")
    if val:
        print(_measure_int8(clip, out, val))


def _wrote(folder: Path) -> bool:
    """Whether an earlier export wrote a folder; its files have the names of other people's, too."""
    from dclip_kit.models.hand_over import HANDED_OVER

    card = folder / "README.md"
    return card.is_file() and HANDED_OVER in card.read_text(encoding="utf-8", errors="replace")


def _read_val(model: str, data: str) -> Any:
    """The captioned pictures to measure on."""
    from dclip_kit.evaluation.arms import read_origin
    from dclip_kit.evaluation.profile_data import load_splits

    origin = read_origin(model)
    if data:
        profile = origin.profile if origin else PROFILES["base"]
        return load_splits(replace(profile, data=data, images="", test="")).val
    try:
        return load_splits(origin.profile if origin else PROFILES["pocket"]).val
    except (ValueError, OSError, ImportError) as error:  # moved, or without captions
        said = f"Measured on the pocket, since the arm's own data cannot be read: {error}"
        print(printable(said))
        return load_splits(PROFILES["pocket"]).val


def _measure_int8(clip: Any, folder: Path, val: Any) -> str:
    from dclip_kit.evaluation import compare
    from dclip_kit.models.hand_over_onnx import measure_onnx

    measured = measure_onnx(clip, folder, val)
    gains = compare.compare(*(each.retrieval for each in measured.values()))
    lines = [
        "",
        f"8-bit weights on {len(val):,} pictures: {printable(val.source)} (val)",
        compare.format_retrieval({name: each.retrieval for name, each in measured.items()}),
        "",
        *(f"  {compare.say_gain(gain, f'{way} Recall@1')}" for way, (gain, *_) in gains.items()),
    ]
    for name, each in measured.items():
        lines.append(f"  {name}: {each.megabytes:.1f} MB, {each.milliseconds:.2f} ms a picture")
    return "\n".join(lines)
