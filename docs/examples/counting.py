"""A task from the ground up: classes that are numbers are learnt as numbers, by regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Batch, Data, SplitName
from tlresearch.modality.base import Modality
from tlresearch.modality.values import stack
from tlresearch.tasks.base import Task, TaskArguments
from tlresearch.tasks.predictor import Answers, Predictor, Shown


class CountPredictor(Predictor):
    """Answers with a number."""

    @torch.inference_mode()
    def table(self, samples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns the column ``number``."""
        return {"number": self.network(stack(self.preprocessing.prepare_all(samples)))[:, 0].tolist()}

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns the number with one decimal."""
        return Shown(f"{row['number']:.1f}", None)


class Counting(Task):
    """Learns the number that a class's name is, with the mean squared error."""

    learns = ("binary", "multiclass")
    directions = {"loss": "min", "mean_error": "min", "exact": "max"}  # noqa: RUF012
    served_columns = ("number",)
    predictor = CountPredictor

    def __init__(
        self, backbone: StagedBackbone, head: nn.Module, *, numbers: Sequence[float], **arguments: Any
    ) -> None:
        super().__init__(backbone, head, **arguments)
        self.numbers = torch.tensor(numbers)
        self.errors: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "val": [], "test": []}

    @classmethod
    def build(
        cls, config: ExperimentConfig, backbone: StagedBackbone, data: Data, arguments: TaskArguments
    ) -> Counting:
        """Builds the task; every class's name must be a number."""
        head = cls.build_head(config.task, backbone, data.classes, data.preprocessing)
        return cls(backbone, head, numbers=[float(name) for name in data.classes], **arguments)

    @classmethod
    def build_head(
        cls, config: TaskConfig, backbone: StagedBackbone, classes: Sequence[str], preprocessing: Modality | None
    ) -> nn.Module:
        """Builds a linear layer with one output."""
        return nn.Linear(backbone.out_features, 1)

    @classmethod
    def measure(cls, data: Data, split: SplitName, answers: Answers) -> dict[str, float]:
        """Measures a served model's numbers."""
        given = [float(data.classes[target]) for target in data.splits[split].targets]
        found = [number for _, table in answers for number in table["number"]]
        return scores(torch.tensor(found), torch.tensor(given))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean squared error."""
        return functional.mse_loss(outputs[:, 0], self.numbers.to(outputs.device)[targets])

    def update_metrics(self, split: str, outputs: Tensor, batch: Batch, loss: Tensor) -> None:
        """Keeps the numbers that were found and given."""
        self.errors[split].append((outputs[:, 0].cpu(), self.numbers[batch.targets.cpu()]))

    def compute_metrics(self, split: str) -> dict[str, float]:
        """Returns loss, mean absolute error, and the share of numbers that are right once rounded."""
        if not self.errors[split]:
            return {}
        found, given = (torch.cat(parts) for parts in zip(*self.errors[split], strict=True))
        self.errors[split].clear()
        return {"loss": float(functional.mse_loss(found, given)), **scores(found, given)}


def scores(found: Tensor, given: Tensor) -> dict[str, float]:
    """Returns the metrics of numbers."""
    return {
        "mean_error": float((found - given).abs().mean()),
        "exact": float((found.round() == given).float().mean()),
    }
