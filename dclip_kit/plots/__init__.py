"""Functions that return plotly figures: legible at half a page's width, small when stored."""

from dclip_kit.plots.attention import plot_attention, plot_masking
from dclip_kit.plots.curves import plot_history, plot_tradeoff
from dclip_kit.plots.detection import plot_average_precision, plot_region_statistics
from dclip_kit.plots.naming import plot_naming
from dclip_kit.plots.pictures import plot_regions, plot_student_view
from dclip_kit.plots.results import plot_probe, plot_recall
from dclip_kit.plots.search import plot_search
from dclip_kit.plots.weights import plot_region_weights, plot_weightings

__all__ = [
    "plot_attention",
    "plot_average_precision",
    "plot_history",
    "plot_masking",
    "plot_naming",
    "plot_probe",
    "plot_recall",
    "plot_region_statistics",
    "plot_region_weights",
    "plot_regions",
    "plot_search",
    "plot_student_view",
    "plot_tradeoff",
    "plot_weightings",
]
