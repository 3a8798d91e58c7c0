"""Images that lie in files, decoded when they are asked for and verified once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tlresearch.data.file_cache import FileCache
from tlresearch.data.reading import for_each
from tlresearch.data.table import Checked, Table
from tlresearch.data.volumes import VOLUMES, Reading, all_slices, file_of, picture, read_slice
from tlresearch.modality.decoding import NEEDS_WINDOW, Measured, as_tensor, decode, measure
from tlresearch.modality.image import EXTENSIONS

logger = logging.getLogger(__name__)

PICTURES = (*EXTENSIONS, *VOLUMES)
"""Endings of files that are read as images, in small letters."""

_UNKNOWN = Measured(0, 0)


@dataclass(frozen=True)
class _Seen:
    """A file as it was read once."""

    digest: str
    measured: Measured = _UNKNOWN
    problem: str | None = None


class FileImages:
    """Images in files below one root.

    Args:
        root: Folder the names are relative to.
        names: Paths relative to the root; of slices, see `slices_of`.
        reading: How files become pictures.
    """

    def __init__(self, root: Path, names: Sequence[str], reading: Reading | None = None) -> None:
        self.root = root
        self.names = names
        self.reading = reading or Reading()

    def load(self, index: int, channels: int) -> Tensor:
        """Returns one image as uint8 ``(channels, H, W)``.

        Raises:
            ValueError: If it cannot be read or decoded.
        """
        name, windows = self.names[index], self.reading.windows
        part = read_slice(self.root, name)
        if part is not None:
            return as_tensor(picture(part.values, windows, part.window), channels)
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from None
        return decode(content, channels, windows, self.reading.orientation)

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes and decodes every file; a file that has not changed since is not read again.

        Warnings count pictures of 16 bits whose values all become one in 8 bits, and files with several pages.
        """
        cache = FileCache(self.root)
        seen = for_each(lambda index: self._look(self.names[index], cache), indices)
        cache.save()
        windows = self.reading.windows
        flat = [row for row, file in zip(indices, seen, strict=True) if file.measured.is_flat(windows)]
        if flat:
            measured = [file.measured for file in seen if file.measured.is_flat(windows)]
            low, high = min(m.low for m in measured), max(m.high for m in measured)
            logger.warning(
                "%s: %d pictures of more than 8 bits come out as one value, such as %s: their values go from %d to %d; "
                "set data.options.window=[%g, %d] to see them",
                self.root.name, len(flat), self.names[flat[0]], low, high, (low + high) / 2, high - low,
            )  # fmt: skip
        paged = [row for row, file in zip(indices, seen, strict=True) if file.measured.pages > 1]
        if paged:
            first = self.names[paged[0]]
            logger.warning(
                "%s: of %d files with several pages or frames, such as %s, only the first is read; save each as a file",
                *(self.root.name, len(paged), first),
            )
        return [self._checked(file) for file in seen]

    def _checked(self, file: _Seen) -> Checked:
        """What a file is to this source: another window, or another way to turn it, is another picture of it."""
        height, width = file.measured.size(self.reading.orientation)
        digest, measured, problem = file.digest, file.measured, file.problem
        if measured.bits == 32 and not self.reading.windows:
            problem = NEEDS_WINDOW
        if problem is None:
            if measured.turn > 1 and self.reading.orientation == "exif":
                digest = _hash(f"{digest} turned {measured.turn}")
            if measured.bits not in (8, 16) and not self.reading.windows:
                digest = _hash(f"{digest} of {measured.bits} bits")
        if self.reading.windows:
            digest = _hash(f"{digest} {self.reading.windows}")
        return Checked(digest, height, width, problem)

    def _look(self, name: str, cache: FileCache) -> _Seen:
        path = self.root / file_of(name)
        try:
            # Before reading: a file that changes meanwhile then differs from what is remembered.
            stat = path.stat()
            known = cache.get(name, stat)
            if known is not None:
                return _Seen(*known)
            part = read_slice(self.root, name)
            content = b"" if part is not None else path.read_bytes()
        except FileNotFoundError:
            return _Seen("", problem="the file does not exist")
        except OSError as error:
            return _Seen("", problem=error.strerror or str(error))
        except ValueError as error:
            return _Seen("", problem=str(error))
        if part is not None:
            digest, measured = part.digest, Measured(*part.values.shape)
        else:
            digest = hashlib.sha256(content).hexdigest()
            try:
                measured = measure(content)
            except ValueError as error:
                return _Seen(digest, problem=str(error))
        cache.put(name, stat, digest, measured)
        return _Seen(digest, measured)


def sliced(table: Table, root: Path, reading: Reading) -> Table:
    """Makes a table of files one of pictures: volumes are replaced by their slices, with label, split and group.

    Args:
        table: A table whose names are files; its `images` are replaced.
        root: Folder the names are relative to.
        reading: How files become pictures.

    Raises:
        DataError: If a volume cannot be read.
    """
    parts = all_slices(root, table.names, reading)
    rows = [row for row, names in enumerate(parts) for _ in names]
    names = [name for part in parts for name in part]
    given = table.groups or (table.names if len(names) > len(table.names) else None)
    return replace(
        table,
        names=names,
        labels=table.labels[rows],
        splits=[table.splits[row] for row in rows] if table.splits is not None else None,
        groups=[given[row] for row in rows] if given is not None else None,
        images=FileImages(root, names, reading),
        windows=reading.windows,
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
