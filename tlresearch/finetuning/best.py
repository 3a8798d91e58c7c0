"""Keeps the weights of the best epoch by a metric during training, and restores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tlresearch.backbones.weights import Loadable, load_tensors
from tlresearch.base.errors import ConfigError
from tlresearch.finetuning.schedule import Metrics, Plateau


@dataclass
class BestWeights:
    """A copy of the changing weights at the best epoch of a metric."""

    rule: Plateau
    value: float | None = None
    epoch: int | None = None
    tensors: dict[str, Tensor] | None = None

    def offer(self, epoch: int, metrics: Metrics, weights: Mapping[str, Tensor]) -> None:
        """Copies the weights if this epoch is the best so far."""
        if self.rule.metric not in metrics:
            raise ConfigError([f"'{self.rule.metric}' is not recorded; recorded: {', '.join(sorted(metrics))}"])
        value = metrics[self.rule.metric]
        if self.rule.improves(value, self.value):
            self.value, self.epoch = value, epoch
            self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def restore(self, task: Loadable) -> None:
        """Puts the best weights back."""
        if self.tensors is not None:
            # Frozen stages did not change, and have no copy.
            load_tensors(task, self.tensors, f"the weights of epoch {self.epoch}", required=())


def pack(best: BestWeights | None) -> dict[str, Any] | None:
    """Returns the state for a checkpoint, in plain containers and tensors."""
    return None if best is None else {"value": best.value, "epoch": best.epoch, "tensors": best.tensors}


def unpack(best: BestWeights | None, state: dict[str, Any] | None) -> None:
    """Restores the state that `pack` returned."""
    if best is not None and state is not None:
        best.value, best.epoch, best.tensors = state["value"], state["epoch"], state["tensors"]
