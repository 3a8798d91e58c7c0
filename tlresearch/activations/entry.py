"""The files of one entry of the activation cache: a split's values, memory-mapped, with checksums."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from tlresearch.base.files import write as write_file
from tlresearch.modality.values import SINGLE, Value, from_leaves, leaves, stack

CHUNK = 1 << 24  # bytes that are read and hashed at a time
META = "meta.json"


@dataclass(frozen=True)
class _Leaf:
    """One leaf of all samples: a tensor with a row per sample, or samples of various shapes one after another."""

    rows: Tensor
    shapes: Tensor | None = None
    starts: Tensor | None = None

    def __getitem__(self, index: int) -> Tensor:
        if self.shapes is None or self.starts is None:
            return self.rows[index]
        shape = tuple(self.shapes[index].tolist())
        start = int(self.starts[index])
        return self.rows[start : start + _numel(shape)].view(shape)


class Stored:
    """The samples of an entry, by position.

    A sample is a view into the mapped file. Writing to it changes only this process's copy.

    Args:
        leaves: The leaves by name.
        samples: Number of samples.
    """

    def __init__(self, leaves: dict[str, _Leaf], samples: int) -> None:
        self._leaves = leaves
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    @property
    def are_vectors(self) -> bool:
        """Whether each sample is one vector."""
        value = self[0] if self._samples else None
        return isinstance(value, Tensor) and value.ndim == 1

    def __getitem__(self, index: int) -> Value:
        """Returns one sample."""
        return from_leaves({name: leaf[index] for name, leaf in self._leaves.items()})

    def batch(self, indices: Sequence[int]) -> Value:
        """Returns samples as a batch; sequences are padded to the longest."""
        if all(leaf.shapes is None for leaf in self._leaves.values()):
            rows = torch.tensor(list(indices), dtype=torch.int64)
            return from_leaves({name: leaf.rows.index_select(0, rows) for name, leaf in self._leaves.items()})
        return stack([self[index] for index in indices])


class TooLargeError(Exception):
    """Raised when an entry would be larger than its bound."""


def write(
    folder: Path, batches: Iterable[Sequence[Value]], samples: int, key: dict[str, Any], *, max_bytes: int
) -> None:
    """Writes the values of all samples, batch by batch and in order. The entry is complete with its last file, `META`.

    Args:
        folder: An empty folder.
        batches: Values, some samples at a time; a sample has no batch dimension.
        samples: Number of all samples.
        key: What the values depend on, stored in `META`.
        max_bytes: Bound on the size.

    Raises:
        TooLargeError: As soon as the batches so far predict a larger size.
    """
    with _Files(folder) as files:
        done = 0
        for batch in batches:
            for sample in batch:
                files.append(leaves(sample))
            done += len(batch)
            predicted = files.size * samples // done
            if predicted > max_bytes:
                raise TooLargeError(f"{predicted / 1e9:.1f} GB")
        if done != samples:
            raise ValueError(f"an entry of {samples} samples was given {done}")
        leaf_files = files.finish()
    meta = {"about": key, "samples": samples, "leaves": leaf_files}
    write_file(folder / META, json.dumps({**meta, "checksum": _checksum_of(meta)}))


def read_meta(folder: Path) -> dict[str, Any]:
    """Reads `META`, the description of an entry: its key (``about``), number of samples and files of each leaf.

    Raises:
        ValueError: If the file is damaged.
        OSError: If the file is missing.
    """
    meta = json.loads((folder / META).read_text())
    if not isinstance(meta, dict) or meta.pop("checksum", None) != _checksum_of(meta):
        raise ValueError("its description has changed")
    return meta


def check(folder: Path, meta: dict[str, Any]) -> None:
    """Compares the content of every file with its checksum.

    Raises:
        ValueError: If a file has changed.
    """
    for leaf in meta["leaves"].values():
        for file, expected in leaf["checksums"].items():
            if _checksum(folder / file) != expected:
                raise ValueError(f"{file} has changed")


def open_entry(folder: Path, meta: dict[str, Any]) -> Stored:
    """Maps the files of an entry.

    Raises:
        ValueError, KeyError: If files and description do not agree.
    """
    samples = int(meta["samples"])
    return Stored({name: _open_leaf(folder, leaf, samples) for name, leaf in meta["leaves"].items()}, samples)


def _open_leaf(folder: Path, leaf: dict[str, Any], samples: int) -> _Leaf:
    dtype = getattr(torch, leaf["dtype"])
    file = folder / leaf["file"]
    if leaf["shape"] is not None:
        shape = (samples, *leaf["shape"])
        return _Leaf(_map(file, dtype, _numel(shape)).view(shape))
    shapes = _map(folder / leaf["shapes"], torch.int64, samples * leaf["ndim"]).view(samples, leaf["ndim"])
    sizes = shapes.prod(dim=1)
    ends = sizes.cumsum(0)
    return _Leaf(_map(file, dtype, int(ends[-1])), shapes, ends - sizes)


def _map(file: Path, dtype: torch.dtype, numel: int) -> Tensor:
    if file.stat().st_size != numel * dtype.itemsize:
        raise ValueError(f"{file.name} has the wrong length")
    # A private mapping: a task that writes to its inputs must not change the file.
    return torch.from_file(str(file), shared=False, size=numel, dtype=dtype) if numel else torch.empty(0, dtype=dtype)


class _Files:
    """The files of an entry that is being written: one per leaf, and a second one if the shapes of a leaf vary."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, IO[bytes]] = {}
        self._checksums: dict[str, int] = {}
        self._shapes: dict[str, list[tuple[int, ...]]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.size = 0

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def append(self, sample: dict[str, Tensor]) -> None:
        for name, tensor in sample.items():
            self._dtypes.setdefault(name, tensor.dtype)
            self._shapes.setdefault(name, []).append(tuple(tensor.shape))
            self._write(_file(name), tensor)

    def finish(self) -> dict[str, dict[str, Any]]:
        return dict(self._describe())

    def _describe(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, shapes in self._shapes.items():
            file = _file(name)
            leaf: dict[str, Any] = {
                "file": file,
                "dtype": str(self._dtypes[name]).removeprefix("torch."),
                "shape": list(shapes[0]) if len(set(shapes)) == 1 else None,
                "ndim": len(shapes[0]),
            }
            files = [file]
            if leaf["shape"] is None:
                leaf["shapes"] = f"{name}.shapes.bin"
                self._write(leaf["shapes"], torch.tensor(shapes, dtype=torch.int64))
                files.append(leaf["shapes"])
            leaf["checksums"] = {path: f"{self._checksums[path]:08x}" for path in files}
            yield name, leaf
        for opened in self._open.values():
            opened.close()

    def _write(self, file: str, tensor: Tensor) -> None:
        if file not in self._open:
            self._open[file] = (self._folder / file).open("wb")
            self._checksums[file] = 0
        # By way of uint8, because NumPy has no bfloat16.
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        self._open[file].write(content)
        self._checksums[file] = zlib.crc32(content, self._checksums[file])
        self.size += len(content)


def _file(name: str) -> str:
    return f"{name}.bin" if name != SINGLE else "data.bin"


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _checksum_of(meta: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(meta, sort_keys=True).encode()):08x}"


def _numel(shape: Sequence[int]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product
