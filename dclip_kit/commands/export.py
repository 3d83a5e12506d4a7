"""The command that hands a model over to other libraries."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from dclip_kit.commands.terminal import require_writable
from dclip_kit.runtime.printing import printable


def export(
    model: Positional[str],
    *,
    out: Path,
    to: Literal["transformers"] = "transformers",
    pretrained: str = "",
) -> None:
    """Writes a model for those who have neither open_clip nor this kit.

    Whether the other library computes the same vectors is checked before anything is written.

    Args:
        model: an arm's folder, or another name of a CLIP.
        out: the folder to write to.
        to: the library: transformers' CLIPModel, which sentence-transformers opens, too.
        pretrained: of an architecture: a tag of open_clip, or a file of weights.
    """
    require_writable(out, "folder")
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.models.hand_over import write_transformers

    write_transformers(load_clip(model, tag_for(model, pretrained or None)), out)
    print(f"Written to {printable(out)}, as its README.md shows. seen.json stays behind.")
