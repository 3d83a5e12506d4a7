"""What lives in a notebook's page and changes there: widgets, and figures that grow."""

from dclip_kit.widgets.gallery import QueryGallery
from dclip_kit.widgets.live import LiveHistory, show_weight_sliders

__all__ = ["LiveHistory", "QueryGallery", "show_weight_sliders"]
