"""Draws README's figure from stored results: `python -m assets.make.gain_figure`.

The gains are those on further scenes, the retention that on test; both with 95 % intervals.
"""

import json
from pathlib import Path

import plotly.graph_objects as go

from dclip_kit.runtime.files import asset_path, write_atomically

COLORS = {"clip": "#555555", "contrastive": "#D55E00", "dclip": "#0072B2"}


def draw_gains(arms: Path) -> go.Figure:
    """Gain in text→image Recall@1 over clip against zero-shot retention, in percent.

    Args:
        arms: the folder of report.json and fresh_scenes.json.
    """
    report, fresh = (
        json.loads((arms / name).read_text(encoding="utf-8"))
        for name in ("report.json", "fresh_scenes.json")
    )
    figure = go.Figure()
    for name, arm in report["arms"].items():
        gain = fresh["text_to_image"]["gains"].get(f"assets/pocket_arms/{name} over pocket")
        y, (low, high) = (gain["relative"], gain["relative_ci95"]) if gain else (0, (0, 0))
        x, (least, most) = arm["zero_shot"]["retention"], arm["zero_shot"]["retention_ci95"]
        figure.add_scatter(
            x=[x],
            y=[y],
            error_x={"array": [most - x], "arrayminus": [x - least], "symmetric": False},
            error_y={"array": [high - y], "arrayminus": [y - low], "symmetric": False},
            mode="markers+text",
            marker={"size": 11, "color": COLORS[name]},
            text=[f"<b>{name}</b>  {y:+.1%}" if gain else f"<b>{name}</b>, untouched"],
            textfont={"color": COLORS[name]},
            textposition="top right" if name == "contrastive" else "top left",
        )
    figure.update_layout(
        template="plotly_white",
        width=680,
        height=340,
        margin={"l": 70, "r": 20, "t": 20, "b": 50},
        showlegend=False,
        font={"size": 14, "color": "#222222"},
    )
    figure.update_xaxes(title="zero-shot accuracy kept", tickformat=".0%", range=[0.93, 1.005])
    figure.update_yaxes(title="gain, text→image Recall@1", tickformat="+.0%", range=[-0.03, 0.29])
    return figure


if __name__ == "__main__":
    figure = draw_gains(asset_path("pocket_arms"))
    write_atomically(asset_path("readme") / "gain.png", figure.to_image("png", scale=2))
