"""Draws the figure of assets/studies from its table: `python -m assets.make.gain_figure`."""

import json
from pathlib import Path

import plotly.graph_objects as go

from dclip_kit.plots import plot_frontiers
from dclip_kit.runtime.files import asset_path, write_atomically

# Those that the page speaks of first; `07_does_it_help` draws all.
SHOWN = (
    *("contrastive_rehearsal", "dclip", "official_code", "whole_picture_taught", "region_taught"),
    *("contrastive_rehearsal_text", "region_taught_text"),
)


def draw_gains(study: Path) -> go.Figure:
    """Gain in text→image Recall@1 over clip against zero-shot accuracy kept, for arms of `SHOWN`.

    Args:
        study: the path of its result, written by `assets.make.run_study`.
    """
    result = json.loads(study.read_text(encoding="utf-8"))
    arms = {name: result["arms"][name] for name in ("clip", *SHOWN)}
    figure = plot_frontiers(result | {"arms": arms})
    figure.update_layout(width=720, height=460, font_size=14)
    return figure.update_yaxes(title="gain over clip, text→image Recall@1")


if __name__ == "__main__":
    figure = draw_gains(asset_path("studies", "pocket_table.json"))
    write_atomically(asset_path("readme") / "gain.png", figure.to_image("png", scale=2))
