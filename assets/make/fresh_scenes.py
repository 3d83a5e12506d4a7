"""Models on pocket scenes that no split has: is a gain more than one test set's luck?

`python -m assets.make.fresh_scenes FILE MODEL MODEL …` measures models, named as `evaluate` takes
them, prints what each gains over those before it and writes all figures to the file, as JSON.
"""

import io
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from dclip_kit.data.pocket.scenes import render_scene
from dclip_kit.data.pocket.world import make_scene, split_size
from dclip_kit.evaluation.evaluate import RetrievalSet, evaluate_retrieval
from dclip_kit.evaluation.report import describe_gain
from dclip_kit.evaluation.runs import load_model
from dclip_kit.models.clip import ClipBundle
from dclip_kit.models.encode import encode_texts
from dclip_kit.models.reading import read_pixels
from dclip_kit.runtime.files import write_atomically

WAYS = ("text_to_image", "image_to_text")


def draw_gallery(clip: ClipBundle, first: int, size: int) -> RetrievalSet:
    """Scenes drawn as the test's are, and numbered on from its last.

    Args:
        clip: reads the pictures and encodes the captions.
        first: how many scenes behind the test's to leave out.
        size: how many to draw.
    """
    start = split_size("test") + first

    def draw(index: int) -> tuple[Image.Image, tuple[str, ...]]:
        scene, captions = make_scene("test", index)
        encoded = io.BytesIO()
        render_scene(scene).save(encoded, format="JPEG", quality=92)  # as those of the splits
        return Image.open(encoded).convert("RGB"), captions

    with ThreadPoolExecutor(2) as pool:
        pictures, captions = zip(*pool.map(draw, range(start, start + size)), strict=True)
    texts = [text for own in captions for text in own]
    counts = torch.tensor([len(own) for own in captions])
    image_of_text = torch.arange(size).repeat_interleave(counts)
    pixels = read_pixels(clip, pictures, progress=False)
    return RetrievalSet(pixels, encode_texts(clip, texts), image_of_text, texts, clip)


def measure_fresh(
    models: Mapping[str, ClipBundle], galleries: int = 4, size: int = 1000
) -> dict[str, Any]:
    """Recall@1 of models and what each gains over those before it, with 95 % intervals.

    Args:
        models: by name, with the pocket's preprocessing; the first one encodes the captions.
        galleries: in each of which its own captions and pictures search for each other.
        size: pictures of a gallery.

    Returns:
        For JSON: sizes, and by direction each model's recall and, for each two of them, the
        difference and the ratio - 1. Bootstraps resample the pictures of all galleries.

    Raises:
        ValueError: there is no model.
    """
    if not models:
        raise ValueError("Expected at least one model to measure, got none; name it, as `pocket`.")
    reader = next(iter(models.values()))
    hits: dict[str, dict[str, list[torch.Tensor]]] = {way: {n: [] for n in models} for way in WAYS}
    images: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
    for number in tqdm(range(galleries), desc="galleries", delay=2):
        gallery = draw_gallery(reader, number * size, size)
        for place, (name, clip) in enumerate(models.items()):
            found = evaluate_retrieval(clip, gallery, progress=False)
            for way in WAYS:
                one = getattr(found, way)
                hits[way][name].append(one.hits(1))
                if place == 0:
                    images[way].append(number * size + one.image_of_query)
    result: dict[str, Any] = {"galleries": galleries, "pictures": galleries * size}
    for way in WAYS:
        image = torch.cat(images[way])
        joined = {name: torch.cat(own) for name, own in hits[way].items()}
        gains = {}
        for before, after in combinations(joined, 2):
            pair = joined[before], joined[after], image
            gains[f"{after} over {before}"] = describe_gain(*pair)
        recalls = {name: own.double().mean().item() for name, own in joined.items()}
        result[way] = {"queries": len(image), "recall_at_1": recalls, "gains": gains}
    return result


def main(file: str = "", *names: str) -> None:
    """Measures models, prints the gains and keeps the result."""
    if not names:
        sys.exit("Expected a file to write and models to measure, got none: FILE MODEL MODEL …")
    found = measure_fresh({name: load_model(name) for name in names})
    write_atomically(Path(file), json.dumps(found, indent=1) + "\n")
    for way in WAYS:
        print(f"{way.replace('_', ' ')}, {found[way]['queries']:,} queries, Recall@1")
        for name, recall in found[way]["recall_at_1"].items():
            print(f"  {name}: {recall:.1%}")
        for pair, gain in found[way]["gains"].items():
            low, high = gain["relative_ci95"]
            print(f"  {pair}: {gain['relative']:+.1%} [{low:+.1%}, {high:+.1%}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
