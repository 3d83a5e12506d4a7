"""Commands on pictures: looking at them, drawing training data, finding regions, encoding."""

import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dclip_kit.commands.terminal import choose_device, require_own_folder, require_writable
from dclip_kit.config import FORMATS, RegionSettings
from dclip_kit.runtime.printing import printable, say

_FORMATS = ", ".join(f"{format} ({needed})" for format, needed in FORMATS.items())
Format = Annotated[str | None, arg(help=f"{_FORMATS}; else recognised.")]


def inspect(
    data: Positional[Path],
    *,
    images: Path | None = None,
    format: Format = None,
    against: tuple[Path, ...] = (),
    json: Path | None = None,
) -> int:
    """Reads captioned pictures as training would, and reports the unusable, the equal, and leaks.

    The exit code is 1 if no usable picture has a caption.

    Args:
        data: captioned pictures: a file in a format that --format lists, or the folder it is in.
        images: the folder that the pictures' names are relative to; searched for if left out.
        against: evaluation sets, whose pictures must not be among these.
        json: a file to write the whole report to.
    """
    if json:
        require_writable(json)
    from dclip_kit.data import inspect_data, summarize
    from dclip_kit.runtime.files import write_record

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        # Pillow warns of damaged metadata once a picture, without naming the picture.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        report = inspect_data(data, images, format, against)
    if json:
        write_record(report, json)
    print(*summarize(report, bool(against)), sep="\n")
    for note in dict.fromkeys(str(w.message) for w in notes if issubclass(w.category, UserWarning)):
        print(f"Note: {printable(note)}")
    if report["captions"]["usable"]:
        return 0
    print("Nothing to train on: no usable picture has a caption.")
    return 1


def curate(
    *,
    out: Path,
    against: tuple[Path, ...],
    coco: Path | None = None,
    flickr30k: Path | None = None,
    conceptual_captions: Path | None = None,
    seed: int = 0,
    leak_guard: Literal["content", "names"] = "content",
) -> None:
    """Draws the paper's training mixture, without evaluation pictures, into a manifest for --data.

    It has 50,000 pictures from COCO, 15,000 from Flickr30k and 10,000 from Conceptual Captions, as
    far as these are given. A tenth is held out for val.

    Args:
        out: the .json file to write.
        against: the sets to measure on later, such as Karpathy's two files; their val and test
            pictures are left out.
        coco: as in inspect, such as the folder with annotations/ and train2017/.
        flickr30k: as in inspect.
        conceptual_captions: as in inspect: the TSV over an img2dataset download.
        seed: of the draw.
        leak_guard: compare pictures by content, too, or by names alone, which reads no evaluation
            picture.
    """
    require_writable(out)
    from dclip_kit.data import curate as draw
    from dclip_kit.data import read_captioned
    from dclip_kit.data.splits import read_evaluation

    folders = {"coco": coco, "flickr30k": flickr30k, "conceptual_captions": conceptual_captions}
    evaluation = [read_evaluation(path) for path in against]
    datasets = {}
    for name, path in folders.items():
        if path:
            # Only the drawn pictures are decoded.
            datasets[name] = read_captioned(path, split="train", checks="names").dataset
    record = draw(datasets, out, evaluation, seed=seed, by_content=leak_guard == "content")
    for name in datasets:
        count = record["counts"][name]
        print(f"{name}: {count['train']:,} for train, {count['val']:,} for val")
    alone = "all" if leak_guard == "names" else f"{len(record['not_compared']):,}"
    print(
        f"Left out: {len(record['leaks']):,} evaluation pictures, {len(record['unusable']):,} "
        f"unusable; compared by name alone: {alone}. Written to "
        f"{printable(out)}."
    )


def detect(
    pictures: Positional[Path],
    *,
    out: Path,
    detector: str,
    confidence: float,
    max_regions: int,
    drawn: Path | None = None,
    device: str = "auto",
) -> None:
    """Finds the regions of pictures.

    Writes a JSON file with each picture's size and its regions (label, confidence, and box in
    pixels: left, top, right, bottom), most confident first, and lists the unreadable pictures.

    Args:
        pictures: a picture, or a folder of pictures, with its subfolders.
        out: the .json file to write.
        detector: "pocket"; a .pt file of ultralytics by name or path (a pickle: load only those
            from people you trust); a .json with another detector's boxes, as this command writes
            it; "crops", five fixed ones; or one of the others with these, such as "pocket+crops".
        confidence: what a region's confidence must exceed, 0 to 1.
        max_regions: the most regions a picture; fixed crops come beside.
        drawn: a folder for the pictures with their boxes drawn in.
        device: auto, cpu, cuda:0, …
    """
    require_writable(out)
    if drawn:
        require_writable(drawn, "folder")
    from dclip_kit.data import open_picture
    from dclip_kit.models.detector import load_detector
    from dclip_kit.models.regions import draw_boxes
    from dclip_kit.runtime.files import replacing, write_record
    from dclip_kit.search.folder_index import find_pictures

    paths = find_pictures(pictures)
    detections = load_detector(
        detector, confidence=confidence, max_regions=max_regions, device=choose_device(device)
    ).detect(paths, skip_unreadable=True)
    readable = [path for i, path in enumerate(paths) if i not in detections.unreadable]
    entries = []
    for path, regions in zip(readable, detections.regions, strict=True):
        width, height = regions.image_size
        columns = zip(
            regions.label, regions.confidence.tolist(), regions.xyxy.tolist(), strict=True
        )
        boxes = [
            {"label": label, "confidence": score, "xyxy": box}
            for label, score, box in columns
            if not regions.is_whole_image
        ]
        entries.append(
            {"path": path.as_posix(), "width": width, "height": height, "regions": boxes}
        )
        if drawn:
            name = path.relative_to(pictures) if pictures.is_dir() else Path(path.name)
            picture = open_picture(path)
            if not regions.is_whole_image:
                picture = draw_boxes(picture, regions)
            with replacing(drawn / f"{name}.png") as temporary:
                picture.save(temporary, format="PNG")
    write_record(
        {
            "detector": detector,
            "confidence": confidence,
            "max_regions": max_regions,
            "pictures": entries,
            "unreadable": [
                {"path": str(paths[i]), "reason": r} for i, r in detections.unreadable.items()
            ],
        },
        out,
    )
    count = sum(len(regions) for regions in detections.regions) - detections.without_detections
    print(
        f"Found {count:,} regions in {len(readable):,} pictures, none in "
        f"{detections.without_detections:,} of them; {len(detections.unreadable):,} cannot be "
        f"read. Written to {printable(out)}."
    )


def embed(
    data: Positional[Path],
    *,
    out: Path,
    model: str,
    pretrained: str | None,
    regions: RegionSettings,
    images: Path | None = None,
    format: Format = None,
    split: str = "train",
    device: str = "auto",
) -> None:
    """Encodes captioned pictures once: whole, region by region, captions and their tokens.

    Writes into a folder: features.safetensors (tensors image, region, text, token, image_of_text
    and more), source.json, which says what they were made from, and contents.json, with the
    pictures and captions in the tensors' order and those left out. Run it again to continue where
    it stopped; under accelerate launch, several processes share the work.

    Args:
        data: captioned pictures, as in inspect.
        out: the folder to write.
        model: "pocket" or "pocket_vit", an architecture of open_clip, or a folder that open_clip
            loads, such as an arm of distill (runs/x/dclip).
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        regions: how regions are found and cropped.
        images: the folder that the pictures' names are relative to; searched for if left out.
        split: train, val, test, all, … where the data has splits of its own.
        device: auto, cpu, cuda:0, …
    """
    require_own_folder(out, "source.json")
    from dclip_kit.data import read_captioned
    from dclip_kit.data.collect import list_reasons
    from dclip_kit.features.extract import choose_detector, extract_features
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    reading = read_captioned(data, images, format, split)
    if split != "all" and not reading.splits_from:
        source = reading.dataset.source
        say(f"{source} has no splits of its own: everything is encoded, not only {split}.")
    clip = load_clip(model, tag_for(model, pretrained), choose_device(device))
    detector = choose_detector(regions, clip)
    features = extract_features(clip, detector, reading.dataset, regions, folder=out)
    if not is_main_process():
        return
    write_record(
        {
            "model": clip.name,
            "pictures": [str(path) for path in reading.dataset.paths],
            "captions": reading.dataset.texts,
            "unusable": list_reasons(reading.unusable),
            "empty_captions": reading.empty_captions,
        },
        out / "contents.json",
    )
    print(
        f"Encoded {len(features):,} pictures, {len(features.region):,} regions and "
        f"{len(features.text):,} captions into {printable(out)}; unusable: "
        f"{len(reading.unusable):,}; without detections: {features.without_detections:,}."
    )


def embed_shards(
    source: Positional[Path],
    *,
    out: Path,
    model: str,
    pretrained: str | None,
    layout: Literal["parquet", "clip-retrieval"] = "parquet",
    precision: Literal["fp32", "fp16"] = "fp32",
    ray: str = "",
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Embeds pictures without captions by shards, a hundred million if need be.

    A shard is a tar (webdataset), a row group of a parquet file with pictures in it, or ten
    thousand pictures of a folder. Each is written whole or not at all, with the pictures that
    cannot be read listed in OUT/_broken; run it again to continue where it stopped. The features
    are those of encode_images, normalised. CLUSTER.md, beside the commands, says what it takes.

    Args:
        source: a tar, a parquet file, or a folder of such files or of pictures.
        out: the folder to write; search --index reads it.
        model: "pocket" or "pocket_vit", an architecture of open_clip, or a folder that open_clip
            loads, such as an arm of distill (runs/x/dclip).
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        layout: parquet has the columns path and embedding; clip-retrieval is the layout of that
            program, img_emb/img_emb_0.npy and metadata/metadata_0.parquet.
        precision: of the stored numbers.
        ray: the address of a Ray cluster, or local for one of this machine's GPUs or cores alone;
            left out, this process does all the work.
        workers: under Ray, at most so many; left out, one for each GPU, or core if there is none.
        device: auto, cpu, cuda:0, …; not with --ray.
    """
    require_writable(out, "folder")
    if workers < 0 or (workers and not ray):
        raise ValueError(f"Expected --workers from 1, and with --ray, got {workers}; leave it out.")
    if ray and device != "auto":
        raise ValueError(
            f"Expected no --device with --ray, which takes each machine's GPUs or cores, got "
            f"{device}; leave it out."
        )
    from dclip_kit.models.clip import tag_for
    from dclip_kit.search.shards import embed_shards as embed_all

    tag = tag_for(model, pretrained)
    on = "" if ray else choose_device(device)
    with redirect_stdout(sys.stderr):  # where Ray tells of workers that died
        done = embed_all(source, out, model, tag, layout, precision, on, ray, workers)
    now = [count for count in done.counts.values() if count.new]
    print(
        f"Embedded {sum(x.pictures for x in now):,} pictures now, in {len(now):,} shards; "
        f"{len(done.counts) - len(now):,} shards were there. In all, "
        f"{sum(x.pictures for x in done.counts.values()):,} pictures, and "
        f"{sum(x.broken for x in done.counts.values()):,} broken. Written to {printable(out)}."
    )
    for name, reason in done.failed.items():
        raise OSError(
            f"Expected to embed all shards, but {len(done.failed):,} failed (the first, {name}: "
            f"{reason}); mend that and run the command again, which does only these."
        )
