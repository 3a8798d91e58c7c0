"""What a reproduction says: one row per published number, for the terminal, for MLflow and for REPRODUCED.md."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from tlresearch.base.statistics import Summary
from tlresearch.config.published_schema import NumberConfig, ReferenceConfig
from tlresearch.studies.reproduction.verdict import Word
from tlresearch.tracking.provenance import Provenance

_COLOURS: dict[Word, str] = {
    "reproduced": "green",
    "not reproduced": "red",
    "not run": "yellow",
    "failed": "red",
}


_ORDER: tuple[Word, ...] = ("reproduced", "not reproduced", "failed", "not run")
_HEAD = "| variant | kind | metric | published | ours | n | difference | tolerance | verdict | minutes | run |"
_SIDES = "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | ---: | --- |"


@dataclass(frozen=True)
class Row:
    """One published number beside ours.

    Attributes:
        variant: Variant of the experiment.
        number: The published number.
        reference: What is said of it.
        verdict: What the comparison says; ``not run`` where data or weights are missing, ``failed`` after an error.
        ours: Our values over the seeds, if it was run.
        difference: Our mean less the published number.
        seconds: Wall time of all runs of the variant.
        reason: Why it was not run, or failed.
        overrides: What was run in another way than the experiment says, if anything.
        run_id: MLflow run of the group.
        commit: Commit of the code that ran it.
        date: Day it was run.
        hardware: What it ran on.
    """

    variant: str
    number: NumberConfig
    reference: ReferenceConfig
    verdict: Word
    ours: Summary | None = None
    difference: float | None = None
    seconds: float = 0.0
    reason: str = ""
    overrides: tuple[str, ...] = ()
    run_id: str = ""
    commit: str = ""
    date: str = ""
    hardware: str = ""

    @property
    def words(self) -> str:
        """The verdict as shown: a run with other settings cannot stand for the published one."""
        return f"{self.verdict} (overridden)" if self.overrides and self.ours else self.verdict

    def cells(self) -> tuple[str, ...]:
        """Variant, metric, published, ours, number of seeds, difference, tolerance and verdict as text."""
        number = self.number
        value, tolerance = number.value or 0.0, number.tolerance or 0.0
        published = f"{value:.4f}" + (f" ± {number.spread:.4f}" if number.spread is not None else "")
        ours = n = difference = "-"
        if self.ours is not None and self.difference is not None:
            ours = f"{self.ours.mean:.4f}" + (f" ± {self.ours.std:.4f}" if self.ours.n > 1 else "")
            n, difference = str(self.ours.n), f"{self.difference:+.4f}"
        metric = f"{number.metric}, {_epoch(number)}"
        return (self.variant, metric, published, ours, n, difference, f"{tolerance:g}", self.words)


@dataclass(frozen=True)
class Reproduction:
    """A published experiment and what came of it.

    Attributes:
        experiment: Its name.
        rows: One per variant and published number.
        run_id: MLflow run that holds the verdict; empty if nothing could be run.
        url: Its address in the MLflow UI.
    """

    experiment: str
    rows: tuple[Row, ...]
    run_id: str = ""
    url: str = ""

    @property
    def reached(self) -> bool:
        """Whether everything that ran was reproduced."""
        return all(row.verdict in ("reproduced", "not run") for row in self.rows)


def counts(rows: Sequence[Row]) -> str:
    """How often each verdict was given, such as ``2 reproduced, 1 not run``."""
    words = [row.words for row in sorted(rows, key=lambda row: _ORDER.index(row.verdict))]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def as_tables(result: Reproduction) -> Group:
    """A table per variant for the terminal; 80 columns suffice."""
    tables = []
    for variant in dict.fromkeys(row.variant for row in result.rows):
        rows = [row for row in result.rows if row.variant == variant]
        title = f"{result.experiment}  {variant}"
        if rows[0].ours is not None:
            title += f"  n={rows[0].ours.n}  {rows[0].seconds:.0f} s"
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for column in ("metric", "published", "ours", "diff", "tol.", "verdict"):
            text = column in ("metric", "verdict")
            table.add_column(column, justify="left" if text else "right", no_wrap=not text, min_width=14 if text else 0)
        for row in rows:
            _, metric, published, ours, _, difference, tolerance, words = row.cells()
            colour = _COLOURS[row.verdict]
            table.add_row(metric, published, ours, difference, tolerance, f"[{colour}]{words}[/{colour}]")
        tables.append(table)
    return Group(*tables)


def remarks(rows: Sequence[Row], *, page: bool = False) -> list[str]:
    """One line per thing to know beside the table: why not run, what it needs, what was overridden, what differs.

    Args:
        rows: Rows of one experiment.
        page: For a page that others read: with the reasons of the tolerances, without places of this machine.
    """
    found: dict[tuple[int, str], list[str]] = {}
    for row in rows:
        for line in _remarks(row, page=page):
            who = found.setdefault(line, [])
            who += [row.variant] if row.variant not in who else []
    everyone = {row.variant for row in rows}
    ordered = sorted(found.items(), key=lambda item: item[0][0])  # stable: within a kind the order of the rows
    return [line if len(who) == len(everyone) else f"{', '.join(who)}: {line}" for (_, line), who in ordered]


def _remarks(row: Row, *, page: bool) -> Iterator[tuple[int, str]]:
    """Yields what there is to know of one row, with a number for its kind by which kinds are kept together."""
    reference, number = row.reference, row.number
    if row.verdict == "not run":
        if row.reason and not page:
            yield 0, f"not run: {row.reason}"
        yield from ((1, f"needs {need}") for need in reference.needs)
    if row.verdict == "failed":
        yield 0, "failed" if page else f"failed: {row.reason}"
    if row.overrides:
        yield 2, f"overridden: {' '.join(row.overrides)}"
    if reference.note:
        yield 3, reference.note
    if page:
        yield 4, f"{number.metric}, {_epoch(number)}, tolerance {number.tolerance:g}: {number.reason}"
    yield from ((5, f"differs from the published protocol: {text}") for text in reference.deviations)


def as_markdown(results: Sequence[Reproduction], *, page: bool = False) -> str:
    """The rows of several experiments as Markdown: a table and the remarks for each."""
    lines: list[str] = []
    for result in results:
        sources = dict.fromkeys(_source(row.reference) for row in result.rows)
        lines += ["", f"## {result.experiment}", "", *sources, "", _HEAD, _SIDES]
        for row in result.rows:
            variant, *cells = row.cells()
            minutes = f"{row.seconds / 60:.1f}" if row.ours else "-"
            run = f"{row.date}, {row.commit[:9]}{'+' if row.commit.endswith('+') else ''}" if row.ours else "-"
            lines.append("| " + " | ".join([variant, row.reference.kind, *cells, minutes, run]) + " |")
        lines += ["", *(f"- {line}" for line in remarks(result.rows, page=page))]
    return "\n".join(lines).strip() + "\n"


def as_page(results: Sequence[Reproduction], now: Provenance) -> str:
    """The page ``REPRODUCED.md``: what was published, what came out here, on what."""
    rows = [row for result in results for row in result.rows]
    packages = ", ".join(f"{name} {version}" for name, version in now.packages.items())
    commit = f"{now.code.commit[:9]}{' with changes' if now.code.dirty else ''}" if now.code else "unknown"
    hardware = now.hardware
    machine = ", ".join([f"{hardware.processor}, {hardware.cores} cores, {hardware.memory_gb:g} GB", *hardware.gpus])
    elsewhere = sorted({row.hardware for row in rows if row.hardware} - {hardware.processor, *hardware.gpus})
    lines = [
        "# Published numbers, run again",
        "",
        "Written by `make reproduce-all`; how it is judged is in [docs/reproducing.md](docs/reproducing.md).",
        "",
        f"- {len(results)} experiments, {len(rows)} published numbers: {counts(rows)}",
        f"- Machine: {machine}, {hardware.system}",
        f"- Versions: Python {now.python}, {packages}",
        f"- Page written {datetime.datetime.now(datetime.UTC):%Y-%m-%d} at commit {commit}; "
        "each row names the day and the commit of its run (+ with uncommitted changes).",
        "- ours: mean ± standard deviation over n seeds; minutes: all seeds together, by the clock.",
        *([f"- Some rows were run on: {', '.join(elsewhere)}"] if elsewhere else []),
        "",
        "| experiment | verdicts |",
        "| --- | --- |",
        *(f"| [{result.experiment}](#{_anchor(result.experiment)}) | {counts(result.rows)} |" for result in results),
        "",
    ]
    return "\n".join([*lines, as_markdown(results, page=True)])


def as_record(result: Reproduction) -> dict[str, Any]:
    """The rows as plain values, for JSON."""
    return {"experiment": result.experiment, "rows": [asdict(row) for row in result.rows]}


def _epoch(number: NumberConfig) -> str:
    return f"epoch {number.select}" if isinstance(number.select, int) else number.select


def _anchor(heading: str) -> str:
    """The address of a heading on a page of Markdown."""
    return re.sub(r"[^\w-]", "", heading.lower())


def _source(reference: ReferenceConfig) -> str:
    source = reference.source
    places = [f"{source.repository} `{source.path}` @ {source.commit[:10]}"] if source.repository else []
    places += [f"{source.paper}, {source.table}"] if source.paper else []
    runs = f"{reference.runs} runs" if reference.runs > 1 else "1 run"
    return f"*{source.title}*: {'; '.join(places)}; {runs}."
