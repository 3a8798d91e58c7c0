"""The page of a run that has ended: its metrics, and what it reaches on further test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tlresearch.run.shift.distances import DISTANCES
from tlresearch.show.elements import Cell, Column, Command, Entry, Note, Table, numbers, typed
from tlresearch.show.metrics import folded, measured, without_ends
from tlresearch.show.page import Page, page_of

SPLITS = ("train", "val", "test")
TOLD = ("accuracy", "calibration_error", "dice", "f1", "word_error_rate", "map")
"""Metrics of further test sets that are shown beside the distances."""


def run_page(title: str, metrics: Mapping[str, float], run_id: str) -> Page:
    """Metrics of the selected epoch, a row per split and the gap between two, with intervals where there are some.

    Args:
        title: Name of the run, how it ended and how long it took.
        metrics: Metrics by ``split/name``, as in `RunResult`.
        run_id: Its MLflow run.
    """
    names, lines = _names(metrics)
    rows: list[tuple[Entry, ...]] = []
    for split in SPLITS:
        if any(name.startswith(f"{split}/") for name in metrics):
            rows.append((split, *(_present(metrics, f"{split}/{name}") for name in names)))
        if split == "val" and any(name.startswith("gap/") for name in metrics):
            rows.append(("train - val", *(_gap(metrics, name) for name in names)))
    table = Table((Column(""), *numbers([name.replace("_", " ") for name in names], ".4f")), tuple(rows), title=title)
    sets = _sets(metrics, names)
    notes = (Note(line, "faint") for line in lines)
    return page_of("", table, *notes, *([sets] if sets else []), Command(typed("ui"), f"MLflow run {run_id}"))


def _names(metrics: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """The metrics that are shown, and a line for each whose classes are not all among them."""
    own = [name.partition("/") for name in metrics]
    names = list(dict.fromkeys(name for split, _, name in own if split in SPLITS))
    watched = [name for name in names if any(f"{split}/{name}" in metrics for split in ("train", "val"))]
    # What the test alone has beside a value, such as its interval or the value of each class, is in MLflow.
    names = [name for name in names if name in watched or not name.startswith(tuple(f"{w}_" for w in watched))]
    last = {n: next(metrics[f"{s}/{n}"] for s in SPLITS[::-1] if f"{s}/{n}" in metrics) for n in names}
    return folded({name: last[name] for name in without_ends(last)})


def _present(metrics: Mapping[str, float], key: str) -> Entry:
    return measured(metrics, key) if key in metrics else ""


def _gap(metrics: Mapping[str, float], name: str) -> Entry:
    return Cell(metrics[f"gap/{name}"], tone="faint", format="+.4f") if f"gap/{name}" in metrics else ""


def _sets(metrics: Mapping[str, float], names: Sequence[str]) -> Table | None:
    """A row per further test set: the metrics, what was lost, and how far the features of the last stage are off."""
    sets = dict.fromkeys(key.split("/")[1] for key in metrics if key.startswith("shift/"))
    if not sets:
        return None
    told = [name for name in names if name in TOLD] or list(names[:2])  # the others are in MLflow
    distances = [name for name in DISTANCES if name != "frechet"]  # whose size says little by itself
    return Table(
        (
            Column("set"),
            *numbers([name.replace("_", " ") for name in told], ".4f"),
            Column("drop", "+.4f"),
            *numbers([name.replace("_", " ") for name in distances], ".3g"),
        ),
        tuple(
            (
                name,
                *(_present(metrics, f"shift/{name}/{metric}") for metric in told),
                *(metrics[f"shift/{name}/{key}"] for key in ("drop", *distances)),
            )
            for name in sets
        ),
        title="further test sets",
        note="drop: what was lost against the source\n"
        f"{' and '.join(distances).replace('_', ' ')}: distances between the features behind the last stage",
    )
