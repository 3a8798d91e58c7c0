"""What every loop is given: the trials of a sweep over unfreeze depth and learning rate, without augmentation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """One trial."""

    depth: int
    lr: float


@dataclass(frozen=True)
class Spec:
    """A sweep.

    Attributes:
        model: torchvision model.
        weights: File with its weights.
        data: Folder with ``train`` and ``val``, each with a folder per class.
        points: The trials, in order.
        epochs: Epochs of each.
        batch: Samples of a training batch.
        home: Folder for whatever is recorded.
        precision: Number format and memory format; empty lets tlresearch choose.
        options: What a loop understands beyond that.
    """

    model: str
    weights: str
    data: str
    points: list[Point]
    epochs: int
    batch: int
    home: str
    precision: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a loop measured: seconds of the whole sweep, imports aside, and each trial's seconds and accuracy."""

    seconds: float
    trials: list[float]
    accuracies: list[float]
    precision: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)


def main(run: Callable[[Spec], Outcome]) -> None:
    """Reads a spec from the file that is named, runs it, and writes the outcome as the last line."""
    content = json.loads(Path(sys.argv[1]).read_text())
    content["points"] = [Point(**point) for point in content["points"]]
    print(json.dumps(asdict(run(Spec(**content)))))
