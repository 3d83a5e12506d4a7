"""Commands on pictures without captions: finding regions in them, and searching them."""

import json as json_format
import sys
from pathlib import Path
from typing import Any

from tyro.conf import FlagCreatePairsOff, Positional

from dclip_kit.commands.terminal import choose_device, require_writable
from dclip_kit.runtime.printing import printable


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
    from dclip_kit.evaluation.records import write_record
    from dclip_kit.models.detector import load_detector
    from dclip_kit.search.folder_index import find_pictures

    paths = find_pictures(pictures)
    loaded = load_detector(
        detector, confidence=confidence, max_regions=max_regions, device=choose_device(device)
    )
    found = loaded.detect(paths, skip_unreadable=True)
    readable = [path for i, path in enumerate(paths) if i not in found.unreadable]
    entries = []
    for path, regions in zip(readable, found.regions, strict=True):
        width, height = regions.image_size
        every = zip(regions.label, regions.confidence.tolist(), regions.xyxy.tolist(), strict=True)
        boxes = [{"label": label, "confidence": sure, "xyxy": box} for label, sure, box in every]
        boxes = [] if regions.is_whole_image else boxes
        entries.append({"path": str(path), "width": width, "height": height, "regions": boxes})
        if drawn:
            name = path.relative_to(pictures) if pictures.is_dir() else Path(path.name)
            _draw_boxes(path, boxes, drawn / f"{name}.png")
    record = {
        "detector": detector,
        "confidence": confidence,
        "max_regions": max_regions,
        "pictures": entries,
        "unreadable": [{"path": str(paths[i]), "reason": r} for i, r in found.unreadable.items()],
    }
    write_record(record, out)
    count = sum(len(regions) for regions in found.regions) - found.without_detections
    print(
        f"Found {count:,} regions in {len(readable):,} pictures, none in "
        f"{found.without_detections:,} of them; {len(found.unreadable):,} cannot be read. "
        f"Written to {printable(out)}."
    )


def _draw_boxes(path: Path, boxes: list[dict[str, Any]], out: Path) -> None:
    """Writes a picture with its boxes drawn, atomically."""
    from PIL import ImageDraw

    from dclip_kit.data import open_picture
    from dclip_kit.runtime.files import replacing

    picture = open_picture(path)
    canvas = ImageDraw.Draw(picture)
    for box in boxes:
        width = max(1, round(min(picture.size) / 150))
        canvas.rectangle(box["xyxy"], outline="red", width=width)
        canvas.text(box["xyxy"][:2], f"{box['label']} {box['confidence']:.2f}", fill="red")
    with replacing(out) as temporary:
        picture.save(temporary, format="PNG")


def search(
    folder: Positional[Path],
    query: Positional[str],
    *,
    model: str,
    pretrained: str | None,
    top_k: int = 5,
    json: FlagCreatePairsOff[bool] = False,
    device: str = "auto",
) -> None:
    """Searches a folder's pictures by a text; captions are not needed.

    The first search embeds the pictures and keeps that in the user's cache folder (or in
    DCLIP_CACHE); later ones embed what is new or has changed.

    Args:
        folder: of pictures; folders in it count too.
        query: what to look for, such as "a dog on a beach".
        model: "pocket" (which knows a hundred drawn things), an architecture of open_clip, a folder
            that export wrote, or an arm that distill wrote (runs/x/dclip).
        pretrained: for an architecture: a tag of open_clip, such as openai, or a file.
        top_k: how many to find.
        json: prints JSON, a list of path and score (cosine).
        device: auto, cpu, cuda:0, …
    """
    from dclip_kit.evaluation.runs import load_model
    from dclip_kit.models.encode import encode_texts
    from dclip_kit.search.folder_index import find_pictures, index_pictures

    find_pictures(folder)  # an empty folder is told before a model is loaded
    if top_k < 1 or not query.strip():
        raise ValueError(
            f"Expected a query that says something and a --top-k from 1, got {query!r} and {top_k}."
        )
    clip = load_model(model, pretrained, choose_device(device))
    index = index_pictures(clip, folder)
    if index.embedded or index.unreadable:
        print(
            f"Embedded {index.embedded:,} pictures now, {len(index.paths) - index.embedded:,} were "
            f"known, {len(index.unreadable):,} cannot be read."
            + (f" Links out of the folder led to {index.linked:,}." if index.linked else ""),
            file=sys.stderr,
        )
    found = index.search(encode_texts(clip, [query])[0], top_k)
    hits = [(index.paths[i], score) for i, score in zip(found.images, found.scores, strict=True)]
    if json:
        print(json_format.dumps([{"path": str(p), "score": score} for p, score in hits], indent=1))
    else:
        for path, score in hits:
            print(f"{score:.3f}  {printable(path)}")
