from .config import CONTROL, Profile, change_settings, control_of, get_profile
from .data import CaptionedImages, LabelledImages
from .data.formats import read_captioned
from .data.leaks import find_leaks
from .data.pictures import open_picture
from .data.pocket.compositions import KINDS, load_compositions
from .data.pocket.example import write_example
from .data.pocket.facets import FACETS, query_facets, things_in
from .data.pocket.sprites import load_nouns
from .data.pocket.world import load_captioned, load_scenes
from .data.splits import inspect_data, summarize
from .evaluation.arms import (
    evaluate_arms,
    find_saved,
    load_arm,
    load_arms,
    prepare_evaluation,
    prepare_training,
    train_arm,
)
from .evaluation.compare import (
    compare,
    draw_queries,
    format_retrieval,
    format_table,
    make_report,
    measure_fresh,
    recall_gains,
    say_gain,
    won_and_lost,
)
from .evaluation.evaluate import (
    WAYS,
    References,
    encode_classes,
    evaluate_retrieval,
    evaluate_zero_shot,
    measure_hubness,
    nearest_classes,
    prepare_retrieval,
    prepare_zero_shot,
    rescored_metrics,
    score_compositions,
    try_rescoring,
)
from .evaluation.experiment import (
    begin,
    load_saved_teacher,
    obtain_teacher,
    prepare_terms,
    run,
    train_arms,
    train_teacher_of,
)
from .evaluation.inspection import (
    ShortcutProbe,
    attend,
    compare_masking,
    list_objects,
    name_objects,
    probe_teacher,
    read_caption,
    reweight_regions,
    score_teachers,
    shortcut_probe,
)
from .evaluation.profile_data import load_data, load_uncaptioned, preview
from .evaluation.study_table import format_study
from .features.extract import choose_detector, encode_pictures, extract_features
from .features.store import EncodedPictures, FrozenFeatures, digest_record
from .losses import anchored_kl_loss, contrastive_loss, cosine_distillation_loss, sds_loss
from .metrics import (
    COMPOSITION_CHANCE,
    composition_scores,
    gain_by_group,
    k_occurrence,
    paired_bootstrap,
    retention,
    retrieval_metrics,
    skewness,
)
from .models.attention import map_attention
from .models.clip import ClipBundle, load_clip, save_clip
from .models.denoiser import caption_losses, load_denoiser
from .models.detector import find_photographs, load_detector
from .models.encode import encode_images, encode_texts, encode_tokens
from .models.hand_over_onnx import write_onnx
from .models.hand_over_transformers import write_transformers
from .models.regions import Regions, crop_regions, region_weights
from .models.teacher import MetaTeacher, RegionTeacher
from .models.weights import freeze, interpolate, same_text_tower
from .runtime.files import asset_path, read_record, write_record
from .runtime.machine import peak_memory_mb
from .runtime.printing import Steps
from .search.folder_index import index_pictures
from .search.index import related_share, search_images
from .search.rescoring import rescore
from .search.shards import embed_shards
from .training import (
    PictureTargets,
    choose_terms,
    distill,
    embed_pictures,
    train_teacher,
)

__all__ = [
    "COMPOSITION_CHANCE",
    "CONTROL",
    "FACETS",
    "KINDS",
    "WAYS",
    "CaptionedImages",
    "ClipBundle",
    "EncodedPictures",
    "FrozenFeatures",
    "LabelledImages",
    "MetaTeacher",
    "PictureTargets",
    "Profile",
    "References",
    "RegionTeacher",
    "Regions",
    "ShortcutProbe",
    "Steps",
    "anchored_kl_loss",
    "asset_path",
    "attend",
    "begin",
    "caption_losses",
    "change_settings",
    "choose_detector",
    "choose_terms",
    "compare",
    "compare_masking",
    "composition_scores",
    "contrastive_loss",
    "control_of",
    "cosine_distillation_loss",
    "crop_regions",
    "digest_record",
    "distill",
    "draw_queries",
    "embed_pictures",
    "embed_shards",
    "encode_classes",
    "encode_images",
    "encode_pictures",
    "encode_texts",
    "encode_tokens",
    "evaluate_arms",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "extract_features",
    "find_leaks",
    "find_photographs",
    "find_saved",
    "format_retrieval",
    "format_study",
    "format_table",
    "freeze",
    "gain_by_group",
    "get_profile",
    "index_pictures",
    "inspect_data",
    "interpolate",
    "k_occurrence",
    "list_objects",
    "load_arm",
    "load_arms",
    "load_captioned",
    "load_clip",
    "load_compositions",
    "load_data",
    "load_denoiser",
    "load_detector",
    "load_nouns",
    "load_saved_teacher",
    "load_scenes",
    "load_uncaptioned",
    "make_report",
    "map_attention",
    "measure_fresh",
    "measure_hubness",
    "name_objects",
    "nearest_classes",
    "obtain_teacher",
    "open_picture",
    "paired_bootstrap",
    "peak_memory_mb",
    "prepare_evaluation",
    "prepare_retrieval",
    "prepare_terms",
    "prepare_training",
    "prepare_zero_shot",
    "preview",
    "probe_teacher",
    "query_facets",
    "read_caption",
    "read_captioned",
    "read_record",
    "recall_gains",
    "region_weights",
    "related_share",
    "rescore",
    "rescored_metrics",
    "retention",
    "retrieval_metrics",
    "reweight_regions",
    "run",
    "same_text_tower",
    "save_clip",
    "say_gain",
    "score_compositions",
    "score_teachers",
    "sds_loss",
    "search_images",
    "shortcut_probe",
    "skewness",
    "summarize",
    "things_in",
    "train_arm",
    "train_arms",
    "train_teacher",
    "train_teacher_of",
    "try_rescoring",
    "won_and_lost",
    "write_example",
    "write_onnx",
    "write_record",
    "write_transformers",
]
