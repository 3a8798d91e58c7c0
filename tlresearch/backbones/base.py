"""A backbone as an ordered list of stages: running them one after another is its forward pass."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode

from tlresearch.backbones.recomputing import recomputed
from tlresearch.modality.base import Modality
from tlresearch.modality.values import Value

End = Literal["pooled", "sequence", "maps"]
"""What a backbone gives at its end, as the task needs it: a tensor ``(batch, out_features)``; hidden states
``{"hidden": (batch, length, out_features), "mask": (batch, length)}``; or feature
maps ``(batch, C, H, W)`` by name, finest first."""

Way = Literal["own", "graph", "structure", "children"]
"""How a network was taken apart; see `stages.py`."""


@dataclass(frozen=True)
class WeightsRecord:
    """Where a backbone's weights came from; what a run logs and a reproduction checks.

    Attributes:
        source: Enum name, file name, URL or run id; ``"random"`` if nothing was loaded.
        sha256: Hash of the loaded file, or of the tensors if there was no file; empty for random weights.
        random_stages: Names of the stages that hold at least one parameter or buffer that was not loaded.
        prefix: What stands in front of the tensors' names in the file, such as ``state_dict.module.``.
    """

    source: str = "random"
    sha256: str = ""
    random_stages: tuple[str, ...] = ()
    prefix: str = ""


class StagedBackbone(nn.Module):
    """A network without its head, as an ordered list of stages, 0 nearest the input.

    Every parameter and buffer belongs to exactly one stage. Names inside a stage are those of the original
    network, so ``stages.layer4.0.conv1.weight`` keeps its file name once the prefix is taken off: see
    `original_state_dict`.

    Args:
        stages: The stages in order, by name.
        out_features: Width of the output, a tensor of shape ``(batch, out_features)``.
        preprocessing: What its inputs are, and what is done to a sample in front of it.
        weights: Where the weights came from.
        way: How the network was taken apart.
        reasons: Why ways that are better were not taken.
    """

    save_files: Callable[[Path], Mapping[str, object]] | None = None
    """Writes into a folder what the backbone is built from beside its weights, and returns name and options for it
    (see `Recipe`); ``None`` where the config says it all."""
    recomputing = False
    """Whether stages run again in the backward pass, instead of keeping what they compute on their way."""

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        out_features: int,
        preprocessing: Modality,
        weights: WeightsRecord | None = None,
        way: Way = "own",
        reasons: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.stage_names = tuple(stages)
        self.stages = nn.ModuleList(stages.values())
        self.out_features = out_features
        self.preprocessing = preprocessing
        self.weights = weights or WeightsRecord()
        self.way = way
        self.reasons = tuple(reasons)

    @property
    def can_stop(self) -> bool:
        """Whether the backbone can be run up to a boundary and from there, so that activations can be stored."""
        return self.way != "children"

    def forward(self, x: Value, start: int = 0, stop: int | None = None) -> Any:
        """Runs the stages ``start`` to ``stop - 1``.

        Args:
            x: The network's input if `start` is 0, else the output of stage ``start - 1``; see `Value`.
            start: First stage to run.
            stop: Stage to stop before; ``None`` runs to the end.

        Returns:
            The output of the last stage that ran; of shape ``(batch, out_features)`` at the end.
        """
        whole = getattr(self.stages[-1], "run_whole", None)
        if whole is not None and start == 0 and stop is None and torch.compiler.is_exporting():
            parts = [stage for stage in self.stages if hasattr(stage, "run_whole")]
            stop = len(self.stages) - len(parts)  # what lies in front of the network that was cut
            return whole(parts, self.forward(x, 0, stop))
        for number, stage in enumerate(self.stages[start:stop], start):
            if self.recomputing and torch.is_grad_enabled():
                x = recomputed(partial(self.step, number, stage), stage, x)
            else:
                x = self.step(number, stage, x)
        return x

    def joined(self, vectors: Tensor) -> Tensor:
        """Makes one vector of each sample, where it has several inputs; see `PairBackbone`."""
        return vectors

    def step(self, number: int, stage: nn.Module, x: Value) -> Any:
        """Runs one stage, or a copy of it; a backbone that carries more than a stage takes does that here."""
        return stage(x)

    def named_stages(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields ``(name, stage)`` from the input to the head."""
        yield from zip(self.stage_names, self.stages, strict=True)

    def original_state_dict(self) -> dict[str, Tensor]:
        """Returns the state dict under the original network's parameter names."""
        merged: OrderedDict[str, Tensor] = OrderedDict()
        for stage in self.stages:
            merged.update(stage.state_dict())
        return merged


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Runs a block with a module in eval mode and gives every layer its own mode back."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Runs a block and undoes what it changes in a module: attributes, modules, and what buffers hold.

    Some networks keep what they computed for an input's size as an attribute or a buffer, or choose their modules by
    it. A pass on fake tensors would leave fake tensors there.
    """
    layers = list(module.modules())
    held = [(layer.__dict__, dict(layer.__dict__)) for layer in layers]
    held += [(registry, dict(registry)) for layer in layers for registry in (layer._buffers, layer._modules)]
    # Inside of another pass on fake tensors nothing can be written, and nothing compared.
    buffers = [] if detect_fake_mode() else [buffer for layer in layers for buffer in layer._buffers.values()]
    contents = [(buffer, buffer.clone()) for buffer in buffers if buffer is not None]
    try:
        yield
    finally:
        for registry, before in held:
            registry.clear()
            registry.update(before)
        for buffer, content in contents:
            if not torch.equal(buffer, content):  # not told by its version: batch norm writes without a new one
                buffer.data.copy_(content)  # nor does this, so that a graph that reads it still holds
