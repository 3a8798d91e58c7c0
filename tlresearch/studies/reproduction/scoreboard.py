"""What a reproduction says: one row per published number, with the page of an experiment and that of all of them."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tlresearch.base.statistics import Summary
from tlresearch.config.published_schema import NumberConfig, ReferenceConfig
from tlresearch.show.elements import Cell, Column, Command, Element, Entry, Note, Section, Table, Text, Tone, typed
from tlresearch.show.page import Page, Shown
from tlresearch.studies.reproduction.verdict import Word
from tlresearch.tracking.provenance import Provenance

_TONES: dict[Word, Tone] = {"reproduced": "good", "not reproduced": "bad", "not run": "warning", "failed": "bad"}
_ORDER: tuple[Word, ...] = ("reproduced", "not reproduced", "failed", "not run")
_COLUMNS = (
    Column("variant"),
    Column("kind"),
    Column("metric"),
    Column("published", ".4f"),
    Column("ours", ".4f"),
    Column("n", "d"),
    Column("difference", "+.4f"),
    Column("tolerance", "g"),
    Column("verdict"),
    Column("minutes", ".1f"),
    Column("run"),
)


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

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What stands in the table: one entry per column."""
        number, ours = self.number, self.ours
        run = f"{self.date}, {self.commit[:9]}{'+' if self.commit.endswith('+') else ''}" if ours else None
        return (
            self.variant,
            self.reference.kind,
            f"{number.metric}, {_epoch(number)}",
            Cell(number.value or 0.0, number.spread),
            Cell(ours.mean, ours.std if ours.n > 1 else None) if ours else None,
            ours.n if ours else None,
            self.difference if ours else None,
            number.tolerance or 0.0,
            Cell(self.words, tone=_TONES[self.verdict]),
            self.seconds / 60 if ours else None,
            run,
        )


@dataclass(frozen=True)
class Reproduction(Shown):
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
    def exit_code(self) -> int:
        """0 if everything that ran was reproduced, else 1."""
        return int(any(row.verdict not in ("reproduced", "not run") for row in self.rows))

    @property
    def page(self) -> Page:
        """The published numbers beside ours, and what there is to know about them."""
        see = (Command(typed("ui"), f"MLflow run {self.run_id}"),) if self.run_id else ()
        return Page("", (self.section(), Section("", see)))

    def section(self, *, public: bool = False) -> Section:
        """Its part of a page; a public one has the reasons of tolerances and no places of this machine."""
        sources = dict.fromkeys(_source(row.reference) for row in self.rows)
        elements: list[Element] = [Text("\n".join(sources)), Table(_COLUMNS, tuple(row.entries for row in self.rows))]
        return Section(self.experiment, (*elements, *map(Note, remarks(self.rows, page=public))))


def counts(rows: Sequence[Row]) -> str:
    """How often each verdict was given, such as ``2 reproduced, 1 not run``."""
    words = [row.words for row in sorted(rows, key=lambda row: _ORDER.index(row.verdict))]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


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


def scoreboard(results: Sequence[Reproduction], now: Provenance) -> Page:
    """The page ``REPRODUCED.md``: what was published, what came out here, on what."""
    rows = [row for result in results for row in result.rows]
    packages = ", ".join(f"{name} {version}" for name, version in now.packages.items())
    commit = f"{now.code.commit[:9]}{' with changes' if now.code.dirty else ''}" if now.code else "unknown"
    hardware = now.hardware
    machine = ", ".join([f"{hardware.processor}, {hardware.cores} cores, {hardware.memory_gb:g} GB", *hardware.gpus])
    elsewhere = sorted({row.hardware for row in rows if row.hardware} - {hardware.processor, *hardware.gpus})
    notes = [
        f"{len(results)} experiments, {len(rows)} published numbers: {counts(rows)}",
        f"Machine: {machine}, {hardware.system}",
        f"Versions: Python {now.python}, {packages}",
        f"Page written {datetime.datetime.now(datetime.UTC):%Y-%m-%d} at commit {commit}; "
        "each row names the day and the commit of its run (+ with uncommitted changes).",
        "ours: mean ± standard deviation over n seeds; minutes: all seeds together, by the clock.",
        *([f"Some rows were run on: {', '.join(elsewhere)}"] if elsewhere else []),
    ]
    links = tuple((f"[{result.experiment}](#{_anchor(result.experiment)})", counts(result.rows)) for result in results)
    judged = "Written by `make reproduce-all`; how it is judged is in [docs/reproducing.md](docs/reproducing.md)."
    first: tuple[Element, ...] = (
        Text(judged),
        *map(Note, notes),
        Table((Column("experiment"), Column("verdicts")), links),
    )
    sections = (result.section(public=True) for result in results)
    return Page("Published numbers, run again", (Section("", first), *sections))


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
