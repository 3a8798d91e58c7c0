"""What is exported: preprocessing, network and answer in one module, in operations that the formats know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tlresearch.base.errors import UserError
from tlresearch.modality.base import Front
from tlresearch.tasks.predictor import Predictor, ScoresPredictor


class Shipped(nn.Module):
    """What is exported: preprocessing, network and answer in one module.

    Args:
        front: Turns arrays into the network's input.
        network: Backbone and head; gives scores ``(N, classes)`` or ``(N, classes, height, width)``.
        answered: Makes the outputs of scores; see `ScoresPredictor.answered`.
        dtype: Number format of the network; what is in front and behind stays float32.
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
    """A trained model as it is exported: from arrays that anybody can make to probabilities and an answer.

    Args:
        predictor: The model as the project serves it.

    Raises:
        UserError: If it is of a task, or over inputs, of which there is no graph.

    Attributes:
        front: What stands in front of the network.
        network: Backbone and head.
        reads: What a sample is: image, text or sound.
        inside: What a file does, in words.
    """

    def __init__(self, predictor: Predictor) -> None:
        if not isinstance(predictor, ScoresPredictor):
            raise UserError(f"export: {predictor.not_exported}")
        self.predictor = predictor
        self.front = predictor.preprocessing.front()
        self.network = predictor.network
        self.reads = predictor.preprocessing.sample
        self.inside = self.front.inside.format(network=predictor.inside)

    def shipped(self, network: nn.Module, dtype: torch.dtype) -> Shipped:
        """Returns the module that is exported, over a copy of the network."""
        return Shipped(self.front, network, self.predictor.answered, dtype)
