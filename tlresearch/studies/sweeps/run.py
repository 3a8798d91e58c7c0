"""A sweep: a study whose trials are runs of one experiment, nested under one MLflow run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from tlresearch.base.errors import UserError
from tlresearch.base.liveness import Identity
from tlresearch.base.paths import BEST, home
from tlresearch.config.load import Loaded, Overrides, load_sweep
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.studies.launch.local import run_trials as run_locally
from tlresearch.studies.launch.ray import run_trials as run_on_ray
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.confirm import confirm
from tlresearch.studies.sweeps.joining import check, join, opened
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.result import SweepResult, log_study, write_figures
from tlresearch.studies.sweeps.trials import Worker
from tlresearch.tracking.courier import beside, settle
from tlresearch.tracking.records import close_lost
from tlresearch.tracking.store import connect, resolve_uri

LAUNCHERS = {"local": run_locally, "ray": run_on_ray}
"""Where the workers of a sweep run."""


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
    plan = check(loaded)
    config, base = plan.config, plan.base
    folder = home() / "sweeps" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        studies.quiet_optuna(),
        _one_at_a_time(config),
        beside(resolve_uri(base.config.tracking.uri)),
        opened(plan) as (study, parent),
        SweepProgress(console, study, config, studies.give_back(study, Identity.own())) as progress,
    ):
        worker = Worker(config, base, plan.space, study, parent, progress)
        LAUNCHERS[config.launcher](worker)
        settle(parent.store.uri)
        close_lost(parent.store, parent.run_id, studies.given_back(study))
        worker.check_complete()
        confirmed = confirm(config, base, study, parent, progress)
        best = confirmed[0].trial if confirmed else studies.complete(study)[0]
        final = worker.finish(best)
        best_yaml = folder / BEST
        best_yaml.write_text(worker.best_config(best).recorded)
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


def work(sweep: Loaded[SweepConfig], *, console: Console | None = None) -> int:
    """Runs trials of a sweep until it has its total, as one of any number of workers; returns how many this one ran.

    What comes after the trials (confirmation, final runs, figures) is left to `run`: it happens once.

    Raises:
        UserError: If the sweep or its experiment is wrong, or is not that of the study.
    """
    plan = check(sweep)
    identity = Identity.own()
    number = int(hashlib.sha256(repr(identity).encode()).hexdigest()[:8], 16)
    with studies.quiet_optuna(), beside(resolve_uri(plan.base.config.tracking.uri)):
        study, parent = join(plan, worker=number)
        retried = studies.give_back(study, identity)
        with SweepProgress(console, study, plan.config, retried, others=False) as progress:
            before = len(progress.shown)
            Worker(plan.config, plan.base, plan.space, study, parent, progress, identity).run_all()
    close_lost(connect(plan.base.config.tracking.uri), parent.run_id, studies.given_back(study))
    return len(progress.shown) - before


@contextlib.contextmanager
def _one_at_a_time(config: SweepConfig) -> Iterator[None]:
    with studies.alone(config, "sweep", wait=False) as held:
        if not held:
            raise UserError(
                f"sweep '{config.name}' is already running; wait for it, join it with `tlresearch worker`, "
                "or give this one another name="
            )
        yield
