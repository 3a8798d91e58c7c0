"""A sweep: a study whose trials are runs of one experiment, nested under one MLflow run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tlresearch.base.errors import UserError
from tlresearch.base.liveness import Identity
from tlresearch.base.paths import BEST, home
from tlresearch.config.load import Loaded, Overrides, load_sweep
from tlresearch.config.schema import TrackingConfig
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.studies.launch.local import run_trials as run_locally
from tlresearch.studies.launch.ray import run_trials as run_on_ray
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.confirm import confirm
from tlresearch.studies.sweeps.experiment import Experiment
from tlresearch.studies.sweeps.function import Function, Trial
from tlresearch.studies.sweeps.joining import Plan, check, join, opened
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.result import SweepResult, log_study, write_figures
from tlresearch.studies.sweeps.trials import Worker
from tlresearch.tracking.courier import courier_process, wait_until_delivered
from tlresearch.tracking.records import Runs, close_lost
from tlresearch.tracking.store import resolve_uri

LAUNCHERS = {"local": run_locally, "ray": run_on_ray}
"""Functions that run a sweep's trials, by the name of the launcher."""


def sweep(
    subject: str | Path | Callable[[Trial], float],
    space: Mapping[str, SpaceConfig] | None = None,
    *,
    name: str | None = None,
    metric: str = "",
    direction: Literal["maximize", "minimize"] | None = None,
    tracking: Mapping[str, Any] | None = None,
    console: Console | None = None,
    **options: Any,
) -> SweepResult:
    """Searches the best values for an experiment or for your own function. A second call continues the search.

    The function is called with a `Trial`: it reads the values by name and returns the objective. Anything that it
    trains under `tlresearch.Track` or with `tlresearch.fit` is recorded in the trial's run.

    Args:
        subject: The function; or an experiment by name or path; or a sweep by name or path, which has its own space.
        space: The search space: for each value of the function, or key of the experiment, `tlresearch.log`, `uniform`,
            `integers`, `choice` or `depths`.
        name: Name of the study. By default it depends on subject and space, so that a changed function or space makes
            another study.
        metric: The objective. By default ``objective`` for a function, and the monitored metric for an experiment.
        direction: Whether more or less is better. By default a function is minimised, and the task of an experiment
            decides.
        tracking: For a function, the tracking options of its trials: the keys of ``tracking`` in an experiment.
        console: Console for the progress; ``None`` shows none.
        options: Further keys of a sweep's file: `trials`, `sampler`, `pruner` (by name, too), `seed`, `workers`,
            `enqueue`, `overrides`, `storage`, …

    Raises:
        UserError: If the sweep or its experiment is wrong, or no trial was completed.
    """
    if metric or direction:
        options["objective"] = {key: value for key, value in (("metric", metric), ("direction", direction)) if value}
    for component in ("sampler", "pruner"):
        if isinstance(options.get(component), str):
            options[component] = {"name": options[component]}
    if not callable(subject) and space is None:
        changes = {f"overrides.{key}": value for key, value in options.pop("overrides", {}).items()}
        return run(subject, {**options, **changes, **({"name": name} if name else {})}, console=console)
    values: dict[str, Any] = {**options, "space": {key: _differing(value) for key, value in (space or {}).items()}}
    function: Function | None = None
    if callable(subject):
        where = getattr(subject, "__qualname__", type(subject).__name__)
        function = Function(subject, f"{subject.__module__}.{where}", TrackingConfig(**(tracking or {})))
        values["function"] = function.name
        values["objective"] = {"metric": "objective", "direction": "minimize", **values.get("objective", {})}
        text, called = "".join(function.texts.values()), where.rpartition(".")[2].strip("<>")
    else:
        values["experiment"] = text = str(subject)
        called = f"{Path(text).stem}/{'_x_'.join(key.rpartition('.')[2] for key in values['space'])}"
    searched = {key: values.get(key) for key in ("space", "objective", "overrides")}
    values["name"] = name or f"{called}-{hashlib.sha256(f'{text}{searched}'.encode()).hexdigest()[:8]}"
    return _run(check(load_sweep(values), function), console)


def _differing(dimension: SpaceConfig) -> dict[str, Any]:
    """Returns the fields of a dimension that differ from their defaults, as in a YAML file."""
    plain = SpaceConfig()
    return {key: value for key, value in vars(dimension).items() if value != getattr(plain, key)}


def run(
    sweep: str | Path | Loaded[SweepConfig],
    overrides: Overrides = (),
    *,
    console: Console | None = None,
) -> SweepResult:
    """Runs a sweep up to its total number of trials. A second call continues it.

    Args:
        sweep: Name under ``sweeps/``, path of a YAML file, or a loaded sweep.
        overrides: Values of the sweep by full key, such as ``["trials=40"]``.
        console: Console for the progress; ``None`` shows none.

    Raises:
        UserError: If the sweep or its experiment is wrong, or no trial was completed.
    """
    loaded = sweep if isinstance(sweep, Loaded) else load_sweep(sweep, overrides)
    return _run(check(loaded), console)


def _run(plan: Plan, console: Console | None) -> SweepResult:
    config, subject = plan.config, plan.subject
    folder = home() / "sweeps" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        studies.quiet_optuna(),
        _one_at_a_time(config),
        courier_process(resolve_uri(subject.tracking.uri)),
        opened(plan) as (study, parent),
        SweepProgress(console, study, config, studies.give_back(study, Identity.own())) as progress,
    ):
        worker = Worker(config, subject, plan.space, study, parent, progress)
        LAUNCHERS[config.launcher](worker)
        # `close_lost` looks for the trials' runs in MLflow, so they must be there.
        wait_until_delivered(parent.store.uri)
        close_lost(Runs(parent.store), parent.run_id, studies.given_back(study))
        worker.check_complete()
        confirmed = confirm(config, subject.base, study, parent, progress) if isinstance(subject, Experiment) else []
        best = confirmed[0].trial if confirmed else studies.complete(study)[0]
        final = subject.finish(config, study, parent, progress, best)
        best_yaml = _write(folder / BEST, subject.at(best.user_attrs["overrides"]))
        figures = write_figures(study, config, folder)
        log_study(parent, study, config, best, confirmed, final, best_yaml, figures)
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


def _write(file: Path, text: str | None) -> Path | None:
    if text is None:
        return None
    file.write_text(text)
    return file


def work(sweep: Loaded[SweepConfig], *, console: Console | None = None) -> int:
    """Runs trials of a sweep, as one of any number of workers, until it has its total; returns how many it ran.

    Confirmation, final runs and figures come once, after all trials, and are left to `run`.

    Raises:
        UserError: If the sweep or its experiment is wrong, or differs from that of the study.
    """
    plan = check(sweep)
    identity = Identity.own()
    # Workers know nothing of one another, so a hash of host and process gives each a number of its own.
    number = int(hashlib.sha256(repr(identity).encode()).hexdigest()[:8], 16)
    with studies.quiet_optuna(), courier_process(resolve_uri(plan.subject.tracking.uri)):
        study, parent = join(plan, worker=number)
        retried = studies.give_back(study, identity)
        with SweepProgress(console, study, plan.config, retried, all_workers=False) as progress:
            earlier = len(progress.shown)
            Worker(plan.config, plan.subject, plan.space, study, parent, progress, identity).run_all()
    close_lost(Runs(plan.subject.tracking.uri), parent.run_id, studies.given_back(study))
    return len(progress.shown) - earlier


@contextlib.contextmanager
def _one_at_a_time(config: SweepConfig) -> Iterator[None]:
    with studies.study_lock(config, "sweep", wait=False) as held:
        if not held:
            raise UserError(
                f"sweep '{config.name}' is already running; wait for it, join it with `tlresearch worker`, "
                "or give this one another name="
            )
        yield
