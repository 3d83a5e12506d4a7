"""What exact search costs beside the bare product, and rescored search beside that; and what
approximate search finds how quickly.

`python tests/benchmarks/search.py [FILE.json]` measures each contender in a process of its own and
writes what it measured. The million vectors are real features of the pocket's training pictures,
each perturbed 250 times by as much as lies between a picture and the one nearest to it; queries are
features of its test pictures, as perturbed, and of their captions. Times are the clock's: threads
that wait spin for a moment (as `make bench` has them), which the processor's would count. They are
of this machine, which should have nothing else to do; the ratios, and what is found, are the
result.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from dclip_kit.data.pocket.world import load_captioned
from dclip_kit.models.clip import load_clip
from dclip_kit.models.encode import encode_images, encode_texts
from dclip_kit.runtime.files import load_tensors, save_tensors, write_atomically
from dclip_kit.runtime.machine import peak_memory_mb
from dclip_kit.search.index import SearchIndex, find_nearest
from dclip_kit.search.rescoring import NNN, add_bias

CANDIDATES, WIDTH, TOP_K = 100_000, 512, 20
REFERENCES = 1000  # queries of which the bias of each candidate is made
MILLION = 1_000_000
SHARD_ROWS = 2**17
ASKED = 500  # single queries that are timed, of each kind


def median_of(run: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[repeats // 2]


def bare_ratio(queries: int, repeats: int) -> dict[str, float]:
    """Exact search against the bare product, in tiles of the size that makes it quickest.

    In turns, so that other programs slow both down; the quickest of each counts.
    """
    generator = torch.Generator().manual_seed(0)
    asked, vectors = (
        normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
        for count in (queries, CANDIDATES)
    )

    def product(columns: int) -> None:
        for tile in vectors.split(columns):
            asked @ tile.T

    find_nearest(asked, [vectors], TOP_K)
    before = clear_peak()
    find_nearest(asked, [vectors], TOP_K)
    memory = peak_memory_mb() - before
    times: dict[str, list[float]] = {"product": [], "search": []}
    for _ in range(repeats):
        sizes = (4096, CANDIDATES)
        times["product"] += [median_of(lambda size=size: product(size), 1) for size in sizes]
        times["search"].append(median_of(lambda: find_nearest(asked, [vectors], TOP_K), 1))
    quickest = {name: min(each) for name, each in times.items()}
    return {**quickest, "ratio": quickest["search"] / quickest["product"], "memory_mb": memory}


def rescored_ratio(queries: int, repeats: int) -> dict[str, float]:
    """Exact search by rescored scores, one dimension for the bias, against search by cosines.

    What the bias is made of is not timed: that is done once, with the index. In turns, as above.
    """
    generator = torch.Generator().manual_seed(0)
    asked, vectors, references = (
        normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
        for count in (queries, CANDIDATES, REFERENCES)
    )
    _, wider = add_bias(asked, vectors, NNN.measure_bias(references, vectors))
    more = torch.tensor([1.0, 0.0]).expand(queries, 2)
    contenders: dict[str, Callable[[], Any]] = {
        "search": lambda: find_nearest(asked, [vectors], TOP_K),
        "rescored": lambda: find_nearest(torch.cat([asked, more], dim=1), [wider], TOP_K),
    }
    times: dict[str, list[float]] = {name: [median_of(run, 1)] for name, run in contenders.items()}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(median_of(run, 1))
    quickest = {name: min(each) for name, each in times.items()}
    return {**quickest, "ratio": quickest["rescored"] / quickest["search"]}


def clear_peak() -> float:
    """Makes the peak of memory now's (Linux), and gives it in MB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_memory_mb()


def make_features(folder: Path) -> dict[str, Any]:
    """Encodes the pocket's pictures and captions."""
    clip = load_clip("pocket")
    train, test = load_captioned("train"), load_captioned("test")
    features = {
        "train": encode_images(clip, train.paths, progress=False),
        "test": encode_images(clip, test.paths, progress=False),
        "captions": encode_texts(clip, test.texts)[::5].contiguous(),
    }
    save_tensors(features, folder / "features.safetensors")
    return {"width": features["train"].shape[1]}


def perturb(features: torch.Tensor, distance: float, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(features.shape, generator=generator) / features.shape[1] ** 0.5
    return normalize(features + distance * noise, dim=1)


def nearest_distance(features: torch.Tensor) -> float:
    """The median distance of a picture to the one nearest to it."""
    cosines = find_nearest(features, [features], 2)[0][:, 1]
    return float((2 - 2 * cosines).clamp(min=0).sqrt().median())


def build_exact(folder: Path) -> dict[str, Any]:
    """Writes the million vectors, a shard at a time."""
    train = load_tensors(folder / "features.safetensors")["train"]
    distance, generator = nearest_distance(train), torch.Generator().manual_seed(0)
    index, seconds, before = SearchIndex(folder / "index"), 0.0, clear_peak()
    for rows in torch.arange(MILLION).split(SHARD_ROWS):
        vectors = perturb(train[rows % len(train)], distance, generator)
        began = time.perf_counter()
        index.append([str(row) for row in rows.tolist()], vectors)
        seconds += time.perf_counter() - began
    size = sum(file.stat().st_size for file in index.folder.iterdir()) / 1e6
    memory = peak_memory_mb() - before
    opened = median_of(lambda: SearchIndex(folder / "index"), 3)
    return {
        "distance": distance,
        "seconds": seconds,
        "disk_mb": size,
        "memory_mb": memory,
        "opened_in_seconds": opened,
    }


def make_queries(folder: Path) -> dict[str, torch.Tensor]:
    """Of either kind as many as are timed."""
    features = load_tensors(folder / "features.safetensors")
    generator = torch.Generator().manual_seed(1)
    distance = nearest_distance(features["train"])
    pictures = perturb(features["test"], distance, generator)
    return {"pictures": pictures[:ASKED], "captions": features["captions"][:ASKED]}


def approximate(folder: Path, kind: str) -> dict[str, Any]:
    """Builds the lists anew, and asks single queries of both searches in turns."""
    queries, index = make_queries(folder)[kind], SearchIndex(folder / "index")
    before, began = clear_peak(), time.perf_counter()
    for old in index.folder.glob("*.faiss"):
        old.unlink()
    index.search(queries[:1], approximate=True)
    seconds, building = time.perf_counter() - began, peak_memory_mb() - before
    asked = queries[:, None]
    for each in asked[:20]:  # reads from disk what is not in memory yet
        index.search(each), index.search(each, approximate=True)
    times: dict[str, list[float]] = {"exact": [], "approximate": []}
    for number, each in enumerate(asked):
        began = time.perf_counter()
        index.search(each, approximate=True)
        times["approximate"].append(time.perf_counter() - began)
        if number % 10 == 0:
            began = time.perf_counter()
            index.search(each)
            times["exact"].append(time.perf_counter() - began)
    tiles = [median_of(lambda: [each @ queries[0] for each in index.shards.values()], 5)]
    middle = {name: sorted(each)[len(each) // 2] for name, each in times.items()}
    (file,) = index.folder.glob("*.faiss")
    both = zip(index.search(queries), index.search(queries, approximate=True), strict=True)
    shares = [len({*exact.ids} & {*found.ids}) / len(exact.ids) for exact, found in both]
    return {
        "recall_at_10": sum(shares) / len(shares),
        "seconds": seconds,
        "exact_ms": middle["exact"] * 1e3,
        "approximate_ms": middle["approximate"] * 1e3,
        "faster": middle["exact"] / middle["approximate"],
        "exact / bare product": middle["exact"] / min(tiles),
        "building_mb": building,
        "disk_mb": file.stat().st_size / 1e6,
    }


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "1,000 queries": lambda _: bare_ratio(1000, 5),
    "single query": lambda _: bare_ratio(1, 50),
    "1,000 queries, rescored": lambda _: rescored_ratio(1000, 5),
    "single query, rescored": lambda _: rescored_ratio(1, 50),
    "features": make_features,
    "a million, exact": build_exact,
    "a million, approximate, pictures": lambda folder: approximate(folder, "pictures"),
    "a million, approximate, captions": lambda folder: approximate(folder, "captions"),
}


def main() -> None:
    """Measures one contender, or all and writes the report."""
    if sys.argv[1:2] == ["--only"]:
        print(json.dumps(CONTENDERS[sys.argv[2]](Path(sys.argv[3]))))
        return
    report: dict[str, Any] = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--only", name, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            report[name] = json.loads(done.stdout)
            print(f"{name}: {report[name]}", file=sys.stderr)
    kinds = {kind: report[f"a million, approximate, {kind}"] for kind in ("pictures", "captions")}
    report["ratios"] = {
        "exact / bare product, 1,000 queries": report["1,000 queries"]["ratio"],
        "exact / bare product, single query": report["single query"]["ratio"],
        "rescored / exact, 1,000 queries": report["1,000 queries, rescored"]["ratio"],
        "rescored / exact, single query": report["single query, rescored"]["ratio"],
        **{f"exact / approximate, {kind}": each["faster"] for kind, each in kinds.items()},
        **{f"recall@10, {kind}": each["recall_at_10"] for kind, each in kinds.items()},
    }
    if len(sys.argv) > 1:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
