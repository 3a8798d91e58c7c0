"""Gathers what was recorded of a run, a study, a group of seeds or a reproduction into the sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import yaml

from tlresearch.base.statistics import summary
from tlresearch.report import parts
from tlresearch.report.parallel import parallel_png
from tlresearch.report.parts import shown
from tlresearch.report.sections import Badge, Number, Page, Picture, Section, Table
from tlresearch.tracking.groups import SEED, finished, is_group
from tlresearch.tracking.manifest import read_json, read_text
from tlresearch.tracking.records import STUDY_TAG, children
from tlresearch.tracking.run import PRUNED_MARK
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

TRIAL = "tlresearch.trial"
_PARENT = "mlflow.parentRunId"
_MOST_TRIALS = 60
_VERDICTS = ("tlresearch.verdict", "tlresearch.reproduction")


def gather(store: Store, run: Run) -> Page:
    """Reads a run, and the runs nested in it, into a page."""
    tags = run.data.tags
    if STUDY_TAG in tags and _PARENT not in tags:
        kind, numbers, sections = "study", *_study(store, run)
    elif read_json(store, run.info.run_id, "reproduction.json"):
        kind, numbers, sections = "reproduction", *_reproduction(store, run)
    elif is_group(run):
        kind, numbers, sections = "group of seeds", *_group(store, run)
    else:
        kind, numbers, sections = "run", *_run(store, run)
    verdicts = [Badge(tags[key], _tone(tags[key])) for key in _VERDICTS if key in tags]
    return Page(
        title=(run.info.run_name or run.info.run_id).removeprefix(PRUNED_MARK),
        kind=kind,
        run_id=run.info.run_id,
        description=tags.get("mlflow.note.content", ""),
        badges=(*parts.state(run), *verdicts),
        numbers=tuple(numbers),
        sections=tuple(sections),
        made=f"Report made {datetime.now(UTC):%Y-%m-%d} by tlresearch {metadata.version('tlresearch')}.",
    )


def _run(store: Store, run: Run) -> tuple[Sequence[Number], Sequence[Section]]:
    return parts.headline(run), [
        parts.metrics(run),
        parts.shifted(run),
        parts.exported(run),
        parts.pictures(store, run),
        parts.lineage(store, run),
        parts.config_texts(store, run, "config.yaml"),
    ]


def _study(store: Store, run: Run) -> tuple[Sequence[Number], Sequence[Section]]:
    sweep = yaml.safe_load(read_text(store, run.info.run_id, "sweep.yaml") or "{}") or {}
    objective = {"metric": "val/accuracy", "direction": "maximize"} | (sweep.get("objective") or {})
    metric = objective["metric"]
    maximize = (run.data.tags.get("tlresearch.direction") or objective["direction"]) == "maximize"
    trials = read_json(store, run.info.run_id, "trials.json") or {}
    inner = children(store, run.info.run_id)
    values, tags = run.data.metrics, run.data.tags
    numbers = []
    if "study/best" in values:
        numbers.append(
            Number(f"best {metric}", f"{values['study/best']:.4f}", f"trial {tags.get('tlresearch.best_trial')}")
        )
    if "study/confirmed_mean" in values:
        low, high = values["study/confirmed_low"], values["study/confirmed_high"]
        numbers.append(Number("fresh seeds", f"{values['study/confirmed_mean']:.4f}", f"{low:.4f} to {high:.4f}"))
    name = metric.partition("/")[2]
    for key in sorted(values):
        if key.endswith(f"/test_{name}"):
            numbers.append(Number(f"test/{name}, {key.rpartition('/')[0]}", f"{values[key]:.4f}"))
    if "study/complete" in values:
        ended = ", ".join(
            f"{values.get(f'study/{key}', 0):.0f} {word}" for key, word in (("pruned", "pruned"), ("fail", "failed"))
        )
        numbers.append(Number("complete trials", f"{values['study/complete']:.0f}", ended))
    best = Section("Best trial", facts=tuple(_best(tags)), texts=_texts(store, run, "best.yaml"))
    found = _trials(trials, metric, maximize=maximize) if trials else parts.nested(inner, metric)
    others = [child for child in inner if TRIAL not in child.data.tags]
    final = Section("Final runs", tables=(parts.nested(others, metric),) if others else ())
    drawn = parts.pictures(store, run).pictures
    lines = _parallel(trials, metric, maximize=maximize)
    return numbers, [
        best,
        _confirmed(store, run, metric),
        Section("The search", pictures=(*drawn[:1], *lines, *drawn[1:])),
        Section("Trials", tables=(found,)),
        final,
        parts.lineage(store, run),
        parts.config_texts(store, run, "sweep.yaml", "experiment.yaml"),
    ]


def _best(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    pairs = [part.partition("=") for part in tags.get("tlresearch.best", "").split("  ") if "=" in part]
    facts = [(key, value) for key, _, value in pairs]
    return [*facts, ("run", tags["tlresearch.best_run"])] if tags.get("tlresearch.best_run") else facts


def _trials(trials: Mapping[str, Any], metric: str, *, maximize: bool) -> Table:
    names = list(dict.fromkeys(name for trial in trials.values() for name in trial["params"]))

    def rank(item: tuple[str, Any]) -> tuple[bool, float]:
        value = item[1]["value"]
        done = item[1]["state"] == "complete" and value is not None
        return not done, 0.0 if not done else (-value if maximize else value)

    ordered = sorted(trials.items(), key=rank)
    rows = tuple(
        (number, trial["state"], shown(trial["value"]), *(shown(trial["params"].get(name)) for name in names))
        for number, trial in ordered[:_MOST_TRIALS]
    )
    hidden = len(ordered) - len(rows)
    heads = ("trial", "ended", metric, *names)
    note = f"and {hidden} more, none of them better" if hidden else ""
    numeric = frozenset({0, *range(2, len(heads))})
    return Table(heads, rows, numeric, marked=0 if rows and ordered[0][1]["state"] == "complete" else None, note=note)


def _parallel(trials: Mapping[str, Any], metric: str, *, maximize: bool) -> tuple[Picture, ...]:
    done = [(t["params"], t["value"]) for t in trials.values() if t["state"] == "complete" and t["value"] is not None]
    done = [(params, value) for params, value in done if params]
    if len(done) < 2:
        return ()
    return (
        Picture(
            "Every complete trial as a line; the better ones are darker.", parallel_png(done, metric, maximize=maximize)
        ),
    )


def _confirmed(store: Store, run: Run, metric: str) -> Section:
    found = read_json(store, run.info.run_id, "confirmed.json") or {}
    tested = f"test/{metric.partition('/')[2]}"
    rows = []
    for number, one in found.items():
        values = one["metrics"].get(metric)
        test = one["metrics"].get(tested)
        point = "  ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in one["params"].items())
        rows.append((number, point, str(len(one["seeds"])), _spread(values), _spread(test)))
    heads = ("trial", "values", "seeds", metric, tested)
    note = (
        "mean ± standard deviation over fresh seeds: these are the values to report; a trial was chosen for its value"
    )
    return Section("Confirmed with fresh seeds", tables=(Table(heads, tuple(rows), note=note),) if rows else ())


def _group(store: Store, run: Run) -> tuple[Sequence[Number], Sequence[Section]]:
    done = finished(store, run.info.run_id)
    keys = [key for key in (next(iter(done.values())).metrics if done else {}) if not key.startswith("train/")]
    keys = [key for key in keys if all(key in one.metrics for one in done.values())]
    summaries = {key: summary([one.metrics[key] for one in done.values()]) for key in keys}
    numbers = [
        Number(key, f"{s.mean:.4f}", f"± {s.std:.4f}, {s.n} seeds")
        for key, s in sorted(summaries.items(), key=lambda item: (not item[0].endswith("/accuracy"), item[0]))
    ][:6]
    rows = [
        (str(seed), *(f"{one.metrics[key]:.4f}" for key in keys), one.run_id[:8]) for seed, one in sorted(done.items())
    ]
    for name in ("mean", "std", "low", "high"):
        rows.append((name, *(f"{getattr(summaries[key], name):.4f}" for key in keys), ""))
    note = "low and high: bootstrap interval of the mean (95 %)"
    table = Table(("seed", *keys, "run"), tuple(rows), frozenset(range(1, len(keys) + 1)), note=note)
    return numbers, [
        Section("Seeds", tables=(table,) if done else ()),
        parts.pictures(store, run),
        parts.lineage(store, run),
        parts.config_texts(store, run, "config.yaml"),
    ]


def _reproduction(store: Store, run: Run) -> tuple[Sequence[Number], Sequence[Section]]:
    record = read_json(store, run.info.run_id, "reproduction.json") or {}
    rows, numbers = [], []
    for row in record.get("rows", []):
        number, ours = row["number"], row.get("ours")
        epoch = number.get("select", "")
        difference = row.get("difference")
        metric = f"{number['metric']}, {f'epoch {epoch}' if isinstance(epoch, int) else epoch}"
        rows.append(
            (
                row["variant"],
                metric,
                shown(number["value"]),
                _spread(ours),
                str(ours["n"]) if ours else "–",
                f"{difference:+.4f}" if difference is not None else "–",
                shown(number["tolerance"]),
                row["verdict"],
            )
        )
        if ours:
            note = f"published {shown(number['value'])}: {row['verdict']}"
            numbers.append(Number(f"{row['variant']}: {metric}", f"{ours['mean']:.4f}", note))
    heads = ("variant", "metric", "published", "ours", "n", "difference", "tolerance", "verdict")
    table = Table(heads, tuple(rows), frozenset(range(2, 7)))
    groups = [child for child in children(store, run.info.run_id) if SEED not in child.data.tags]
    return numbers[:6], [
        Section("Published and ours", tables=(table,)),
        Section("Runs", tables=(parts.nested(groups, "val/accuracy"),) if groups else ()),
        parts.lineage(store, run),
        parts.config_texts(store, run, "config.yaml", "experiment.yaml"),
    ]


def _texts(store: Store, run: Run, *paths: str) -> tuple[tuple[str, str], ...]:
    return parts.config_texts(store, run, *paths).texts


def _spread(values: Mapping[str, Any] | None) -> str:
    if not values:
        return "–"
    return f"{values['mean']:.4f}" + (f" ± {values['std']:.4f}" if values.get("n", 0) > 1 else "")


def _tone(verdict: str) -> Any:
    if any(word in verdict for word in ("not reproduced", "failed", "differs")):
        return "bad"
    return "good"
