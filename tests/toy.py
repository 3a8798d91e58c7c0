"""Shared fakes: a three-stage backbone with batch norm and dropout, and 64 samples it can learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.data.base import Batch, Data, Fingerprint, SampleKey, Split
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.values import Value

STAGES = ("stem", "middle", "top")
CLASSES = ("left", "right")


def toy_backbone(seed: int = 0, random_stages: tuple[str, ...] = ()) -> StagedBackbone:
    """Three stages over inputs ``(batch, 1, 4, 4)``; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stages = {
            "stem": nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            "middle": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3)),
            "top": nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        }
    preprocessing = Preprocessing(crop=None, resize=None, mean=(0.5,), std=(0.5,))
    record = WeightsRecord("toy", "0" * 64, random_stages)
    return StagedBackbone(stages, out_features=96, preprocessing=preprocessing, weights=record)


def toy_backbone_from_config(**options: Any) -> StagedBackbone:
    """A backbone by dotted path, as a user's own: ``backbone.name: tests.toy.toy_backbone_from_config``."""
    return toy_backbone(**options)


class ToySplit(Split):
    """Bright on the left or on the right; noise drawn from the key when `noisy`, like an augmentation."""

    def __init__(self, size: int, seed: int, *, noisy: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(size) % 2
        self.names = [f"{seed}/{index}" for index in range(size)]
        self.noisy = noisy
        self._images = torch.rand(size, 1, 4, 4, generator=generator)
        self._images[self.targets == 0, :, :, :2] += 0.5
        self._images[self.targets == 1, :, :, 2:] += 0.5

    @property
    def load_key(self) -> str:
        return "toy"

    @property
    def augment_key(self) -> str:
        return "noise" if self.noisy else ""

    def load(self, index: int) -> Tensor:
        return self._images[index]

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        return super().finish([self._noisy(value, key) for value, key in zip(values, keys, strict=True)], keys)

    def _noisy(self, image: Any, key: SampleKey) -> Tensor:
        generator = torch.Generator().manual_seed(key.index * 1009 + key.epoch)
        return image + 0.1 * torch.randn(1, 4, 4, generator=generator) if self.noisy else image

    def raw(self, index: int) -> Tensor:
        return (self._images[index] * 160).to(torch.uint8)


def toy_data(*, noisy: bool = False) -> Data:
    """64 training, 32 validation and 32 test samples of two classes."""
    splits: Mapping[Any, Any] = {
        "train": ToySplit(64, 1, noisy=noisy),
        "val": ToySplit(32, 2, noisy=False),
        "test": ToySplit(32, 3, noisy=False),
    }
    return Data("toy", splits, CLASSES, "binary", Fingerprint("f" * 64))


TRAINER = "{precision: 32-true, memory_format: contiguous, checkpoint_seconds: 0}"
"""Nothing is timed, and every epoch leaves a checkpoint."""


def toy_text(**sections: str) -> str:
    """An experiment over the toy backbone and the digits 0 and 1, as YAML text; `sections` are added or replaced."""
    base = {
        "data": "{name: digits, classes: ['0', '1'], labels_per_class: 24, test_fraction: 0.2, batch_size: 16}",
        "backbone": "{name: small_cnn, weights: null, options: {in_channels: 1, width: 4}}",
        "freeze": "{schedule: full, epochs: 3}",
        "optimizer": "{name: sgd, lr: 0.05, momentum: 0.9}",
        "trainer": TRAINER,
        "tracking": "{figures: false, model: false, system_metrics: false}",
    }
    return "\n".join(f"{key}: {value}" for key, value in {**base, **sections}.items())
