"""A modality of one's own: series of numbers, with a data set and a backbone that take them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.data.base import Data, Fingerprint, Split, SplitName
from tlresearch.modality.base import Modality, RawInput

CLASSES = ("early", "late")


class RawSeries(RawInput):
    """Series as ``.npy`` files or arrays, float ``(steps,)``."""

    name, column, suffixes, dims = "series", "series", (".npy",), (1,)

    def decode(self, content: bytes) -> Tensor:
        """Reads a ``.npy`` file."""
        return self.value(np.load(io.BytesIO(content), allow_pickle=False))

    def value(self, given: Any) -> Tensor:
        """Takes an array."""
        series = torch.as_tensor(np.asarray(given), dtype=torch.float32)
        if series.ndim != 1:
            raise ValueError(f"a series must be an array (steps,) but got {tuple(series.shape)}")
        return series


@dataclass(frozen=True)
class Series(Modality):
    """Series of a fixed length, divided by what is full.

    Attributes:
        steps: Steps of an input; longer series are cut, shorter ones filled up with zeros.
        full: Value that becomes 1.
    """

    sample = "series"

    steps: int = 32
    full: float = 10.0

    @property
    def raw(self) -> RawSeries:
        """Files and arrays."""
        return RawSeries()

    def prepare(self, sample: Tensor) -> Tensor:
        """Turns a series into ``(1, steps)``."""
        cut = sample[: self.steps]
        return nn.functional.pad(cut, (0, self.steps - len(cut)))[None] / self.full

    def example(self) -> Tensor:
        """Returns a series of zeros."""
        return torch.zeros(1, self.steps)

    def drawn(self, sample: Tensor) -> Tensor:
        """Returns the series, which figures show as a wave."""
        return sample

    def handed(self, sample: Tensor) -> Any:
        """Returns an array."""
        return sample.numpy()


class SeriesSplit(Split):
    """Series with a pulse in their first or second half."""

    def __init__(self, count: int, seed: int, preprocessing: Series) -> None:
        draw = np.random.default_rng(seed)
        self.targets = torch.arange(count) % 2
        self.names = [f"{seed}/{index}" for index in range(count)]
        self._preprocessing = preprocessing
        self._series = draw.normal(0, 1, (count, 32)).astype(np.float32)
        for series, late in zip(self._series, self.targets.tolist(), strict=True):
            place = draw.integers(2, 12) + 16 * late
            series[place : place + 3] += 10

    def raw(self, index: int) -> Tensor:
        """Returns a series."""
        return torch.from_numpy(self._series[index])

    def load(self, index: int) -> Tensor:
        """Returns a series as the network takes it."""
        return self._preprocessing.prepare(self.raw(index))


def pulses(preprocessing: Series, samples: int = 120) -> Data:
    """Makes a data set; `preprocessing` is the backbone's, the other arguments come from `data.options`."""
    counts: dict[SplitName, int] = {"train": samples, "val": samples // 3, "test": samples // 3}
    splits = {name: SeriesSplit(count, seed, preprocessing) for seed, (name, count) in enumerate(counts.items())}
    return Data("pulses", splits, CLASSES, "binary", Fingerprint(f"pulses {samples}"), preprocessing)


def pulse_network(widths: Sequence[int] = (8, 16)) -> StagedBackbone:
    """Builds a stage of convolution, ReLU and pooling for each width."""
    stages: dict[str, nn.Module] = {}
    for number, (before, width) in enumerate(zip((1, *widths), widths, strict=False)):
        layers = [nn.Conv1d(before, width, 5, padding=2), nn.ReLU(), nn.MaxPool1d(4)]
        if number == len(widths) - 1:
            layers.append(nn.Flatten())
        stages[f"block{number}"] = nn.Sequential(*layers)
    return StagedBackbone(
        stages,
        out_features=widths[-1] * 32 // 4 ** len(widths),
        preprocessing=Series(),
        weights=WeightsRecord(random_stages=tuple(stages)),
    )
