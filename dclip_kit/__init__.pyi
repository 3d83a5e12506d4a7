from .config import Profile, get_profile
from .data import CaptionedImages, LabelledImages
from .evaluation.arms import evaluate_arms, load_arm, train_arm
from .evaluation.evaluate import evaluate_retrieval, evaluate_zero_shot
from .evaluation.experiment import run
from .evaluation.inspection import shortcut_probe
from .features.extract import extract_features
from .features.store import EncodedPictures, FrozenFeatures
from .losses import (
    anchored_kl_loss,
    contrastive_loss,
    cosine_distillation_loss,
    sds_loss,
)
from .metrics import paired_bootstrap, retrieval_metrics
from .models.clip import ClipBundle, load_clip, save_clip
from .models.denoiser import load_denoiser
from .models.detector import load_detector
from .models.encode import encode_images, encode_texts, encode_tokens
from .models.regions import Regions, region_weights
from .models.teacher import MetaTeacher, RegionTeacher
from .models.weights import freeze, interpolate
from .search.folder_index import index_pictures
from .search.index import SearchIndex
from .search.rescoring import rescore
from .training import (
    PictureTargets,
    choose_terms,
    distill,
    embed_pictures,
    train_region_teacher,
    train_teacher,
)

__all__ = [
    "CaptionedImages",
    "ClipBundle",
    "EncodedPictures",
    "FrozenFeatures",
    "LabelledImages",
    "MetaTeacher",
    "PictureTargets",
    "Profile",
    "RegionTeacher",
    "Regions",
    "SearchIndex",
    "anchored_kl_loss",
    "choose_terms",
    "contrastive_loss",
    "cosine_distillation_loss",
    "distill",
    "embed_pictures",
    "encode_images",
    "encode_texts",
    "encode_tokens",
    "evaluate_arms",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "extract_features",
    "freeze",
    "get_profile",
    "index_pictures",
    "interpolate",
    "load_arm",
    "load_clip",
    "load_denoiser",
    "load_detector",
    "paired_bootstrap",
    "region_weights",
    "rescore",
    "retrieval_metrics",
    "run",
    "save_clip",
    "sds_loss",
    "shortcut_probe",
    "train_arm",
    "train_region_teacher",
    "train_teacher",
]
