"""Functions that return plotly figures: legible at half a page's width, small when stored."""

from dclip_kit.plots.history import plot_history
from dclip_kit.plots.pictures import plot_regions, plot_student_view
from dclip_kit.plots.results import plot_probe, plot_recall, plot_shares
from dclip_kit.plots.search import plot_search
from dclip_kit.plots.tradeoff import plot_tradeoff
from dclip_kit.plots.weights import plot_region_weights

__all__ = [
    "plot_history",
    "plot_probe",
    "plot_recall",
    "plot_region_weights",
    "plot_regions",
    "plot_search",
    "plot_shares",
    "plot_student_view",
    "plot_tradeoff",
]
