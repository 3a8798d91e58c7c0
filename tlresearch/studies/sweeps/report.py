"""What a study says: tables for the terminal, figures, and the record on the parent run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.studies.sweeps import study as studies
from tlresearch.tracking import sweep_figures
from tlresearch.tracking.run import JournalRun

if TYPE_CHECKING:
    from tlresearch.studies.sweeps.confirm import Confirmed
    from tlresearch.studies.sweeps.run import SweepResult
    from tlresearch.studies.sweeps.trials import FinalRun

DEPTH = "freeze.unfreeze_depth"
LR = "optimizer.lr"


def write_figures(study: Study, config: SweepConfig, folder: Path) -> dict[str, Path]:
    """Draws history, importance and, where both were searched, depth against learning rate, as PNG files."""
    metric, direction = config.objective.metric, config.objective.direction or "maximize"
    trials = studies.ended(study)
    found = {"history": sweep_figures.history([(t.number, _value(t), _state(t)) for t in trials], metric, direction)}
    shares = studies.importances(study)
    if shares:
        found["importance"] = sweep_figures.importance(shares, metric)
    if DEPTH in config.space and LR in config.space:
        points = [
            sweep_figures.TrialPoint(t.params[DEPTH], t.params[LR], _value(t), _state(t))
            for t in trials
            if DEPTH in t.params and LR in t.params
        ]
        found["depth_lr_map"] = sweep_figures.depth_lr_map(points, metric, direction)
    files = {}
    for name, figure in found.items():
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
    best_yaml: Path,
    figures: Mapping[str, Path],
) -> None:
    """Records the study on its parent run, under names the trials do not use."""
    trials = studies.ended(study)
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in studies.ENDED}
    metrics = {f"study/{name}": float(count) for name, count in counts.items()}
    metrics["study/best"] = float(best.value or 0.0)
    for run in final:
        metrics |= {f"{run.name}/{name.replace('/', '_')}": value for name, value in run.metrics.items()}
    if confirmed:
        found = confirmed[0].metrics[config.objective.metric]
        metrics |= {f"study/confirmed_{part}": getattr(found, part) for part in ("mean", "std", "low", "high")}
        parent.log_dict({str(one.trial.number): _confirmation(one) for one in confirmed}, "confirmed.json")
    parent.log_metrics(metrics, step=len(trials))
    parent.set_tags(
        {
            "tlresearch.best_trial": str(best.number),
            "tlresearch.best_run": str(best.user_attrs.get("run_id", "")),
            "tlresearch.best": "  ".join(f"{key}={value}" for key, value in best.params.items()),
        }
    )
    parent.log_text(best_yaml.read_text(), best_yaml.name)  # as text, so that no password in it is stored
    parent.log_dict({str(t.number): _record(t) for t in trials}, "trials.json")
    for file in figures.values():
        parent.log_file(file, "figures")


def depth_table(result: SweepResult) -> Table:
    """Best trial, best value of each unfreeze depth, and the final runs beside them."""
    table = Table(title=f"{result.name}: {result.objective}", title_justify="left", title_style="bold")
    for column, side in (("", "left"), (result.objective, "right"), ("values", "left"), ("trials", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    tested = f"test/{result.objective.partition('/')[2]}"
    done = [t for t in result.trials if t.state == TrialState.COMPLETE]
    by_depth: dict[Any, list[FrozenTrial]] = {}
    for trial in done:
        if DEPTH in trial.params:
            by_depth.setdefault(trial.params[DEPTH], []).append(trial)
    for depth, group in sorted(by_depth.items()):
        best = min(group, key=lambda t: (abs((t.value or 0.0) - result.best_value), t.number))
        rest = {key: value for key, value in best.params.items() if key != DEPTH}
        table.add_row(f"unfreeze depth {depth}", f"{best.value:.4f}", _point(rest), str(len(group)))
    table.add_section()
    style = "" if result.confirmed else "bold"
    table.add_row("best trial", f"{result.best_value:.4f}", _point(result.best), str(len(done)), style=style)
    for one in result.confirmed:
        found = one.metrics[result.objective]
        value = f"{found.mean:.4f} ± {found.std:.4f}"
        test = one.metrics.get(tested)
        texts = [_point(one.trial.params), f"{tested} {test.mean:.4f} ± {test.std:.4f}" if test else ""]
        style = "bold" if one is result.confirmed[0] else ""
        table.add_row(
            f"trial {one.trial.number}, {len(one.seeds)} fresh seeds",
            value,
            "  ".join(filter(None, texts)),
            "",
            style=style,
        )
    if result.confirmed:
        table.caption = "to be reported: mean ± standard deviation over fresh seeds; a trial was chosen for its value"
        table.caption_justify = "left"
        table.add_section()
    for run in result.final:
        values = f"{tested} {run.metrics[tested]:.4f}" if tested in run.metrics else ""
        table.add_row(f"final run: {run.name}", f"{run.metrics[result.objective]:.4f}", values, "")
    return table


def _confirmation(one: Confirmed) -> dict[str, Any]:
    metrics = {name: asdict(found) for name, found in one.metrics.items()}
    return {"run_id": one.run_id, "seeds": list(one.seeds), "params": one.trial.params, "metrics": metrics}


def _point(params: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{k.rpartition('.')[2]} {v:.3g}" if isinstance(v, float) else f"{k.rpartition('.')[2]} {v}"
        for k, v in params.items()
    )


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


def print_result(console: Console, result: SweepResult) -> None:
    """Prints what a sweep came to, where its figure lies and how to look further."""
    console.print(depth_table(result))
    figure = result.figures.get("depth_lr_map") or result.figures["history"]
    for label, value in (
        ("figure", _relative(figure)),
        ("best config", f"{_relative(result.best_yaml)}  (make run EXP={_relative(result.best_yaml)})"),
        ("compare", f"make compare SWEEP={result.name}"),
        ("MLflow UI", "make ui"),
    ):
        console.print(f"  {label:<12} {value}", highlight=False, markup=False, soft_wrap=True)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
