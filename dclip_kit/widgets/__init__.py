"""Interactive parts of a notebook: widgets, and figures that update."""

from dclip_kit.widgets.gallery import QueryGallery
from dclip_kit.widgets.inspector import RegionInspector
from dclip_kit.widgets.live import LiveRun
from dclip_kit.widgets.playground import ZeroShotPlayground

__all__ = [
    "LiveRun",
    "QueryGallery",
    "RegionInspector",
    "ZeroShotPlayground",
]
