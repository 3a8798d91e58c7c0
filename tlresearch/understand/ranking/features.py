"""What a backbone makes of a split at each of its boundaries, for scores that need no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tlresearch.activations.features import stage_features
from tlresearch.activations.inference import Inference
from tlresearch.activations.plan import FrozenPrefix
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.base import StagedBackbone
from tlresearch.data.base import Data, Split, SplitName
from tlresearch.finetuning.schedule import Phase


@dataclass(frozen=True)
class Features:
    """One split as a backbone sees it.

    Attributes:
        pooled: Averaged activations ``(n, d)`` by boundary: 1 behind the first stage, up to the number of stages.
        targets: Class numbers ``(n,)``.
        seconds: Time the stages took for all samples when they were run; reading and decoding is not in it.
    """

    pooled: Mapping[int, NDArray[np.float32]]
    targets: NDArray[Any]
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

        def source() -> Split:
            count = len(backbone.stages)
            prefix = FrozenPrefix(self.data, backbone, self.store, batch_size=self.batch_size)
            # A phase that trains everything: its boundary is 0, where decoded inputs are kept for every backbone.
            prefix.enter(Phase("rank", tuple(range(count)), rates=(0.0,) * (count + 1), epochs=1))
            return prefix.splits[split]

        own = self.data.splits[split]
        data, preprocessing = self.data.fingerprint.digest, repr(self.data.preprocessing)
        found = stage_features(
            backbone,
            source,
            range(len(own)),
            {"data": data, "preprocessing": preprocessing, "split": split},
            how=Inference(),
            device=self.device,
            batch_size=self.batch_size,
            store=self.store,
        )
        self.passes += found.computed
        targets = torch.as_tensor(own.targets).numpy()
        return Features(dict(enumerate(found.by_stage, start=1)), targets, found.seconds)
