"""What a student is shown, made before it trains: a teacher's embeddings, crops to rehearse."""

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
        teacher: trained; or a fine-tuned CLIP that teaches another.
        captioned: the training data.
        uncaptioned: pictures without captions, if any.
        regions: of the pictures; a teacher that reads captions heeds whether they are weighted.
        settings: what a region teacher sees of them.

    Returns:
        The teacher's embeddings of the captioned pictures, one for each caption, and the pictures
        without captions with theirs; None where there are none, or the teacher reads captions.
    """
    if isinstance(teacher, MetaTeacher):
        return embed_with_teacher(teacher, captioned.features, regions), None

    def embed(encoded: EncodedPictures) -> Tensor:
        if isinstance(teacher, ClipBundle):
            return encode_images(teacher, encoded.pictures)
        return embed_pictures(teacher, encoded.features, settings)

    others = PictureTargets(uncaptioned.pictures, embed(uncaptioned)) if uncaptioned else None
    return embed(captioned)[captioned.features.image_of_text], others


def prepare_rehearsal(
    bundle: ClipBundle, captioned: EncodedPictures, settings: RegionSettings
) -> PictureTargets:
    """The crops of the training data, to be rehearsed, read once.

    Where the features of regions are not what CLIP makes of pictures, as the published code's are
    not, crops are encoded anew.

    Args:
        bundle: the untouched CLIP.
        captioned: the training data.
        settings: how its regions were made.

    Raises:
        ValueError: as `read_pixels`.
    """
    usual = replace(settings, normalized_crops=True, undetected_as_zeros=False)
    crops = RegionCrops(captioned.dataset.paths, captioned.features, usual)
    pictures, features = read_few(bundle, crops), captioned.features.region
    if usual != settings:
        features = encode_images(bundle, pictures)
    return PictureTargets(pictures, features)
