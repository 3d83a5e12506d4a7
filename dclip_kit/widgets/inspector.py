"""One picture, its regions and a caption: region weights, and where both teachers look."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import traitlets
from PIL import Image
from torch import Tensor

from dclip_kit.config import RegionTeacherSettings
from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.evaluation.inspection import (
    attend,
    beside_caption,
    reweight_regions,
    stored_regions,
)
from dclip_kit.features.store import FrozenFeatures
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_images
from dclip_kit.models.regions import Regions, draw_boxes, label_colors
from dclip_kit.models.teacher import MetaTeacher, RegionTeacher
from dclip_kit.plots.style import encode_jpeg
from dclip_kit.training import apply_region_teacher, choose_lenders
from dclip_kit.widgets.page import PictureWidget, read_page, require_known

_SIDE = 320  # pixels of the picture's longer side
_INPUT_TRAITS = ("picture", "caption", "regions", "area", "confidence", "similarity")


class RegionInspector(PictureWidget):
    """A picture's regions beside one of its captions, for two teachers.

    Attributes:
        picture, caption: numbers of the picture, and of the caption among its own.
        regions: whose regions the teachers see: the picture's "own", "another" picture's, or those
            of a "blank", plain gray one.
        area, confidence, similarity: the power of each factor of the regions' weights; 1 is
            DCLIP's, 0 leaves it out.
        seen: the results: tokens; for each region its factors, weight, and share with both
            teachers; attention both ways; ranks of the caption among all pictures' first ones, by
            CLIP's own vector of the picture and by each teacher's.
        message: the ranks in words.
    """

    _esm, _css = read_page("inspector")

    picture = traitlets.Int(0, min=0).tag(sync=True)
    caption = traitlets.Int(0).tag(sync=True)
    regions = traitlets.Enum(["own", "another", "blank"], "own").tag(sync=True)
    area = traitlets.Float(1.0, min=0, max=3).tag(sync=True)
    confidence = traitlets.Float(1.0, min=0, max=3).tag(sync=True)
    similarity = traitlets.Float(1.0, min=0, max=3).tag(sync=True)
    seen = traitlets.Dict().tag(sync=True)
    _shown = traitlets.Bytes().tag(sync=True)  # the picture that the regions are of, as JPEG

    def __init__(
        self,
        clip: ClipBundle,
        dataset: CaptionedImages,
        features: FrozenFeatures,
        names: Sequence[str],
        teacher: MetaTeacher,
        region_teacher: RegionTeacher,
        picture: int = 0,
        caption: int = 0,
        region_settings: RegionTeacherSettings | None = None,
    ) -> None:
        """Begins with a picture and a caption.

        Args:
            clip: the frozen one that made the features.
            dataset: captioned pictures, whose features these are.
            features: of pictures that neither teacher was trained on.
            names: of the detector's classes.
            teacher: the paper's, which reads captions.
            region_teacher: the one that reads no captions.
            picture: number of the first picture.
            caption: its number among the picture's captions.
            region_settings: those that the region teacher was trained with; the defaults if left
                out. (If the paper's was trained without weights, set their powers to 0.)

        Raises:
            ValueError: features and data differ in length, or a picture has no caption.
        """
        if len(features) != len(dataset) or len(features.text) != len(dataset.texts):
            raise ValueError(
                f"Expected features of {len(dataset)} pictures and {len(dataset.texts)} captions, "
                f"got {len(features)} and {len(features.text)}; extract them from this data."
            )
        self._clip, self._dataset, self._features = clip, dataset, features
        self._paths = dataset.paths
        self._names, self._teacher, self._region_teacher = names, teacher, region_teacher
        self._region_settings = region_settings or RegionTeacherSettings()
        self._texts = [(features.image_of_text == i).nonzero()[:, 0] for i in range(len(dataset))]
        if not all(len(texts) for texts in self._texts):
            raise ValueError("Expected pictures with captions, got some without; leave them out.")
        self._lender = choose_lenders(len(dataset)).tolist()
        self._candidates = features.text[torch.stack([texts[0] for texts in self._texts])]
        self._gray = encode_images(clip, [Image.new("RGB", (64, 64), (128, 128, 128))])
        super().__init__(picture=picture, caption=caption, _told={"pictures": len(dataset)})
        self.observe(self._update, list(_INPUT_TRAITS))
        self._update(None)

    @traitlets.validate("regions")
    def _check_regions(self, proposal: Any) -> Any:
        alone = len(self._dataset) == 1  # no other picture lends it regions
        return require_known(proposal, ["own", "blank"] if alone else ["own", "another", "blank"])

    def _update(self, _: Any) -> None:
        """Computes the results, and sends them to the page at once."""
        with self.hold_sync():
            captions = self._texts[self.picture].tolist()
            if not 0 <= self.caption < len(captions):
                self.caption = 0
                return  # the change triggers another call
            self.seen, image = self._inspect(captions[self.caption])
            self._shown = encode_jpeg(image)
            ranks = ", ".join(f"{name} {rank:,}" for name, rank in self.seen["ranks"].items())
            self.message = f"Rank of the caption among {len(self._dataset):,}: {ranks}."

    def _look(self) -> tuple[Tensor, Regions, Image.Image]:
        """The regions that the teachers see: vectors, boxes, and the picture that has them."""
        image = self.picture
        source = self._lender[image] if self.regions == "another" else image
        picture = open_picture(self._paths[source])
        if self.regions == "blank":
            gray = Image.new("RGB", picture.size, (128, 128, 128))
            return self._gray, Regions.whole_image(picture.size), gray
        regions, vectors = stored_regions(self._features, source, self._names)
        return vectors, regions, picture

    @torch.no_grad()
    def _inspect(self, text: int) -> tuple[dict[str, Any], Image.Image]:
        image, (vectors, regions, picture) = self.picture, self._look()
        caption, tokens = self._dataset.texts[text], self._features.tokens_of(torch.tensor([text]))
        captioned = beside_caption(self._clip, caption, *tokens, regions, vectors)
        weights = reweight_regions(captioned, self.area, self.confidence, self.similarity)
        output = attend(self._teacher, captioned, weights)
        settings = self._region_settings
        if self.regions != "own":
            settings = replace(settings, regions="none" if self.regions == "blank" else "another")
        region_embedding, attention = apply_region_teacher(
            self._region_teacher.eval(),
            self._features,
            torch.tensor([image]),
            settings,
        )
        # Attention that regions receive; the first item is the whole picture.
        received = attention[0, :, 1 : 1 + len(regions)].sum(0).cpu()
        candidates = self._candidates.clone()
        candidates[image] = self._features.text[text]

        def rank(vector: Tensor) -> int:
            scores = candidates @ vector
            return 1 + int((scores > scores[image]).sum())

        columns = {
            "area": regions.area,
            "confidence": regions.confidence,
            "similarity": captioned.similarity,
            "weight": weights,
            "teacher": output.region_pooling[0],
            "region teacher": received / received.sum().clamp(min=1e-9),
        }
        seen = {
            "captions": [self._dataset.texts[index] for index in self._texts[image].tolist()],
            "tokens": list(captioned.tokens),
            "size": list(picture.size),
            "labels": list(regions.label),
            "colors": label_colors(regions.label),
            "boxes": regions.xyxy.tolist(),
            "columns": {name: _round(values) for name, values in columns.items()},
            "region_to_token": _round(output.region_to_token[0]),
            "token_to_region": _round(output.token_to_region[0]),
            "ranks": {
                "CLIP": rank(self._features.image[image]),
                "the paper's teacher": rank(output.embedding[0].cpu()),
                "the region teacher": rank(region_embedding[0].cpu()),
            },
        }
        return seen, picture

    def _draw_still(self) -> tuple[bytes, str]:
        _, regions, picture = self._look()
        picture = draw_boxes(picture, regions, side=_SIDE)
        caption = self.seen["captions"][self.caption]
        whose = {
            "own": "",
            "another": ", with another's regions",
            "blank": ", with a blank picture's region",
        }
        alt_text = (
            f"RegionInspector: “{caption}” beside picture {self.picture}{whose[self.regions]}. "
            f"{self.message}"
        )
        return encode_jpeg(picture), alt_text


def _round(values: Tensor) -> Any:
    return torch.round(values.float(), decimals=4).tolist()
