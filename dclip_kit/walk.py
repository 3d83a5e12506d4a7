"""What the notebooks share: a profile's data, and weights trained now or loaded.

`python -m dclip_kit.walk` trains the pocket's teacher and arms and keeps them in assets/.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from dclip_kit.arms import (
    Arm,
    EvaluationSets,
    load_arms,
    load_teacher,
    round_tower,
    save_arm,
    save_teacher,
    train_arm,
)
from dclip_kit.assets import asset_path
from dclip_kit.config import Profile, get_profile
from dclip_kit.datasets import CaptionedImages, LabelledImages
from dclip_kit.detectors import load_detector
from dclip_kit.embedding import read_pixels
from dclip_kit.encoders import ClipBundle, load_clip
from dclip_kit.evaluate import prepare_retrieval, prepare_zero_shot
from dclip_kit.features import FrozenFeatures, extract_features
from dclip_kit.metrics import recall_ceiling
from dclip_kit.pocket import data as pocket
from dclip_kit.teacher import MetaTeacher
from dclip_kit.train import TeacherRun, embed_with_teacher, train_teacher


@dataclass(frozen=True, eq=False)
class WalkData:
    """A profile's data.

    Attributes:
        train, val, test: captioned pictures.
        zero_shot_val, zero_shot, zero_shot_held_out: labelled pictures.
        ceiling: text→image Recall@1 on test that a perfect model could reach.
    """

    train: CaptionedImages
    val: CaptionedImages
    test: CaptionedImages
    zero_shot_val: LabelledImages
    zero_shot: LabelledImages
    zero_shot_held_out: LabelledImages
    ceiling: float


def load_data(profile: Profile) -> WalkData:
    """Reads a profile's data; the pocket's is drawn on first use.

    Raises:
        ValueError: the profile's data must be given by the user.
    """
    if profile.data != "pocket":
        raise ValueError(
            f"Expected a profile with the data 'pocket', which comes with the kit, got "
            f"{profile.data!r}; make a WalkData of your own pictures instead."
        )
    return WalkData(
        train=pocket.load_captioned("train"),
        val=pocket.load_captioned("val"),
        test=pocket.load_captioned("test"),
        zero_shot_val=pocket.load_labelled("zero_shot_val"),
        zero_shot=pocket.load_labelled("zero_shot"),
        zero_shot_held_out=pocket.load_labelled("zero_shot_held_out"),
        ceiling=recall_ceiling(torch.tensor(pocket.caption_matches("test"))),
    )


def prepare_evaluation(clip: ClipBundle, data: WalkData) -> EvaluationSets:
    """Encodes all texts once; reads val's pictures, which every epoch looks at, once."""
    return EvaluationSets(
        prepare_retrieval(clip, data.val),
        prepare_retrieval(clip, data.test, read=False),
        prepare_zero_shot(clip, data.zero_shot_val),
        prepare_zero_shot(clip, data.zero_shot, read=False),
        prepare_zero_shot(clip, data.zero_shot_held_out, read=False),
    )


def obtain_teacher(
    profile: Profile, clip: ClipBundle, features: FrozenFeatures | None, saved: Path
) -> TeacherRun:
    """Trains the teacher on features of the training data; without any, loads the saved one."""
    if features is None:
        teacher, history = load_teacher(clip.model.visual.output_dim, profile, saved)
        print(f"Loaded the saved teacher: {len(history)} epochs.")
        return TeacherRun(teacher, history)
    run = train_teacher(features, profile.teacher, profile.regions, profile.seed)
    save_teacher(run.teacher, run.history, profile, saved)
    print(f"Trained the teacher now: {len(run.history)} epochs.")
    return run


def obtain_arms(
    profile: Profile,
    clip: ClipBundle,
    teacher: MetaTeacher,
    train: CaptionedImages,
    features: FrozenFeatures | None,
    sets: EvaluationSets,
    saved: Path,
) -> dict[str, Arm]:
    """Trains contrastive and dclip; without features of the training data, loads the saved ones.

    Returns:
        clip (untouched), contrastive and dclip, by name. Trained ones are rounded to the half
        precision that they are saved in, so that loading them gives the same figures.
    """
    if features is None:
        return load_arms(clip, saved)
    arms = {"clip": Arm("clip", clip)}
    pixels = read_pixels(clip, train.paths)
    targets = embed_with_teacher(teacher, features, profile.regions)
    for name, embeddings in (("contrastive", None), ("dclip", targets)):
        arm = train_arm(name, clip, pixels, features, profile, sets, embeddings)
        arms[name] = round_tower(arm)
        save_arm(arm, saved)
    print("Trained the arms now.")
    return arms


def train_all(profile: Profile, clip: ClipBundle, data: WalkData, folder: Path) -> None:
    """Trains a profile's teacher and arms into a folder."""
    detector = load_detector(
        profile.regions.detector,
        confidence=profile.regions.confidence,
        max_regions=profile.regions.max_regions,
    )
    features = extract_features(clip, detector, data.train, profile.regions)
    teacher = obtain_teacher(profile, clip, features, folder).teacher
    sets = prepare_evaluation(clip, data)
    obtain_arms(profile, clip, teacher, data.train, features, sets, folder)


def find_saved(profile: Profile, clip: ClipBundle, data: WalkData, folder: str = "") -> Path:
    """The folder of a profile's teacher and arms.

    Args:
        profile: the pocket's come with the kit. Another's are trained now unless they have been,
            which takes long without a GPU.
        clip: the untouched one.
        data: to train with.
        folder: where a run of yours left them, instead.
    """
    if folder or profile.name == "pocket":
        return Path(folder) if folder else asset_path("pocket_arms")
    place = Path("../runs", profile.name, "arms")  # from notebooks/
    if not (place / "dclip.json").exists():  # the last to be written
        print(f"Training the teacher and the arms into {place}.")
        train_all(profile, clip, data, place)
    return place


def main() -> None:
    """Trains the pocket's teacher and arms into assets/pocket_arms."""
    profile = get_profile("pocket")
    folder = asset_path("sprites").parent / "pocket_arms"
    train_all(profile, load_clip(profile.clip), load_data(profile), folder)


if __name__ == "__main__":
    main()
