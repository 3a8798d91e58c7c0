"""What a ranking comes to: scores of each backbone at each boundary. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

METHODS = ("logme", "h_score", "leep", "nce", "knn", "probe")
"""Scores in the order of the table. LEEP and NCE exist behind the last stage alone."""


@dataclass(frozen=True)
class Ranked:
    """What one backbone came to.

    Attributes:
        name: The backbone.
        weights: Where its weights came from.
        stages: Names of its stages.
        boundaries: Scores by method at each boundary, behind the first stage first.
        depth: The unfreeze depth that is proposed; see `proposed_depth`.
        parameters: Number of values in its parameters.
        megabytes: Size of parameters and buffers, in 10^6 bytes.
        samples_per_second: Throughput of the stages when they were run, training and validation split together.
        seconds: Time the ranking of this backbone took.
        run_id: Its MLflow run.
        problem: Why it has no scores, if so.
    """

    name: str
    weights: str = ""
    stages: tuple[str, ...] = ()
    boundaries: tuple[Mapping[str, float], ...] = ()
    depth: int = 0
    parameters: int = 0
    megabytes: float = 0.0
    samples_per_second: float = math.nan
    seconds: float = 0.0
    run_id: str = ""
    problem: str = ""

    @property
    def scores(self) -> Mapping[str, float]:
        """Scores behind the last stage, by method; none for a backbone that could not be had."""
        return self.boundaries[-1] if self.boundaries else {}


@dataclass(frozen=True)
class Ranking:
    """All candidates, best first; those that could not be had last.

    Attributes:
        name: The experiment or data set.
        by: The method they are ordered by.
        samples: Training and validation samples.
        backbones: The candidates.
        passes: How often stages were run over a split; 0 if all was there already.
        run_id: The MLflow run whose children are those of the backbones.
        url: Its address in the UI.
    """

    name: str
    by: str
    samples: tuple[int, int]
    backbones: tuple[Ranked, ...]
    passes: int
    run_id: str
    url: str
