"""What lives in a notebook's page and changes there: plain ipywidgets, and curves that grow."""

from dclip_kit.widgets.gallery import QueryGallery
from dclip_kit.widgets.live import LiveHistory

__all__ = ["LiveHistory", "QueryGallery"]
