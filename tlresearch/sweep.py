"""A sweep: a study whose trials are runs of one experiment, nested under one MLflow run."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.console import Console

from tlresearch import study as studies
from tlresearch import sweep_report
from tlresearch.backbones.build import build_backbone
from tlresearch.config.load import Loaded, Overrides, load_experiment, load_sweep, revise
from tlresearch.config.paths import home
from tlresearch.config.schema import ExperimentConfig, SpaceConfig, SweepConfig
from tlresearch.config.search_space import resolve_all, suggest
from tlresearch.errors import ConfigError, UserError
from tlresearch.experiment import RunResult, Trial, fit
from tlresearch.finetuning.callback import EpochReport, RunPrunedError
from tlresearch.results import pin_checkpoint
from tlresearch.sweep_progress import SweepProgress
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.run import TrackedRun, open_run

TRIAL_TRACKING = {
    "tracking.figures": False,
    "tracking.model": False,
    "tracking.weights": False,
    "tracking.system_metrics": False,
}
"""Trials record config and metrics; the best one is run again with everything."""


class TrialFailedError(Exception):
    """A trial ended with an error that is its own; the sweep goes on."""


@dataclass(frozen=True)
class FinalRun:
    """A run that reports: the best trial run again in full, or a baseline.

    Attributes:
        name: ``best``, or the baseline's name.
        run_id: Its MLflow run.
        metrics: Metrics of the selected epoch, and of the test split where there is one.
    """

    name: str
    run_id: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        name: Name of the study.
        run_id: Its MLflow run, the parent of the trials.
        url: Address of the study in the MLflow UI.
        objective: The metric that was optimised.
        best: Overrides of the best trial by full key.
        best_value: Its objective.
        best_yaml: File with the best trial's whole config; `run` takes it as it is.
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
    base = pin_checkpoint(revise(load_experiment(config.experiment), config.overrides))
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
            worker = Worker(config, base, space, study, parent, progress)
            worker.optimise()
            final = worker.finish()
            best = studies.complete(study)[0]
            best_yaml = folder / "best.yaml"
            best_yaml.write_text(worker.best_config(best).recorded)
            figures = sweep_report.write_figures(study, config, folder)
            sweep_report.log_study(parent, study, config, final, best_yaml, figures)
    return SweepResult(
        name=config.name,
        run_id=parent.run_id,
        url=parent.url,
        objective=config.objective.metric,
        best=dict(best.params),
        best_value=float(best.value or 0.0),
        best_yaml=best_yaml,
        final=tuple(final),
        figures=figures,
        trials=tuple(study.get_trials(deepcopy=False)),
    )


@dataclass(frozen=True)
class Worker:
    """Runs the trials of a study, one after another in this process, and its final runs."""

    config: SweepConfig
    base: Loaded[ExperimentConfig]
    space: dict[str, SpaceConfig]
    study: Study
    parent: TrackedRun
    progress: SweepProgress

    def optimise(self) -> None:
        """Runs trials until the total is reached."""
        left = self.config.trials - len(studies.ended(self.study))
        if left > 0:
            self.study.optimize(
                self.objective,
                n_trials=left,
                catch=(TrialFailedError,),
                callbacks=[self.progress.trial_ended],
            )

    def objective(self, trial: optuna.Trial) -> float:
        """Runs one trial and returns its objective."""
        point = suggest(trial, self.space)
        trial.set_user_attr("overrides", point)
        metric = self.config.objective.metric

        def report(epoch: EpochReport) -> None:
            if metric not in epoch.metrics:
                known = ", ".join(name for name in sorted(epoch.metrics) if name.startswith("val/"))
                raise ConfigError(
                    [f"objective.metric: '{metric}' is not recorded; recorded: {known}"], self.config.name
                )
            if not math.isfinite(epoch.metrics["train/loss"]):
                raise TrialFailedError(f"the training loss was {epoch.metrics['train/loss']} in epoch {epoch.epoch}")
            trial.report(epoch.metrics[metric], epoch.epoch)
            if trial.should_prune():
                raise RunPrunedError(f"{metric} {epoch.metrics[metric]:.4f} after epoch {epoch.epoch}")

        tags = {"tlresearch.study": self.config.name, "tlresearch.trial": str(trial.number)}
        setting = Trial(self.parent.run_id, trial_name(trial.number, point), tags, report)
        try:
            result = fit(revise(self.base, {**point, **TRIAL_TRACKING}), trial=setting)
        except UserError:
            raise
        except Exception as error:
            trial.set_user_attr(
                "failure", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            raise TrialFailedError(str(error)) from error
        trial.set_user_attr("run_id", result.run_id)
        trial.set_user_attr("seconds", round(result.seconds, 2))
        if result.status == "pruned":
            raise optuna.TrialPruned
        return result.metrics[metric]

    def finish(self) -> list[FinalRun]:
        """Runs the best trial again in full, and the baselines; what has been run before is not run again."""
        done = studies.complete(self.study)
        if not done:
            reasons = [
                t.user_attrs["failure"] for t in self.study.get_trials(deepcopy=False) if "failure" in t.user_attrs
            ]
            raise UserError(
                f"sweep '{self.config.name}': no trial was completed; "
                + (f"the last one failed: {reasons[-1]}" if reasons else "all were pruned: let the pruner wait longer")
            )
        runs = [self._final("best", self.best_config(done[0]))]
        for name, overrides in self.config.baselines.items():
            runs.append(self._final(name, revise(self.base, overrides)))
        return runs

    def best_config(self, best: FrozenTrial) -> Loaded[ExperimentConfig]:
        """The experiment with the values of a trial."""
        return revise(self.base, best.user_attrs["overrides"])

    def _final(self, name: str, experiment: Loaded[ExperimentConfig]) -> FinalRun:
        key = f"final:{name}"
        identity = hashlib.sha256(experiment.recorded.encode()).hexdigest()
        before = self.study.user_attrs.get(key)
        if before is None or before["identity"] != identity:
            self.progress.note(f"final run: {name}")
            tags = {"tlresearch.study": self.config.name, "tlresearch.final": name}
            result: RunResult = fit(experiment, trial=Trial(self.parent.run_id, name, tags, test=True))
            before = {"identity": identity, "run_id": result.run_id, "metrics": result.metrics}
            self.study.set_user_attr(key, before)
        return FinalRun(name, before["run_id"], before["metrics"])


def trial_name(number: int, point: dict[str, Any]) -> str:
    """Names a trial by what differs, shortest first: the MLflow UI cuts names after about 14 characters."""
    return " ".join([f"{number:02d}", *(f"{_initials(key)}{_short(value)}" for key, value in point.items())])


def _initials(key: str) -> str:
    words = key.rpartition(".")[2].split("_")
    return words[0] if len(words) == 1 else "".join(word[0] for word in words)


def _short(value: Any) -> str:
    return f"{value:.1e}".replace("e-0", "e-") if isinstance(value, float) else f"{value}"


def _needs_stages(space: dict[str, SpaceConfig]) -> bool:
    return any(dimension.high == "all" for dimension in space.values())


def _stages(base: Loaded[ExperimentConfig]) -> int:
    # Random weights: only the number of stages is asked for.
    return len(build_backbone(replace(base.config.backbone, weights=None, checkpoint=None)).stage_names)


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
        tags={"tlresearch.study": config.name, "tlresearch.kind": "study"},
        description=config.description,
        run_id=run_id,
    )
    if run_id is None:
        study.set_user_attr("run_id", parent.run_id)
        parent.log_text(loaded.recorded, "sweep.yaml")
        parent.log_text(base.recorded, "experiment.yaml")
        collect(sys.argv).log(parent)
    return parent
