"""The parts of a report that every kind of run has: metrics, figures, what it came from, its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tlresearch.report.sections import Badge, Number, Picture, Section, Table
from tlresearch.tracking import records
from tlresearch.tracking.calls import FAILURE, REASON, STATE
from tlresearch.tracking.manifest import local, read_json, read_text
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

SELECTED = "selected/"
_SPLITS = ("train", "val", "test")
_FIRST = ("learning_curves", "schedule", "depth_lr_map", "history", "importance", "confusion_matrix")
_CAPTIONS = {
    "learning_curves": "Metrics of each epoch; dashed lines are borders of phases.",
    "schedule": "The freeze schedule as it ran: what was trained at which rate.",
    "depth_lr_map": "Every trial by unfreeze depth and learning rate.",
    "history": "Course of the search.",
    "importance": "What explains the variation of the objective.",
    "confusion_matrix": "True classes against predictions.",
    "wrong_samples": "Samples that were answered wrongly, the surest first.",
}
_PACKAGES = ("tlresearch", "torch", "torchvision", "lightning", "optuna", "mlflow", "timm", "transformers")


def shown(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def state(run: Run) -> tuple[Badge, ...]:
    """How a run ended."""
    tags = run.data.tags
    if tags.get(STATE) == "pruned":
        return (Badge(f"pruned: {tags.get(REASON, '')}".rstrip(": ")),)
    status = run.info.status.lower()
    failure = f": {tags[FAILURE]}" if FAILURE in tags else ""
    return (Badge(f"{status}{failure}", "good" if status == "finished" else "bad"),)


def headline(run: Run) -> tuple[Number, ...]:
    """The metrics of the selected epoch: those of the test split, else of validation."""
    found = selected(run)
    split = "test" if any(key.startswith("test/") for key in found) else "val"
    keys = [key for key in _plain(found) if key.startswith(f"{split}/") and "_of_" not in key]
    keys.sort(key=lambda key: (not key.endswith("accuracy"), key))
    return tuple(Number(key, f"{found[key]:.4f}", _interval(found, key)) for key in keys[:6])


def _plain(found: Mapping[str, float]) -> list[str]:
    """Names of metrics without the ends of their intervals, which stand beside them."""
    ends = {f"{key}{end}" for key in found for end in ("_low", "_high") if _interval(found, key)}
    return [key for key in found if key not in ends]


def _interval(found: Mapping[str, float], key: str) -> str:
    low, high = found.get(f"{key}_low"), found.get(f"{key}_high")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def selected(run: Run) -> dict[str, float]:
    """The metrics of the epoch that was kept, as ``split/name``."""
    found = run.data.metrics.items()
    return {
        key.removeprefix(SELECTED): value for key, value in found if key.startswith(SELECTED) and key.count("/") > 1
    }


def metrics(run: Run) -> Section:
    """Every metric of the selected epoch by split."""
    found = selected(run)
    splits = [split for split in _SPLITS if any(key.startswith(f"{split}/") for key in found)]
    names = sorted({key.partition("/")[2] for key in _plain(found) if key.partition("/")[0] in splits})
    rows = tuple((name, *(_with_interval(found, f"{split}/{name}") for split in splits)) for name in names)
    epoch = run.data.metrics.get(f"{SELECTED}epoch")
    note = f"of epoch {int(epoch) + 1}, whose weights were kept" if epoch is not None else ""
    table = Table(("metric", *splits), rows, frozenset(range(1, len(splits) + 1)), note=note)
    return Section("Metrics", tables=(table,) if rows else ())


def _with_interval(found: Mapping[str, float], key: str) -> str:
    interval = _interval(found, key)
    return f"{_four(found.get(key))} ({interval})" if interval else _four(found.get(key))


def shifted(run: Run) -> Section:
    """What was reached on further test sets, what was lost there, and how far their features are from the source's."""
    found: dict[str, dict[str, float]] = {}
    for key, value in run.data.metrics.items():
        parts = key.split("/")
        if parts[0] == "shift" and len(parts) == 3 and "_of_" not in key:
            found.setdefault(parts[1], {})[parts[2]] = value
    last = ("drop", "mmd", "frechet", "proxy_a")
    names = [*sorted({name for row in found.values() for name in _plain(row)} - set(last)), *last]
    rows = tuple((one, *(_with_interval(row, name) for name in names)) for one, row in found.items())
    heads = ("set", *(name.replace("_", " ") for name in names))
    note = "drop: what was lost against the source; the last three: distances of the last stage's features"
    table = Table(heads, rows, frozenset(range(1, len(heads))), note=note)
    return Section("Further test sets", tables=(table,) if rows else ())


def pictures(store: Store, run: Run) -> Section:
    """The figures of a run."""
    with store.errors():
        paths = [item.path for item in store.client.list_artifacts(run.info.run_id, "figures")]
    found = {path.rpartition("/")[2].removesuffix(".png"): path for path in paths if path.endswith(".png")}
    order = sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    made = []
    for name in order:
        with local(store, f"{run.info.artifact_uri}/{found[name]}") as file:
            made.append(Picture(_CAPTIONS.get(name, name.replace("_", " ").capitalize()), file.read_bytes()))
    return Section("Figures", pictures=tuple(made))


def lineage(store: Store, run: Run) -> Section:
    """What a run came from: data, weights, code, packages, machine."""
    return Section("Where it comes from", facts=tuple((k, v) for k, v in _lineage(store, run) if v))


def _lineage(store: Store, run: Run) -> Iterator[tuple[str, str]]:
    tags, run_id = run.data.tags, run.info.run_id
    environment = read_json(store, run_id, records.ENVIRONMENT) or {}
    yield "data", tags.get("tlresearch.data", "")
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        split = next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), "")
        profile = entry.dataset.profile or ""
        yield f"  {split}".strip(), _profile(profile)
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
    computation = read_json(store, run_id, records.COMPUTATION) or {}
    yield "computed with", ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in computation.items())
    yield "started", _date(run.info.start_time)
    yield "took", _duration(run)


def config_texts(store: Store, run: Run, *paths: str) -> Section:
    """Configs as they were recorded; each starts the same again."""
    found = ((path, read_text(store, run.info.run_id, path)) for path in paths)
    return Section("Configuration", texts=tuple((path, text) for path, text in found if text))


def exported(run: Run) -> Section:
    """Exported forms with what was measured of them."""
    found: dict[str, dict[str, float]] = {}
    for key, value in run.data.metrics.items():
        parts = key.split("/")
        if parts[0] == "export" and len(parts) == 3:
            found.setdefault(parts[1], {})[parts[2]] = value
    if not found:
        return Section("Exported forms")
    columns = sorted({name for row in found.values() for name in row}, key=lambda name: (name.count("_") > 2, name))
    order = sorted(found, key=lambda form: (form != "original", form))
    rows = tuple((form, *(shown(found[form].get(name)) for name in columns)) for form in order)
    heads = ("form", *(name.replace("_", " ") for name in columns))
    return Section("Exported forms", tables=(Table(heads, rows, frozenset(range(1, len(heads)))),))


def nested(runs: Sequence[Run], metric: str) -> Table:
    """Runs nested in another, with one metric of the selected epoch and, where it was measured, that of the test."""
    keys = [metric, f"test/{metric.partition('/')[2]}"]
    keys = [key for key in keys if key == metric or any(key in selected(run) for run in runs)]
    rows = tuple(
        (
            run.info.run_name or "",
            run.info.status.lower(),
            *(_four(selected(run).get(k)) for k in keys),
            run.info.run_id[:8],
        )
        for run in sorted(runs, key=lambda run: run.info.start_time)
    )
    return Table(("run", "ended", *keys, "id"), rows, frozenset(range(2, 2 + len(keys))))


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _profile(profile: str) -> str:
    import json

    try:
        content = json.loads(profile)
    except ValueError:
        return ""
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


def _duration(run: Run) -> str:
    if not run.info.end_time:
        return ""
    seconds = (run.info.end_time - run.info.start_time) / 1000
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
