"""The module that is exported: preprocessing, network and answer, in operations that the formats support."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tlresearch.base.errors import UserError
from tlresearch.modality.base import Front
from tlresearch.tasks.predictor import Predictor, ScoresPredictor


class ExportedModule(nn.Module):
    """Preprocessing, network and answer in one module.

    Args:
        front: Turns arrays into the network's input.
        network: Backbone and head; returns scores ``(N, classes)`` or ``(N, classes, height, width)``.
        answered: Turns scores into the outputs; see `ScoresPredictor.answered`.
        dtype: Number format of the network; preprocessing and answer stay float32.
    """

    def __init__(
        self,
        front: Front,
        network: nn.Module,
        answered: Callable[[Tensor], tuple[Tensor, ...]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.front = front
        self.network = network.to(dtype)
        self.answered = answered
        self.dtype = dtype
        self.eval()

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs; see `ScoresPredictor.outputs`."""
        value = self.front(*arrays)
        if isinstance(value, dict):
            value = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in value.items()}
        else:
            value = value.to(self.dtype)
        scores = self.network(value).float()
        if scores.dim() == 4:
            scores = self.front.unframed(scores, *arrays)
        return self.answered(scores)


class Exportable:
    """A trained model that can be exported.

    Args:
        predictor: The predictor that serves the model.

    Raises:
        UserError: If its task or its inputs cannot be part of a graph.

    Attributes:
        front: The preprocessing as part of the graph.
        network: Backbone and head.
        reads: Kind of a sample: image, text or sound.
        inside: Description of what an exported file does.
    """

    def __init__(self, predictor: Predictor) -> None:
        if not isinstance(predictor, ScoresPredictor):
            raise UserError(f"export: {predictor.not_exported}")
        self.predictor = predictor
        self.front = predictor.preprocessing.front()
        self.network = predictor.network
        self.reads = predictor.preprocessing.sample
        self.inside = self.front.inside.format(network=predictor.inside)

    def module(self, network: nn.Module, dtype: torch.dtype) -> ExportedModule:
        """Returns the module to export, with a copy of the network, which is converted to `dtype`."""
        return ExportedModule(self.front, network, self.predictor.answered, dtype)
