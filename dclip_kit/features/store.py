"""A feature store: a folder that is filled shard by shard, and then one memory-mapped file.

While it is filled: source.json, which says what the features are made from, and a safetensors file
for every so many pictures, each renamed into place. Whoever fills it may be killed at any moment;
the next one makes the shards that are missing. Once all are there they become one file.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import safe_open

from dclip_kit.data.annotations import load_json
from dclip_kit.features.frozen import FEATURES, FrozenFeatures
from dclip_kit.features.source import Record, differing_entries
from dclip_kit.runtime.files import (
    load_tensors,
    raw_bytes,
    replacing,
    save_tensors,
    write_atomically,
)
from dclip_kit.runtime.processes import exists_for_all, is_main_process

SOURCE = "source.json"
_SHARDS = "shard-*.safetensors*"  # broken-off ones too
SHARD = 512  # pictures, a whole number of batches: no batch depends on where shards end


@dataclass(frozen=True)
class FeatureStore:
    """A folder of frozen features.

    Attributes:
        folder: where it is, or will be.
        count: pictures that it has when it is complete.
    """

    folder: Path
    count: int

    def open(self, source: Record) -> FrozenFeatures | None:
        """The features, memory-mapped; None as long as any are missing.

        Args:
            source: what they must be made from; entries that it leaves out are not compared.

        Raises:
            ValueError: they are of something else, said what; or of something unknown, or damaged;
                or some of several processes, all of which must call it, see them and others do not.
        """
        complete = exists_for_all(self.folder / FEATURES)
        record = self.folder / SOURCE
        if not record.is_file():
            if complete or any(self.folder.glob(_SHARDS)):
                raise ValueError(
                    f"Expected {SOURCE} beside the features in {self.folder}, found none; give "
                    "another folder, or delete what is in this one."
                )
            return None
        differing = differing_entries(load_json(record), source, partial=True)
        if differing:
            told = ", ".join(f"{name} ({values})" for name, values in differing.items())
            raise ValueError(
                f"Expected features in {self.folder} that are made from the same, but these "
                f"entries of its {SOURCE} differ: {told}; give another folder, or delete this one "
                "to have them made anew."
            )
        if not complete:
            return None
        self._clear()
        return FrozenFeatures.load(self.folder)

    def begin(self, source: Record) -> None:
        """Writes down what its features will be made from."""
        if is_main_process() and not (self.folder / SOURCE).exists():
            text = json.dumps(source, indent=1, default=str) + "\n"
            write_atomically(self.folder / SOURCE, text)

    def missing(self) -> list[range]:
        """The shards that are not there yet, as ranges of pictures."""
        return [shard for shard in self._shards() if not self._path(shard).exists()]

    def write(self, shard: range, features: FrozenFeatures) -> None:
        """Adds a shard.

        Args:
            shard: its pictures.
            features: theirs; `image_of_text` counts pictures from the data set's first.
        """
        tensors = {field.name: getattr(features, field.name) for field in fields(features)}
        save_tensors(tensors, self._path(shard))

    def finish(self) -> None:
        """Makes the one file of all shards; in the main process.

        Raises:
            ValueError: shards are missing: other processes wrote them elsewhere.
        """
        if not is_main_process():
            return
        missing = self.missing()
        if missing:
            raise ValueError(
                f"Expected all pictures' features in {self.folder}, but {len(missing)} shards are "
                "missing; put it where all processes read and write the same files."
            )
        join_files([self._path(shard) for shard in self._shards()], self.folder / FEATURES)
        self._clear()

    def _path(self, shard: range) -> Path:
        return self.folder / f"shard-{shard.start:09d}-{shard.stop:09d}.safetensors"

    def _shards(self) -> list[range]:
        starts = range(0, self.count, SHARD)
        return [range(start, min(start + SHARD, self.count)) for start in starts]

    def _remains(self) -> list[Path]:
        """What is there besides the finished file and its record: shards, and broken-off files."""
        # The last is what safetensors 0.8 writes into before it renames.
        patterns = _SHARDS, f"{FEATURES}.*.tmp", f"{SOURCE}.*.tmp", ".tmp??????"
        return [path for pattern in patterns for path in self.folder.glob(pattern)]

    def _clear(self) -> None:
        if is_main_process():
            for path in self._remains():
                path.unlink(missing_ok=True)


def join_files(files: list[Path], path: Path) -> None:
    """Puts the tensors of several safetensors files after each other, by name, into one file.

    Memory is not needed for them: they are mapped, and copied one by one.

    Args:
        files: of the same tensors, of which only the first axis may differ in length.
        path: the file to write, atomically.

    Raises:
        ValueError: a file is damaged.
    """
    parts = [load_tensors(file) for file in files]
    # The widest numbers first: each tensor lies at a multiple of its own width, as readers want.
    names = sorted(parts[0], key=lambda name: (-parts[0][name].element_size(), name))
    header, end = {}, 0
    with safe_open(files[0], "pt") as first:
        for name in names:
            start, end = end, end + sum(part[name].nbytes for part in parts)
            shape = [sum(len(part[name]) for part in parts), *parts[0][name].shape[1:]]
            dtype = first.get_slice(name).get_dtype()
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in names:
            for part in parts:
                file.write(raw_bytes(part[name]))
