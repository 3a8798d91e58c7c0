"""What a worker is told when it is started: everything about the study, and nothing that is a file's name."""

from __future__ import annotations

from dataclasses import dataclass

from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.studies.sweeps.subject import Subject


@dataclass(frozen=True)
class Brief:
    """The study as a worker needs it.

    Attributes:
        config: The sweep.
        subject: What is varied.
        space: The search space with every bound a number.
        parent: MLflow run of the study.
        worker: Number of the worker: each draws other points.
        post: Name of what it does, kept by the process that replaces it when it dies.
    """

    config: SweepConfig
    subject: Subject
    space: dict[str, SpaceConfig]
    parent: str
    worker: int = 0
    post: str = ""
