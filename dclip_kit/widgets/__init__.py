"""Controls for notebooks, in plain ipywidgets; whatever they compute is the kit's."""

from dclip_kit.widgets.weighting import WeightSliders, show_weight_sliders

__all__ = ["WeightSliders", "show_weight_sliders"]
