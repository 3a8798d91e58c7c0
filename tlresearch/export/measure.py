"""What an exported form is worth: its size, its speed, its metrics, and how far its answers are from the original's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlresearch.data.base import Data, SplitName
from tlresearch.export.formats import Runner
from tlresearch.export.network import Exportable

BATCH = 16
"""Samples of a batch when throughput is timed."""
_SECONDS = 1.0  # each timing runs for so long
_RUNS = 8  # and so many times at least


@dataclass(frozen=True)
class Tolerance:
    """How far the answers of a form may be from the original's.

    Attributes:
        changed: Largest share of samples (of pixels, for masks) whose likeliest class, or any label, is another.
        difference: Largest difference of a probability of any sample and class, of a number in standard deviations.
    """

    changed: float
    difference: float


TOLERANCES = {
    "fp32": Tolerance(0.0001, 0.005),
    "fp16": Tolerance(0.005, 0.02),
    "bf16": Tolerance(0.02, 0.1),
    "int8-dynamic": Tolerance(0.01, 0.25),
    "int8-static": Tolerance(0.01, 0.25),
}
"""What is tolerated unless the user says otherwise, by number format.

In float32 only the libraries' rounding differs, of resized pixels above all: no answer changes, or one pixel in ten
thousand. One per cent of changed answers bounds the loss of accuracy by one point, the usual bound of quantised
networks (MLPerf Inference asks for 99 % of the reference's; Reddi et al. 2020, arXiv:1911.02549); a single borderline
sample may move further than the probabilities do on the whole."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one form.

    Attributes:
        size: Bytes on disk.
        latency: Median time of a single sample, from raw sample to answer, in milliseconds.
        throughput: Samples per second in batches of `BATCH`.
        metrics: Metrics of the split without its name.
        changed: Share of samples (of pixels) whose answer is another than the original's.
        difference: Largest difference of a probability, or of a number in standard deviations.
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
            problems.append(f"an answer moved by {self.difference:.2g}, {tolerance.difference:g} is tolerated")
        return "; ".join(problems)


Answers = list[NDArray[Any]]
"""Probabilities ``(1, classes, ...)``, or numbers, of samples."""


def answers(run: Runner, data: Data, split: SplitName, rows: Sequence[int]) -> Answers:
    """Returns the first output of raw samples, one sample at a time, as they come in use."""
    part = data.splits[split]
    return [run([part.raw(row)]) for row in rows]


def measure(
    model: Exportable,
    run: Runner,
    found: Answers,
    wanted: Answers,
    data: Data,
    split: SplitName,
    rows: Sequence[int],
    size: int,
) -> Measured:
    """Measures a form.

    Args:
        model: The model it was written of.
        run: The form.
        found: Its answers.
        wanted: Those of the original.
        data: The data.
        split: The split the rows are of.
        rows: Positions of the samples.
        size: Bytes on disk.
    """
    sample = data.splits[split].raw(rows[len(rows) // 2])
    predictor, pairs = model.predictor, list(zip(found, wanted, strict=True))
    return Measured(
        size=size,
        latency=1000 * _seconds(run, [sample]),
        throughput=BATCH / _seconds(run, [sample] * BATCH),
        metrics=predictor.score(found, data, split, rows),
        changed=float(np.concatenate([predictor.changed(*pair) for pair in pairs]).mean()),
        difference=max(predictor.moved(*pair) for pair in pairs),
    )


def _seconds(run: Runner, batch: Sequence[Any]) -> float:
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
