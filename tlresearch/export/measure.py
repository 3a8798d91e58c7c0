"""What an exported form is worth: its size, its speed, its metrics, and how far its answers are from the original's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tlresearch.data.base import Data, SplitName
from tlresearch.export.formats import Runner
from tlresearch.tasks.classification import Meters

BATCH = 16
"""Images of a batch when throughput is timed."""
_SECONDS = 1.0  # each timing runs for so long
_RUNS = 8  # and so many times at least


@dataclass(frozen=True)
class Tolerance:
    """How far the answers of a form may be from the original's.

    Attributes:
        changed: Largest share of samples whose likeliest class (or any label) is another.
        difference: Largest difference of a probability of any sample and class.
    """

    changed: float
    difference: float


TOLERANCES = {
    "fp32": Tolerance(0.0, 1e-3),
    "fp16": Tolerance(0.005, 0.02),
    "bf16": Tolerance(0.02, 0.1),
    "int8-dynamic": Tolerance(0.05, 0.5),
    "int8-static": Tolerance(0.05, 0.5),
}
"""What is tolerated unless the user says otherwise, by number format. In int8 a single borderline sample may move far;
what counts there is how many answers change."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one form.

    Attributes:
        size: Bytes on disk.
        latency: Median time of a single image, in milliseconds.
        throughput: Images per second in batches of `BATCH`.
        metrics: Metrics of the split without its name.
        changed: Share of samples whose answer is another than the original's.
        difference: Largest difference of a probability.
    """

    size: int
    latency: float
    throughput: float
    metrics: dict[str, float]
    changed: float = 0.0
    difference: float = 0.0

    def beyond(self, tolerance: Tolerance) -> str:
        """Says in what the answers are too far from the original's, NaN among them; empty if in nothing."""
        problems = []
        if not self.changed <= tolerance.changed:
            problems.append(f"{self.changed:.2%} of the answers changed, {tolerance.changed:.2%} is tolerated")
        if not self.difference <= tolerance.difference:
            problems.append(f"a probability moved by {self.difference:.2g}, {tolerance.difference:g} is tolerated")
        return "; ".join(problems)


def answers(run: Runner, data: Data, split: SplitName, rows: Sequence[int]) -> NDArray[Any]:
    """Returns the probabilities ``(rows, classes)`` of raw images, one image at a time, as they come in use."""
    part = data.splits[split]
    return np.concatenate([run(as_image(part.raw(row))[None]) for row in rows])


def measure(
    run: Runner, found: NDArray[Any], wanted: NDArray[Any], data: Data, split: SplitName, rows: Sequence[int], size: int
) -> Measured:
    """Measures a form.

    Args:
        run: The form.
        found: Its probabilities ``(rows, classes)``.
        wanted: Those of the original.
        data: The data.
        split: The split the rows are of.
        rows: Positions of the samples.
        size: Bytes on disk.
    """
    targets = torch.as_tensor(data.splits[split].targets)[list(rows)]
    meters = Meters(data.kind, len(data.classes), thorough=True)
    meters.update(
        torch.from_numpy(found).float(), targets.int() if data.kind == "multilabel" else targets, torch.tensor(0.0)
    )
    image = as_image(data.splits[split].raw(rows[len(rows) // 2]))
    return Measured(
        size=size,
        latency=1000 * _seconds(run, image[None]),
        throughput=BATCH / _seconds(run, np.repeat(image[None], BATCH, axis=0)),
        metrics={name: value for name, value in meters.finish().items() if name != "loss"},
        changed=float((_decided(found, data) != _decided(wanted, data)).any(axis=1).mean()),
        difference=float(np.abs(found - wanted).max()),
    )


def as_image(raw: torch.Tensor) -> NDArray[Any]:
    """A raw sample ``(C, H, W)`` as exported models take it, ``(H, W, C)``."""
    return np.ascontiguousarray(raw.permute(1, 2, 0).numpy())


def _decided(probabilities: NDArray[Any], data: Data) -> NDArray[Any]:
    if data.kind == "multilabel":
        several: NDArray[Any] = probabilities > 0.5
        return several
    best: NDArray[Any] = probabilities.argmax(axis=1, keepdims=True)
    return best


def _seconds(run: Runner, batch: NDArray[Any]) -> float:
    """Median time of a call; the first two are left out, since libraries prepare themselves in them."""
    for _ in range(2):
        run(batch)
    times: list[float] = []
    while len(times) < _RUNS or sum(times) < _SECONDS:
        began = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - began)
        if len(times) >= 3 and sum(times) > 5 * _SECONDS:
            break  # a large network: three are enough
    return statistics.median(times)
