"""Making frozen features, once: into a store on disk, or into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings
from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.features.frozen import WHOLE_PICTURE, FrozenFeatures
from dclip_kit.features.source import describe_source
from dclip_kit.features.store import SHARD, FeatureStore
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector
from dclip_kit.models.encode import encode_own_images, encode_tokens
from dclip_kit.models.precision import fold_norms
from dclip_kit.models.reading import read_ahead, split_by_pixels
from dclip_kit.models.regions import Box, Regions, crop_boxes
from dclip_kit.models.tokens import require_texts
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.processes import (
    gather_rows,
    is_main_process,
    own_share,
    own_turns,
    wait_for_all,
)

Part = Sequence[int]  # some of a data set's pictures, by index


def extract_features(
    bundle: ClipBundle,
    detector: Detector,
    dataset: CaptionedImages,
    settings: RegionSettings,
    batch_size: int = 64,
    folder: Path | str | None = None,
) -> FrozenFeatures:
    """Detects, crops and encodes a data set once, each picture opened once.

    Each of several processes, all of which must call it, takes its share; all get everything.

    Args:
        bundle: the frozen CLIP.
        detector: from `load_detector(settings.detector, …)`.
        dataset: pictures with captions.
        settings: how crops are cut and encoded, what stands for a picture without detections, and
            whether the whole picture is one more region.
        batch_size: pictures that are encoded at a time. They are in memory as CLIP takes them; as
            they were read, so many of them at a time as `most_pixels` allows.
        folder: where to keep the features, for data of any size: whatever ends the work, the next
            call goes on with it, and what is there already is not made again. Left out, features
            are in memory only.

    Raises:
        ValueError: a picture cannot be read, or a caption is empty, or a feature not finite; or
            the folder has features that were made from something else, said what.
    """
    require_texts(dataset.texts)  # before the pictures cost time
    if folder is None:
        own = own_share(len(dataset)).split(SHARD)
        made = _encode_parts(
            bundle, detector, dataset, settings, batch_size, [part.tolist() for part in own]
        )
        gathered = _gather(list(made), dataset)
        return_memory()
        return gathered
    store = FeatureStore(Path(folder), len(dataset))
    source = describe_source(bundle, dataset, settings, detector)
    features = store.open(source)
    if features is not None:
        return features
    missing = store.missing()
    wait_for_all()  # else one could write before another has looked what is missing
    store.begin(source)
    mine = own_turns(missing)
    made = _encode_parts(bundle, detector, dataset, settings, batch_size, mine)
    for shard, part in zip(mine, made, strict=True):
        store.write(shard, part)
    wait_for_all()
    store.finish()
    return_memory()
    wait_for_all()
    return FrozenFeatures.load(store.folder)


def _encode_parts(
    bundle: ClipBundle,
    detector: Detector,
    dataset: CaptionedImages,
    settings: RegionSettings,
    batch_size: int,
    parts: Sequence[Part],
) -> Iterator[FrozenFeatures]:
    """The features of some pictures and of their captions, part by part."""
    batches = [
        [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
        for part in parts
    ]
    bundle = bundle.with_tower(fold_norms(bundle.model.visual))  # once, not batch by batch
    opened = read_ahead(
        open_picture,
        (
            group
            for part in batches
            for batch in part
            for group in split_by_pixels([dataset.paths[index] for index in batch])
        ),
        busy=bundle.device,
    )
    with tqdm(
        total=sum(map(len, parts)),
        desc=f"features of {dataset.split}",
        unit="picture",
        delay=2,
        disable=not is_main_process(),
    ) as bar:
        for part, own in zip(parts, batches, strict=True):
            found = []
            for batch in own:
                cut: list[dict[str, Tensor]] = []
                while sum(len(group["image"]) for group in cut) < len(batch):
                    cut.append(_cut_pictures(bundle, detector, settings, batch_size, next(opened)))
                    bar.update(len(cut[-1]["image"]))
                if len(cut) > 1:  # there were big pictures, and encoding takes memory too
                    return_memory()
                found.append(_encode_cut(bundle, settings, cut))
            yield FrozenFeatures(**_join(found), **_encode_captions(bundle, dataset, part))


def _cut_pictures(
    bundle: ClipBundle,
    detector: Detector,
    settings: RegionSettings,
    batch_size: int,
    pictures: list[Image.Image],
) -> dict[str, Tensor]:
    """Pictures and their regions, by the names of `FrozenFeatures`; "image", "region" as bytes."""
    numbers = {name: number for number, name in enumerate(detector.names)}
    found = detector.detect(pictures, batch_size, progress=False).regions
    regions: list[Regions] = []
    boxes: list[tuple[Image.Image, Box | None]] = [(picture, None) for picture in pictures]
    counts, silent = [], []
    for picture, own in zip(pictures, found, strict=True):
        regions.append(own)
        whole = own.is_whole_image
        cut = [] if whole else crop_boxes(own, settings.margin, settings.square)
        boxes += [(picture, box) for box in cut]
        if whole or settings.whole_image:
            boxes.append((picture, None))
        if not whole and settings.whole_image:
            regions.append(Regions.whole_image(picture.size))
        counts.append(len(cut) + (whole or settings.whole_image))
        silent += [whole and settings.undetected_as_zeros] * counts[-1]
    label = [
        WHOLE_PICTURE if own.is_whole_image else numbers[name]
        for own in regions
        for name in own.label
    ]

    def read(place: tuple[Image.Image, Box | None]) -> Tensor:
        picture, box = place  # cut out here, where it is dropped again
        return bundle.to_pixels(picture.crop(box) if box else picture)

    pixels = torch.stack(next(read_ahead(read, [boxes])))
    return {
        "image": pixels[: len(pictures)],
        "region": pixels[len(pictures) :],
        "silent": torch.tensor(silent),
        "region_count": torch.tensor(counts),
        "xyxy": torch.cat([own.xyxy for own in regions]).float(),
        "area": torch.cat([own.area for own in regions]).float(),
        "confidence": torch.cat([own.confidence for own in regions]).float(),
        "label": torch.tensor(label),
    }


def _encode_cut(
    bundle: ClipBundle, settings: RegionSettings, groups: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """A batch of pictures and their regions, by the names of `FrozenFeatures`."""
    cut = _join(groups)
    groups.clear()
    silent = cut.pop("silent")[:, None]
    region = encode_own_images(
        bundle, cut["region"], progress=False, normalized=settings.normalized_crops
    )
    image = encode_own_images(bundle, cut["image"], progress=False)
    return cut | {"image": image, "region": region.masked_fill(silent, 0.0)}


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode_captions(
    bundle: ClipBundle, dataset: CaptionedImages, part: Part, batch_size: int = 512
) -> dict[str, Tensor]:
    """The pictures' captions and tokens, by the names of `FrozenFeatures`."""
    texts = [text for image in part for text in dataset.captions[image]]
    dtype = next(bundle.model.parameters()).dtype
    whole = [torch.empty(0, bundle.embed_dim, dtype=dtype)]  # there may be no caption among them
    values, counts = [whole[0].half()], [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(texts), batch_size):
        tokens = encode_tokens(bundle, texts[start : start + batch_size], batch_size // 4)
        whole.append(tokens.text)
        values.append(tokens.features[tokens.mask].half())  # unit vectors: half is plenty
        counts.append(tokens.mask.sum(1))
    owners = [image for image in part for _ in dataset.captions[image]]
    return {
        "text": torch.cat(whole),
        "token": torch.cat(values),
        "token_count": torch.cat(counts),
        "image_of_text": torch.tensor(owners, dtype=torch.int64),
    }


def _gather(own: list[FrozenFeatures], dataset: CaptionedImages) -> FrozenFeatures:
    """The parts of all processes; what repeats at the end of their shares is cut off."""
    found = {
        field.name: gather_rows(torch.cat([getattr(part, field.name) for part in own]))
        for field in fields(FrozenFeatures)
    }
    images, texts = len(dataset), len(dataset.texts)
    regions = int(found["region_count"][:images].sum())
    tokens = int(found["token_count"][:texts].sum())
    rows = {"image": images, "region_count": images, "token": tokens}
    rows |= dict.fromkeys(("text", "token_count", "image_of_text"), texts)
    return FrozenFeatures(**{name: v[: rows.get(name, regions)] for name, v in found.items()})
