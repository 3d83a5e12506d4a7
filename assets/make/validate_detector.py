"""Ultralytics' own `val` on the pocket YOLO: `python -m assets.make.validate_detector`.

Writes assets/pocket_yolo/validation.json: mAP on the test scenes, overall and by category.
"""

import json
import tempfile
from pathlib import Path

import torch
import yaml

from dclip_kit.data.pocket import world as data
from dclip_kit.data.pocket.scenes import SIDE
from dclip_kit.data.pocket.sprites import load_categories, load_nouns
from dclip_kit.models.detector import contained_ultralytics, read_weights
from dclip_kit.runtime.files import asset_path, write_atomically


def write_yolo_dataset(split: str, folder: Path) -> Path:
    """Writes a split in ultralytics' format (images, labels, a YAML); returns the YAML's path."""
    nouns, categories = load_nouns(), load_categories()
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    scenes, paths = data.load_scenes(split), data.load_captioned(split).paths
    for scene, path in zip(scenes, paths, strict=True):
        (images / path.name).symlink_to(path.resolve())
        lines = []
        for thing in scene.objects:
            x1, y1, x2, y2 = (edge / SIDE for edge in thing.xyxy)
            label = categories.index(nouns[thing.noun].category)
            lines.append(f"{label} {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}")
        (labels / path.with_suffix(".txt").name).write_text("\n".join(lines) + "\n")
    config = {
        "path": str(folder),
        "train": f"images/{split}",
        "val": f"images/{split}",
        "names": dict(enumerate(categories)),
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(config))
    return folder / "data.yaml"


@torch.no_grad()
def validate(split: str = "test") -> dict[str, object]:
    """Runs ultralytics' `val` on a split of scenes.

    Returns:
        map50, map50_95, and map50 by category (only those in the split).
    """
    yolo = read_weights(asset_path("pocket_yolo"))
    with tempfile.TemporaryDirectory() as scratch, contained_ultralytics():
        config_path = write_yolo_dataset(split, Path(scratch) / "data")
        metrics = yolo.val(
            data=str(config_path),
            imgsz=yolo.overrides["imgsz"],
            batch=32,
            workers=0,
            plots=False,
            verbose=False,
            project=scratch,
            name="val",
            device="cpu",
        )
        per_class = {
            yolo.names[index]: round(float(value), 4)
            for index, value in zip(metrics.box.ap_class_index, metrics.box.ap50, strict=True)
        }
    return {
        "split": split,
        "map50": round(float(metrics.box.map50), 4),
        "map50_95": round(float(metrics.box.map), 4),
        "map50_by_category": per_class,
    }


def main() -> None:
    """Validates on test, prints and saves the result."""
    result = validate()
    text = json.dumps(result, indent=1)
    write_atomically(asset_path("pocket_yolo") / "validation.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
