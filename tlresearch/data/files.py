"""Images that lie in files, decoded when they are asked for and verified once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tlresearch.data.decoding import as_tensor, decode
from tlresearch.data.dicom import Window
from tlresearch.data.file_cache import FileCache
from tlresearch.data.reading import for_each
from tlresearch.data.table import Checked
from tlresearch.data.volumes import file_of, picture, read_slice


class FileImages:
    """Images in files below one root.

    Args:
        root: Folder the names are relative to.
        names: Paths relative to the root; of slices, see `slices_of`.
        windows: Intensities shown of DICOM files and volumes; none takes their own.
    """

    def __init__(self, root: Path, names: Sequence[str], windows: Sequence[Window] = ()) -> None:
        self.root = root
        self.names = names
        self.windows = tuple(windows)

    def load(self, index: int, channels: int) -> Tensor:
        """Returns one image as uint8 ``(channels, H, W)``.

        Raises:
            ValueError: If it cannot be read or decoded.
        """
        name = self.names[index]
        part = read_slice(self.root, name)
        if part is not None:
            return as_tensor(picture(part.values, self.windows, part.window), channels)
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from None
        return decode(content, channels, self.windows)

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes and decodes every file; a file that has not changed since is not read again."""
        cache = FileCache(self.root)
        checked = for_each(lambda index: self._check(self.names[index], cache), indices)
        cache.save()
        if not self.windows:
            return checked
        # Another window is another picture of the same file.
        return [c._replace(digest=hashlib.sha256(f"{c.digest} {self.windows}".encode()).hexdigest()) for c in checked]

    def _check(self, name: str, cache: FileCache) -> Checked:
        path = self.root / file_of(name)
        try:
            # Before reading: a file that changes meanwhile then differs from what is remembered.
            stat = path.stat()
            known = cache.get(name, stat)
            if known is not None:
                return known
            part = read_slice(self.root, name)
            content = b"" if part is not None else path.read_bytes()
        except FileNotFoundError:
            return Checked("", 0, 0, "the file does not exist")
        except OSError as error:
            return Checked("", 0, 0, error.strerror or str(error))
        except ValueError as error:
            return Checked("", 0, 0, str(error))
        if part is not None:
            checked = Checked(part.digest, *part.values.shape)
            cache.put(name, stat, checked)
            return checked
        digest = hashlib.sha256(content).hexdigest()
        try:
            _, height, width = decode(content, channels=3).shape
        except ValueError as error:
            return Checked(digest, 0, 0, str(error))
        checked = Checked(digest, height, width)
        cache.put(name, stat, checked)
        return checked
