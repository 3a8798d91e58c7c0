"""A group: one experiment run with several seeds under one MLflow run, with mean, spread and interval of each metric.

What varies with the seed are the head's first weights (the backbone's too, where they are random), the order of the
samples, augmentation, mixing and dropout. The split of the data does not: it has a seed of its own (`data.split_seed`),
so that runs and groups are compared on the same samples. `data.split_seed: ${seed}` makes it vary too.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tlresearch.base.errors import ConfigError, UserError
from tlresearch.base.files import locked
from tlresearch.base.paths import home
from tlresearch.base.statistics import Summary, summary
from tlresearch.config.load import Loaded, Overrides, load_experiment, load_recorded, regardless, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.run.fit import Role, fit
from tlresearch.run.results import pin_latest
from tlresearch.show.elements import Column, Command, Note, Table, numbers, typed
from tlresearch.show.metrics import folded
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.tracking.family import open_family
from tlresearch.tracking.records import GROUP, SEED, Record, Runs

_CONFIG = "experiment.yaml"


@dataclass(frozen=True)
class GroupResult(Shown):
    """What a group came to.

    Attributes:
        run_id: The parent MLflow run.
        name: Its name.
        url: Address of the parent in the MLflow UI.
        runs: The runs in the order of the seeds.
        metrics: Summary of each metric over the seeds.
        seconds: Wall time of all runs, also of those finished earlier.
        commit: Commit of the code that ran it, with ``+`` where files had changed; empty outside a repository.
        started: When it was started, in seconds since 1970.
        hardware: What it ran on.
    """

    run_id: str
    name: str
    url: str
    runs: tuple[Record, ...]
    metrics: dict[str, Summary]
    seconds: float
    commit: str
    started: float
    hardware: str

    @property
    def page(self) -> Page:
        """Mean, spread and interval of each metric."""
        seeds = ", ".join(run.tags[SEED] for run in self.runs)
        # Distances of further test sets stage by stage (`shift/set/stages/…`) are in MLflow.
        means = {name: value.mean for name, value in self.metrics.items() if name.count("/") <= 2}
        names, lines = folded(means)
        parts = ("mean", "std", "low", "high")
        table = Table(
            (Column("metric"), *numbers(parts, ".4f")),
            tuple((name, *(getattr(self.metrics[name], part) for part in parts)) for name in names),
            title=f"{self.name}: {len(self.runs)} seeds ({seeds}), {self.seconds:.1f} s",
            note="std over seeds; low and high: 95 % bootstrap interval of the mean",
        )
        notes = (Note(line, "faint") for line in lines)
        return page_of("", table, *notes, Command(typed("ui"), f"MLflow run {self.run_id}"))


def fit_group(
    experiment: str | Path | Loaded[ExperimentConfig],
    seeds: Sequence[int] = (),
    overrides: Overrides = (),
    *,
    name: str | None = None,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    again: bool = True,
    runs: Runs | None = None,
    console: Console | None = None,
) -> GroupResult:
    """Runs an experiment once per seed, nested under one MLflow run; a group that was interrupted goes on.

    Args:
        experiment: Name under ``experiments/``, path of a YAML file, or a loaded experiment.
        seeds: The seeds; the experiment's `seeds`, else its `seed`, unless given.
        overrides: Values by full key.
        name: Name of the group's run; that of the experiment unless given.
        parent: MLflow run the group is nested in.
        tags: Further tags of the group's run.
        again: Whether a group that has finished is run anew, or returned as recorded.
        runs: The runs of its store, if they are open already.
        console: Where progress is shown; ``None`` shows none.

    Raises:
        UserError: If config, data, weights or store are wrong, or another process runs the same group.
    """
    loaded = revise(experiment, overrides) if isinstance(experiment, Loaded) else load_experiment(experiment, overrides)
    runs = runs or Runs(loaded.config.tracking.uri)
    loaded, wanted = _plain(loaded, seeds, runs)
    identity = _identity(loaded, wanted, runs)
    name = name or loaded.config.name
    with alone(identity, f"group '{name}'"):
        before = _earlier(runs, identity, loaded)
        done = {seed: run.metrics for seed, run in before.seeds.items()} if before else {}
        if before and before.state == "finished" and not set(wanted) - set(done):
            if not again:
                return _result(before, wanted)
            before, done = None, {}
        with open_family(
            loaded.config,
            loaded.config.tracking,
            name,
            params={"group.seeds": " ".join(map(str, wanted)), "group.experiment": loaded.config.name},
            tags={**(tags or {}), GROUP: identity},
            texts={_CONFIG: loaded.recorded},
            parent=parent,
            run_id=before.run_id if before else None,
        ) as group:
            for seed in wanted:
                if seed in done:
                    continue
                if console is not None:
                    console.print(f"  seed {seed}", highlight=False)
                role = Role(f"seed {seed}", group.run_id, {GROUP: identity, SEED: str(seed)}, test=True)
                done[seed] = fit(revise(loaded, {"seed": seed}), role=role, console=console).metrics
            summaries = summarise([done[seed] for seed in wanted])
            group.log_metrics(_as_metrics(summaries), step=len(wanted))
        return _result(runs.get(group.run_id), wanted)


def recorded_group(loaded: Loaded[ExperimentConfig], runs: Runs) -> GroupResult | None:
    """The group of an experiment as it was recorded, if it has finished; nothing is run."""
    loaded, wanted = _plain(loaded, (), runs)
    group = _earlier(runs, _identity(loaded, wanted, runs), loaded)
    whole = group is not None and group.state == "finished" and not set(wanted) - set(group.seeds)
    return _result(group, wanted) if group and whole else None


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, Summary]:
    """Summarises each metric that all runs have."""
    shared = [key for key in runs[0] if all(key in metrics for metrics in runs)]
    return {key: summary([metrics[key] for metrics in runs]) for key in shared}


def _plain(
    loaded: Loaded[ExperimentConfig], seeds: Sequence[int], runs: Runs
) -> tuple[Loaded[ExperimentConfig], tuple[int, ...]]:
    """The experiment without what makes no difference to its runs, and its seeds."""
    wanted = tuple(dict.fromkeys(seeds or loaded.config.seeds or [loaded.config.seed]))
    bare = {"seeds": [], "seed": wanted[0], "reference": None, "variants": {}}
    return regardless(pin_latest, regardless(revise, loaded, bare), runs), wanted


def _identity(loaded: Loaded[ExperimentConfig], seeds: Sequence[int], runs: Runs) -> str:
    """What makes a group the same group: config, seeds and the store it is recorded in.

    Options that have their default are no part of it, so that an option that is new does not make every group another.
    """
    text = f"{_chosen(loaded.config)}\n{list(seeds)}\n{runs.store.uri}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _chosen(value: Any) -> Any:
    """What of a config is not its default, as plain values in the order of the schema."""
    if is_dataclass(value) and not isinstance(value, type):
        default = type(value)()
        names = [field.name for field in fields(value) if getattr(value, field.name) != getattr(default, field.name)]
        return {name: _chosen(getattr(value, name)) for name in names}
    return [_chosen(member) for member in value] if isinstance(value, list) else value


def _earlier(runs: Runs, identity: str, loaded: Loaded[ExperimentConfig]) -> Record | None:
    """The newest parent run of the same group whose config still means the same: a default may have changed since."""
    for group in runs.tagged(GROUP, identity):
        try:
            text = group.text(_CONFIG) if group.is_group else None
            if text is not None and regardless(load_recorded, text).config == loaded.config:
                return group
        except ConfigError:
            continue  # an option it names is gone
    return None


@contextlib.contextmanager
def alone(identity: str, what: str) -> Iterator[None]:
    """Holds a lock, so that no other process does the same work at the same time.

    Args:
        identity: What makes it the same work.
        what: What it is called in the error.

    Raises:
        UserError: If another process holds it.
    """
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    with locked(home() / "groups" / f"{key}.lock", 0) as held:
        if not held:
            raise UserError(f"{what} is already running in another process; wait for it, or use other seeds")
        yield


def _result(group: Record, seeds: Sequence[int]) -> GroupResult:
    members, tags = group.seeds, group.tags
    runs = tuple(members[seed] for seed in seeds)
    return GroupResult(
        run_id=group.run_id,
        name=group.name,
        url=group.url,
        runs=runs,
        metrics=summarise([run.metrics for run in runs]),
        seconds=sum(run.seconds for run in runs),
        commit=tags.get("mlflow.source.git.commit", "") + ("+" if tags.get("tlresearch.code") == "changed" else ""),
        started=group.stored.info.start_time / 1000,
        hardware=tags.get("tlresearch.hardware", ""),
    )


def _as_metrics(metrics: Mapping[str, Summary]) -> dict[str, float]:
    return {
        f"{part}/{key}": getattr(found, part)
        for key, found in metrics.items()
        for part in ("mean", "std", "low", "high")
    }
