"""Functions that return plotly figures: legible at half a page's width, small when stored."""

from dclip_kit.plots.curves import (
    plot_frontiers,
    plot_growth,
    plot_history,
    plot_tradeoff,
    plot_versus,
)
from dclip_kit.plots.detection import (
    plot_attention,
    plot_average_precision,
    plot_masking,
    plot_patches,
    plot_region_weights,
    plot_regions,
    plot_student_view,
)
from dclip_kit.plots.rankings import PictureRow, plot_picture_rows, plot_picture_search, plot_search
from dclip_kit.plots.results import (
    plot_gains,
    plot_naming,
    plot_occurrences,
    plot_probe,
    plot_recall,
    plot_scores,
)

__all__ = [
    "PictureRow",
    "plot_attention",
    "plot_average_precision",
    "plot_frontiers",
    "plot_gains",
    "plot_growth",
    "plot_history",
    "plot_masking",
    "plot_naming",
    "plot_occurrences",
    "plot_patches",
    "plot_picture_rows",
    "plot_picture_search",
    "plot_probe",
    "plot_recall",
    "plot_region_weights",
    "plot_regions",
    "plot_scores",
    "plot_search",
    "plot_student_view",
    "plot_tradeoff",
    "plot_versus",
]
