"""dclip_kit: DCLIP (arXiv 2505.21549), distil regions into CLIP's image tower, seen step by step.

Axes of tensors, as type annotations name them:
    image: pictures; in the teacher, image-caption pairs.
    text: captions or prompts.
    region: boxes of one picture, padded; a mask says which are real.
    token: real tokens of one caption, padded; a mask says which are real.
    embed: CLIP's joint space.
    query, candidate: what searches, and what is ranked.
"""

from dclip_kit.arms import evaluate_arm, load_arm, train_arm
from dclip_kit.config import Profile, get_profile
from dclip_kit.datasets import CaptionedImages, LabelledImages
from dclip_kit.detectors import load_detector
from dclip_kit.embedding import encode_images, encode_texts, encode_tokens
from dclip_kit.encoders import ClipBundle, export_clip, load_clip
from dclip_kit.evaluate import evaluate_retrieval, evaluate_zero_shot
from dclip_kit.features import FrozenFeatures, extract_features
from dclip_kit.losses import contrastive_loss, cosine_distillation_loss, dclip_loss
from dclip_kit.metrics import paired_bootstrap, retrieval_metrics
from dclip_kit.probe import shortcut_probe
from dclip_kit.regions import Regions, region_weights
from dclip_kit.student import freeze, interpolate
from dclip_kit.teacher import MetaTeacher
from dclip_kit.train import distill, train_teacher

__all__ = [
    "CaptionedImages",
    "ClipBundle",
    "FrozenFeatures",
    "LabelledImages",
    "MetaTeacher",
    "Profile",
    "Regions",
    "contrastive_loss",
    "cosine_distillation_loss",
    "dclip_loss",
    "distill",
    "encode_images",
    "encode_texts",
    "encode_tokens",
    "evaluate_arm",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "export_clip",
    "extract_features",
    "freeze",
    "get_profile",
    "interpolate",
    "load_arm",
    "load_clip",
    "load_detector",
    "paired_bootstrap",
    "region_weights",
    "retrieval_metrics",
    "shortcut_probe",
    "train_arm",
    "train_teacher",
]
