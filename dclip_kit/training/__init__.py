"""The two trainings, in one plain loop on accelerate: the teacher's, and the student's."""

from dclip_kit.training.distillation import StudentRun, choose_terms, distill
from dclip_kit.training.loop import History, RuinedError
from dclip_kit.training.order import draw_captions, plan_epoch
from dclip_kit.training.teacher_training import (
    TeacherRun,
    apply_region_teacher,
    apply_teacher,
    choose_lenders,
    choose_region_teacher,
    embed_pictures,
    embed_with_teacher,
    train_teacher,
)
from dclip_kit.training.terms import PictureTargets, Term

__all__ = [
    "History",
    "PictureTargets",
    "RuinedError",
    "StudentRun",
    "TeacherRun",
    "Term",
    "apply_region_teacher",
    "apply_teacher",
    "choose_lenders",
    "choose_region_teacher",
    "choose_terms",
    "distill",
    "draw_captions",
    "embed_pictures",
    "embed_with_teacher",
    "plan_epoch",
    "train_teacher",
]
