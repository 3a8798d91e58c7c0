"""Globally averaged activations at every boundary of a backbone: one pass per split, kept in the activation store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlresearch.activations.inference import Inference, frozen
from tlresearch.activations.plan import FrozenPrefix, code_of
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.base import StagedBackbone
from tlresearch.data.base import Data, SampleKey, SplitName
from tlresearch.data.values import Value, leaves, unstack
from tlresearch.finetuning.param_groups import digests
from tlresearch.finetuning.schedule import Phase

_SECONDS = "seconds"


@dataclass(frozen=True)
class Features:
    """One split as a backbone sees it.

    Attributes:
        pooled: Averaged activations ``(n, d)`` by boundary: 1 behind the first stage, up to the number of stages.
        targets: Class numbers ``(n,)``.
        seconds: Time the stages took for all samples when they were run; reading and decoding is not in it.
    """

    pooled: Mapping[int, NDArray[np.float32]]
    targets: NDArray[np.int64]
    seconds: float


class FeaturePass:
    """Runs the stages of backbones over a data set, once for each backbone.

    Args:
        data: The data set; its samples must not be random.
        store: Where the averages are kept.
        batch_size: Samples per forward pass.
        device: Where the stages run.

    Attributes:
        passes: How often stages were run over a split; 0 if all was there already.
    """

    def __init__(self, data: Data, store: ActivationStore, *, batch_size: int, device: torch.device) -> None:
        self.data = data
        self.store = store
        self.batch_size = batch_size
        self.device = device
        self.passes = 0

    def run(self, backbone: StagedBackbone, split: SplitName) -> Features:
        """Returns the averaged activations of a split at every boundary."""
        samples = len(self.data.splits[split])
        stored = self.store.get(self._key(backbone, split), samples, lambda: self._compute(backbone, split))
        found: Any
        if stored is not None:
            found = stored.batch(range(samples))
        else:  # the disk is full, or read-only
            rows = [row for rows in self._compute(backbone, split) for row in rows]
            found = {name: torch.stack([leaves(row)[name] for row in rows]) for name in leaves(rows[0])}
        pooled = {int(name): leaf.float().numpy() for name, leaf in found.items() if name != _SECONDS}
        targets = torch.as_tensor(self.data.splits[split].targets).numpy()
        return Features(dict(sorted(pooled.items())), targets, float(found[_SECONDS].sum()))

    def _compute(self, backbone: StagedBackbone, split: SplitName) -> Iterator[Sequence[Value]]:
        self.passes += 1
        count = len(backbone.stages)
        prefix = FrozenPrefix(self.data, backbone, self.store, batch_size=self.batch_size)
        # A phase that trains everything: its boundary is 0, where the decoded inputs are kept for every backbone.
        prefix.enter(Phase("rank", tuple(range(count)), rates=(0.0,) * (count + 1), epochs=1))
        source = prefix.splits[split]
        backbone.to(self.device)
        stages = [frozen(backbone, Inference(), self.device, number, number + 1) for number in range(count)]
        for first in range(0, len(source), self.batch_size):
            keys = [SampleKey(index, 0) for index in range(first, min(first + self.batch_size, len(source)))]
            value = source.__getitems__(keys).inputs
            began = perf_counter()
            found: dict[str, Tensor] = {}
            for number, stage in enumerate(stages, 1):
                value = stage(value)
                found[str(number)] = average(value).cpu()
            found[_SECONDS] = torch.full((len(keys),), (perf_counter() - began) / len(keys))
            yield unstack(found)

    def _key(self, backbone: StagedBackbone, split: SplitName) -> dict[str, Any]:
        return {
            "data": self.data.fingerprint.digest,
            "preprocessing": repr(self.data.preprocessing),
            "split": split,
            "boundary": "all, averaged",
            "stages": list(backbone.stage_names),
            "weights": [{"code": code_of(s), **digests(iter(s.state_dict().items()))} for s in backbone.stages],
            "torch": torch.__version__,
            "precision": Inference().precision,
        }


def average(value: Value) -> Tensor:
    """Averages a batch of activations over positions: maps over height and width, sequences over their real positions.

    Args:
        value: ``(batch, d)``, ``(batch, length, d)``, ``(batch, d, height, width)``, or ``(batch, height, width, d)``
            with height and width equal, as Swin has them; of named tensors the largest counts.

    Returns:
        ``(batch, d)``, float32.
    """
    named = leaves(value)
    mask = named.get("mask")
    leaf = max((leaf for name, leaf in named.items() if name != "mask"), key=torch.numel).float()
    if leaf.ndim == 4:
        last = leaf.shape[1] == leaf.shape[2] != leaf.shape[3]
        return leaf.mean(dim=(1, 2) if last else (2, 3))
    if leaf.ndim == 3 and mask is not None and leaf.shape[:2] == mask.shape:
        weight = mask.unsqueeze(-1).float()
        return (leaf * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
    return leaf.mean(dim=1) if leaf.ndim == 3 else leaf.flatten(1)
