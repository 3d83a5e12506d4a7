"""How near the evaluation of retrieval is to its limit, the bare product of features.

`python tests/benchmarks/retrieval.py [FILE.json]` times each contender in a process of its own,
several times, and writes what it measured. Times are of this machine; the ratios are the result.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

from dclip_kit.metrics import paired_bootstrap, retrieval_metrics
from dclip_kit.runtime.files import write_atomically
from dclip_kit.runtime.machine import peak_memory_mb

IMAGES, TEXTS, WIDTH = 5000, 25_010, 512  # COCO's test split in a ViT-B's joint space
LARGE = 10_000, 50_000  # a tenth, in both directions, of 100,000 pictures with five captions each
RECALL_AT = (1, 5, 10)


def make_features(images: int = IMAGES, texts: int = TEXTS) -> tuple[torch.Tensor, ...]:
    """Features in which about half of the answers are found: noise around a picture's vector."""
    generator = torch.Generator().manual_seed(0)
    image_of_text = torch.arange(texts) * images // texts
    image = torch.nn.functional.normalize(torch.randn(images, WIDTH, generator=generator), dim=1)
    noise = torch.randn(texts, WIDTH, generator=generator) * 5 / WIDTH**0.5
    return image, torch.nn.functional.normalize(image[image_of_text] + noise, dim=1), image_of_text


def bare_product(image: torch.Tensor, text: torch.Tensor, image_of_text: torch.Tensor) -> None:
    """The least that has to be computed; in tiles, since it need not be kept."""
    for some in text.split(1000):
        some @ image.T


def kit(image: torch.Tensor, text: torch.Tensor, image_of_text: torch.Tensor) -> dict[str, float]:
    """All metrics, both ways."""
    found = retrieval_metrics(image, text, image_of_text)
    sides = {"image": found.text_to_image, "text": found.image_to_text}
    return {f"{side}@{k}": m.recall_at[k] for side, m in sides.items() for k in RECALL_AT}


def clip_benchmark(
    image: torch.Tensor, text: torch.Tensor, image_of_text: torch.Tensor
) -> dict[str, float]:
    """Recalls both ways, as clip-benchmark's own `evaluate` computes them from features."""
    scores = text @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), image_of_text] = True
    found = {}
    for k in RECALL_AT:
        for side, s, p in (("image", scores, positive), ("text", scores.T, positive.T)):
            hits = batchify(recall_at_k, s, p, 64, "cpu", k=k) > 0
            found[f"{side}@{k}"] = hits.float().mean().item()
    return found


def bootstrap(image: torch.Tensor, text: torch.Tensor, image_of_text: torch.Tensor) -> None:
    """All metrics, and an interval of 1,000 resamples of the images for text→image Recall@1."""
    hits = retrieval_metrics(image, text, image_of_text).text_to_image.hits(1)
    paired_bootstrap(hits, hits, image_of_text)


CONTENDERS: dict[str, tuple[Callable[..., Any], tuple[int, int], int]] = {
    "bare product": (bare_product, (IMAGES, TEXTS), 5),
    "kit": (kit, (IMAGES, TEXTS), 5),
    "kit with bootstrap": (bootstrap, (IMAGES, TEXTS), 5),
    "clip-benchmark": (clip_benchmark, (IMAGES, TEXTS), 1),
    "bare product, large": (bare_product, LARGE, 2),
    "kit, large": (kit, LARGE, 2),
}


def measure(name: str) -> dict[str, Any]:
    """Runs one contender: the best time, the memory above that of its inputs, its recalls."""
    run, size, repeats = CONTENDERS[name]
    features = make_features(*size)
    run(*make_features(50, 250))  # whatever is loaded or allocated at first use
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak is now's
    before, seconds = peak_memory_mb(), []
    for _ in range(repeats):
        began = time.perf_counter()
        found = run(*features)
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": min(seconds),
        "memory_mb": peak_memory_mb() - before,
        "recall": found,
    }


def compare() -> dict[str, Any]:
    """Runs all contenders, each in a process of its own, and sets them in relation."""
    results = {}
    for name in CONTENDERS:
        command = [sys.executable, __file__, "--only", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[name] = json.loads(done.stdout)
        print(f"{name}: {results[name]['seconds']:.2f} s", file=sys.stderr)
    seconds = {name: result["seconds"] for name, result in results.items()}
    large = seconds["kit, large"] / seconds["bare product, large"]
    return {
        "threads": torch.get_num_threads(),
        "results": results,
        "ratios": {
            "kit / bare product": seconds["kit"] / seconds["bare product"],
            "clip-benchmark / kit": seconds["clip-benchmark"] / seconds["kit"],
            "kit / bare product, large": large,
            "bootstrap's share": seconds["kit with bootstrap"] / seconds["kit"] - 1,
            "kit's memory, MB": results["kit"]["memory_mb"],
            "kit's memory, large, MB": results["kit, large"]["memory_mb"],
        },
        # A rival nearer than the tolerance counts as tied here, and as the winner or loser there.
        "hits more or fewer than clip-benchmark's": _differences(
            results["kit"]["recall"], results["clip-benchmark"]["recall"]
        ),
    }


def _differences(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, int]:
    queries = {"image": TEXTS, "text": IMAGES}
    return {
        name: round((ours[name] - theirs[name]) * queries[name.partition("@")[0]]) for name in ours
    }


def main() -> None:
    """Measures one contender, or all and writes the report."""
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    report = compare()
    for name, ratio in report["ratios"].items():
        print(f"{name:>28}  {ratio:.2f}")
    print(report["hits more or fewer than clip-benchmark's"])
    if len(sys.argv) > 1:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
