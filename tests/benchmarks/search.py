"""What exact search costs beside the bare product, and rescored search beside that; and what an
index of a million vectors costs.

`python tests/benchmarks/search.py [FILE.json]` measures each contender in a process of its own and
writes what it measured. Times are the clock's: threads that wait spin for a moment (as `make bench`
has them), which the processor's would count. They are of this machine, which should have nothing
else to do; the ratios are the result.
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

from dclip_kit.runtime.files import write_atomically
from dclip_kit.runtime.machine import peak_memory_mb
from dclip_kit.search.folder_index import _load, _save
from dclip_kit.search.index import find_nearest
from dclip_kit.search.rescoring import NNN, add_bias

CANDIDATES, WIDTH, TOP_K = 100_000, 512, 20
REFERENCES = 1000  # queries of which the bias of each candidate is made
MILLION = 1_000_000
POCKET_WIDTH = 256
SHARD_ROWS = 2**17


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

    find_nearest(asked, vectors, TOP_K)
    before = clear_peak()
    find_nearest(asked, vectors, TOP_K)
    memory = peak_memory_mb() - before
    times: dict[str, list[float]] = {"product": [], "search": []}
    for _ in range(repeats):
        sizes = (4096, CANDIDATES)
        times["product"] += [median_of(lambda size=size: product(size), 1) for size in sizes]
        times["search"].append(median_of(lambda: find_nearest(asked, vectors, TOP_K), 1))
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
        "search": lambda: find_nearest(asked, vectors, TOP_K),
        "rescored": lambda: find_nearest(torch.cat([asked, more], dim=1), wider, TOP_K),
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


def search_million(folder: Path) -> dict[str, Any]:
    """Writes a million vectors as a folder's index does, opens them, and asks single queries.

    In turns with the bare product, as above.
    """
    generator = torch.Generator().manual_seed(0)
    seconds, before = 0.0, clear_peak()
    for rows in torch.arange(MILLION).split(SHARD_ROWS):
        vectors = normalize(torch.randn(len(rows), POCKET_WIDTH, generator=generator), dim=1)
        began = time.perf_counter()
        _save([str(row) for row in rows.tolist()], vectors, folder)
        seconds += time.perf_counter() - began
    memory, vectors = peak_memory_mb() - before, torch.cat(_load(folder)[1])
    asked = normalize(torch.randn(1, POCKET_WIDTH, generator=generator), dim=1)
    contenders: dict[str, Callable[[], Any]] = {
        "product": lambda: asked @ vectors.T,
        "search": lambda: find_nearest(asked, vectors, TOP_K),
    }
    times: dict[str, list[float]] = {name: [median_of(run, 1)] for name, run in contenders.items()}
    for _ in range(50):
        for name, run in contenders.items():
            times[name].append(median_of(run, 1))
    quickest = {name: min(each) for name, each in times.items()}
    return {
        **quickest,
        "ratio": quickest["search"] / quickest["product"],
        "written_in_seconds": seconds,
        "disk_mb": sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        "memory_mb": memory,
        "opened_in_seconds": median_of(lambda: _load(folder), 3),
    }


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "1,000 queries": lambda _: bare_ratio(1000, 5),
    "single query": lambda _: bare_ratio(1, 50),
    "1,000 queries, rescored": lambda _: rescored_ratio(1000, 5),
    "single query, rescored": lambda _: rescored_ratio(1, 50),
    "a million on disk": search_million,
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
    report["ratios"] = {
        "exact / bare product, 1,000 queries": report["1,000 queries"]["ratio"],
        "exact / bare product, single query": report["single query"]["ratio"],
        "rescored / exact, 1,000 queries": report["1,000 queries, rescored"]["ratio"],
        "rescored / exact, single query": report["single query, rescored"]["ratio"],
        "exact / bare product, a million on disk": report["a million on disk"]["ratio"],
    }
    if len(sys.argv) > 1:
        write_atomically(Path(sys.argv[1]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
