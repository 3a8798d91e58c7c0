"""What a sweep is: every option with its meaning, unit, default and range. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tlresearch.config.catalogue import PRUNERS, SAMPLERS
from tlresearch.config.parts import PartConfig, Registry
from tlresearch.config.setting import setting


# One option per line, whatever its length: read as a table.
# fmt: off
@dataclass
class SpaceConfig:
    """One dimension of a search space: a range, or choices."""

    low: float | None = setting(None, "Smallest value.")
    high: float | str | None = setting(None, "Largest value; 'all' is the backbone's number of stages.")
    step: float | None = setting(None, "Distance of two values.", above=0)
    whole: bool = setting(False, "Whole numbers only; options that are whole numbers are drawn as such anyway.")
    log: bool = setting(False, "Sample on a logarithmic scale.")
    choices: list[Any] = setting([], "The values to choose from, instead of a range.")
    when: str | None = setting(None, "Sample only if another dimension fulfils this, such as 'freeze.unfreeze_depth > 0'.")


@dataclass
class ObjectiveConfig:
    """What the sweep optimises."""

    metric: str = setting("", "Validation metric of the selected epoch; empty takes that of the experiment (trainer.monitor), or its task's own.")
    direction: Literal["maximize", "minimize"] | None = setting(None, "Whether more or less is better; null takes what the task says of the metric.")


@dataclass
class SamplerConfig(PartConfig):
    """A sampler of Optuna."""

    registry: ClassVar[Registry] = SAMPLERS
    name: str = setting("tpe", f"{SAMPLERS.listing}.")


@dataclass
class PrunerConfig(PartConfig):
    """A pruner of Optuna."""

    registry: ClassVar[Registry] = PRUNERS
    name: str = setting("none", f"{PRUNERS.listing}.")


@dataclass
class ConfirmConfig:
    """The best configurations, run again with fresh seeds; their mean is reported and chooses the best."""

    top: int = setting(0, "Configurations that are run again; 0 reports the best trial as it was.", unit="configurations", at_least=0)
    seeds: int = setting(3, "Seeds each of them is run with, none of them a trial's.", unit="seeds", at_least=1)


@dataclass
class RayConfig:
    """A Ray cluster, for `launcher: ray`. Each worker there runs trials one after another on what it reserves."""

    address: str = setting("auto", "Address of the cluster, host:port; auto is the one this machine belongs to.")
    cpus_per_trial: float = setting(1, "Cores reserved for each trial; its threads too.", unit="cores", above=0)
    gpus_per_trial: float = setting(0, "GPUs reserved for each trial; 0.5 lets two share one.", unit="GPUs", at_least=0)
    working_dir: str | None = setting(None, "Folder that is sent to the nodes, such as src with modules of your own; null: they see the sweep's folder at the same path.")


@dataclass
class SweepConfig:
    """One sweep: an experiment, a search space over any of its keys, and how it is searched."""

    name: str = setting("sweep", "Name of the study; the YAML's own name unless set.")
    description: str = setting("", "Free text shown in MLflow; Markdown.")
    experiment: str = setting("", "Experiment that is varied, as in `tlresearch run`.")
    function: str = setting("", "In place of an experiment a function, by dotted path: it is called with a trial, reads its values by the names in `space`, and returns the objective.")
    overrides: dict[str, Any] = setting({}, "Values that differ from the experiment, by full key; a trial's own point goes before them.")
    space: dict[str, SpaceConfig] = setting({}, "Search space: full key of the experiment to its range or choices.")
    enqueue: list[dict[str, Any]] = setting([], "Points tried first, each a mapping of full key to value.")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "Objective.")
    sampler: SamplerConfig = setting(SamplerConfig, "Sampler.")
    pruner: PrunerConfig = setting(PrunerConfig, "Pruner.")
    trials: int = setting(20, "Total number of trials; running the sweep again continues up to it.", unit="trials", at_least=1)
    workers: int | None = setting(None, "Trials that run at the same time, each in a process on its share of the cores; null is 1, and with Ray as many as the cluster has room for.", unit="processes", at_least=1)
    launcher: Literal["local", "ray"] = setting("local", "Where the workers run: on this machine, or on a Ray cluster.")
    ray: RayConfig = setting(RayConfig, "The Ray cluster.")
    seed: int = setting(0, "Seed of the sampler.", at_least=0)
    baselines: dict[str, dict[str, Any]] = setting({}, "Runs beside the trials, by name: overrides by full key, such as training from scratch.")
    confirm: ConfirmConfig = setting(ConfirmConfig, "Confirmation of the best configurations.")
    storage: str | None = setting(None, "Optuna storage URL, such as postgresql://user@host/optuna; null is a local SQLite file.")
    lost_after: int = setting(180, "Silence of a worker on another machine after which its trial is given to another one; longer than outages of the database.", unit="seconds", at_least=6)
