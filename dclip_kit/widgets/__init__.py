"""Controls for notebooks, in plain ipywidgets: they need a kernel, and nothing of a browser."""

from dclip_kit.widgets.gallery import QueryGallery

__all__ = ["QueryGallery"]
