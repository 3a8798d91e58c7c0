"""What a worker is told when it is started: everything about the study, and nothing that is a file's name."""

from __future__ import annotations

from dataclasses import dataclass

from tlresearch.config.load import Loaded
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig


@dataclass(frozen=True)
class Brief:
    """The study as a worker needs it.

    Attributes:
        config: The sweep.
        base: The experiment that is varied.
        space: The search space with every bound a number.
        parent: MLflow run of the study.
        worker: Number of the worker: each draws other points.
        post: Name of what it does, kept by the process that replaces it when it dies.
    """

    config: SweepConfig
    base: Loaded[ExperimentConfig]
    space: dict[str, SpaceConfig]
    parent: str
    worker: int = 0
    post: str = ""
