"""Tensors that are a network's input already: what a data set of the user's own gives."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tlresearch.modality.base import Modality, RawInput


class RawTensor(RawInput):
    """A tensor or array, or the bytes or path of a ``.npy`` file."""

    name: ClassVar[str] = "tensor"
    column: ClassVar[str] = "tensor"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def decode(self, content: bytes) -> Tensor:
        """Reads a ``.npy`` file; nothing in it is unpickled."""
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))

    def value(self, given: Any) -> Tensor:
        """Takes anything that becomes an array."""
        return given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))

    def open(self, path: Path) -> Tensor:
        """Reads a ``.npy`` file."""
        return self.decode(path.read_bytes())


@dataclass(frozen=True)
class Tensors(Modality):
    """Tensors of one shape, to which nothing is done.

    Attributes:
        shape: Shape of one sample.
    """

    sample: ClassVar[str] = "tensor"
    shape: tuple[int, ...]

    @property
    def raw(self) -> RawTensor:
        """As tensors, arrays and ``.npy`` files."""
        return RawTensor()

    def prepare(self, sample: Any) -> Tensor:
        """Returns it as float32, whole numbers as they are."""
        tensor = self.raw.value(sample)
        return tensor.float() if tensor.is_floating_point() else tensor

    def example(self) -> Tensor:
        """Returns zeros."""
        return torch.zeros(self.shape)

    def drawn(self, sample: Any) -> Tensor | None:
        """Returns what looks like an image, ``(C, H, W)`` with one or three channels."""
        return sample if sample.ndim == 3 and sample.shape[0] in (1, 3) else None
