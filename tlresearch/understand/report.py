"""The page of a recorded run, study, group of seeds or reproduction: read from MLflow, written as one HTML file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tlresearch.base.errors import TrackingError
from tlresearch.base.paths import BEST
from tlresearch.base.statistics import summary
from tlresearch.show import html
from tlresearch.show.elements import (
    Badge,
    Cell,
    Column,
    Entry,
    Facts,
    Figure,
    Listing,
    Number,
    Section,
    Table,
    Tone,
    numbers,
)
from tlresearch.show.metrics import folded, interval, measured, without_ends
from tlresearch.show.page import Page
from tlresearch.tracking.calls import FAILURE, REASON
from tlresearch.tracking.records import (
    COMPUTATION,
    ENVIRONMENT,
    MONITOR,
    SEED,
    SELECTED,
    STUDY_TAG,
    TRIAL,
    Record,
    Runs,
)
from tlresearch.tracking.sweep_figures import parallel_axes

if TYPE_CHECKING:
    import matplotlib.figure

ARTIFACT = "report.html"
WATCHED = "val/accuracy"
"""What runs were watched by that did not record it yet."""
_SPLITS = ("train", "val", "test")
_FIRST = ("learning_curves", "schedule", "depth_lr_map", "history", "importance", "confusion_matrix")
_CAPTIONS = {
    "learning_curves": "Metrics of each epoch; dashed lines are borders of phases.",
    "schedule": "The freeze schedule as it ran: what was trained at which rate.",
    "depth_lr_map": "Every trial by unfreeze depth and learning rate.",
    "history": "Course of the search.",
    "importance": "What explains the variation of the objective.",
    "confusion_matrix": "True classes against predictions.",
    "predicted_against_true": "Predicted against true numbers; a right one lies on the line.",
    "residuals": "Predicted minus true numbers.",
    "wrong_samples": "Samples that were answered wrongly, the surest first.",
}
_PACKAGES = ("tlresearch", "torch", "torchvision", "lightning", "optuna", "mlflow", "timm", "transformers")
_MOST_TRIALS = 60
_VERDICTS = ("tlresearch.verdict", "tlresearch.reproduction")


def write_report(what: str | Record, out: Path | None = None) -> Path:
    """Writes the page of a run, a study, a group of seeds or a reproduction, and keeps it with the run.

    Args:
        what: Name of a study; or a run, its id, the beginning of its id, or its name.
        out: The file; None is ``reports/<name>.html``.

    Returns:
        The file, which needs neither MLflow nor a network.

    Raises:
        TrackingError: If there is no such run, or several.
    """
    run = _find(Runs(), what)
    page = gather(run)
    target = out or Path("reports") / f"{page.title.replace('/', '-').replace(' ', '-')}-{run.short}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html.document(page), encoding="utf-8")
    if run.state != "running":
        run.add(files={ARTIFACT: target})
    return target


def _find(runs: Runs, what: str | Record) -> Record:
    """The newest run of a study of that name, else the run."""
    try:
        studies = [run for run in runs.study(what) if STUDY_TAG in run.tags] if isinstance(what, str) else []
    except TrackingError:
        studies = []
    return studies[0] if studies else runs.find(what)


def gather(run: Record) -> Page:
    """Reads a run, and the runs nested in it, into a page."""
    tags = run.tags
    if STUDY_TAG in tags and run.parent is None:
        kind, results, sections = "study", *_study(run)
    elif run.json("reproduction.json"):
        kind, results, sections = "reproduction", *_reproduction(run)
    elif run.is_group:
        kind, results, sections = "group of seeds", *_group(run)
    else:
        kind, results, sections = "run", *_run(run)
    verdicts = [Badge(tags[key], _tone(tags[key])) for key in _VERDICTS if key in tags]
    return Page(
        title=run.name,
        kind=kind,
        description=tags.get("mlflow.note.content", ""),
        badges=(*_state(run), *verdicts),
        numbers=tuple(results),
        sections=tuple(sections),
        footer=f"MLflow run {run.run_id}. "
        f"Report made {datetime.now(UTC):%Y-%m-%d} by tlresearch {metadata.version('tlresearch')}.",
    )


def _run(run: Record) -> tuple[Sequence[Number], Sequence[Section]]:
    return _headline(run), [
        _metrics(run),
        _shifted(run),
        _exported(run),
        Section("Figures", tuple(_figures(run))),
        _lineage(run),
        Section("Configuration", tuple(_listings(run, "config.yaml"))),
    ]


def _study(run: Record) -> tuple[Sequence[Number], Sequence[Section]]:
    sweep = yaml.safe_load(run.text("sweep.yaml") or "{}") or {}
    metric = run.tags.get("tlresearch.metric") or (sweep.get("objective") or {}).get("metric") or WATCHED
    maximize = run.tags.get("tlresearch.direction", "maximize") == "maximize"
    trials = run.json("trials.json") or {}
    inner, values, tags = run.members, run.values, run.tags
    results = []
    if "study/best" in values:
        results.append(
            Number(f"best {metric}", f"{values['study/best']:.4f}", f"trial {tags.get('tlresearch.best_trial')}")
        )
    if "study/confirmed_mean" in values:
        low, high = values["study/confirmed_low"], values["study/confirmed_high"]
        results.append(Number("fresh seeds", f"{values['study/confirmed_mean']:.4f}", f"{low:.4f} to {high:.4f}"))
    name = metric.partition("/")[2]
    for key in sorted(values):
        if key.endswith(f"/test_{name}"):
            results.append(Number(f"test/{name}, {key.rpartition('/')[0]}", f"{values[key]:.4f}"))
    if "study/complete" in values:
        ended = ", ".join(
            f"{values.get(f'study/{key}', 0):.0f} {word}" for key, word in (("pruned", "pruned"), ("fail", "failed"))
        )
        results.append(Number("complete trials", f"{values['study/complete']:.0f}", ended))
    best = Section("Best trial", (*_best(tags), *_listings(run, BEST)))
    table = _trials(trials, metric, maximize=maximize) if trials else _nested(inner, metric)
    others = [child for child in inner if TRIAL not in child.tags]
    drawn = list(_figures(run))
    return results, [
        best,
        _confirmed(run, metric),
        Section("The search", (*drawn[:1], *_parallel(trials, metric, maximize=maximize), *drawn[1:])),
        Section("Trials", (table,)),
        Section("Final runs", (_nested(others, metric),) if others else ()),
        _lineage(run),
        Section("Configuration", tuple(_listings(run, "sweep.yaml", "experiment.yaml"))),
    ]


def _best(tags: Mapping[str, str]) -> Iterator[Facts]:
    pairs = [part.partition("=") for part in tags.get("tlresearch.best", "").split("  ") if "=" in part]
    facts = [(key, value) for key, _, value in pairs]
    facts += [("run", tags["tlresearch.best_run"])] if tags.get("tlresearch.best_run") else []
    if facts:
        yield Facts(tuple(facts))


def _trials(trials: Mapping[str, Any], metric: str, *, maximize: bool) -> Table:
    names = list(dict.fromkeys(name for trial in trials.values() for name in trial["params"]))

    def rank(item: tuple[str, Any]) -> tuple[bool, float]:
        value = item[1]["value"]
        done = item[1]["state"] == "complete" and value is not None
        return not done, 0.0 if not done else (-value if maximize else value)

    ordered = sorted(trials.items(), key=rank)
    rows = tuple(
        (int(number), trial["state"], trial["value"], *(_entry(trial["params"].get(name)) for name in names))
        for number, trial in ordered[:_MOST_TRIALS]
    )
    hidden = len(ordered) - len(rows)
    columns = (
        Column("trial", "d"),
        Column("ended"),
        Column(metric, ".4g", better="higher" if maximize else "lower"),
        *(Column(name, align="right") for name in names),
    )
    note = f"and {hidden} more, none of them better" if hidden else ""
    complete = bool(rows) and ordered[0][1]["state"] == "complete"
    return Table(columns, rows, marked=0 if complete else None, note=note)


def _parallel(trials: Mapping[str, Any], metric: str, *, maximize: bool) -> Iterator[Figure]:
    done = [(t["params"], t["value"]) for t in trials.values() if t["state"] == "complete" and t["value"] is not None]
    done = [(params, value) for params, value in done if params]
    if len(done) > 1:
        drawn = parallel_axes(done, metric, maximize=maximize)
        yield Figure("Every complete trial as a line; the better ones are darker.", _png(drawn))


def _png(figure: matplotlib.figure.Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150)
    return stream.getvalue()


def _confirmed(run: Record, metric: str) -> Section:
    record = run.json("confirmed.json") or {}
    tested = f"test/{metric.partition('/')[2]}"
    names = list(dict.fromkeys(name for one in record.values() for name in one["params"]))
    rows = tuple(
        (
            int(number),
            len(one["seeds"]),
            *(_spread(one["metrics"].get(key)) for key in (metric, tested)),
            *(_entry(one["params"].get(name)) for name in names),
        )
        for number, one in record.items()
    )
    columns = (
        Column("trial", "d"),
        Column("seeds", "d"),
        *numbers((metric, tested), ".4f"),
        *(Column(name, align="right") for name in names),
    )
    note = (
        "mean ± standard deviation over fresh seeds: these are the values to report; a trial was chosen for its value"
    )
    return Section("Confirmed with fresh seeds", (Table(columns, rows, note=note),) if rows else ())


def _group(run: Record) -> tuple[Sequence[Number], Sequence[Section]]:
    done = run.seeds
    keys = [key for key in (next(iter(done.values())).metrics if done else {}) if not key.startswith("train/")]
    keys = [key for key in keys if all(key in one.metrics for one in done.values())]
    summaries = {key: summary([one.metrics[key] for one in done.values()]) for key in keys}
    watched = _watched(list(done.values())).partition("/")[2]
    ordered = sorted(summaries.items(), key=lambda item: (not item[0].endswith(f"/{watched}"), item[0]))
    results = [Number(key, f"{s.mean:.4f}", f"± {s.std:.4f}, {s.n} seeds") for key, s in ordered][:6]
    shown, folds = folded({key: summaries[key].mean for key in keys})
    rows: list[tuple[Entry, ...]] = [
        (str(seed), *(one.metrics[key] for key in shown), one.short) for seed, one in done.items()
    ]
    rules = frozenset({len(rows)})
    for name in ("mean", "std", "low", "high"):
        rows.append((name, *(getattr(summaries[key], name) for key in shown), ""))
    note = "\n".join(["low and high: bootstrap interval of the mean (95 %)", *folds])
    table = Table((Column("seed"), *numbers(shown, ".4f"), Column("run")), tuple(rows), note=note, rules=rules)
    return results, [
        Section("Seeds", (table,) if done else ()),
        Section("Figures", tuple(_figures(run))),
        _lineage(run),
        Section("Configuration", tuple(_listings(run, "config.yaml"))),
    ]


def _reproduction(run: Record) -> tuple[Sequence[Number], Sequence[Section]]:
    record = run.json("reproduction.json") or {}
    rows: list[tuple[Entry, ...]] = []
    results = []
    for row in record.get("rows", []):
        number, ours, verdict = row["number"], row.get("ours"), row["verdict"]
        epoch = number.get("select", "")
        metric = f"{number['metric']}, {f'epoch {epoch}' if isinstance(epoch, int) else epoch}"
        counts = (_spread(ours), ours["n"] if ours else None, row.get("difference"))
        tone = _tone(verdict) if ours else "plain"
        rows.append((row["variant"], metric, number["value"], *counts, number["tolerance"], Cell(verdict, tone=tone)))
        if ours:
            note = f"published {_shown(number['value'])}: {verdict}"
            results.append(Number(f"{row['variant']}: {metric}", f"{ours['mean']:.4f}", note))
    columns = (
        Column("variant"),
        Column("metric"),
        Column("published", ".4g"),
        Column("ours", ".4f"),
        Column("n", "d"),
        Column("difference", "+.4f"),
        Column("tolerance", ".4g"),
        Column("verdict"),
    )
    groups = [child for child in run.members if SEED not in child.tags]
    return results[:6], [
        Section("Published and ours", (Table(columns, tuple(rows)),)),
        Section("Runs", (_nested(groups, _watched(groups)),) if groups else ()),
        _lineage(run),
        Section("Configuration", tuple(_listings(run, "config.yaml", "experiment.yaml"))),
    ]


def _spread(values: Mapping[str, Any] | None) -> Entry:
    return Cell(values["mean"], values["std"] if values.get("n", 0) > 1 else None) if values else None


def _tone(verdict: str) -> Tone:
    return "bad" if any(word in verdict for word in ("not reproduced", "failed", "differs")) else "good"


def _entry(value: Any) -> Entry:
    """A value of a search, as it stands in a table."""
    return value if value is None else Cell(value, format=".4g") if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _state(run: Record) -> tuple[Badge, ...]:
    """How a run ended."""
    tags = run.tags
    if run.state == "pruned":
        return (Badge(f"pruned: {tags.get(REASON, '')}".rstrip(": ")),)
    status = run.stored.info.status.lower()
    failure = f": {tags[FAILURE]}" if FAILURE in tags else ""
    return (Badge(f"{status}{failure}", "good" if status == "finished" else "bad"),)


def _headline(run: Record) -> tuple[Number, ...]:
    """The metrics of the selected epoch: those of the test split, else of validation."""
    values = run.selected
    split = "test" if any(key.startswith("test/") for key in values) else "val"
    keys = [key for key in without_ends(values) if key.startswith(f"{split}/") and "_of_" not in key]
    watched = run.tags.get(MONITOR, WATCHED).partition("/")[2]
    keys.sort(key=lambda key: (not key.endswith(f"/{watched}"), key))
    return tuple(Number(key, f"{values[key]:.4f}", interval(values, key)) for key in keys[:6])


def _watched(runs: Sequence[Record]) -> str:
    """The metric that runs are watched by, or the members of groups: the first that says so."""
    tags = (each.tags for run in runs for each in (run, *(run.members if run.is_group else ())))
    return next((found[MONITOR] for found in tags if MONITOR in found), WATCHED)


def _metrics(run: Record) -> Section:
    """Every metric of the selected epoch by split; of metrics by class the worst few."""
    values = run.selected
    splits = [split for split in _SPLITS if any(key.startswith(f"{split}/") for key in values)]
    names = sorted({key.partition("/")[2] for key in without_ends(values) if key.partition("/")[0] in splits})
    last = {name: next(values[f"{s}/{name}"] for s in splits[::-1] if f"{s}/{name}" in values) for name in names}
    names, folds = folded(last)
    rows: tuple[tuple[Entry, ...], ...] = tuple(
        (name, *(measured(values, f"{split}/{name}") for split in splits)) for name in names
    )
    epoch = run.values.get(f"{SELECTED}epoch")
    note = [f"of epoch {int(epoch) + 1}, whose weights were kept"] if epoch is not None else []
    table = Table((Column("metric"), *numbers(splits, ".4f")), rows, note="\n".join([*note, *folds]))
    return Section("Metrics", (table,) if rows else ())


def _shifted(run: Record) -> Section:
    """What was reached on further test sets, what was lost there, and how far their features are from the source's."""
    sets: dict[str, dict[str, float]] = {}
    for key, value in run.values.items():
        parts = key.split("/")
        if parts[0] == "shift" and len(parts) == 3 and "_of_" not in key:
            sets.setdefault(parts[1], {})[parts[2]] = value
    last = ("drop", "mmd", "frechet", "proxy_a")
    names = [*sorted({name for values in sets.values() for name in without_ends(values)} - set(last)), *last]
    rows: tuple[tuple[Entry, ...], ...] = tuple(
        (name, *(measured(values, key) for key in names)) for name, values in sets.items()
    )
    heads = [name.replace("_", " ") for name in names]
    note = "drop: what was lost against the source; the last three: distances of the last stage's features"
    return Section(
        "Further test sets", (Table((Column("set"), *numbers(heads, ".4f")), rows, note=note),) if rows else ()
    )


def _figures(run: Record) -> Iterator[Figure]:
    """The figures of a run, the most telling first."""
    files = {Path(path).stem: path for path in run.artifacts("figures") if path.endswith(".png")}
    for name in sorted(files, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        with run.file(files[name]) as file:
            yield Figure(_CAPTIONS.get(name, name.replace("_", " ").capitalize()), file.read_bytes())


def _lineage(run: Record) -> Section:
    """What a run came from: data, weights, code, packages, machine."""
    return Section("Where it comes from", (Facts(tuple((k, v) for k, v in _origins(run) if v)),))


def _origins(run: Record) -> Iterator[tuple[str, str]]:
    tags = run.tags
    environment = run.json(ENVIRONMENT) or {}
    yield "data", tags.get("tlresearch.data", "")
    for split, profile in run.splits:
        yield split, _profile(profile)
    yield "weights", tags.get("tlresearch.weights", "")
    yield "SHA-256 of the weights", tags.get("tlresearch.weights_sha256", "")
    yield "stages left random", tags.get("tlresearch.random_stages", "")
    yield "started from run", tags.get("tlresearch.parent_run", "")
    yield "teacher", tags.get("tlresearch.teacher", "")
    yield "repeats run", tags.get("tlresearch.reproduces", "")
    commit = tags.get("mlflow.source.git.commit", "")
    changed = "; files differed from it (the difference is kept with the run)"
    yield "code", f"commit {commit}{changed if tags.get('tlresearch.code') == 'changed' else ''}" if commit else ""
    yield "command", tags.get("mlflow.source.name", "")
    packages: Mapping[str, str] = environment.get("packages", {})
    versions = [f"Python {environment['python']}"] if "python" in environment else []
    yield "versions", ", ".join([*versions, *(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)])
    yield "machine", _machine(environment.get("hardware", {}))
    computation = run.json(COMPUTATION) or {}
    yield "computed with", ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in computation.items())
    yield "started", _date(run.stored.info.start_time)
    yield "took", _duration(run.seconds)


def _listings(run: Record, *paths: str) -> Iterator[Listing]:
    """Configs as they were recorded; each starts the same again."""
    for path in paths:
        text = run.text(path)
        if text:
            yield Listing(path, text)


def _exported(run: Record) -> Section:
    """Exported forms with what was measured of them."""
    forms: dict[str, dict[str, float]] = {}
    for key, value in run.values.items():
        parts = key.split("/")
        if parts[0] == "export" and len(parts) == 3:
            forms.setdefault(parts[1], {})[parts[2]] = value
    columns = sorted({name for values in forms.values() for name in values}, key=lambda n: (n.count("_") > 2, n))
    order = sorted(forms, key=lambda form: (form != "original", form))
    rows = tuple((form, *(forms[form].get(name) for name in columns)) for form in order)
    heads = (Column("form"), *numbers([name.replace("_", " ") for name in columns], ".4g"))
    return Section("Exported forms", (Table(heads, rows),) if forms else ())


def _nested(runs: Sequence[Record], metric: str) -> Table:
    """Runs nested in another, with one metric of the selected epoch and, where it was measured, that of the test."""
    keys = [metric, f"test/{metric.partition('/')[2]}"]
    keys = [key for key in keys if key == metric or any(key in run.selected for run in runs)]
    rows = tuple(
        (run.stored.info.run_name, run.stored.info.status.lower(), *(run.selected.get(key) for key in keys), run.short)
        for run in sorted(runs, key=lambda run: run.stored.info.start_time)
    )
    return Table((Column("run"), Column("ended"), *numbers(keys, ".4f"), Column("id")), rows)


def _profile(content: Mapping[str, Any]) -> str:
    counts = [f"{value} {key.removeprefix('samples of ')}" for key, value in content.items() if "samples of" in key]
    listing = f" ({', '.join(counts[:12])}{' …' if len(counts) > 12 else ''})" if counts else ""
    return f"{content.get('samples', '?')} samples{listing}, fingerprint {str(content.get('fingerprint', ''))[:16]}"


def _machine(hardware: Mapping[str, Any]) -> str:
    if not hardware:
        return ""
    gpus = ", ".join(hardware.get("gpus") or [])
    memory = f"{hardware.get('memory_gb')} GB"
    cores = f"{hardware.get('cores')} cores"
    return ", ".join(filter(None, [gpus, hardware.get("processor"), cores, memory, hardware.get("system")]))


def _date(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _duration(seconds: float) -> str:
    return "" if not seconds else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
