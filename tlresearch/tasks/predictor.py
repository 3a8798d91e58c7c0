"""What a trained network answers to raw samples, without the data or the run it came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.data.base import Data, SplitName, TargetKind
from tlresearch.modality.base import Modality, RawInput

BATCH = 64
"""Samples that run through the network at once."""

Answers = Iterator[tuple[range, Any]]
"""Positions in a split, and a data frame with the served model's answers for them."""


class Shown(NamedTuple):
    """An answer as a person reads it.

    Attributes:
        prediction: The answer in a few words.
        probability: How sure the model is of it, or of its least sure part; ``None`` where there is no one number.
    """

    prediction: str
    probability: float | None


class Predictor(ABC):
    """Predicts from raw samples; each task has one.

    Args:
        backbone: The backbone.
        head: The task's head.
        preprocessing: What a sample is, and what is done to it.
        classes: Class names in the order of their numbers.
        kind: What the targets are.

    Attributes:
        raw: How samples are read.
    """

    not_exported: ClassVar[str] = "what it answers is not one tensor of scores"
    """Why there is no graph of it; see `ScoresPredictor`."""

    def __init__(
        self,
        backbone: StagedBackbone,
        head: nn.Module,
        preprocessing: Modality,
        classes: Sequence[str],
        kind: TargetKind,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.network = nn.Sequential(backbone, head).eval()
        self.preprocessing = preprocessing
        self.raw: RawInput = preprocessing.raw
        self.classes = tuple(classes)
        self.kind = kind

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


class ScoresPredictor(Predictor):
    """A predictor whose whole answer follows from one tensor of scores, so that a graph can hold it.

    Attributes:
        outputs: What is exported by name, in words; the first is what forms are compared by.
        inside: What the graph does behind the preprocessing, in words.
        most: Samples that an export is measured on unless said otherwise; ``None`` for all.
    """

    outputs: Mapping[str, str] = {
        "probabilities": "float32 (N, classes)",
        "answer": "int64 (N,), the number of the likeliest class; of several labels bool (N, classes)",
    }
    inside: str = "network, probabilities"
    most: ClassVar[int | None] = None

    def answered(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Makes the `outputs` of the network's scores, classes in dimension 1; it is exported with the network."""
        if self.kind == "multilabel":
            probabilities = scores.sigmoid()
            return probabilities, probabilities > 0.5
        probabilities = scores.softmax(dim=1)
        return probabilities, probabilities.argmax(dim=1)

    def changed(self, found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
        """Whether each answer of a sample is another: one, or one of each pixel."""
        if self.kind == "multilabel":
            several: NDArray[Any] = ((found > 0.5) != (wanted > 0.5)).any(axis=1)
            return several
        different: NDArray[Any] = found.argmax(axis=1) != wanted.argmax(axis=1)
        return different.reshape(-1)

    def moved(self, found: NDArray[Any], wanted: NDArray[Any]) -> float:
        """How far answers of a sample lie apart: the largest difference of a probability."""
        return float(np.abs(found - wanted).max())

    @abstractmethod
    def first(self, sample: Any) -> NDArray[Any]:
        """Returns the first of the `outputs` of a raw sample, ``(1, classes, ...)``."""

    @abstractmethod
    def score(
        self, found: Sequence[NDArray[Any]], data: Data, split: SplitName, rows: Sequence[int]
    ) -> dict[str, float]:
        """Measures answers by the metrics of the task, without the split's name.

        Args:
            found: The first output of each sample.
            data: The data.
            split: The split.
            rows: Positions of the samples in it.
        """
