"""What a repetition says: the table for the terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tlresearch.understand.comparison.agreement import TOLERANCE, Agreement, overall

if TYPE_CHECKING:
    from tlresearch.studies.reproduction.repeat import Repetition

COLUMNS = ("metric", "epochs", "verdict", "largest difference")
_APART = ("train", "val", "test")  # the rest is summed up by its first word
_COLOURS = {"identical": "green", "within tolerance": "yellow", "differs": "red"}


def print_repetition(console: Console, repetition: Repetition) -> None:
    """Prints the verdict, metric by metric, and what differs."""
    colour = _COLOURS[repetition.verdict]
    table = Table(title="", header_style="bold", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column == "epochs" else "left", overflow="fold")
    for name, epochs, verdict, largest in rows(repetition):
        table.add_row(name, epochs, f"[{_COLOURS[verdict]}]{verdict}[/{_COLOURS[verdict]}]", largest)
    console.print(table)
    for label, text in lines(repetition):
        console.print(f"  {label:<12} {text}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"[bold {colour}]{repetition.verdict}[/bold {colour}]: {_meaning(repetition)}", highlight=False)
    console.print(f"run {repetition.new}, linked with {repetition.old[:8]} in both directions", highlight=False)


def rows(repetition: Repetition) -> Iterator[tuple[str, str, str, str]]:
    """One row per metric of a split, and one for all rates and the like: name, epochs, verdict, largest difference."""
    groups: dict[str, list[Agreement]] = {}
    for metric in repetition.metrics:
        first = metric.name.partition("/")[0]
        groups.setdefault(metric.name if first in _APART else f"{first}/…", []).append(metric)
    order = {name: number for number, name in enumerate((*_APART, "selected"))}
    for name, parts in sorted(groups.items(), key=lambda item: order.get(item[0].partition("/")[0], len(order))):
        verdict = overall(parts)
        worst = next(part for part in parts if part.verdict == verdict)
        shown = name if len(parts) == 1 else f"{name} ({len(parts)})"
        yield shown, str(max(part.points for part in parts)), verdict, _largest(worst)


def lines(repetition: Repetition) -> Iterator[tuple[str, str]]:
    """What differs between the two runs, by kind."""
    for difference in repetition.differences:
        yield difference.kind, difference.text
    for part in repetition.not_recorded:
        yield "not recorded", f"{part}: nothing can be said"
    if not repetition.differences and not repetition.not_recorded:
        yield "the same", "code, data, weights, packages, hardware, precision and threads"


def as_markdown(repetition: Repetition) -> str:
    """The repetition as a page."""
    table = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *(" | ".join(row) for row in rows(repetition))]
    return "\n".join(
        [
            f"# {repetition.name}: {repetition.verdict}",
            "",
            f"Run `{repetition.new}` repeats run `{repetition.old}`. {_meaning(repetition).capitalize()}.",
            "",
            *(f"| {row} |" for row in table),
            "",
            "## Code, data, weights, packages, hardware, precision, threads",
            "",
            *(f"- {label}: {text}" for label, text in lines(repetition)),
            "",
        ]
    )


def _meaning(repetition: Repetition) -> str:
    parts = repetition.metrics
    same = sum(part.verdict == "identical" for part in parts)
    near = sum(part.verdict == "within tolerance" for part in parts)
    text = f"{same} of {len(parts)} metrics are the same in every epoch, bit for bit"
    return text if same == len(parts) else f"{text}; {near} more are within tolerance ({TOLERANCE})"


def _largest(metric: Agreement) -> str:
    if metric.verdict == "identical":
        return ""
    if metric.old is None or metric.new is None:
        return f"only the {'new' if metric.old is None else 'old'} run has epoch {metric.step}"
    return f"{metric.old:.6g} -> {metric.new:.6g} ({metric.new - metric.old:+.2g}) in epoch {metric.step}"
