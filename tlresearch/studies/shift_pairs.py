"""Every variant of an experiment on its shifted sets: the runs, their table by pair and way, and the page with it."""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tlresearch.base.errors import UserError
from tlresearch.base.paths import find_yaml, topic
from tlresearch.base.statistics import PairedTest, Summary, summary
from tlresearch.config.load import Overrides, load_variants
from tlresearch.shift.distances import DISTANCES
from tlresearch.studies.family import fit_family, paired, values
from tlresearch.studies.seeds import GroupResult
from tlresearch.tracking.provenance import Provenance, collect

BEGIN, END = "<!-- begin: written by `tlresearch shift --write` -->", "<!-- end -->"


@dataclass(frozen=True)
class Cell:
    """One way of training on one source, tested on one further set.

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
class Pairs:
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
    cells: tuple[Cell, ...]
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

    def cell(self, pair: tuple[str, str], way: str) -> Cell | None:
        """The cell of a pair and a way."""
        found = [cell for cell in self.cells if (cell.source, cell.target, cell.way) == (*pair, way)]
        return found[0] if found else None


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
        metric = next(iter(members.values())).config.trainer.monitor.partition("/")[2]
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


def _cells(groups: Mapping[str, GroupResult], metric: str) -> Iterator[Cell]:
    first: dict[str, GroupResult] = {}
    for variant, group in groups.items():
        source, _, way = variant.partition(".")
        base = first.setdefault(source, group)
        names = group.runs[0].metrics
        split = "test" if f"test/{metric}" in names else "val"
        for target in dict.fromkeys(key.split("/")[1] for key in names if key.startswith("shift/")):
            here, error = f"shift/{target}", "calibration_error"
            calibrated = f"{here}/{error}" in names
            yield Cell(
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


def _grids(result: Pairs) -> Iterator[tuple[str, list[list[str]]]]:
    """Yields title and rows of each table: head, then one row per pair."""
    spoken = result.metric.replace("_", " ")
    grids = {
        f"{spoken} on the target (source's own test; drop)": _reached,
        f"difference of {spoken} on the target from {result.ways[0]}, seed by seed (95 % interval)": _against,
        "calibration error on the target (on the source's own test)": _calibration,
        "distance of the last stage's features: proxy A, squared MMD": _distances,
    }
    for title, text in grids.items():
        rows = [[f"{source} → {target}", *(text(result.cell((source, target), way)) for way in result.ways)]
                for source, target in result.rows]  # fmt: skip
        yield title, [["", *result.ways], *rows]


def _reached(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{_text(cell.reached)} ({cell.source_reached.mean:.3f}; {cell.drop.mean:+.3f})"


def _against(cell: Cell | None) -> str:
    if cell is None or cell.against is None:
        return ""
    return f"{cell.against.difference:+.3f} ({cell.against.low:+.3f} to {cell.against.high:+.3f})"


def _calibration(cell: Cell | None) -> str:
    if cell is None or cell.calibration is None or cell.source_calibration is None:
        return ""
    return f"{_text(cell.calibration)} ({cell.source_calibration.mean:.3f})"


def _distances(cell: Cell | None) -> str:
    return f"{cell.distances['proxy_a'].mean:.2f}, {cell.distances['mmd'].mean:.3f}" if cell else ""


def _text(found: Summary) -> str:
    return f"{found.mean:.3f} ± {found.std:.3f}"


def as_tables(result: Pairs) -> list[Table]:
    """The tables for the terminal."""
    tables = []
    for title, (head, *rows) in _grids(result):
        table = Table(*head, title=title, title_justify="left", title_style="bold")
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    return tables


def as_markdown(result: Pairs, now: Provenance) -> str:
    """The tables as Markdown, with what they were made on."""
    seeds = result.cells[0].reached.n
    versions = ", ".join(f"{name} {version}" for name, version in now.packages.items())
    lines = [
        f"`tlresearch shift {result.experiment}`: mean ± standard deviation of {seeds} seeds.",
        "",
        f"- Machine: {', '.join(result.hardware)}, {now.hardware.cores} cores; all runs together "
        f"{result.seconds / 60:.0f} minutes by the clock",
        f"- Versions: Python {now.python}, {versions}",
        f"- Commit {', '.join(_short(commit) for commit in result.commits)}, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    ]
    for title, (head, *rows) in _grids(result):
        sides = "| " + " | ".join(["---", *["---:"] * (len(head) - 1)]) + " |"
        lines += ["", f"{title[0].upper()}{title[1:]}:", "", "| " + " | ".join(head) + " |", sides]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


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
