"""Measures an exported form: size, speed, metrics, and the difference of its answers from those of the original."""

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
"""Samples per batch when throughput is timed."""
_SECONDS = 1.0  # minimal time of a timing
_RUNS = 8  # minimal number of runs in a timing


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the difference of a form's answers from those of the original.

    Attributes:
        changed: Largest share of samples (for masks: of pixels) whose likeliest class, or any label, may change.
        difference: Largest difference of a probability for any sample and class; of a number, in standard deviations.
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
"""Default tolerances by number format.

In float32 only the rounding of libraries differs, mainly of resized pixels: no answer changes, or one pixel in ten
thousand. One per cent of changed answers bounds the loss of accuracy by one point, the usual bound for quantised
networks (MLPerf Inference requires 99 % of the reference's accuracy; Reddi et al. 2020, arXiv:1911.02549). The
difference of a probability is a maximum over all samples, and a single borderline sample may move far."""


@dataclass(frozen=True)
class Measured:
    """The measurements of a form.

    Attributes:
        size: Bytes on disk.
        latency: Median time for a single sample, from raw sample to answer, in milliseconds.
        throughput: Samples per second in batches of `BATCH`.
        metrics: Metrics of the split, without its name.
        changed: Share of samples (of pixels) whose answer differs from the original's.
        difference: Largest difference of a probability, or of a number in standard deviations.
    """

    size: int
    latency: float
    throughput: float
    metrics: dict[str, float]
    changed: float = 0.0
    difference: float = 0.0

    def beyond(self, tolerance: Tolerance) -> str:
        """Says which bounds the answers exceed; empty if none."""
        problems = []
        # `not <=` instead of `>`, so that NaN is beyond every bound.
        if not self.changed <= tolerance.changed:
            problems.append(f"{self.changed:.2%} of the answers changed, {tolerance.changed:.2%} is tolerated")
        if not self.difference <= tolerance.difference:
            problems.append(f"an answer moved by {self.difference:.2g}, {tolerance.difference:g} is tolerated")
        return "; ".join(problems)


Answers = list[NDArray[Any]]
"""Probabilities ``(1, classes, ...)``, or numbers, of each sample."""


def answers(run: Runner, data: Data, split: SplitName, rows: Sequence[int]) -> Answers:
    """Returns the first output for raw samples, one sample at a time, as in use."""
    part = data.splits[split]
    return [run([part.raw(row)]) for row in rows]


def measure(
    model: Exportable,
    run: Runner,
    form_answers: Answers,
    original_answers: Answers,
    data: Data,
    split: SplitName,
    rows: Sequence[int],
    size: int,
) -> Measured:
    """Measures a form.

    Args:
        model: The model from which the form was written.
        run: Runs the form.
        form_answers: The answers of the form.
        original_answers: The answers of the model itself.
        data: The data.
        split: The split of the samples.
        rows: Positions of the samples.
        size: Bytes on disk.
    """
    sample = data.splits[split].raw(rows[len(rows) // 2])  # one sample for all timings, so that forms are comparable
    predictor, pairs = model.predictor, list(zip(form_answers, original_answers, strict=True))
    return Measured(
        size=size,
        latency=1000 * _seconds(run, [sample]),
        throughput=BATCH / _seconds(run, [sample] * BATCH),
        metrics=predictor.score(form_answers, data, split, rows),
        changed=float(np.concatenate([predictor.changed(*pair) for pair in pairs]).mean()),
        difference=max(predictor.moved(*pair) for pair in pairs),
    )


def _seconds(run: Runner, batch: Sequence[Any]) -> float:
    """Returns the median time of a call, without the first two, in which libraries initialise themselves."""
    for _ in range(2):
        run(batch)
    times: list[float] = []
    while len(times) < _RUNS or sum(times) < _SECONDS:
        began = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - began)
        if len(times) >= 3 and sum(times) > 5 * _SECONDS:
            break  # a slow network: three runs are enough
    return statistics.median(times)
