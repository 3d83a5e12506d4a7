"""What lives in a notebook's page and changes there: plain ipywidgets, and curves that grow."""

from dclip_kit.widgets.gallery import QueryGallery
from dclip_kit.widgets.live import LiveHistory
from dclip_kit.widgets.sliders import WeightSliders, show_weight_sliders

__all__ = ["LiveHistory", "QueryGallery", "WeightSliders", "show_weight_sliders"]
