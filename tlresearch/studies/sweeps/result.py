"""The result of a study: its page, its figures, and the record on the parent run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.show.elements import Cell, Column, Command, Element, Entry, Facts, Table, typed
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.confirm import Confirmed
from tlresearch.studies.sweeps.subject import FinalRun
from tlresearch.tracking import sweep_figures
from tlresearch.tracking.run import JournalRun

DEPTH, LR = "unfreeze_depth", "lr"
"""Last names of the dimensions that tables and figures know; in front of them stands the section of an experiment."""


@dataclass(frozen=True)
class SweepResult(Shown):
    """The result of a sweep.

    Attributes:
        name: Name of the study.
        run_id: Its MLflow run, the parent of the trials.
        url: Address of the study in the MLflow UI.
        objective: The metric that was optimised.
        best: Overrides of the best trial by full key; with `confirm`, of the trial with the best mean.
        best_value: The objective of that trial.
        best_yaml: File with the trial's complete config, which `run` accepts; ``None`` for the sweep of a function.
        confirmed: The best configurations run again with fresh seeds, best mean first: the numbers to report.
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
    best_yaml: Path | None
    confirmed: tuple[Confirmed, ...]
    final: tuple[FinalRun, ...]
    figures: dict[str, Path]
    trials: tuple[FrozenTrial, ...]

    @property
    def page(self) -> Page:
        """Best trial of each unfreeze depth, confirmed configurations, final runs; then files and commands."""
        figure = self.figures.get("depth_lr_map") or self.figures.get("history")
        places = [("figure", str(_relative(figure)))] if figure else []
        again: list[Element] = []
        if self.best_yaml is not None:
            best_yaml = str(_relative(self.best_yaml))
            places.append(("best config", best_yaml))
            again.append(Command(typed("run", best_yaml), "run it"))
        return page_of(
            "",
            self._table(),
            Facts(tuple(places)),
            *again,
            Command(typed("compare", self.name), "compare"),
            Command(typed("ui"), "MLflow UI"),
        )

    def _table(self) -> Table:
        """Rows for the best of each unfreeze depth and the best trial, then confirmed configurations and final runs."""
        tested = f"test/{self.objective.partition('/')[2]}"
        done = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        dimensions = list(dict.fromkeys(name for trial in done for name in trial.params))
        depths: dict[Any, list[FrozenTrial]] = {}
        depth_key = _ending(DEPTH, dimensions)
        for trial in done:
            if depth_key in trial.params:
                depths.setdefault(trial.params[depth_key], []).append(trial)

        def row(name: str, value: Entry, test: Entry, count: Entry, params: Mapping[str, Any]) -> tuple[Entry, ...]:
            return (name, value, test, count, *(_value_of(params.get(key, "")) for key in dimensions))

        rows = []
        for depth, trials in sorted(depths.items()):
            # No value is better than the study's best, so the nearest is the best of the group, in either direction.
            best = min(trials, key=lambda trial: (abs((trial.value or 0.0) - self.best_value), trial.number))
            rows.append(row(f"unfreeze depth {depth}", best.value, "", len(trials), best.params))
        rules = [len(rows)]
        marked = len(rows) + bool(self.confirmed)
        rows.append(row("best trial", self.best_value, "", len(done), self.best))
        for group in self.confirmed:
            name = f"trial {group.trial.number}, {len(group.seeds)} fresh seeds"
            values = [group.metrics.get(metric) for metric in (self.objective, tested)]
            reached, test = (Cell(value.mean, value.std) if value else "" for value in values)
            rows.append(row(name, reached, test, "", group.trial.params))
        rules += [len(rows)] if self.confirmed else []
        for run in self.final:
            rows.append(row(f"final run: {run.name}", run.metrics[self.objective], run.metrics.get(tested, ""), "", {}))
        columns = (
            Column(""),
            Column(self.objective, ".4f"),
            Column(tested, ".4f"),
            Column("trials", "d"),
            *(_dimension(name, dimensions) for name in dimensions),
        )
        note = "to be reported: mean ± standard deviation over fresh seeds; a trial was chosen for its value"
        return Table(
            columns,
            tuple(rows),
            title=f"{self.name}: {self.objective}",
            note=note if self.confirmed else "",
            marked=marked,
            rules=frozenset(rules),
            more=f"{typed('compare', self.name)} shows every trial with them",
        ).filled()


def _value_of(value: Any) -> Entry:
    return Cell(value, format=".3g") if isinstance(value, float) else str(value)


def _ending(last: str, dimensions: Iterable[str]) -> str:
    """Returns the dimension whose name ends with this word; empty if there is none."""
    return next((name for name in dimensions if name.rpartition(".")[2] == last), "")


def _dimension(name: str, dimensions: Sequence[str]) -> Column:
    """Makes the column of a dimension; its title has no section, unless another dimension ends in the same word."""
    last = name.rpartition(".")[2]
    return Column(last if sum(key.rpartition(".")[2] == last for key in dimensions) == 1 else name, align="right")


def write_figures(study: Study, config: SweepConfig, folder: Path) -> dict[str, Path]:
    """Draws PNG files: history, importance and, if the sweep searched both, depth against learning rate."""
    metric, direction = config.objective.metric, config.objective.direction or "maximize"
    trials = studies.ended(study)
    figures = {"history": sweep_figures.history([(t.number, _value(t), _state(t)) for t in trials], metric, direction)}
    shares = studies.importances(study)
    if shares:
        figures["importance"] = sweep_figures.importance(shares, metric)
    depth, rate = _ending(DEPTH, config.space), _ending(LR, config.space)
    if depth and rate:
        points = [
            sweep_figures.TrialPoint(t.params[depth], t.params[rate], _value(t), _state(t))
            for t in trials
            if depth in t.params and rate in t.params
        ]
        figures["depth_lr_map"] = sweep_figures.depth_lr_map(points, metric, direction)
    files = {}
    for name, figure in figures.items():
        files[name] = folder / f"{name}.png"
        figure.savefig(files[name], dpi=150)
    return files


def log_study(
    parent: JournalRun,
    study: Study,
    config: SweepConfig,
    best: FrozenTrial,
    confirmed: Sequence[Confirmed],
    final: Sequence[FinalRun],
    best_yaml: Path | None,
    figures: Mapping[str, Path],
) -> None:
    """Records the study on its parent run: its best value as the objective, all else under names that no trial uses."""
    trials = studies.ended(study)
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in studies.ENDED}
    metrics = {f"study/{name}": float(count) for name, count in counts.items()}
    metrics["study/best"] = float(best.value or 0.0)
    metrics[config.objective.metric] = metrics["study/best"]  # so that the study's row of the table of runs shows it
    for run in final:
        metrics |= {f"{run.name}/{name.replace('/', '_')}": value for name, value in run.metrics.items()}
    if confirmed:
        summary = confirmed[0].metrics[config.objective.metric]
        metrics |= {f"study/confirmed_{part}": getattr(summary, part) for part in ("mean", "std", "low", "high")}
        parent.log_dict({str(group.trial.number): _confirmation(group) for group in confirmed}, "confirmed.json")
    parent.log_metrics(metrics, step=len(trials))
    parent.set_tags(
        {
            "tlresearch.best_trial": str(best.number),
            "tlresearch.best_run": str(best.user_attrs.get("run_id", "")),
            "tlresearch.best": "  ".join(f"{key}={value}" for key, value in best.params.items()),
        }
    )
    if best_yaml is not None:
        parent.log_text(best_yaml.read_text(), best_yaml.name)  # as text, not a file, so that passwords are hidden
    parent.log_dict({str(t.number): _record(t) for t in trials}, "trials.json")
    for file in figures.values():
        parent.log_file(file, "figures")


def _confirmation(group: Confirmed) -> dict[str, Any]:
    metrics = {name: asdict(summary) for name, summary in group.metrics.items()}
    return {"run_id": group.run_id, "seeds": list(group.seeds), "params": group.trial.params, "metrics": metrics}


def _record(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "state": _state(trial),
        "value": trial.value,
        "params": trial.params,
        "reported": {str(step): value for step, value in trial.intermediate_values.items()},
        **trial.user_attrs,
    }


def _state(trial: FrozenTrial) -> sweep_figures.State:
    names: dict[TrialState, sweep_figures.State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    return names[trial.state]


def _value(trial: FrozenTrial) -> float | None:
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return trial.intermediate_values.get(max(trial.intermediate_values, default=-1))


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
