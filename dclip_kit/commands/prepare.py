"""Commands on pictures: looking at them, drawing training data, finding regions, encoding."""

import warnings
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
    """Looks at captioned pictures as training would read them: what is usable, twice, or leaks.

    Exit code 1 if no usable picture has a caption.

    Args:
        data: captioned pictures: a file of a kind that --format lists, or the folder that has it.
        images: the folder that the pictures' names are below; else it is looked for.
        against: evaluation sets whose pictures must not be among these.
        json: file for the whole report.
    """
    if json:
        require_writable(json)
    from dclip_kit.data import inspect_data, summarize
    from dclip_kit.runtime.files import write_record

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        # Of metadata that nobody can read, picture by picture, and without saying which.
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

    50,000 pictures of COCO, 15,000 of Flickr30k and 10,000 of Conceptual Captions, of which a tenth
    is held out for val; from those that are given.

    Args:
        out: the .json file to write.
        against: the sets to be measured on, such as Karpathy's two files; their val and test
            pictures are left out.
        coco: as inspect takes it, such as the folder with annotations/ and train2017/.
        flickr30k: as inspect takes it.
        conceptual_captions: as inspect takes it: the TSV over an img2dataset download.
        seed: of the draw.
        leak_guard: compare by content too, or by names alone, without reading evaluation pictures.
    """
    require_writable(out)
    from dclip_kit.data import curate as draw
    from dclip_kit.data import read_captioned, recognise_format
    from dclip_kit.data.splits import read_evaluation

    given = {"coco": coco, "flickr30k": flickr30k, "conceptual_captions": conceptual_captions}
    evaluation = [read_evaluation(path) for path in against]
    datasets = {}
    for name, path in given.items():
        if path:
            # Karpathy's trains on restval too; what is drawn is read whole then.
            split = "train+restval" if recognise_format(path) == "karpathy" else "train"
            datasets[name] = read_captioned(path, split=split, checks="names").dataset
    record = draw(datasets, out, evaluation, seed=seed, by_content=leak_guard == "content")
    for name in datasets:
        count = record["counts"][name]
        print(f"{name}: {count['train']:,} for train, {count['val']:,} for val")
    print(
        f"Left out: {len(record['leaks']):,} evaluation pictures, {len(record['unusable']):,} "
        f"unusable; compared by name alone: {len(record['not_compared']):,}. Written to "
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

    Writes a JSON with each picture's size and regions (label, confidence, and box in pixels: left,
    top, right, bottom), most confident first, and with the pictures that cannot be read.

    Args:
        pictures: a picture, or a folder of pictures; folders in it count too.
        out: the .json file to write.
        detector: "pocket", or a .pt of ultralytics by name or path (a pickle: from people you
            trust).
        confidence: what a region's confidence must exceed, 0 to 1.
        max_regions: how many a picture, at most.
        drawn: folder to write the pictures into with their boxes drawn.
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
    found = load_detector(
        detector, confidence=confidence, max_regions=max_regions, device=choose_device(device)
    ).detect(paths, skip_unreadable=True)
    readable = [path for i, path in enumerate(paths) if i not in found.unreadable]
    entries = []
    for path, regions in zip(readable, found.regions, strict=True):
        width, height = regions.image_size
        every = zip(regions.label, regions.confidence.tolist(), regions.xyxy.tolist(), strict=True)
        boxes = [
            {"label": label, "confidence": sure, "xyxy": box}
            for label, sure, box in every
            if not regions.is_whole_image
        ]
        entries.append({"path": str(path), "width": width, "height": height, "regions": boxes})
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
                {"path": str(paths[i]), "reason": r} for i, r in found.unreadable.items()
            ],
        },
        out,
    )
    count = sum(len(regions) for regions in found.regions) - found.without_detections
    print(
        f"Found {count:,} regions in {len(readable):,} pictures, none in "
        f"{found.without_detections:,} of them; {len(found.unreadable):,} cannot be read. "
        f"Written to {printable(out)}."
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

    Fills a folder with features.safetensors (tensors image, region, text, token, image_of_text and
    more), source.json, which says what they are made from, and contents.json, with the pictures and
    captions in the tensors' order, and what was left out. Run again, it continues where it was
    stopped; several processes share the work under accelerate launch.

    Args:
        data: captioned pictures, as inspect takes them.
        out: the folder to fill.
        model: "pocket", an architecture of open_clip, or a folder that open_clip loads, such as an
            arm of distill (runs/x/dclip).
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        regions: of the pictures.
        images: the folder that the pictures' names are below; else it is looked for.
        split: of data with splits of their own: train, val, test, all, …
        device: auto, cpu, cuda:0, …
    """
    require_own_folder(out, "source.json")
    from dclip_kit.data import read_captioned
    from dclip_kit.data.collect import list_reasons
    from dclip_kit.features.extract import choose_detector, extract_features
    from dclip_kit.models.clip import load_clip, tag_for
    from dclip_kit.runtime.files import write_record
    from dclip_kit.runtime.processes import is_main_process

    found = read_captioned(data, images, format, split)
    if split != "all" and not found.splits_from:
        say(f"{found.dataset.source} has no splits of its own: all is encoded, and not {split}.")
    clip = load_clip(model, tag_for(model, pretrained), choose_device(device))
    detector = choose_detector(regions, clip)
    features = extract_features(clip, detector, found.dataset, regions, folder=out)
    if not is_main_process():
        return
    write_record(
        {
            "model": clip.name,
            "pictures": [str(path) for path in found.dataset.paths],
            "captions": found.dataset.texts,
            "unusable": list_reasons(found.unusable),
            "empty_captions": found.empty_captions,
        },
        out / "contents.json",
    )
    print(
        f"Encoded {len(features):,} pictures, {len(features.region):,} regions and "
        f"{len(features.text):,} captions into {printable(out)}; unusable: "
        f"{len(found.unusable):,}; without detections: {features.without_detections:,}."
    )
