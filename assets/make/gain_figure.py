"""Draws README's figure from the committed study: `python -m assets.make.gain_figure`."""

import json
from pathlib import Path

import plotly.graph_objects as go

from dclip_kit.plots import plot_frontiers
from dclip_kit.runtime.files import asset_path, write_atomically


def draw_gains(study: Path) -> go.Figure:
    """Gain in text→image Recall@1 over clip against zero-shot accuracy kept, for each arm.

    Args:
        study: its result, as the command `study` writes it.
    """
    figure = plot_frontiers(json.loads(study.read_text(encoding="utf-8")))
    figure.update_layout(width=720, height=460, font_size=14)
    return figure.update_yaxes(title="gain over clip, text→image Recall@1")


if __name__ == "__main__":
    figure = draw_gains(asset_path("studies", "pocket_table.json"))
    write_atomically(asset_path("readme") / "gain.png", figure.to_image("png", scale=2))
