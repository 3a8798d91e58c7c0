"""One vector per sample and stage: what a backbone makes of samples, averaged over positions and kept in the store."""

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

from tlresearch.activations.code import code_of, code_under
from tlresearch.activations.inference import Inference, frozen
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.channels import channel_axes
from tlresearch.backbones.sequences import mean_of
from tlresearch.data.base import SampleKey, Split
from tlresearch.finetuning.param_groups import digests
from tlresearch.modality.values import Value, leaves, unstack

SECONDS = "seconds"


@dataclass(frozen=True)
class StageFeatures:
    """Samples as the stages of a backbone see them.

    Attributes:
        by_stage: Averaged output of each stage ``(samples, width)``, the one nearest the input first.
        seconds: Time the stages took when they were run; reading and decoding is not in it.
        computed: Whether they were run just now, and not read from the store.
    """

    by_stage: tuple[NDArray[np.float32], ...]
    seconds: float
    computed: bool


def stage_features(
    backbone: StagedBackbone,
    source: Callable[[], Split],
    rows: Sequence[int],
    about: Mapping[str, Any],
    *,
    how: Inference,
    device: torch.device,
    batch_size: int,
    store: ActivationStore | None,
) -> StageFeatures:
    """Runs every stage of a backbone over samples, once for the same backbone and samples.

    Args:
        backbone: The backbone, with the weights that are looked at.
        source: Gives the samples, the same in every epoch; called only if they are needed.
        rows: Positions of the samples.
        about: What the samples are: fingerprint of the data, preprocessing and split.
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
            found: dict[str, Tensor] = {}
            for number, stage in enumerate(stages):
                value = stage(value)
                found[str(number)] = backbone.joined(pooled(value, axes[number])).float().cpu()
            found[SECONDS] = torch.full((len(keys),), (perf_counter() - began) / len(keys))
            yield unstack(found)

    stored = store.get(_key(backbone, about, rows, how), len(rows), compute) if store else None
    if stored is not None:
        whole: Any = stored.batch(range(len(rows)))
    else:  # nothing is to be kept, the disk is full, or read-only
        samples: list[Any] = [sample for batch in compute() for sample in batch]
        whole = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    by_stage = tuple(whole[str(number)].numpy() for number in range(len(backbone.stages)))
    return StageFeatures(by_stage, float(whole[SECONDS].sum()), bool(ran))


def pooled(value: Value, axes: Mapping[str, int]) -> Tensor:
    """Means over positions: ``(batch, width)`` of a tensor, and of all tensors of a dict side by side.

    Args:
        value: Images ``(batch, C, H, W)`` or ``(batch, H, W, C)`` and sequences ``(batch, length, width)``. A mask
            ``(batch, length)`` says which positions count of every tensor that begins so, such as maps of sounds
            ``(batch, length, channels, bands)``.
        axes: The axis of an image's channels by the name of the tensor, see `channel_axes`; 1 where it has none.
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


def _key(backbone: StagedBackbone, about: Mapping[str, Any], rows: Sequence[int], how: Inference) -> dict[str, Any]:
    return {
        **about,
        "samples": hashlib.sha256(repr(list(rows)).encode()).hexdigest(),
        "boundary": "all, averaged",
        "code": code_under(["tlresearch.activations.features", "tlresearch.data.build"]),
        "stages": list(backbone.stage_names),
        "weights": [{"code": code_of(s), **digests(iter(s.state_dict().items()))} for s in backbone.stages],
        "torch": torch.__version__,
        "precision": how.precision,
        "memory_format": how.memory_format,
    }
