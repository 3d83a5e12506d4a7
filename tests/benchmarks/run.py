"""All benchmarks one after the other, and how far each ratio is from its bar, as a picture.

`python tests/benchmarks/run.py FOLDER` writes FOLDER/report.json and FOLDER/bars.html (and
bars.png, where a Chromium is found).
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
import torch

from dclip_kit.plots.style import PALETTE, escape_text, new_figure
from dclip_kit.runtime.files import write_atomically

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bar:
    """What a ratio is held to; `at_least` for those that should be large."""

    benchmark: str
    ratio: str
    limit: float
    at_least: bool = False

    def margin(self, value: float) -> float:
        """How many times better than asked, to a hundred; below 1 the bar is missed."""
        if self.at_least:
            return min(value / self.limit, 100)
        return self.limit / max(value, self.limit / 100)  # what is too small to measure may be < 0


BARS = (
    Bar("retrieval", "kit / bare product", 2.5),
    Bar("retrieval", "clip-benchmark / kit", 8, at_least=True),
    Bar("retrieval", "bootstrap's share", 0.1),
    Bar("retrieval", "kit's memory, MB", 256),
    Bar("retrieval", "kit's memory, large, MB", 256),
    Bar("store", "embedding files, speed / bare ViT-B/32", 0.9, at_least=True),
    Bar("store", "embedding files, speed / bare pocket", 0.9, at_least=True),
    Bar("store", "opening a store / making it", 0.02),
    Bar("training", "the published code's teacher step / kit", 20, at_least=True),
    Bar("training", "block's share of the teacher's step", 0.7, at_least=True),
    Bar("training", "student's step / plain open_clip", 1.1),
    Bar("search", "exact / bare product, 1,000 queries", 1.3),
    Bar("search", "exact / bare product, single query", 1.3),
    Bar("search", "rescored / exact, 1,000 queries", 1.1),
    Bar("search", "rescored / exact, single query", 1.1),
    Bar("search", "exact / bare product, a million on disk", 1.3),
    Bar("widgets", "milliseconds from Enter, 1,000 pictures", 150),
    Bar("widgets", "milliseconds from Enter, 100,000 pictures", 400),
    Bar("widgets", "KB a query", 200),
    Bar("first", "search / import", 1.5),
    Bar("first", "first picture / import", 3),
    Bar("first", "app, empty cache / import", 8),
    Bar("first", "app / import", 2),
    Bar("first", "milliseconds of a query of the app", 150),
)


def plot_bars(report: dict[str, dict]) -> go.Figure:
    """Each ratio by how many times better than its bar it is; at 1 it would just hold."""
    found = [(bar, report[bar.benchmark]["ratios"][bar.ratio]) for bar in BARS]
    margins = [bar.margin(value) for bar, value in found]
    names = [f"{escape_text(bar.ratio)}  <b>{bar.benchmark}</b>" for bar, _ in found]
    figure = new_figure(26 * len(found) + 60)
    figure.update_layout(
        margin_r=150,
        xaxis={"type": "log", "tickvals": [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]}
        | {"title_text": "times better than asked (1: just as asked)"},
        yaxis={"tickvals": list(range(len(found))), "ticktext": names, "showgrid": False}
        | {"range": [len(found) - 0.4, -0.6]},
    )
    figure.add_bar(
        x=[margin - 1 for margin in margins],  # from the base
        y=list(range(len(found))),
        orientation="h",
        base=1,
        marker={"color": [PALETTE[2] if margin >= 1 else PALETTE[1] for margin in margins]},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[max(margin, 1) for margin in margins],
        y=list(range(len(found))),
        mode="text",
        text=[
            f" {value:.3g}  (at {'least' if bar.at_least else 'most'} {bar.limit:g})"
            for bar, value in found
        ],
        textposition="middle right",
        hoverinfo="skip",
    )
    figure.add_vline(x=1, line={"color": "black", "width": 1})
    return figure


def main() -> None:
    """Runs all, or draws again what lies in the folder (`--draw`)."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    report = {}
    for name in dict.fromkeys(bar.benchmark for bar in BARS):
        path = folder / f"{name}.json"
        if "--draw" not in sys.argv:
            print(f"{name}:", file=sys.stderr)
            subprocess.run([sys.executable, HERE / f"{name}.py", path], check=True)
        report[name] = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(folder / "report.json", json.dumps(report, indent=1) + "\n")
    figure = plot_bars(report)
    write_atomically(folder / "bars.html", figure.to_html(include_plotlyjs=True))
    try:
        write_atomically(folder / "bars.png", figure.to_image("png", width=1000, scale=2))
    except Exception as error:  # whatever a missing or broken browser makes kaleido raise
        print(f"No bars.png, since it could not be drawn: {error}", file=sys.stderr)
    print(f"{torch.get_num_threads()} threads; {folder / 'report.json'}, {folder / 'bars.html'}")


if __name__ == "__main__":
    main()
