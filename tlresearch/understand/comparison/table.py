"""A comparison as a table for the terminal: one column per run, or one row per run where there are many. No torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tlresearch.understand.comparison.compare import Comparison, Row
from tlresearch.understand.comparison.significance import LEVEL

if TYPE_CHECKING:
    from tlresearch.base.statistics import Summary

_MOST_COLUMNS = 4  # more runs are rows


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints the table, and below it whether the differences are more than noise."""
    console.print(render(comparison, console.width))
    if comparison.tests:
        console.print(noise_table(comparison))


def noise_table(comparison: Comparison) -> Table:
    """One row per paired test: the difference, its interval, how likely it is by chance, and what to make of it."""
    table = Table(title=f"more than noise? (p below {LEVEL:g})", title_justify="left", header_style="bold", box=None)
    for column in ("", "difference of", "mean [95 %]", "p", "over", ""):
        table.add_column(column, no_wrap=column in ("mean [95 %]", "p"))
    for paired in comparison.tests:
        test, names = paired.test, escape(f"{paired.first} - {paired.second}")
        if test is None:
            table.add_row(names, paired.metric, "", "", "", f"[dim]not tested: {escape(paired.reason)}[/dim]")
            continue
        interval = escape(f"{test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}]")
        words = "within noise" if paired.within_noise else "[bold]more than noise[/bold]"
        table.add_row(names, paired.metric, interval, f"{test.p_value:.2g}", paired.over, words)
    notes = dict.fromkeys(paired.note for paired in comparison.tests if paired.note)
    if notes:
        table.caption, table.caption_justify = "; ".join(notes), "left"
    return table


def render(comparison: Comparison, width: int = 200) -> Table:
    """The comparison as a table: one column per run, or one row per run where there are many.

    Args:
        comparison: The comparison.
        width: Characters of a line; where runs are rows, columns that do not fit are left out and named below.
    """
    table = Table(title=comparison.title, title_justify="left", header_style="bold", row_styles=["", "on grey11"])
    as_rows = len(comparison.rows) > _MOST_COLUMNS
    meaning = ["last value" if as_rows else "last value (best over all epochs @ its epoch)"]
    if any(row.members for row in comparison.rows):
        interval = "" if as_rows else " (95 % bootstrap interval of the mean)"
        meaning.append(f"of a group mean ± standard deviation over its seeds{interval}")
    if comparison.left_out:
        meaning.append(f"{comparison.left_out} more trials are not shown")
    if not as_rows:
        _runs_as_columns(table, comparison)
    elif hidden := _runs_as_rows(table, comparison, width):
        meaning.append(f"left out for want of width: {len(hidden)} params or metrics")
    table.caption = f"metrics: {'; '.join(meaning)}"
    table.caption_justify = "left"
    return table


def _lines(comparison: Comparison, *, brief: bool = False) -> dict[str, list[str]]:
    """State, params, metrics and duration of all runs, by their names."""
    rows = comparison.rows
    lines = {"state": [_state(row) for row in rows]}
    lines |= {key: [_param(cell) for cell in cells] for key, cells in comparison.differing.items()}
    lines |= {name: [_cell(comparison, row, name, brief=brief) for row in rows] for name in comparison.metrics}
    return lines | {"duration": [_duration(row.seconds) for row in rows]}


def _runs_as_columns(table: Table, comparison: Comparison) -> None:
    last_param = next(reversed(list(comparison.differing)), "state")
    table.add_column("", style="bold", no_wrap=True)
    for row in comparison.rows:
        table.add_column(_head(row), justify="right", overflow="fold")
    for key, cells in _lines(comparison).items():
        table.add_row(key, *cells, end_section=key in ("state", last_param))


def _runs_as_rows(table: Table, comparison: Comparison, width: int) -> list[str]:
    """Adds what fits into the width, the most telling first; returns the names of what does not."""
    lines = _lines(comparison, brief=True)
    main, *others = comparison.metrics or ("state",)
    state = [] if all(row.state == "finished" for row in comparison.rows) else ["state"]
    by_worth = [*state, main, *comparison.differing, *others, "duration"]
    heads = [_head(row).replace("\n", " ") for row in comparison.rows]
    room = width - _columns(heads) - 4
    shown = []
    for key in dict.fromkeys(by_worth):
        needed = _columns([_short(key, comparison), *lines[key]]) + 3
        if needed <= room:
            shown.append(key)
            room -= needed
    table.add_column("run", style="bold", no_wrap=True)
    for key in shown:
        table.add_column(_short(key, comparison), justify="left" if key == "state" else "right", no_wrap=True)
    for index, head in enumerate(heads):
        table.add_row(head, *(lines[key][index] for key in shown))
    return [key for key in by_worth if key not in shown]


def _short(key: str, comparison: Comparison) -> str:
    """A param without its section, where no other ends alike."""
    last = key.rpartition(".")[2]
    alike = [other for other in comparison.differing if other.rpartition(".")[2] == last]
    return last if key in comparison.differing and len(alike) == 1 else key


def _columns(cells: Sequence[str]) -> int:
    return max(Text.from_markup(cell).cell_len for cell in cells)


def _head(row: Row) -> str:
    return f"{escape(row.name)}\n[dim]{row.run_id[:8]}[/dim]"


def _state(row: Row) -> str:
    colour = {"finished": "green", "pruned": "yellow", "failed": "red", "killed": "red", "running": "cyan"}[row.state]
    return f"[{colour}]{row.state}[/{colour}]"


def _cell(comparison: Comparison, row: Row, name: str, *, brief: bool) -> str:
    if name not in row.metrics:
        return "[dim]-[/dim]"
    value = row.metrics[name]
    text = f"{value.last:.4g}"
    if value.over_seeds is not None:
        text = _over_seeds(value.over_seeds, brief=brief)
    elif not brief and not math.isclose(value.best, value.last, rel_tol=1e-9) and not math.isnan(value.best):
        text += f" [dim]({value.best:.4g} @ {value.best_step})[/dim]"
    return f"[bold green]★ {text}[/bold green]" if comparison.best.get(name) == row.run_id else text


def _over_seeds(found: Summary, *, brief: bool) -> str:
    # Two digits of the spread: more of the mean would say nothing.
    digits = min(6, max(0, 1 - math.floor(math.log10(found.std)))) if found.std > 0 else 4
    mean, std, low, high = (f"{value:.{digits}f}" for value in (found.mean, found.std, found.low, found.high))
    return f"{mean} ± {std}" if brief else f"{mean} ± {std} [dim]({low} to {high})[/dim]"


def _param(cell: str | None) -> str:
    if cell is None:
        return "[dim]-[/dim]"
    with contextlib.suppress(ValueError):
        cell = cell if cell.lstrip("-").isdigit() else f"{float(cell):.4g}"
    return escape(cell if len(cell) <= 60 else f"{cell[:57]}...")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
