"""The brief of a worker: everything that it needs of the study, with no path, so that it works on any machine."""

from __future__ import annotations

from dataclasses import dataclass

from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.studies.sweeps.subject import Subject


@dataclass(frozen=True)
class Brief:
    """The study as a worker needs it.

    Attributes:
        config: The sweep.
        subject: The experiment or function that is varied.
        space: The search space; every bound is a number.
        parent: MLflow run of the study.
        worker: Number of the worker; the sampler's seed depends on it.
        post: Name of its place; a process that replaces it after its death has the same.
    """

    config: SweepConfig
    subject: Subject
    space: dict[str, SpaceConfig]
    parent: str
    worker: int = 0
    post: str = ""
