from .arms import load_arm, train_arm
from .config import Profile, get_profile
from .datasets import CaptionedImages, LabelledImages
from .detectors import load_detector
from .embedding import encode_images, encode_texts, encode_tokens
from .encoders import ClipBundle, export_clip, load_clip
from .evaluate import evaluate_retrieval, evaluate_zero_shot
from .extraction import extract_features
from .features import FrozenFeatures
from .losses import contrastive_loss, cosine_distillation_loss, dclip_loss
from .metrics import paired_bootstrap, retrieval_metrics
from .probe import shortcut_probe
from .regions import Regions, region_weights
from .search_index import SearchIndex
from .student import freeze, interpolate
from .teacher import MetaTeacher
from .train import distill, train_teacher
from .walk import evaluate_arms

__all__ = [
    "CaptionedImages",
    "ClipBundle",
    "FrozenFeatures",
    "LabelledImages",
    "MetaTeacher",
    "Profile",
    "Regions",
    "SearchIndex",
    "contrastive_loss",
    "cosine_distillation_loss",
    "dclip_loss",
    "distill",
    "encode_images",
    "encode_texts",
    "encode_tokens",
    "evaluate_arms",
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
