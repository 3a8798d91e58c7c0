"""A sweep: a study whose trials are runs of one experiment, nested under one MLflow run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.console import Console

from tlresearch import study as studies
from tlresearch import sweep_report
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import Loaded, Overrides, load_experiment, load_sweep, revise
from tlresearch.config.paths import home
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.search_space import resolve_all
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.confirm import Confirmed, confirm
from tlresearch.errors import UserError
from tlresearch.launch.local import run_trials
from tlresearch.results import pin_checkpoint
from tlresearch.sweep_progress import SweepProgress
from tlresearch.tasks.build import needed_end
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.remote import RemoteTracker
from tlresearch.tracking.run import TrackedRun, open_run
from tlresearch.tracking.views import save_view
from tlresearch.trials import FinalRun, Worker


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        name: Name of the study.
        run_id: Its MLflow run, the parent of the trials.
        url: Address of the study in the MLflow UI.
        objective: The metric that was optimised.
        best: Overrides of the best trial by full key; with `confirm` it is the one with the best mean.
        best_value: Its objective as a trial.
        best_yaml: File with the best trial's whole config; `run` takes it as it is.
        confirmed: The best configurations run again with fresh seeds, best mean first; what is to be reported.
        final: The best trial run again in full, then the baselines.
        figures: Figures by name.
        trials: All trials of the study.
    """

    name: str
    run_id: str
    url: str
    objective: str
    best: dict[str, Any]
    best_value: float
    best_yaml: Path
    confirmed: tuple[Confirmed, ...]
    final: tuple[FinalRun, ...]
    figures: dict[str, Path]
    trials: tuple[FrozenTrial, ...]


def run(
    sweep: str | Path | Loaded[SweepConfig],
    overrides: Overrides = (),
    *,
    console: Console | None = None,
) -> SweepResult:
    """Runs a sweep up to its total number of trials; run again, it continues.

    Args:
        sweep: Name under ``sweeps/``, path of a YAML file, or a loaded sweep.
        overrides: Values of the sweep by full key, such as ``["trials=40"]``.
        console: Where progress is shown; ``None`` shows none.

    Raises:
        UserError: If the sweep or its experiment is wrong, or no trial was completed.
    """
    loaded = sweep if isinstance(sweep, Loaded) else load_sweep(sweep, overrides)
    config = loaded.config
    base = pin_checkpoint(load_experiment(config.experiment, config.overrides))
    if base.config.trainer.devices > 1:
        raise UserError(
            f"trainer.devices: a trial of a sweep runs in one process, but it is {base.config.trainer.devices}; "
            "set overrides.trainer.devices=1 and train the best configuration on more devices"
        )
    space = resolve_all(config.space, _stages(base) if _needs_stages(config.space) else 0)
    _check_space(base, space)
    folder = home() / "sweeps" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, config.name):
        study = studies.open_study(config, space)
        _same_sweep(study, config, base)
        retried = studies.requeue_interrupted(study)
        with (
            _open_parent(loaded, base, study) as parent,
            SweepProgress(console, study, config, retried) as progress,
        ):
            with RemoteTracker() as tracker:
                worker = Worker(config, base, space, study, parent, progress, tracker)
                run_trials(worker)
            worker.check_complete()
            confirmed = confirm(config, base, study, parent, progress)
            best = confirmed[0].trial if confirmed else studies.complete(study)[0]
            final = worker.finish(best)
            best_yaml = folder / "best.yaml"
            best_yaml.write_text(worker.best_config(best).recorded)
            figures = sweep_report.write_figures(study, config, folder)
            sweep_report.log_study(parent, study, config, best, confirmed, final, best_yaml, figures)
    return SweepResult(
        name=config.name,
        run_id=parent.run_id,
        url=parent.url,
        objective=config.objective.metric,
        best=dict(best.params),
        best_value=float(best.value or 0.0),
        best_yaml=best_yaml,
        confirmed=tuple(confirmed),
        final=tuple(final),
        figures=figures,
        trials=tuple(study.get_trials(deepcopy=False)),
    )


def _needs_stages(space: dict[str, SpaceConfig]) -> bool:
    return any(dimension.high == "all" for dimension in space.values())


def _stages(base: Loaded[ExperimentConfig]) -> int:
    # Random weights: only the number of stages is asked for.
    skeleton = replace(base.config.backbone, weights=None, checkpoint=None)
    return len(build_backbone(skeleton, needed_end(base.config.task)).stage_names)


def _check_space(base: Loaded[ExperimentConfig], space: dict[str, SpaceConfig]) -> None:
    """Tries the ends of the whole space on the experiment, so that a wrong one is found before the first trial."""
    for end in ("low", "high"):
        point = {}
        for key, dimension in space.items():
            if dimension.when is None:
                value = getattr(dimension, end)
                point[key] = dimension.choices[0 if end == "low" else -1] if dimension.choices else value
        point = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in point.items()}
        revise(base, point)


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"sweep '{name}' is already running; wait for it, or give this one another name=") from None
        yield


def _same_sweep(study: Study, config: SweepConfig, base: Loaded[ExperimentConfig]) -> None:
    """Refuses to go on with a study whose trials were of another experiment or space."""
    text = f"{base.recorded}\n{config.space}\n{config.objective}"
    identity = hashlib.sha256(text.encode()).hexdigest()
    before = study.user_attrs.get("identity")
    if before is None:
        study.set_user_attr("identity", identity)
    elif before != identity:
        raise UserError(
            f"sweep '{config.name}': its experiment, space or objective has changed since its first trial; "
            "give the new sweep another name, as in name=second_try"
        )


def _open_parent(loaded: Loaded[SweepConfig], base: Loaded[ExperimentConfig], study: Study) -> TrackedRun:
    config, tracking = loaded.config, base.config.tracking
    run_id = study.user_attrs.get("run_id")
    parent = open_run(
        replace(tracking, system_metrics=False),
        experiment=tracking.experiment or config.name,
        name=config.name,
        params={f"sweep.{key}": value for key, value in loaded.flat().items()},
        tags={
            "tlresearch.study": config.name,
            "tlresearch.metric": config.objective.metric,
            "tlresearch.direction": config.objective.direction,
        },
        description=config.description,
        run_id=run_id,
    )
    if run_id is None:
        study.set_user_attr("run_id", parent.run_id)
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
        parent.log_text(loaded.recorded, "sweep.yaml")
        parent.log_text(base.recorded, "experiment.yaml")
        collect(sys.argv).log(parent)
    return parent
