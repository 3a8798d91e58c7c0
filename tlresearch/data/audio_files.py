"""Sounds that lie in files, decoded when they are asked for and verified once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from tlresearch.data.file_cache import FileCache
from tlresearch.data.reading import for_each
from tlresearch.data.table import Checked
from tlresearch.modality.decoding import Measured
from tlresearch.modality.sound import decode

logger = logging.getLogger(__name__)


class AudioFiles:
    """Sounds in files below one root.

    Args:
        root: Folder the names are relative to.
        names: Paths relative to the root.
        rate: Samples per second that are wanted.
    """

    def __init__(self, root: Path, names: Sequence[str], rate: int = 16_000) -> None:
        self.root = root
        self.names = names
        self.rate = rate

    def load(self, index: int, channels: int = 1) -> Tensor:
        """Returns one clip as float32 ``(samples,)`` in -1 to 1, at `rate`; several channels are mixed to one.

        Raises:
            ValueError: If it cannot be read or decoded.
        """
        if channels != 1:
            raise ValueError(f"sounds are mixed to 1 channel but {channels} are wanted")
        try:
            content = (self.root / self.names[index]).read_bytes()
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from None
        return decode(content, self.rate)[0]

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes and decodes every file; a file that has not changed since is not read again.

        A `Checked` of a sound holds its samples per second as height and their number as width. Silent clips are
        sound, so they are counted in a warning only.
        """
        cache = FileCache(self.root, kind="audio")
        found = for_each(lambda index: self._check(self.names[index], cache), indices)
        cache.save()
        silent = [self.names[index] for index, (_, quiet) in zip(indices, found, strict=True) if quiet]
        if silent:
            listing = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
            logger.warning("%s: %d clips of %d are silent: %s", self.root.name, len(silent), len(found), listing)
        return [checked for checked, _ in found]

    def _check(self, name: str, cache: FileCache) -> tuple[Checked, bool]:
        """What is known of a file, and whether it is silent."""
        path = self.root / name
        try:
            # Before reading: a file that changes meanwhile then differs from what is remembered.
            stat = path.stat()
            known = cache.get(name, stat)
            if known is not None:
                digest, measured = known
                return Checked(digest, measured.height, measured.width), False
            content = path.read_bytes()
        except FileNotFoundError:
            return Checked("", 0, 0, "the file does not exist"), False
        except OSError as error:
            return Checked("", 0, 0, error.strerror or str(error)), False
        digest = hashlib.sha256(content).hexdigest()
        try:
            clip, own = decode(content, self.rate)
        except ValueError as error:
            return Checked(digest, 0, 0, str(error)), False
        checked = Checked(digest, own, round(len(clip) * own / self.rate))
        if not clip.any():
            return checked, True  # not remembered, so that the next run says so again
        cache.put(name, stat, digest, Measured(checked.height, checked.width))
        return checked, False
