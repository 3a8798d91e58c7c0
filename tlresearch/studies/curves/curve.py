"""Learning curves: a metric against the number of labels, for several freeze schedules with several seeds each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tlresearch.base.direction import direction_of
from tlresearch.base.errors import UserError
from tlresearch.base.statistics import summary
from tlresearch.config.load import Loaded, Overrides, load_experiment, load_variants, override_texts, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.studies.curves.report import Curve, Point, as_markdown, curve_figure, remarks
from tlresearch.studies.family import fit_family, paired, values
from tlresearch.studies.seeds import GroupResult
from tlresearch.tasks.build import find_task
from tlresearch.tracking.run import JournalRun


def fit_curve(
    experiment: str | Path,
    labels: Sequence[int],
    schedules: Sequence[str],
    overrides: Overrides = (),
    *,
    seeds: int = 3,
    metric: str | None = None,
    console: Console | None = None,
) -> Curve:
    """Runs an experiment with every number of labels, schedule and seed; what has finished is not run again.

    Each seed draws other labelled samples, the same for every schedule, unless `data.split_seed` is given.

    Args:
        experiment: Name under ``experiments/`` or path of a YAML file.
        labels: Training samples per class.
        schedules: Names of `freeze.schedule`, ``depth=N``, or variants of the experiment. The first one is what the
            others are compared with.
        overrides: Values by full key, for every run.
        seeds: Number of seeds: 0, 1, ….
        metric: The metric; the monitored one on the test split, else on validation.
        console: Where progress is shown.

    Raises:
        UserError: If an argument, config, data or weights are wrong.
    """
    if not labels or min(labels) < 1:
        raise UserError(f"curve: --labels are numbers of training samples per class from 1, but got {list(labels)}")
    if not schedules or len(set(schedules)) < len(schedules):
        raise UserError(f"curve: --schedules names each schedule once, at least one, but got {list(schedules)}")
    if seeds < 1:
        raise UserError(f"curve: --seeds is a number of seeds from 1, but got {seeds}")
    members = {
        (schedule, number): revise(loaded, {"data.labels_per_class": number})
        for schedule, loaded in _schedules(experiment, schedules, overrides).items()
        # The largest number first: what the data have too few samples for is found before anything has trained.
        for number in sorted(set(labels), reverse=True)
    }
    first = next(iter(members.values()))
    name = first.config.name
    by_name = {_member(*key): loaded for key, loaded in members.items()}
    with fit_family(f"{name}: learning curve", by_name, range(seeds), console=console) as family:
        groups = {key: family.groups[_member(*key)] for key in members}
        metric = metric or _default_metric(first.config, next(iter(groups.values())))
        rising = sorted(groups, key=lambda key: (schedules.index(key[0]), key[1]))
        mode = direction_of(metric, find_task(first.config.task.name).directions) or first.config.trainer.mode or "max"
        points = [_point(key, groups, (schedules[0], key[1]), metric, mode) for key in rising]
        seconds = sum(group.seconds for group in groups.values())
        result = Curve(name, metric, tuple(points), family.run.run_id, seconds)
        _log(family.run, result)
    return result


def _schedules(
    experiment: str | Path, schedules: Sequence[str], overrides: Overrides
) -> dict[str, Loaded[ExperimentConfig]]:
    given = [text.partition("=")[0] for text in override_texts(overrides)]
    drawn = {} if "data.split_seed" in given else {"data.split_seed": "${seed}"}
    base = load_experiment(experiment, overrides)
    variants = load_variants(experiment, overrides) if base.config.variants else {}
    found = {}
    for schedule in schedules:
        preset, _, depth = schedule.partition("=")
        changes: dict[str, Any] = {"freeze.schedule": preset, "freeze.unfreeze_depth": None}
        if depth:
            changes["freeze.unfreeze_depth"] = int(depth) if depth.isdigit() else depth
        loaded = revise(variants[schedule], {}) if schedule in variants else revise(base, changes)
        found[schedule] = revise(loaded, drawn)
    return found


def _member(schedule: str, labels: int) -> str:
    return f"{schedule}, {labels} per class"


def _default_metric(config: ExperimentConfig, group: GroupResult) -> str:
    watched = config.trainer.monitor.partition("/")[2]
    return f"test/{watched}" if f"test/{watched}" in group.metrics else f"val/{watched}"


def _point(
    key: tuple[str, int],
    groups: Mapping[tuple[str, int], GroupResult],
    base: tuple[str, int],
    metric: str,
    mode: str,
) -> Point:
    group, gap = groups[key], f"gap/{metric.partition('/')[2]}"
    better, worse = (group, groups[base]) if mode == "max" else (groups[base], group)
    return Point(
        schedule=key[0],
        labels=key[1],
        reached=summary(values(group, metric)),
        gap=group.metrics.get(gap),
        against=paired(better, worse, metric) if key != base else None,
        run_id=group.run_id,
    )


def _log(run: JournalRun, result: Curve) -> None:
    content = {**asdict(result), "remarks": remarks(result)}
    run.log_text(json.dumps(content, indent=1), "curve.json")
    run.log_text(as_markdown(result), "curve.md")
    run.log_figure(curve_figure(result), "figures/curve.png")
    for point in result.points:
        run.log_metrics({f"curve/{point.schedule}/{result.metric}": point.reached.mean}, step=point.labels)
