"""Features: one vector per sample and stage, the stage's output averaged over positions, kept in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlresearch.activations.code import code_of
from tlresearch.activations.inference import Inference, frozen
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.channels import channel_axes
from tlresearch.backbones.sequences import mean_of
from tlresearch.base.code import code_under
from tlresearch.data.base import SampleKey, Split
from tlresearch.finetuning.param_groups import digests
from tlresearch.modality.values import Value, leaves, unstack

SECONDS = "seconds"


@dataclass(frozen=True)
class StageFeatures:
    """The output of every stage for samples.

    Attributes:
        by_stage: Averaged output of each stage ``(samples, width)``, from the input to the head.
        seconds: Time of the forward passes when they were computed, without reading and decoding.
        computed: Whether they were computed by this call and not read from the store.
    """

    by_stage: tuple[NDArray[np.float32], ...]
    seconds: float
    computed: bool


def stage_features(
    backbone: StagedBackbone,
    source: Callable[[], Split],
    rows: Sequence[int],
    sample_key: Mapping[str, Any],
    *,
    how: Inference,
    device: torch.device,
    batch_size: int,
    store: ActivationStore | None,
) -> StageFeatures:
    """Runs every stage of a backbone over samples, or reads the result of an earlier call from the store.

    Args:
        backbone: The backbone.
        source: Returns the samples, the same in every epoch; called only if features must be computed.
        rows: Positions of the samples.
        sample_key: What the samples depend on: fingerprint of the data, preprocessing and split.
        how: Precision and memory format.
        device: Where the stages run.
        batch_size: Samples per forward pass.
        store: Where the features are kept; ``None`` keeps none.
    """
    ran: list[bool] = []

    def compute() -> Iterator[Sequence[Value]]:
        ran.append(True)
        split = source()
        backbone.to(device)
        axes = channel_axes(backbone)
        stages = [frozen(backbone, how, device, number, number + 1) for number in range(len(backbone.stages))]
        for first in range(0, len(rows), batch_size):
            keys = [SampleKey(row, 0) for row in rows[first : first + batch_size]]
            value = split.__getitems__(keys).inputs
            began = perf_counter()
            batch: dict[str, Tensor] = {}
            for number, stage in enumerate(stages):
                value = stage(value)
                batch[str(number)] = backbone.joined(pooled(value, axes[number])).float().cpu()
            # Stored with the features, as a share per sample, so that a later read knows what computing them took.
            batch[SECONDS] = torch.full((len(keys),), (perf_counter() - began) / len(keys))
            yield unstack(batch)

    stored = store.get(_key(backbone, sample_key, rows, how), len(rows), compute) if store else None
    if stored is not None:
        features: Any = stored.batch(range(len(rows)))
    else:  # there is no store, or it cannot be written: the disk is full or read-only
        samples: list[Any] = [sample for batch in compute() for sample in batch]
        features = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    by_stage = tuple(features[str(number)].numpy() for number in range(len(backbone.stages)))
    return StageFeatures(by_stage, float(features[SECONDS].sum()), bool(ran))


def pooled(value: Value, axes: Mapping[str, int]) -> Tensor:
    """Averages over positions: ``(batch, width)`` for a tensor; the tensors of a dict are concatenated.

    Args:
        value: Images ``(batch, C, H, W)`` or ``(batch, H, W, C)``, or sequences ``(batch, length, width)``. With a
            mask ``(batch, length)`` only its positions count in each tensor whose shape begins with the mask's, such
            as maps of sounds ``(batch, length, channels, bands)``.
        axes: The axis of an image's channels by tensor name, see `channel_axes`; 1 for a name that is not in it.
    """
    mask = value.get("mask") if isinstance(value, dict) else None
    parts = []
    for name, leaf in leaves(value).items():
        if not leaf.is_floating_point():
            continue
        if mask is not None and leaf.ndim > 2 and leaf.shape[:2] == mask.shape:
            parts.append(mean_of(leaf.flatten(2), mask))
        else:
            parts.append(_mean(leaf, axes.get(name, 1)))
    return torch.cat(parts, dim=1)


def _mean(leaf: Tensor, axis: int) -> Tensor:
    if leaf.ndim == 4:
        return leaf.mean(dim=(1, 2) if axis == 3 else (2, 3))
    return leaf.mean(dim=1) if leaf.ndim == 3 else leaf.flatten(1)


def _key(
    backbone: StagedBackbone, sample_key: Mapping[str, Any], rows: Sequence[int], how: Inference
) -> dict[str, Any]:
    return {
        **sample_key,
        "samples": hashlib.sha256(repr(list(rows)).encode()).hexdigest(),
        "boundary": "all, averaged",
        "code": code_under(["tlresearch.activations.features", "tlresearch.data.build"]),
        "stages": list(backbone.stage_names),
        "weights": [{"code": code_of(s), **digests(iter(s.state_dict().items()))} for s in backbone.stages],
        "torch": torch.__version__,
        "precision": how.precision,
        "memory_format": how.memory_format,
    }
