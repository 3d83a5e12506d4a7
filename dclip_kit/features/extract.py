"""Extracts frozen features, into a store on disk or into memory; cuts out their regions again."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from dclip_kit.config import RegionSettings
from dclip_kit.data import CaptionedImages, open_picture
from dclip_kit.features.store import (
    WHOLE_PICTURE,
    EncodedPictures,
    FrozenFeatures,
    describe_source,
    digest_record,
    fill_store,
    open_store,
)
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.detector import Detector, load_detector
from dclip_kit.models.encode import (
    encode_own_texts,
    encode_pixels,
    encode_tokens,
    has_tokens,
    read_ahead,
    read_few,
    split_by_pixels,
)
from dclip_kit.models.regions import Box, Regions, crop_boxes, crop_regions
from dclip_kit.runtime.files import alone_at
from dclip_kit.runtime.machine import return_memory
from dclip_kit.runtime.printing import say
from dclip_kit.runtime.processes import is_main_process, wait_for_all


def extract_features(
    bundle: ClipBundle,
    detector: Detector,
    dataset: CaptionedImages,
    settings: RegionSettings,
    batch_size: int = 64,
    folder: Path | str | None = None,
) -> FrozenFeatures:
    """Detects, crops and encodes a data set once, each picture opened once.

    All processes must call it. With a folder, each makes its share of the shards; without one, each
    makes all features. All of them return everything. Another run with the same cache folder that
    fills the same folder waits; of several processes, only until their barrier times out.

    Args:
        bundle: the frozen CLIP.
        detector: from `load_detector(settings.detector, …)`.
        dataset: pictures, with captions or without any.
        settings: how crops are cut and encoded, what replaces a picture without detections, and
            whether the whole picture is a region, too.
        batch_size: pictures to open, detect and encode at a time; fewer if they have more pixels
            together than `MOST_PIXELS`.
        folder: where to keep the features, for data of any size: if the work is interrupted, the
            next call continues it. Left out, features are in memory only.

    Raises:
        ValueError: a picture cannot be read; none to train on has boxes in the detector's file; a
            feature is not finite; or the folder has features that were made from something else
            (the message says what).
    """
    if detector.boxes and (unlisted := detector.boxes.count_unlisted(dataset.paths)):
        if unlisted == len(dataset) and dataset.split in ("train", "uncaptioned"):
            raise ValueError(
                f"Expected boxes of these pictures in {detector.boxes.file}, found none of "
                f"{unlisted:,}, such as {dataset.paths[0]}; write their paths as they are here, or "
                "the last parts of them."
            )
        say(
            f"{unlisted:,} of {len(dataset):,} pictures are not in {detector.boxes.file}: the "
            "whole picture is their region."
        )
    make = partial(_encode_parts, bundle, detector, dataset, settings, batch_size)
    if folder is None:
        (features,) = make([range(len(dataset))])
    else:
        source, store = describe_source(bundle, dataset, settings, detector), Path(folder)
        main = is_main_process()
        with alone_at(store, f"making {store}") if main else nullcontext():
            wait_for_all()  # for the lock
            stored = open_store(store, source)
            if stored is not None:
                return stored
            features = fill_store(store, source, len(dataset), make)
    return_memory()
    return features


def load_or_extract_features(
    bundle: ClipBundle, dataset: CaptionedImages, settings: RegionSettings, folder: Path | None
) -> FrozenFeatures:
    """Opens a data set's features in a folder of stores, or extracts them into a new store there.

    A store is named after the split and a digest of what the features are made from, so changed
    data or settings get one of their own. Opening one does not load the detector.

    Args:
        bundle: the untouched CLIP.
        dataset: with captions or without.
        settings: how regions are made.
        folder: None keeps the features in memory only.

    Raises:
        ValueError: as `extract_features`, or the existing store is damaged.
    """
    store = None
    if folder:
        source = describe_source(bundle, dataset, settings)
        store = folder / f"features-{dataset.split}-{digest_record(source)}"
        features = open_store(store, source)
        if features is not None:
            say(f"Loaded the features in {store}.")
            return features
    detector = choose_detector(settings, bundle)
    return extract_features(bundle, detector, dataset, settings, folder=store)


def choose_detector(settings: RegionSettings, bundle: ClipBundle) -> Detector:
    """Loads the detector of these settings onto the device of a CLIP."""
    return load_detector(
        settings.detector,
        confidence=settings.confidence,
        max_regions=settings.max_regions,
        device=bundle.device,
    )


def encode_pictures(
    bundle: ClipBundle,
    dataset: CaptionedImages,
    settings: RegionSettings,
    folder: Path | None = None,
) -> EncodedPictures:
    """Features of pictures, as `load_or_extract_features`, and what training reads them from.

    Raises:
        ValueError: as `load_or_extract_features` and `read_pixels`.
    """
    features = load_or_extract_features(bundle, dataset, settings, folder)
    return EncodedPictures(dataset, features, read_few(bundle, dataset.paths))


def _encode_parts(
    bundle: ClipBundle,
    detector: Detector,
    dataset: CaptionedImages,
    settings: RegionSettings,
    batch_size: int,
    parts: Sequence[range],
) -> Iterator[FrozenFeatures]:
    """Yields the features of some pictures and of their captions, part by part."""
    with tqdm(
        total=sum(map(len, parts)),
        desc=f"features of {dataset.split}",
        unit="picture",
        delay=2,
        disable=not is_main_process(),
    ) as bar:
        for part in parts:
            paths = [dataset.paths[index] for index in part]
            groups = [[paths[i] for i in group] for group in split_by_pixels(paths, batch_size)]
            batches: list[dict[str, Tensor]] = []
            group_paths = iter(groups)
            for pictures in read_ahead(open_picture, groups, bundle.device):
                regions = detector.detect(
                    pictures, batch_size, progress=False, paths=next(group_paths)
                ).regions
                batches.append(
                    _encode_pictures(
                        bundle, detector.names, settings, batch_size, pictures, regions
                    )
                )
                bar.update(len(pictures))
                del pictures  # before the next ones are opened
            picture_features = {
                name: torch.cat([batch[name] for batch in batches]) for name in batches[0]
            }
            yield FrozenFeatures(**picture_features, **_encode_captions(bundle, dataset, part))


def _encode_pictures(
    bundle: ClipBundle,
    names: Sequence[str],
    settings: RegionSettings,
    batch_size: int,
    pictures: list[Image.Image],
    detections: Sequence[Regions],
) -> dict[str, Tensor]:
    """Pictures and their regions, by the names of `FrozenFeatures`."""
    regions: list[Regions] = []
    boxes: list[tuple[Image.Image, Box]] = [(image, (0, 0, *image.size)) for image in pictures]
    for picture, group in zip(pictures, detections, strict=True):
        if settings.whole_image and not group.is_whole_image:
            whole_region = Regions.whole_image(picture.size)
            xyxy = torch.cat([group.xyxy, whole_region.xyxy])
            confidence = torch.cat([group.confidence, whole_region.confidence])
            group = Regions(xyxy, confidence, group.label + whole_region.label, picture.size)
        regions.append(group)
        boxes += [(picture, box) for box in crop_boxes(group, settings.margin, settings.square)]
    class_index = {name: number for number, name in enumerate(names)}

    def read(picture_box: tuple[Image.Image, Box]) -> Tensor:
        picture, box = picture_box  # cropped here, so that the crop is dropped again at once
        return bundle.to_pixels(picture if box == (0, 0, *picture.size) else picture.crop(box))

    def encode(pixels: Tensor, normalized: bool = True) -> Tensor:
        return torch.cat(
            [encode_pixels(bundle, batch, normalized) for batch in pixels.split(batch_size)]
        )

    pixels = torch.stack(next(read_ahead(read, [boxes], bundle.device)))
    tensors = {
        "image": encode(pixels[: len(pictures)]),
        "region": encode(pixels[len(pictures) :], settings.normalized_crops),
        "size": torch.tensor([picture.size for picture in pictures]),
        "region_count": torch.tensor([len(group) for group in regions]),
        "xyxy": torch.cat([group.xyxy for group in regions]).float(),
        "area": torch.cat([group.area for group in regions]).float(),
        "confidence": torch.cat([group.confidence for group in regions]).float(),
        "label": torch.tensor(
            [class_index.get(name, WHOLE_PICTURE) for group in regions for name in group.label]
        ),
    }
    if settings.undetected_as_zeros:
        undetected = [group.is_whole_image for group in regions for _ in group.label]
        tensors["region"] = tensors["region"].masked_fill(torch.tensor(undetected)[:, None], 0.0)
    return tensors


def _encode_captions(
    bundle: ClipBundle, dataset: CaptionedImages, part: range, batch_size: int = 512
) -> dict[str, Tensor]:
    """The pictures' captions and tokens, by the names of `FrozenFeatures`.

    With a text tower that has no features of tokens, such as SigLIP's, counts of tokens are 0.
    """
    texts = [text for image in part for text in dataset.captions[image]]
    image_indices = [image for image in part for _ in dataset.captions[image]]
    text_features = [torch.empty(0, bundle.embed_dim)]  # there may be no captions
    token_features, token_counts = [text_features[0].half()], [torch.empty(0, dtype=torch.int64)]
    if texts and not has_tokens(bundle):
        text_features.append(encode_own_texts(bundle, texts, batch_size // 4))
        token_counts.append(torch.zeros(len(texts), dtype=torch.int64))
        texts = []
    for start in range(0, len(texts), batch_size):
        tokens = encode_tokens(bundle, texts[start : start + batch_size], batch_size // 4)
        text_features.append(tokens.text)
        token_features.append(tokens.features[tokens.mask].half())  # unit vectors: half is plenty
        token_counts.append(tokens.mask.sum(1))
    return {
        "text": torch.cat(text_features),
        "token": torch.cat(token_features),
        "token_count": torch.cat(token_counts),
        "image_of_text": torch.tensor(image_indices, dtype=torch.int64),
    }


class RegionCrops(Sequence[Image.Image]):
    """The crops that `features.region` was encoded from, in its order, each cut on access.

    Args:
        paths: the paths of `features`' pictures, in its order.
        features: with the regions' boxes.
        settings: that the features were made with.

    Raises:
        ValueError: the settings encode some regions otherwise than CLIP encodes pictures.
    """

    def __init__(
        self, paths: Sequence[Path], features: FrozenFeatures, settings: RegionSettings
    ) -> None:
        if settings.undetected_as_zeros or not settings.normalized_crops:
            raise ValueError(
                "Expected regions that were encoded the way CLIP encodes pictures, got features of "
                "the published code; set normalized_crops=True and undetected_as_zeros=False."
            )
        self._paths, self._features, self._settings = paths, features, settings
        self._owner = torch.arange(len(features)).repeat_interleave(features.region_count)
        self._open = lru_cache(maxsize=1)(open_picture)  # a picture's regions follow each other

    def __len__(self) -> int:
        return len(self._owner)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # no slices
        path = self._paths[int(self._owner[index])]
        picture = self._open(path)
        if self._features.label[index] == WHOLE_PICTURE:
            return picture
        box = Regions(self._features.xyxy[index][None], torch.ones(1), ("",), picture.size)
        return crop_regions(picture, box, self._settings.margin, self._settings.square)[0]
