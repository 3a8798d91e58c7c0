"""Counts by class give torchmetrics' values to the bit, at a cost that grows with samples plus classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torchmetrics import classification as tm

from tlresearch.tasks.classification import Meters
from tlresearch.tasks.counts import ClassCounts
from tlresearch.tasks.segmentation import PixelMeters


@pytest.fixture(params=[False, True], ids=["plain", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(("classes", "samples"), [(2, 7), (3, 64), (10, 5), (40, 300)])
def test_means_equal_torchmetrics(classes: int, samples: int, deterministic: bool) -> None:
    draw = torch.Generator().manual_seed(classes)
    counts = ClassCounts(classes)
    usual = {
        "accuracy": tm.MulticlassAccuracy(classes, average="micro"),
        "balanced_accuracy": tm.MulticlassRecall(classes, average="macro"),
        "macro_f1": tm.MulticlassF1Score(classes, average="macro"),
    }
    for _ in range(3):
        scores = torch.rand(samples, classes, generator=draw)
        # The last class is never there, and seldom predicted.
        targets = torch.randint(max(1, classes - 1), (samples,), generator=draw)
        counts.update(scores.argmax(dim=1), targets)
        for metric in usual.values():
            metric.update(scores, targets)
    assert {name: float(value) for name, value in counts.compute().means().items()} == {
        name: float(metric.compute()) for name, metric in usual.items()
    }


def test_samples_that_are_ignored_do_not_count() -> None:
    counts = ClassCounts(3, ignored=255)
    counts.update(torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0, 255], [1, 1]], dtype=torch.uint8))
    assert [count.tolist() for count in counts.compute()] == [[1, 1, 0], [1, 1, 1], [1, 2, 0]]


class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.usefixtures("deterministic")
def test_a_batch_of_many_classes_takes_no_square_of_them() -> None:
    classes, batch = 1500, 16
    meters = Meters("multiclass", classes, thorough=True)
    with Allocations() as seen:
        meters.update(torch.rand(batch, classes).softmax(dim=1), torch.arange(batch), torch.tensor(0.0))
    assert seen.largest <= 2 * batch * classes
    pixels = PixelMeters(tuple(map(str, range(100))))
    with Allocations() as seen:
        pixels.update(torch.zeros(2, 32, 32, dtype=torch.int64), torch.zeros(2, 32, 32), torch.tensor(0.0))
    assert seen.largest <= 2 * 32 * 32
