"""dclip_kit: DCLIP (arXiv 2505.21549), distil regions into CLIP's image tower, seen step by step.

Axes of tensors, as type annotations name them:
    image: pictures; in the teacher, image-caption pairs.
    text: captions or prompts.
    region: boxes of one picture, padded; a mask says which are real.
    token: real tokens of one caption, padded; a mask says which are real.
    embed: CLIP's joint space.
    query, candidate: what searches, and what is ranked.
"""

import lazy_loader

# The public names stand in __init__.pyi, beside this file, and are imported on first use: PyTorch
# and open_clip take seconds, which `python -m dclip_kit --help` need not wait for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
