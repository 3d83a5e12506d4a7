"""What a student learns from, made before it trains: teacher embeddings, crops to rehearse."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from dclip_kit.config import RegionSettings, RegionTeacherSettings
from dclip_kit.features.extract import RegionCrops
from dclip_kit.features.store import EncodedPictures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images, read_few
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.training.teacher_training import embed_pictures, embed_with_teacher
from dclip_kit.training.terms import PictureTargets


def prepare_lessons(
    teacher: MetaTeacher | RegionTeacher | ClipBundle,
    captioned: EncodedPictures,
    uncaptioned: EncodedPictures | None,
    regions: RegionSettings,
    settings: RegionTeacherSettings,
) -> tuple[Float[Tensor, "text embed"], PictureTargets | None]:
    """Embeds what a student learns from with its teacher.

    Args:
        teacher: trained; or a fine-tuned CLIP as the teacher.
        captioned: the training data.
        uncaptioned: pictures without captions, if any.
        regions: of the pictures; says whether a teacher that reads captions weights them.
        settings: what a region teacher sees of the pictures.

    Returns:
        The teacher's embeddings of the captioned pictures, one for each caption; and the pictures
        without captions with their embeddings, or None if there are none or the teacher reads
        captions.
    """
    if isinstance(teacher, MetaTeacher):
        return embed_with_teacher(teacher, captioned.features, regions), None

    def embed(encoded: EncodedPictures) -> Tensor:
        if isinstance(teacher, ClipBundle):
            return encode_images(teacher, encoded.pictures)
        return embed_pictures(teacher, encoded.features, settings)

    targets = PictureTargets(uncaptioned.pictures, embed(uncaptioned)) if uncaptioned else None
    return embed(captioned)[captioned.features.image_of_text], targets


def prepare_rehearsal(
    bundle: ClipBundle, captioned: EncodedPictures, settings: RegionSettings
) -> PictureTargets:
    """Reads the crops of the training data that the student rehearses, once.

    If the stored region features are not CLIP's usual ones, as in the published code, the crops
    are encoded again.

    Args:
        bundle: the untouched CLIP.
        captioned: the training data.
        settings: how its regions were made.

    Raises:
        ValueError: as `read_pixels`.
    """
    clip_settings = replace(settings, normalized_crops=True, undetected_as_zeros=False)
    crops = RegionCrops(captioned.dataset.paths, captioned.features, clip_settings)
    pictures, features = read_few(bundle, crops), captioned.features.region
    if clip_settings != settings:
        features = encode_images(bundle, pictures)
    return PictureTargets(pictures, features)
