"""How a process joins a study: it checks the sweep's YAML, and the first process makes the study and its MLflow run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from optuna.study import Study

from tlresearch.backbones.build import build_backbone
from tlresearch.base.direction import Direction, direction_of
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.load import Loaded, load_experiment, revise
from tlresearch.config.parts import check_own
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.search_space import in_stages, needs_stages, resolve_all
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.run.results import pin_checkpoint
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.experiment import Experiment
from tlresearch.studies.sweeps.function import named
from tlresearch.studies.sweeps.subject import Subject
from tlresearch.tasks.build import declared, needed_end
from tlresearch.tasks.watched import monitored, undeclared
from tlresearch.tracking.base import SilentRun
from tlresearch.tracking.family import open_family
from tlresearch.tracking.records import Runs
from tlresearch.tracking.run import JournalRun
from tlresearch.tracking.views import save_view

log = logging.getLogger(__name__)

RUN_ID = "run_id"
"""Attribute of a study: its MLflow run."""


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked.

    Attributes:
        sweep: The sweep as loaded.
        subject: The experiment or function that is varied.
        space: The search space; every bound is a number.
    """

    sweep: Loaded[SweepConfig]
    subject: Subject
    space: dict[str, SpaceConfig]

    @property
    def config(self) -> SweepConfig:
        """The sweep's options."""
        return self.sweep.config


def check(sweep: Loaded[SweepConfig], subject: Subject | None = None) -> Plan:
    """Checks a sweep and its subject before anything is written.

    Args:
        sweep: The sweep.
        subject: The subject, if it is not an experiment by name.

    Raises:
        UserError: If the sweep or its experiment is wrong.
    """
    config = sweep.config
    if subject is None and config.function:
        subject = named(config.function)
    elif subject is None:
        subject = Experiment(load_experiment(config.experiment, config.overrides))
    if isinstance(subject, Experiment):
        base = pin_checkpoint(subject.base, Runs(subject.tracking.uri))
        return _check_experiment(sweep, base)
    return Plan(replace(sweep, config=_within_grid(config, config.space)), subject, config.space)


def _check_experiment(sweep: Loaded[SweepConfig], base: Loaded[ExperimentConfig]) -> Plan:
    config, space = sweep.config, sweep.config.space
    if needs_stages(space):
        stages = _stages(base)
        space = resolve_all(space, stages)
        config = replace(config, enqueue=[in_stages(point, stages) for point in config.enqueue])
    _check_space(base, space)
    config = _directed(_within_grid(config, space), base.config)
    return Plan(replace(sweep, config=config), Experiment(base), space)


def _within_grid(config: SweepConfig, space: dict[str, SpaceConfig]) -> SweepConfig:
    """The sweep with no more trials than its grid has points."""
    points = studies.grid_points(config, space)
    if points is None or points >= config.trials:
        return config
    log.warning("the grid has %d points: the sweep ends after them, not after %d trials", points, config.trials)
    return replace(config, trials=points)


def _directed(sweep: SweepConfig, base: ExperimentConfig) -> SweepConfig:
    """Fills in the metric from the experiment and its direction from the task, if the sweep does not set them.

    Raises:
        ConfigError: If the task does not declare the direction.
    """
    objective = replace(sweep.objective, metric=sweep.objective.metric or monitored(base))
    if objective.direction is not None:
        return replace(sweep, objective=objective)
    direction = direction_of(objective.metric, declared(base.task))
    if direction is None:
        raise ConfigError(
            [f"objective.direction: {undeclared(base.task, objective.metric)}; set maximize or minimize"],
            sweep.name,
        )
    words: dict[Direction, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
    return replace(sweep, objective=replace(objective, direction=words[direction]))


@contextmanager
def opened(plan: Plan) -> Iterator[tuple[Study, JournalRun]]:
    """Opens the study and its MLflow run, and creates them if they do not exist.

    A lock makes sure that processes that start at the same time create only one of each. The run is open while the
    context lasts, and ends with it.

    Raises:
        UserError: If storage or MLflow cannot be reached, or the study has another experiment or space.
    """
    with studies.study_lock(plan.config, "setup"):
        study = studies.open_study(plan.config, plan.space)
        _same_sweep(study, plan)
        parent = _open_parent(plan, study)
    with parent:
        yield study, parent


def join(plan: Plan, *, worker: int) -> tuple[Study, SilentRun]:
    """Opens the study as one of several workers. Only `tlresearch sweep` writes the study's MLflow run.

    Args:
        plan: The sweep.
        worker: A number that no other worker has; the sampler's seed depends on it.

    Raises:
        UserError: As `opened`.
    """
    with studies.study_lock(plan.config, "setup"):
        study = studies.open_study(plan.config, plan.space, worker=worker)
        _same_sweep(study, plan)
        if RUN_ID not in study.user_attrs:
            # This worker is the first process of the study: it makes the run, and `tlresearch sweep` continues it.
            _open_parent(plan, study).close("SCHEDULED")
    return study, SilentRun(study.user_attrs[RUN_ID], plan.config.name)


def _stages(base: Loaded[ExperimentConfig]) -> int:
    # Without weights, since only the number of stages matters.
    skeleton = replace(base.config.backbone, weights=None, checkpoint=None)
    return len(build_backbone(skeleton, needed_end(base.config.task)).stage_names)


def _check_space(base: Loaded[ExperimentConfig], space: dict[str, SpaceConfig]) -> None:
    """Applies the ends of every dimension, and each choice, to the experiment: a wrong one is an error at once.

    Dimensions that depend on another one (`when`) are left out: not every combination of them is valid.
    """
    usual = {key: dimension for key, dimension in space.items() if dimension.when is None}
    points = []
    for end in ("low", "high"):
        ends = {key: d.choices[0 if end == "low" else -1] if d.choices else getattr(d, end) for key, d in usual.items()}
        points.append({key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in ends.items()})
    points += [{**points[0], key: choice} for key, d in usual.items() for choice in d.choices[1:-1]]
    for point in points:
        revised = revise(base, point)
        check_own(revised.config, f"{base.source} with {point}")


def _same_sweep(study: Study, plan: Plan) -> None:
    """Refuses to continue a study whose trials had another experiment, space or objective."""
    config = plan.config
    text = "\n".join([*plan.subject.texts.values(), str(config.space), str(config.objective)])
    identity = hashlib.sha256(text.encode()).hexdigest()
    stored = study.user_attrs.get("identity")
    if stored is None:
        study.set_user_attr("identity", identity)
    elif stored != identity:
        raise UserError(
            f"sweep '{config.name}': its experiment, space, objective or the code of a part has changed "
            "since its first trial; give the new sweep another name, as in name=second_try"
        )


def _open_parent(plan: Plan, study: Study) -> JournalRun:
    config = plan.config
    run_id = study.user_attrs.get(RUN_ID)
    parent = open_family(
        config,
        plan.subject.tracking,
        config.name,
        params={f"sweep.{key}": value for key, value in plan.sweep.flat().items()},
        tags={
            "tlresearch.study": config.name,
            "tlresearch.metric": config.objective.metric,
            "tlresearch.direction": config.objective.direction or "maximize",
        },
        texts={"sweep.yaml": plan.sweep.recorded, **plan.subject.texts},
        run_id=run_id,
    )
    if run_id is None:
        study.set_user_attr(RUN_ID, parent.run_id)
    if not parent.begun:  # also if a process was killed after it had made the run
        save_view(
            parent.store,
            parent.experiment_id,
            metrics=[config.objective.metric, "val/loss", "train/loss"],
            params=list(config.space),
            best_first=config.objective.metric,
            falling=config.objective.direction == "minimize",
            query=f"tags.`tlresearch.study` = '{config.name}'",
            name=config.name,
        )
    return parent
