"""One vector per sample and stage: what a trained backbone makes of a set, kept in the activation store."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlresearch.activations.inference import Inference, frozen
from tlresearch.activations.plan import code_of
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.sequences import mean_of
from tlresearch.data.base import Data, SampleKey, Split
from tlresearch.data.loading import collate
from tlresearch.data.values import Value, unstack
from tlresearch.finetuning.param_groups import digests

MOST = 512
"""Samples of a set that are looked at, evenly spread over it: enough for a distance, and a bound on its cost."""


def stage_features(
    backbone: StagedBackbone,
    data: Data,
    split: Split,
    *,
    how: Inference,
    batch_size: int,
    store: ActivationStore | None,
) -> dict[str, NDArray[np.float32]]:
    """Returns the pooled output of every stage, ``(samples, width)`` by the name of the stage.

    Args:
        backbone: The backbone, with the weights that are looked at.
        data: What the split belongs to; its fingerprint names the samples.
        split: The samples, the same in every epoch.
        how: Precision and memory format.
        batch_size: Samples per forward pass.
        store: Where the features are kept; ``None`` keeps none.
    """
    indices = np.unique(np.linspace(0, len(split) - 1, min(MOST, len(split))).round().astype(int)).tolist()
    device = next(backbone.parameters()).device

    def compute() -> Iterator[Sequence[Value]]:
        stages = [frozen(backbone, how, device, number, number + 1) for number in range(len(backbone.stages))]
        together = getattr(split, "__getitems__", None)
        for first in range(0, len(indices), batch_size):
            keys = [SampleKey(index, 0) for index in indices[first : first + batch_size]]
            value = collate(together(keys) if together else [split[key] for key in keys]).inputs
            rows = {}
            for number, stage in enumerate(stages):
                value = stage(value)
                rows[str(number)] = pooled(value).float().cpu()
            yield unstack(rows)

    stored = store.get(_key(backbone, data, how), len(indices), compute) if store else None
    if stored is not None:
        whole: Mapping[str, Tensor] = stored.batch(range(len(indices)))  # type: ignore[assignment]
    else:
        samples: list[Any] = [sample for batch in compute() for sample in batch]
        whole = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {name: whole[str(number)].numpy() for number, name in enumerate(backbone.stage_names)}


def pooled(value: Value) -> Tensor:
    """Means over positions: ``(batch, width)`` of a tensor, and of all tensors of a dict side by side.

    Images ``(batch, C, H, W)`` or ``(batch, H, W, C)`` and sequences ``(batch, length, width)``. A mask
    ``(batch, length)`` says which positions count of every tensor that begins so, such as maps of sounds
    ``(batch, length, channels, bands)``.
    """
    if isinstance(value, Tensor):
        if value.ndim == 4:
            # Channels are last where the two equal sides come first, as in Swin.
            last = value.shape[1] == value.shape[2] != value.shape[3]
            return value.mean(dim=(1, 2) if last else (2, 3))
        return value.mean(dim=1) if value.ndim == 3 else value.flatten(1)
    mask = value.get("mask")
    parts = []
    for leaf in value.values():
        if leaf.is_floating_point():
            sequence = mask is not None and leaf.ndim > 2 and leaf.shape[:2] == mask.shape
            parts.append(mean_of(leaf.flatten(2), mask) if sequence and mask is not None else pooled(leaf))
    return torch.cat(parts, dim=1)


def _key(backbone: StagedBackbone, data: Data, how: Inference) -> dict[str, Any]:
    weights = [{"code": code_of(stage), **digests(iter(stage.state_dict().items()))} for stage in backbone.stages]
    return {
        "data": data.fingerprint.digest,
        "preprocessing": repr(data.preprocessing),
        "split": f"means of {MOST}",
        "pooling": hashlib.sha256(inspect.getsource(pooled).encode()).hexdigest(),
        "boundary": len(weights),
        "stages": list(backbone.stage_names),
        "weights": weights,
        "torch": torch.__version__,
        "precision": how.precision,
        "memory_format": how.memory_format,
    }
