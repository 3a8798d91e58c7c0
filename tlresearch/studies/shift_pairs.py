"""Every variant of an experiment on its shifted sets: the runs, their table by pair and way, and the page with it."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tlresearch.base.errors import UserError
from tlresearch.base.paths import find_yaml, topic
from tlresearch.base.statistics import PairedTest, Summary, summary
from tlresearch.config.load import Overrides, load_variants
from tlresearch.run.shift.distances import DISTANCES
from tlresearch.show import markdown
from tlresearch.show.elements import Cell, Column, Command, Entry, Note, Section, Table, Text, typed
from tlresearch.show.page import Page, Shown
from tlresearch.studies.family import fit_family, paired, values
from tlresearch.studies.seeds import GroupResult
from tlresearch.tasks.watched import monitored
from tlresearch.tracking.provenance import Provenance, collect

BEGIN, END = "<!-- begin: written by `tlresearch shift --write` -->", "<!-- end -->"


@dataclass(frozen=True)
class Pair:
    """One way of training on one source, tested on one further set: what stands in a cell of the tables.

    Attributes:
        source: What was trained on: the variant's name up to its first dot.
        target: Name of the set.
        way: How it was trained: the rest of the variant's name.
        reached: The monitored metric there.
        source_reached: The same on the source's own test split, else on validation.
        drop: What was lost.
        calibration: Calibration error there; ``None`` where the task has none.
        source_calibration: The same on the source.
        distances: Distance of the last stage's features by name.
        against: Difference from the first way, seed by seed; ``None`` for the first way itself.
    """

    source: str
    target: str
    way: str
    reached: Summary
    source_reached: Summary
    drop: Summary
    calibration: Summary | None
    source_calibration: Summary | None
    distances: Mapping[str, Summary]
    against: PairedTest | None


@dataclass(frozen=True)
class Pairs(Shown):
    """All cells of an experiment.

    Attributes:
        experiment: Its name.
        metric: The monitored metric, without a split.
        cells: One per source, set and way.
        seconds: Wall time of all runs.
        commits: Commits of the code that ran them; with ``+`` where files had changed.
        hardware: What they ran on.
        run_id: The parent MLflow run.
    """

    experiment: str
    metric: str
    cells: tuple[Pair, ...]
    seconds: float
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    run_id: str

    @property
    def ways(self) -> list[str]:
        """The ways, in the order of the experiment."""
        return list(dict.fromkeys(cell.way for cell in self.cells))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The pairs of source and set."""
        return list(dict.fromkeys((cell.source, cell.target) for cell in self.cells))

    def cell(self, pair: tuple[str, str], way: str) -> Pair | None:
        """The cell of a pair and a way."""
        cells = (cell for cell in self.cells if (cell.source, cell.target, cell.way) == (*pair, way))
        return next(cells, None)

    @property
    def page(self) -> Page:
        """A row per pair of source and set, a column per way of training."""
        see = Command(typed("ui"), f"MLflow run {self.run_id}")
        return Page("", (Section("", (*_tables(self), see)),))


def fit_pairs(
    experiment: str | Path, overrides: Overrides = (), *, seeds: Sequence[int] = (), console: Console | None = None
) -> Pairs:
    """Runs every variant of an experiment with every seed, and gathers what they reach on their shifted sets.

    Args:
        experiment: Name under ``experiments/`` or path of a YAML file. Its variants are named ``source.way``.
        overrides: Values by full key, for every variant.
        seeds: The seeds; those of the experiment unless given.
        console: Where progress is shown.

    Raises:
        UserError: If a variant names no shifted set, or anything about config, data or weights is wrong.
    """
    members = load_variants(experiment, overrides)
    path = find_yaml(str(experiment), "experiments")
    name = "/".join(dict.fromkeys(topic(path, "experiments")))
    bare = [variant for variant, loaded in members.items() if not loaded.config.data.shift]
    if bare:
        raise UserError(f"{name}: {bare[0]} names no shifted set; add data.shift, such as {{webcam: {{root: …}}}}")
    with fit_family(f"{name.rpartition('/')[2]} on shifted sets", members, seeds, console=console) as family:
        metric = monitored(next(iter(members.values())).config).partition("/")[2]
        result = Pairs(
            experiment=name,
            metric=metric,
            cells=tuple(_cells(family.groups, metric)),
            seconds=sum(group.seconds for group in family.groups.values()),
            commits=tuple(dict.fromkeys(group.commit for group in family.groups.values())),
            hardware=tuple(dict.fromkeys(group.hardware for group in family.groups.values())),
            run_id=family.run.run_id,
        )
        family.run.log_text(as_markdown(result, collect(sys.argv)), "shift/pairs.md")
    return result


def _cells(groups: Mapping[str, GroupResult], metric: str) -> Iterator[Pair]:
    first: dict[str, GroupResult] = {}
    for variant, group in groups.items():
        source, _, way = variant.partition(".")
        base = first.setdefault(source, group)
        names = group.runs[0].metrics
        split = "test" if f"test/{metric}" in names else "val"
        for target in dict.fromkeys(key.split("/")[1] for key in names if key.startswith("shift/")):
            here, error = f"shift/{target}", "calibration_error"
            calibrated = f"{here}/{error}" in names
            yield Pair(
                source=source,
                target=target,
                way=way or source,
                reached=summary(values(group, f"{here}/{metric}")),
                source_reached=summary(values(group, f"{split}/{metric}")),
                drop=summary(values(group, f"{here}/drop")),
                calibration=summary(values(group, f"{here}/{error}")) if calibrated else None,
                source_calibration=summary(values(group, f"{split}/{error}")) if calibrated else None,
                distances={name: summary(values(group, f"{here}/{name}")) for name in DISTANCES},
                against=paired(group, base, f"{here}/{metric}") if group is not base else None,
            )


def _tables(result: Pairs) -> Iterator[Table]:
    """Yields the tables, with one row per pair and a column per way."""
    spoken = result.metric.replace("_", " ")
    tables: dict[str, Callable[[Pair], Entry]] = {
        f"{spoken} on the target (source's own test; drop)": _reached,
        f"difference of {spoken} on the target from {result.ways[0]}, seed by seed (95 % interval)": _against,
        "calibration error on the target (on the source's own test)": _calibration,
        "distance of the last stage's features: proxy A, squared MMD": _distances,
    }
    for title, entry in tables.items():
        rows = []
        for source, target in result.rows:
            cells = (result.cell((source, target), way) for way in result.ways)
            rows.append((f"{source} → {target}", *("" if cell is None else entry(cell) for cell in cells)))
        heads = (Column(""), *(Column(way, align="right") for way in result.ways))
        yield Table(heads, tuple(rows), title=title)


def _reached(cell: Pair) -> Entry:
    return _over_seeds(cell.reached, f"{cell.source_reached.mean:.3f}; {cell.drop.mean:+.3f}")


def _against(cell: Pair) -> Entry:
    gain = cell.against
    return Cell(gain.difference, note=f"{gain.low:+.3f} to {gain.high:+.3f}", format="+.3f") if gain else ""


def _calibration(cell: Pair) -> Entry:
    if cell.calibration is None or cell.source_calibration is None:
        return ""
    return _over_seeds(cell.calibration, f"{cell.source_calibration.mean:.3f}")


def _distances(cell: Pair) -> Entry:
    return f"{cell.distances['proxy_a'].mean:.2f}, {cell.distances['mmd'].mean:.3f}"


def _over_seeds(value: Summary, note: str) -> Entry:
    return Cell(value.mean, value.std, note, format=".3f")


def as_markdown(result: Pairs, now: Provenance) -> str:
    """The tables as Markdown, with what they were made on."""
    versions = ", ".join(f"{name} {version}" for name, version in now.packages.items())
    notes = (
        f"Machine: {', '.join(result.hardware)}, {now.hardware.cores} cores; all runs together "
        f"{result.seconds / 60:.0f} minutes by the clock",
        f"Versions: Python {now.python}, {versions}",
        f"Commit {', '.join(_short(commit) for commit in result.commits)}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    )
    seeds = result.cells[0].reached.n
    first = Text(f"`tlresearch shift {result.experiment}`: mean ± standard deviation of {seeds} seeds.")
    return markdown.render(Page("", (Section("", (first, *map(Note, notes), *_tables(result))),)))


def write(page: Path, text: str) -> None:
    """Puts the tables between the two marks of a page.

    Raises:
        UserError: If the page is not there, or has no marks.
    """
    whole = page.read_text() if page.is_file() else ""
    if BEGIN not in whole or END not in whole:
        raise UserError(f"{page}: has no lines '{BEGIN}' and '{END}' between which the tables belong; add them")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    page.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n{text}{END}", whole, count=1, flags=re.DOTALL))


def _short(commit: str) -> str:
    return f"{commit[:9]}{' with uncommitted changes' if commit.endswith('+') else ''}" if commit else "unknown"
