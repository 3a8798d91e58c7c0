"""What is exported: preprocessing, network and answer in one module, in operations that the formats know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tlresearch.base.errors import UserError
from tlresearch.modality.base import Front
from tlresearch.tasks.predictor import Predictor, ScoresPredictor


class Shipped(nn.Module):
    """What is exported: preprocessing, network and answer in one module.

    Args:
        front: Turns arrays into the network's input.
        network: Backbone and head; gives logits ``(N, classes)`` or ``(N, classes, height, width)``.
        multilabel: Labels have independent probabilities.
        dtype: Number format of the network; what is in front and behind stays float32.
    """

    def __init__(self, front: Front, network: nn.Module, multilabel: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.front = front
        self.network = network.to(dtype)
        self.multilabel = multilabel
        self.dtype = dtype
        self.eval()

    def forward(self, *arrays: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``probabilities``, float32, classes in dimension 1, and the ``answer``: the likeliest, int64.

        Of several labels the answer is bool, of the probabilities' shape: those above one half.
        """
        value = self.front(*arrays)
        if isinstance(value, dict):
            value = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in value.items()}
        else:
            value = value.to(self.dtype)
        scores = self.network(value).float()
        if scores.dim() == 4:
            scores = self.front.unframed(scores, *arrays)
        return self.answer(scores)

    def answer(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Makes probabilities and answer of logits."""
        if self.multilabel:
            probabilities = scores.sigmoid()
            return probabilities, probabilities > 0.5
        probabilities = scores.softmax(dim=1)
        return probabilities, probabilities.argmax(dim=1)


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
        return Shipped(self.front, network, self.predictor.kind == "multilabel", dtype)
