"""What a served model takes: images, sounds and texts as files, bytes, base64 of a request, or values in memory."""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tlresearch.data import audio_decoding, decoding
from tlresearch.data.audio_files import EXTENSIONS
from tlresearch.data.base import Orientation, Window
from tlresearch.data.files import PICTURES
from tlresearch.data.volumes import VOLUMES

LONGEST_PATH = 1000  # longer text is a whole file
_ARRAY = b"\x93NUMPY"
"""How a ``.npy`` file begins."""


class RawInput(ABC):
    """One kind of raw sample.

    Attributes:
        name: What a sample is called.
        column: Column of a data frame that holds the samples.
        suffixes: Endings of the files that are taken from a folder.
        dims: Numbers of dimensions of an array that is one sample; of more it is several.
    """

    name: ClassVar[str]
    column: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    dims: ClassVar[tuple[int, ...]]

    @abstractmethod
    def decode(self, content: bytes) -> Any:
        """Turns the bytes of a file into a sample.

        Raises:
            ValueError: If they cannot be decoded; the text says why.
        """

    @abstractmethod
    def value(self, given: Any) -> Any:
        """Turns a value in memory into a sample.

        Raises:
            ValueError: If it is none.
        """

    def open(self, path: Path) -> Any:
        """Reads a sample from a file.

        Raises:
            ValueError: If it cannot be decoded; the text says why.
            OSError: If the file cannot be read.
        """
        return self.decode(path.read_bytes())

    def read(self, model_input: Any) -> list[Any]:
        """Reads samples as MLflow hands them over.

        Args:
            model_input: A data frame with the column `column`, a list, or one sample. A sample is a path, the bytes of
                a file (or these as base64 text, as they stand in a request), or an array.

        Raises:
            ValueError: If it is anything else, or a sample cannot be decoded.
            FileNotFoundError: If text is neither base64 nor the path of a file.
        """
        if hasattr(model_input, "columns"):
            if self.column not in model_input.columns:
                known = ", ".join(map(str, model_input.columns))
                raise ValueError(f"the data frame needs a column '{self.column}' but has: {known}")
            model_input = list(model_input[self.column])
        return [self.sample(given) for given in ([model_input] if self._alone(model_input) else model_input)]

    def sample(self, given: Any) -> Any:
        """Reads one sample; see `read`."""
        if isinstance(given, Path):
            return self.open(given)
        if isinstance(given, str):
            return self.text(given)
        return self.decode(bytes(given)) if isinstance(given, (bytes, bytearray)) else self.value(given)

    def text(self, given: str) -> Any:
        """Reads a sample from text: a path, or base64."""
        if len(given) <= LONGEST_PATH and Path(given).is_file():
            return self.open(Path(given))
        try:
            return self.decode(base64.b64decode(given, validate=True))
        except ValueError as error:
            if len(given) > LONGEST_PATH:
                raise ValueError(f"neither base64 text of a file ({self.name}) nor a path: {error}") from None
            raise FileNotFoundError(f"there is no {self.name} file {given[:200]}") from None

    def _alone(self, given: Any) -> bool:
        if isinstance(given, (np.ndarray, Tensor)):
            return given.ndim in self.dims and getattr(given.dtype, "kind", "f") != "O"
        return isinstance(given, (str, bytes, bytearray, Path))


class RawImages(RawInput):
    """Images; a sample is uint8 ``(C, H, W)`` with as many channels as the network takes.

    Args:
        channels: Channels of the network's input.
        windows: See `Preprocessing.windows`.
        orientation: See `Preprocessing.orientation`.
    """

    name, column, dims = "image", "image", (2, 3)
    suffixes = (*(ending for ending in PICTURES if ending not in VOLUMES), ".npy")

    def __init__(self, channels: int, windows: Sequence[Window] = (), orientation: Orientation = "exif") -> None:
        self.channels = channels
        self.windows = windows
        self.orientation = orientation

    def decode(self, content: bytes) -> Tensor:
        """Decodes an image file as training does, or an array ``(H, W)`` or ``(H, W, C)`` in a ``.npy`` file."""
        if content.startswith(_ARRAY):
            return self.value(np.load(io.BytesIO(content), allow_pickle=False))
        return decoding.decode(content, self.channels, self.windows, self.orientation)

    def value(self, given: Any) -> Tensor:
        """Takes an array uint8 ``(H, W)`` or ``(H, W, C)``."""
        array = np.asarray(given)
        if str(array.dtype) != "uint8" or array.ndim not in self.dims:
            raise ValueError(f"images must be uint8 (height, width, channels) but got {array.dtype} {array.shape}")
        planes = array[:, :, None] if array.ndim == 2 else array
        image = torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))
        return decoding.to_channels(image[:3] if len(image) == 4 and self.channels != 4 else image, self.channels)


class RawSounds(RawInput):
    """Sounds; a sample is a waveform float32 ``(samples,)`` in -1 to 1 at the network's rate.

    Args:
        rate: Samples per second that the network takes.
    """

    name, column, suffixes, dims = "sound", "audio", EXTENSIONS, (1,)

    def __init__(self, rate: int) -> None:
        self.rate = rate

    def decode(self, content: bytes) -> Tensor:
        """Decodes a sound file, mixed to mono and resampled."""
        return audio_decoding.decode(content, self.rate)[0]

    def value(self, given: Any) -> Tensor:
        """Takes an array ``(samples,)`` at the network's rate."""
        clip = torch.as_tensor(given, dtype=torch.float32)
        if clip.ndim != 1 or not len(clip):
            raise ValueError(f"a sound must be an array (samples,) but got {tuple(clip.shape)}")
        return clip


class RawTexts(RawInput):
    """Texts; a text is a sample itself, never a path or base64. A file is one text in UTF-8."""

    name, column, suffixes, dims = "text", "text", (".txt", ".text", ".md"), ()

    def decode(self, content: bytes) -> str:
        """Decodes UTF-8."""
        try:
            return self.value(content.decode("utf-8-sig").strip())
        except UnicodeDecodeError:
            raise ValueError("not a text in UTF-8") from None

    def text(self, given: str) -> str:
        """Takes a text."""
        return self.value(given)

    def value(self, given: Any) -> str:
        """Takes a text that is not empty."""
        if not isinstance(given, str):
            raise ValueError("the model takes texts: a list of strings, or a data frame with the column 'text'")
        if not given.strip():
            raise ValueError("the text is empty")
        return given


class RawSentences(RawTexts):
    """Texts for models of words; a sample is a text, or the words of a sentence that is split already."""

    def value(self, given: Any) -> Any:
        """Takes a text, or its words."""
        if isinstance(given, (Sequence, np.ndarray)) and not isinstance(given, str) and len(given):
            if all(isinstance(word, str) for word in given):
                return list(given)
            raise ValueError("a sentence is a text, or a list of its words")
        return super().value(given)
