"""What lives in a notebook's page and changes there."""

from dclip_kit.widgets.live import LiveHistory

__all__ = ["LiveHistory"]
