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
from dclip_kit.features.store import SHARD, FeatureStore, describe_source
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector
from dclip_kit.models.encode import encode_pixels, encode_tokens, require_texts
from dclip_kit.models.reading import read_ahead, split_by_pixels
from dclip_kit.models.regions import Box, Regions, crop_boxes
from dclip_kit.runtime.memory import return_memory
from dclip_kit.runtime.processes import gather_rows, is_main_process, own_share, own_turns

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
        batch_size: pictures that are opened, detected and encoded at a time; fewer where they have
            more pixels together than `most_pixels`.
        folder: where to keep the features, for data of any size: whatever ends the work, the next
            call goes on with it, and what is there already is not made again. Left out, features
            are in memory only.

    Raises:
        ValueError: a picture cannot be read, or a caption is empty, or a feature not finite; or
            the folder has features that were made from something else, said what.
    """
    require_texts(dataset.texts)  # before the pictures cost time
    if folder is None:
        parts = [part.tolist() for part in own_share(len(dataset)).split(SHARD)]
        made = _encode_parts(bundle, detector, dataset, settings, batch_size, parts)
        gathered = _gather(list(made), dataset)
        return_memory()
        return gathered
    store = FeatureStore(Path(folder), len(dataset))
    source = describe_source(bundle, dataset, settings, detector)
    features = store.open(source)
    if features is not None:
        return features
    mine = own_turns(store.begin(source))
    made = _encode_parts(bundle, detector, dataset, settings, batch_size, mine)
    for shard, part in zip(mine, made, strict=True):
        store.write(shard, part)
    return_memory()
    return store.finish()


def _encode_parts(
    bundle: ClipBundle,
    detector: Detector,
    dataset: CaptionedImages,
    settings: RegionSettings,
    batch_size: int,
    parts: Sequence[Part],
) -> Iterator[FrozenFeatures]:
    """The features of some pictures and of their captions, part by part."""
    paths = [[dataset.paths[index] for index in part] for part in parts]
    opened = read_ahead(
        open_picture,
        ([own[i] for i in group] for own in paths for group in split_by_pixels(own, batch_size)),
        busy=bundle.device,
    )
    with tqdm(
        total=sum(map(len, parts)),
        desc=f"features of {dataset.split}",
        unit="picture",
        delay=2,
        disable=not is_main_process(),
    ) as bar:
        for part in parts:
            found: list[dict[str, Tensor]] = []
            while sum(len(group["image"]) for group in found) < len(part):
                pictures = next(opened)
                found.append(_encode_pictures(bundle, detector, settings, batch_size, pictures))
                bar.update(len(pictures))
                del pictures  # before the next ones are opened
            made = {name: torch.cat([group[name] for group in found]) for name in found[0]}
            yield FrozenFeatures(**made, **_encode_captions(bundle, dataset, part))


def _encode_pictures(
    bundle: ClipBundle,
    detector: Detector,
    settings: RegionSettings,
    batch_size: int,
    pictures: list[Image.Image],
) -> dict[str, Tensor]:
    """Pictures and their regions, by the names of `FrozenFeatures`."""
    numbers = {name: number for number, name in enumerate(detector.names)}
    regions: list[Regions] = []
    boxes: list[tuple[Image.Image, Box]] = [(each, (0, 0, *each.size)) for each in pictures]
    counts, label = [], []
    found = detector.detect(pictures, batch_size, progress=False).regions
    for picture, detected in zip(pictures, found, strict=True):
        own = [detected]
        if settings.whole_image and not detected.is_whole_image:
            own.append(Regions.whole_image(picture.size))
        for part in own:
            cut = crop_boxes(part, settings.margin, settings.square)
            boxes += [(picture, box) for box in cut]
            whole = part.is_whole_image
            label += [WHOLE_PICTURE if whole else numbers[name] for name in part.label]
        regions += own
        counts.append(sum(map(len, own)))

    def read(place: tuple[Image.Image, Box]) -> Tensor:
        picture, box = place  # cut out here, where it is dropped again
        return bundle.to_pixels(picture if box == (0, 0, *picture.size) else picture.crop(box))

    def encode(pixels: Tensor, normalized: bool = True) -> Tensor:
        batches = pixels.split(batch_size)
        return torch.cat([encode_pixels(bundle, batch, normalized) for batch in batches])

    pixels = torch.stack(next(read_ahead(read, [boxes], bundle.device)))
    made = {
        "image": encode(pixels[: len(pictures)]),
        "region": encode(pixels[len(pictures) :], settings.normalized_crops),
        "region_count": torch.tensor(counts),
        "xyxy": torch.cat([own.xyxy for own in regions]).float(),
        "area": torch.cat([own.area for own in regions]).float(),
        "confidence": torch.cat([own.confidence for own in regions]).float(),
        "label": torch.tensor(label),
    }
    if settings.undetected_as_zeros:
        alone = made["region_count"].repeat_interleave(made["region_count"]) == 1
        undetected = alone & (made["label"] == WHOLE_PICTURE)
        made["region"] = made["region"].masked_fill(undetected[:, None], 0.0)
    return made


def _encode_captions(
    bundle: ClipBundle, dataset: CaptionedImages, part: Part, batch_size: int = 512
) -> dict[str, Tensor]:
    """The pictures' captions and tokens, by the names of `FrozenFeatures`."""
    texts = [text for image in part for text in dataset.captions[image]]
    owners = [image for image in part for _ in dataset.captions[image]]
    whole = [torch.empty(0, bundle.embed_dim)]  # there may be no caption among them
    values, counts = [whole[0].half()], [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(texts), batch_size):
        tokens = encode_tokens(bundle, texts[start : start + batch_size], batch_size // 4)
        whole.append(tokens.text)
        values.append(tokens.features[tokens.mask].half())  # unit vectors: half is plenty
        counts.append(tokens.mask.sum(1))
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
