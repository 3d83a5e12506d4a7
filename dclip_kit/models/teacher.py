"""The meta-teacher: cross-attention between an image's regions and its caption's tokens.

Source: DCLIP (arXiv 2505.21549), section 3; our reading where it is silent. Axes: image (one for
each image-caption pair), region, token, embed.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from dclip_kit.config import RegionTeacherSettings, TeacherSettings
from dclip_kit.models.regions import require_real
from dclip_kit.runtime.files import (
    load_tensors,
    load_weights,
    read_record,
    save_tensors,
    write_record,
)

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a teacher's folder


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    """The teacher's output for image-caption pairs.

    Attributes:
        embedding: the global embedding, L2-normalised.
        region_to_token: attention of each region to the tokens.
        token_to_region: attention of each token to the regions.
        region_pooling: share of each region in the pooled region vector; 0 where padded, if masked.
    """

    embedding: Float[Tensor, "image embed"]
    region_to_token: Float[Tensor, "image region token"]
    token_to_region: Float[Tensor, "image token region"]
    region_pooling: Float[Tensor, "image region"]


class CrossModalAttention(nn.Module):
    """Queries attend to keys of another sequence; residual and LayerNorm follow."""

    def __init__(self, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(embed_dim, heads, batch_first=True)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(
        self,
        queries: Float[Tensor, "image query embed"],
        keys: Float[Tensor, "image key embed"],
        key_mask: Bool[Tensor, "image key"],
    ) -> tuple[Float[Tensor, "image query embed"], Float[Tensor, "image query key"]]:
        """Attends to the keys whose mask is True.

        Returns:
            Each query's new features, and its attention to each key: the mean over heads, with rows
            that sum to 1.
        """
        attended, weights = self.attention(queries, keys, keys, key_padding_mask=~key_mask)
        return self.norm(queries + attended), weights


def pool_by_agreement(
    features: Float[Tensor, "image item embed"],
    mask: Bool[Tensor, "image item"],
    temperature: float,
) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "image item"]]:
    """Pools by softmax(cos(item, mean of items) / temperature) over the real items.

    Returns:
        The pooled vectors, and each item's share in them (0 where padded).
    """
    mean = _mean(features, mask)[:, None]
    agreement = F.cosine_similarity(features, mean, dim=-1) / temperature
    share = agreement.masked_fill(~mask, -torch.inf).softmax(dim=1)
    return torch.einsum("bi,bie->be", share, features.masked_fill(~mask[..., None], 0)), share


class MetaTeacher(nn.Module):
    """Turns region features and caption tokens into one embedding for each image.

    Regions and tokens attend to each other, each side is pooled, and the mean of both is the
    embedding. So half of it comes from the caption: see `shortcut_probe` in evaluate.
    """

    def __init__(
        self,
        embed_dim: int,
        heads: int = 8,
        layers: int = 1,
        pooling_temperature: float = 2.0,
        masked: bool = True,
    ) -> None:
        """Builds the block.

        Args:
            embed_dim: CLIP's joint space.
            heads: of each attention.
            layers: blocks in a row.
            pooling_temperature: of both sides' pooling.
            masked: False treats padding as real, as the published code does (3 in
                `config.RECIPES`). Embeddings then depend on the batch (or a process's share of
                it), which is padded to its own longest item (our reading).
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.pooling_temperature = pooling_temperature
        self.masked = masked
        self.regions = nn.ModuleList(CrossModalAttention(embed_dim, heads) for _ in range(layers))
        self.tokens = nn.ModuleList(CrossModalAttention(embed_dim, heads) for _ in range(layers))

    def forward(
        self,
        region_features: Float[Tensor, "image region embed"],
        region_mask: Bool[Tensor, "image region"],
        token_features: Float[Tensor, "image token embed"],
        token_mask: Bool[Tensor, "image token"],
        region_weights: Float[Tensor, "image region"] | None = None,
        check_values: bool = True,
    ) -> TeacherOutput:
        """Embeds image-caption pairs.

        Args:
            region_features: of the frozen CLIP.
            region_mask: True at real regions.
            token_features: of the frozen CLIP, in the joint space.
            token_mask: True at real tokens.
            region_weights: from `regions.region_weights`; None or uniform changes nothing, since
                they are multiplied by the number of regions (our reading).
            check_values: False trusts features and masks, since checking waits for the device.

        Raises:
            ValueError: a pair has no real region or no real token, or a feature is not finite.
        """
        if check_values:
            require_real("region", region_features, region_mask)
            require_real("token", token_features, token_mask)
        regions, tokens = region_features, token_features
        if region_weights is not None:
            regions = regions * (region_weights * region_mask.sum(1, keepdim=True))[..., None]
        if not self.masked:
            region_mask, token_mask = map(torch.ones_like, (region_mask, token_mask))
        for region_layer, token_layer in zip(self.regions, self.tokens, strict=True):
            new_regions, region_to_token = region_layer(regions, tokens, token_mask)
            tokens, token_to_region = token_layer(tokens, regions, region_mask)
            regions = new_regions
        pooled, share = pool_by_agreement(regions, region_mask, self.pooling_temperature)
        words, _ = pool_by_agreement(tokens, token_mask, self.pooling_temperature)
        return TeacherOutput(
            F.normalize((pooled + words) / 2, dim=-1), region_to_token, token_to_region, share
        )


class SetAttention(nn.Module):
    """A pre-norm transformer layer over a set, which also returns its attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        hidden = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(
        self, items: Float[Tensor, "image item width"], mask: Bool[Tensor, "image item"]
    ) -> tuple[Float[Tensor, "image item width"], Float[Tensor, "image item item"]]:
        """The items after one layer, and the attention of each (mean over heads)."""
        normed = self.norm(items)
        attended, weights = self.attention(normed, normed, normed, key_padding_mask=~mask)
        items = items + attended
        return items + self.mlp(self.norm_after(items)), weights


class RegionTeacher(nn.Module):
    """Turns a whole picture and its regions into one embedding, without a caption.

    Transformer layers run over the picture's feature and its regions' features, to which a small
    network adds box, size and confidence; then they are averaged, and learned skips add the
    regions' mean and the picture's feature. Ours, not the paper's.
    """

    def __init__(self, embed_dim: int, width: int = 384, heads: int = 6, layers: int = 2) -> None:
        """Builds the teacher.

        Args:
            embed_dim: CLIP's joint space.
            width: of the transformer.
            heads: of each attention.
            layers: their number.
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.enter = nn.Linear(embed_dim, width)
        self.box = nn.Sequential(nn.Linear(7, width), nn.GELU(), nn.Linear(width, width))
        self.kind = nn.Parameter(torch.zeros(2, width))  # of a whole picture, of a region
        self.layers = nn.ModuleList(SetAttention(width, heads) for _ in range(layers))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embed_dim))
        self.skips = nn.Parameter(torch.ones(2))  # of the regions' mean, of the whole picture

    def start_from_mean(self, weight: float) -> None:
        """Sets the weights so that it only adds the regions' mean to the picture's feature.

        Args:
            weight: of the mean; the picture's is 1.
        """
        with torch.no_grad():
            self.skips.copy_(torch.tensor([weight, 1.0]))
            for parameter in self.leave[1].parameters():
                parameter.zero_()

    def forward(
        self,
        image_features: Float[Tensor, "image embed"],
        region_features: Float[Tensor, "image region embed"],
        region_mask: Bool[Tensor, "image region"],
        region_boxes: Float[Tensor, "image region 5"],
    ) -> tuple[Float[Tensor, "image embed"], Float[Tensor, "image item item"]]:
        """Embeds pictures.

        Args:
            image_features: of the whole pictures, from the frozen CLIP.
            region_features: of their regions.
            region_mask: True at real regions; without any, only the whole picture counts.
            region_boxes: left, top, right and bottom as shares of the picture, and confidence.

        Returns:
            The embeddings, L2-normalised, and the last layer's attention between items; the first
            item is the whole picture, the others are its regions.
        """
        size = region_boxes[..., 2:4] - region_boxes[..., :2]
        regions = self.enter(region_features) + self.box(torch.cat([region_boxes, size], dim=-1))
        whole = self.enter(image_features)[:, None] + self.kind[0]
        items = torch.cat([whole, regions + self.kind[1]], dim=1)
        mask = torch.cat([torch.ones_like(region_mask[:, :1]), region_mask], dim=1)
        weights = items
        for layer in self.layers:
            items, weights = layer(items, mask)
        pooled = self.leave(_mean(items, mask))
        mean = _mean(region_features, region_mask)  # zeros where there is no region
        embedding = pooled + self.skips[0] * mean + self.skips[1] * image_features
        return F.normalize(embedding, dim=-1), weights


def _mean(
    features: Float[Tensor, "image item embed"], mask: Bool[Tensor, "image item"]
) -> Float[Tensor, "image embed"]:
    real = mask[..., None].to(features.dtype)
    return (features * real).sum(1) / real.sum(1).clamp(min=1)


def build_teacher(
    embed_dim: int, settings: TeacherSettings | RegionTeacherSettings
) -> MetaTeacher | RegionTeacher:
    """Builds an untrained teacher, of the kind and sizes that the settings say.

    Raises:
        ValueError: the width is not a multiple of the heads.
    """
    width = embed_dim if isinstance(settings, TeacherSettings) else settings.width
    if width % settings.heads:
        raise ValueError(
            f"Expected heads that divide the width {width}, got {settings.heads}; change either."
        )
    if isinstance(settings, RegionTeacherSettings):
        return RegionTeacher(embed_dim, settings.width, settings.heads, settings.layers)
    return MetaTeacher(
        embed_dim,
        settings.heads,
        settings.layers,
        settings.pooling_temperature,
        settings.masked,
    )


# By the name of a teacher's folder: its class of settings, and those that change its output.
KINDS: dict[str, tuple[type[TeacherSettings | RegionTeacherSettings], tuple[str, ...]]] = {
    "teacher": (TeacherSettings, ("heads", "layers", "pooling_temperature", "masked")),
    "region_teacher": (
        RegionTeacherSettings,
        ("heads", "layers", "width", "regions", "boxes", "whole_picture", "train"),
    ),
}


def kind_of(settings: TeacherSettings | RegionTeacherSettings) -> str:
    """The name of the folder for a teacher with these settings."""
    return next(name for name, (kind, _) in KINDS.items() if isinstance(settings, kind))


def save_teacher(
    teacher: MetaTeacher | RegionTeacher,
    settings: TeacherSettings | RegionTeacherSettings,
    folder: Path,
) -> None:
    """Writes config.json and model.safetensors into a folder, as `load_teacher` reads them."""
    config = {
        "kind": kind_of(settings),
        "embed_dim": teacher.embed_dim,
        "settings": asdict(settings),
    }
    write_record(config, folder / CONFIG_FILE)
    save_tensors(teacher.state_dict(), folder / WEIGHTS_FILE)


def load_teacher(folder: Path) -> tuple[Any, TeacherSettings | RegionTeacherSettings]:
    """Reads what `save_teacher` wrote, in single precision.

    Returns:
        A `MetaTeacher` with its settings, or a `RegionTeacher` with its own.

    Raises:
        FileNotFoundError: there is no teacher in the folder.
        ValueError: a file is damaged, or the weights do not have the sizes in config.json.
    """
    if not (folder / CONFIG_FILE).is_file():
        teachers = [str(folder / name) for name in KINDS if (folder / name / CONFIG_FILE).is_file()]
        advice = f"name {' or '.join(teachers)}" if teachers else "name another, or train one"
        raise FileNotFoundError(
            f"Expected the folder of a teacher at {folder}, got none; {advice}."
        )

    def build(
        record: dict[str, Any],
    ) -> tuple[MetaTeacher | RegionTeacher, TeacherSettings | RegionTeacherSettings]:
        settings = KINDS[record["kind"]][0](**record["settings"])
        if record["embed_dim"] < 1:
            raise ValueError(f"a joint space of {record['embed_dim']} numbers")
        return build_teacher(record["embed_dim"], settings), settings

    teacher, settings = read_record(folder / CONFIG_FILE, build)
    load_weights(teacher, load_tensors(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return teacher.eval(), settings


def require_teacher(
    settings: TeacherSettings | RegionTeacherSettings,
    others: TeacherSettings | RegionTeacherSettings,
    source: str,
) -> None:
    """Checks that a teacher computes what a teacher with the requested settings would.

    Args:
        settings: of the teacher.
        others: the requested settings.
        source: where the teacher is, for the error.

    Raises:
        ValueError: the kind, or a setting that changes the output, differs.
    """
    kind = kind_of(others)
    if kind != kind_of(settings):
        raise ValueError(
            f"Expected a {kind} in {source}, got a {kind_of(settings)}; name another, or change "
            "the recipe."
        )
    for name in KINDS[kind][1]:
        if getattr(settings, name) != getattr(others, name):
            raise ValueError(
                f"Expected a teacher with {name}={getattr(others, name)!r} in {source}, got "
                f"{getattr(settings, name)!r}; change the profile or train another."
            )
