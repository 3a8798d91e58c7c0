"""What every served model is: it reads raw samples, answers with a table, and says how a person sees an answer."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tlresearch.data.base import TargetKind
from tlresearch.data.values import Value, stack
from tlresearch.serving.raw import RawInput
from tlresearch.tasks.base import Task

WEIGHTS = "weights.safetensors"
DESCRIPTION = "predictor.json"
FILES = "backbone"
"""Folder of what a backbone is built from beside its weights: vocabulary and settings; see `Recipe`."""
BATCH = 64
"""Samples that run through the network at once."""


class Shown(NamedTuple):
    """An answer as a person reads it.

    Attributes:
        prediction: The answer in a few words.
        probability: How sure the model is of it, or of its least sure part; ``None`` where there is no one number.
    """

    prediction: str
    probability: float | None


class RawPredictor(ABC):
    """Predicts from raw samples, without the data or the run it came from.

    Attributes:
        raw: What it reads.
    """

    def __init__(self, raw: RawInput) -> None:
        self.raw = raw

    def read(self, model_input: Any) -> list[Any]:
        """Reads samples as MLflow hands them over; see `RawInput.read`."""
        return self.raw.read(model_input)

    @abstractmethod
    def table(self, samples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns the answers as columns of plain values, one entry per sample."""

    @abstractmethod
    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns one row of the table as a person reads it."""

    def pictures(self, sample: Any, row: Mapping[str, Any]) -> dict[str, Image]:
        """Draws an answer; a picture stands for the column of its name, if there is one."""
        return {}


class ClassPredictor(RawPredictor):
    """Predicts a class, or several labels, with the probability of each.

    Args:
        network: From a batch of inputs to logits ``(batch, classes)``.
        raw: What it reads.
        classes: Class names in the order of the logits.
        kind: What the targets are; several labels have independent probabilities.
    """

    def __init__(self, network: nn.Module, raw: RawInput, classes: Sequence[str], kind: TargetKind) -> None:
        super().__init__(raw)
        self.network = network.eval()
        self.classes = tuple(classes)
        self.kind = kind

    @abstractmethod
    def inputs(self, samples: Sequence[Any]) -> list[Value]:
        """Turns samples into inputs of the network, without a batch dimension."""

    @torch.inference_mode()
    def predict(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Returns the likeliest class ``(samples,)`` and the probabilities ``(samples, classes)``."""
        outputs = [torch.zeros(0, len(self.classes))]
        for start in range(0, len(samples), BATCH):
            outputs.append(self.network(stack(self.inputs(samples[start : start + BATCH]))).float())
        logits = torch.cat(outputs)
        probabilities = logits.sigmoid() if self.kind == "multilabel" else logits.softmax(dim=1)
        return probabilities.argmax(dim=1), probabilities

    def table(self, samples: Sequence[Any]) -> dict[str, list[Any]]:
        """Returns ``class``, its ``probability``, and ``p(<class>)`` of each class.

        Of several labels, ``class`` holds those above one half, joined by ``;``, and ``probability`` is that of the
        least sure one.
        """
        _, probabilities = self.predict(samples)
        rows = [self._row(row) for row in probabilities.tolist()]
        names = ("class", "probability", *(f"p({name})" for name in self.classes))
        return {name: [row[column] for row in rows] for column, name in enumerate(names)}

    def shown(self, row: Mapping[str, Any]) -> Shown:
        """Returns class and probability."""
        return Shown(row["class"] or "none", row["probability"])

    def _row(self, probabilities: list[float]) -> tuple[Any, ...]:
        if self.kind == "multilabel":
            given = [name for name, value in zip(self.classes, probabilities, strict=True) if value > 0.5]
            return ";".join(given), min(max(value, 1 - value) for value in probabilities), *probabilities
        best = max(probabilities)
        return self.classes[probabilities.index(best)], best, *probabilities


def save_predictor_files(folder: Path, task: Task, description: Mapping[str, Any]) -> None:
    """Writes the weights of backbone and head as safetensors, and what the network is rebuilt from as JSON."""
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in task.state_dict().items()}
    save_file({name: t for name, t in tensors.items() if name.startswith(("backbone.", "head."))}, folder / WEIGHTS)


def read_description(folder: Path) -> dict[str, Any]:
    """Reads what a network is rebuilt from."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    return description


def with_weights(folder: Path, backbone: nn.Module, head: nn.Module) -> nn.Sequential:
    """Puts stored weights into a backbone and a head, and returns both as one network."""
    whole = nn.Module()
    whole.backbone = backbone
    whole.head = head
    whole.load_state_dict(load_file(folder / WEIGHTS))
    return nn.Sequential(backbone, head)


def linear_head(width: int, classes: int) -> nn.Sequential:
    """The head of a classification, without its dropout."""
    return nn.Sequential(nn.Dropout(0.0), nn.Linear(width, classes))
