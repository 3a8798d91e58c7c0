"""A page in a terminal, or as plain text in a log.

A table is laid out before it is drawn. If it does not fit the width as it is, notes go below their values; then it is
turned, if it has few rows; then it is split, or its last columns are left out and named. A number is never cut and a
head breaks only between words, so what is printed can always be read. Long texts in cells wrap.

Output that goes to a file or a pipe has no terminal's width: tables there are laid out for `LOG_WIDTH` columns, and
become wider rather than lose a column.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO, cast

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as Drawn
from rich.text import Text as Styled

from tlresearch.show.elements import (
    Command,
    Contents,
    Element,
    Facts,
    Figure,
    Listing,
    Note,
    Table,
    Text,
    Tone,
    as_cell,
)
from tlresearch.show.signs import in_ascii

LOG_WIDTH = 120
"""Columns of a line where there is no terminal."""
UNBOUNDED = 10_000
"""Width of a console that is no terminal: nothing is wrapped but the texts of tables."""

_GAP = 2  # spaces between columns
_WRAPPED = (24, 14)  # columns that a long text keeps: at first, and before a table is taken apart
_FEW_ROWS = 6  # a table with more rows is not turned
_MOST_LINES = 40  # a table that takes more lines in parts loses columns instead
_STYLES: dict[Tone, str] = {
    "plain": "",
    "good": "green",
    "bad": "red",
    "warning": "yellow",
    "faint": "dim",
    "strong": "bold",
}
_BREAKS = re.compile(r"[ \n]+|[^ \n/_.,=]*[/_.,=]+|[^ \n/_.,=]+")


class Sheet:
    """A page as something that rich prints.

    Args:
        page: The page.
    """

    def __init__(self, page: Contents) -> None:
        self.page = page

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        logged = options.max_width >= UNBOUNDED
        width = LOG_WIDTH if logged else options.max_width
        plain = not options.encoding.lower().startswith("utf")
        say: Callable[[str], str] = in_ascii if plain else str
        for piece in _page(self.page, width, wider=logged, say=say):
            if isinstance(piece, Styled) and not options.no_wrap and not piece.no_wrap:
                piece.overflow = "fold"
            yield piece


def show(console: Console, page: Contents) -> None:
    """Prints a page; commands and paths are never broken, so that they can be copied."""
    console.print(Sheet(page), soft_wrap=True)


def plain_text(page: Contents, width: int = UNBOUNDED) -> str:
    """The page as text without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(Sheet(page), soft_wrap=True)
    return stream.getvalue()


def open_console(stream: TextIO, *, quiet: bool = False) -> Console:
    """A console on a stream. Where that is no terminal, lines are as long as what they say."""
    unbounded = not stream.isatty() and "COLUMNS" not in os.environ and "FORCE_COLOR" not in os.environ
    return Console(file=cast(Any, stream), quiet=quiet, width=UNBOUNDED if unbounded else None)


def _page(page: Contents, width: int, *, wider: bool, say: Callable[[str], str]) -> Iterator[RenderableType]:
    if page.title:
        badges = [Styled(f"  {say(badge.text)}", _STYLES[badge.tone]) for badge in page.badges]
        yield Styled.assemble(Styled(say(page.title), "bold"), *badges)
    if page.description:
        yield Styled(say(page.description), "dim", no_wrap=False, overflow="fold")
    for number in page.numbers:
        note = f"  {number.note}" if number.note else ""
        yield Styled.assemble(f"  {say(number.name)}  ", (say(number.value), "bold"), (say(note), "dim"))
    for part in page.shown:
        if part.title:
            yield Styled(f"\n{say(part.title)}", "bold")
        for element in _joined(part.elements):
            yield from _element(element, width, wider=wider, say=say)
    if page.footer:
        yield Styled(say(page.footer), "dim", no_wrap=False, overflow="fold")


def _joined(elements: Sequence[Element]) -> Iterator[Element]:
    """Facts and commands that follow one another as one list, so that they stand in line."""
    pairs: list[tuple[str, str]] = []
    for element in elements:
        if isinstance(element, Facts):
            pairs += element.pairs
        elif isinstance(element, Command):
            pairs.append((element.purpose, element.command))
        else:
            if pairs:
                yield Facts(tuple(pairs))
            pairs = []
            yield element
    if pairs:
        yield Facts(tuple(pairs))


def _element(element: Element, width: int, *, wider: bool, say: Callable[[str], str]) -> Iterator[RenderableType]:
    if isinstance(element, Table):
        yield from _table(element, width, wider=wider, say=say)
    elif isinstance(element, Text):
        yield Styled(say(element.text), no_wrap=False, overflow="fold")
    elif isinstance(element, Note):
        yield Styled(f"  {say(element.text)}", _STYLES[element.tone], no_wrap=wider or None)
    elif isinstance(element, Facts):
        longest = max((cell_len(name) for name, _ in element.pairs), default=0)
        for name, value in element.pairs:
            yield Styled(f"  {say(name)}{' ' * (longest - cell_len(name))}  {say(value)}")
    elif isinstance(element, Figure):
        yield Styled(f"  figure: {say(element.caption)}{f' {element.file}' if element.file else ''}")
    elif isinstance(element, Listing):
        yield Styled(f"{say(element.name)}:\n{say(element.text.rstrip())}")


@dataclass(frozen=True)
class _Part:
    """A cell as it is laid out: the value, what stands beside it, and whether it may be broken into lines."""

    text: str
    note: str = ""
    style: str = ""
    whole: bool = False
    stacked: bool = False
    wrapped: int = _WRAPPED[0]

    @property
    def pieces(self) -> list[str]:
        """The lines of the cell before any wrapping."""
        if not self.note:
            return [self.text]
        return [self.text, self.note] if self.stacked else [f"{self.text} ({self.note})"]

    @property
    def wide(self) -> int:
        return max(cell_len(piece) for piece in self.pieces)

    @property
    def least(self) -> int:
        """Columns it needs at least."""
        return self.wide if self.whole else min(self.wide, self.wrapped)


@dataclass(frozen=True)
class _Grid:
    """A table as strings: heads, rows, and on which side cells stand."""

    heads: tuple[str, ...]
    rows: tuple[tuple[_Part, ...], ...]
    sides: tuple[str, ...]
    marked: int | None = None
    rules: frozenset[int] = frozenset()

    def stacked(self) -> _Grid:
        """The same with notes below their values."""
        return self._with(stacked=True)

    def narrow(self) -> _Grid:
        """The same with texts that wrap earlier; names of rows stay."""
        return self._with(1, wrapped=_WRAPPED[1])

    def _with(self, first: int = 0, **changes: Any) -> _Grid:
        rows = ((*row[:first], *(replace(part, **changes) for part in row[first:])) for row in self.rows)
        return replace(self, rows=tuple(rows))

    def turned(self) -> _Grid:
        """The same with a column for each row."""
        heads = (self.heads[0], *(f"{row[0].text} {row[0].note}".rstrip() for row in self.rows))
        columns = range(1, len(self.heads))
        rows = tuple((_Part(self.heads[at]), *(row[at] for row in self.rows)) for at in columns)
        return _Grid(heads, rows, ("left", *["right"] * len(self.rows)))

    def only(self, columns: Sequence[int]) -> _Grid:
        """Some of its columns."""
        rows = tuple(tuple(row[at] for at in columns) for row in self.rows)
        heads = tuple(self.heads[at] for at in columns)
        return replace(self, heads=heads, rows=rows, sides=tuple(self.sides[at] for at in columns))

    def least(self, column: int) -> int:
        """Columns of the terminal that a column needs at least."""
        head = max(map(cell_len, _pieces(self.heads[column])), default=0)
        return max(head, *(row[column].least for row in self.rows), 1) if self.rows else max(head, 1)

    def full(self, column: int) -> int:
        """Columns of the terminal in which nothing of a column is wrapped."""
        return max(cell_len(self.heads[column]), *(row[column].wide for row in self.rows), 0)

    def _lines(self, column: int, width: int) -> int:
        """Lines that the cells of a column take together, about."""
        return sum(-(-row[column].wide // width) for row in self.rows if row[column].wide)

    def fits(self, width: int) -> bool:
        """Whether it can be drawn without cutting anything."""
        count = len(self.heads)
        return sum(map(self.least, range(count))) + _GAP * (count - 1) <= width

    def widths(self, width: int) -> list[int]:
        """Width of each column: what it needs, then room for texts, then room for heads."""
        columns = range(len(self.heads))
        widths = [self.least(column) for column in columns]
        room = width - sum(widths) - _GAP * (len(widths) - 1)
        for _ in range(max(0, room)):  # to the column that takes the most lines now
            lines = [self._lines(column, widths[column]) for column in columns]
            if max(lines) <= len(self.rows):
                break
            widths[lines.index(max(lines))] += 1
        room = width - sum(widths) - _GAP * (len(widths) - 1)
        for column in sorted(columns, key=lambda at: self.full(at) - widths[at]):  # heads that lack least come first
            given = max(0, min(room, self.full(column) - widths[column]))
            widths[column], room = widths[column] + given, room - given
        return widths


def _table(table: Table, width: int, *, wider: bool, say: Callable[[str], str]) -> Iterator[RenderableType]:
    grid = _grid(table, say)
    grids, hidden = _fitted(grid, width, wider=wider)
    yield Styled(f"\n{say(table.title)}" if table.title else "", "bold", no_wrap=False, overflow="fold")
    for number, part in enumerate(grids):
        if number:
            yield Styled("")
        whole = sum(part.full(at) + _GAP for at in range(len(part.heads)))
        yield _drawn(part, width if part.fits(width) else whole)
    lines = [say(table.note)] if table.note else []
    if hidden:
        ways = table.more or "a wider terminal shows them"
        lines.append(say(f"{len(hidden)} more columns: {', '.join(hidden)}; {ways}"))
    if lines:
        yield Styled("\n".join(lines), "dim", no_wrap=wider, overflow="fold")


def _fitted(grid: _Grid, width: int, *, wider: bool) -> tuple[list[_Grid], list[str]]:
    """The table, or its parts, so that each fits; and the heads of columns that are left out."""
    stacked, turned = grid.stacked(), grid.turned()
    ways = [grid, stacked, stacked.narrow()]
    if len(grid.rows) <= _FEW_ROWS and len(grid.heads) > 3:
        ways += [turned, turned.stacked()]
    for way in ways:
        if way.fits(width):
            return [way], []
    stacked = stacked.narrow()
    parts = _split(stacked, width)
    height = 1 + any(part.note for row in grid.rows for part in row)
    if len(parts) * (height * len(grid.rows) + 3) <= _MOST_LINES:
        return [stacked.only(part) for part in parts], []
    if wider:
        return [grid], []
    first = _portions(grid.narrow(), width)[0]  # with many rows, notes below would double them
    hidden = [head.partition("\u00a0")[0] for at, head in enumerate(grid.heads) if at not in first]
    return [grid.narrow().only(first)], hidden


def _split(grid: _Grid, width: int) -> list[list[int]]:
    """The columns in as few portions as fit, about equally wide, the first column in each of them."""
    parts = _portions(grid, width)
    for narrower in range(width - 1, width // 2, -1):
        again = _portions(grid, narrower)
        if len(again) > len(parts):
            break
        parts = again
    return parts


def _portions(grid: _Grid, width: int) -> list[list[int]]:
    least = [grid.least(column) + _GAP for column in range(len(grid.heads))]
    parts, room = [[0]], width + _GAP - least[0]
    for column in range(1, len(least)):
        if len(parts[-1]) > 1 and least[column] > room:
            parts.append([0])
            room = width + _GAP - least[0]
        parts[-1].append(column)
        room -= least[column]
    return parts


def _grid(table: Table, say: Callable[[str], str]) -> _Grid:
    rows = []
    for number, row in enumerate(table.rows):
        parts = []
        for position, entry in enumerate(row):
            cell, text = as_cell(entry), say(table.main(number, position))
            style = " ".join(
                filter(None, (_STYLES[cell.tone], "bold" if cell.starred or number == table.marked else ""))
            )
            parts.append(
                _Part(
                    f"{say('★')} {text}" if cell.starred else text,
                    say(cell.note),
                    style,
                    whole=not isinstance(cell.value, str)
                    or (table.columns[position].side == "right" and len(text) <= _WRAPPED[0]),
                )
            )
        rows.append(tuple(parts))
    heads = tuple(say(column.head) for column in table.columns)
    return _Grid(heads, tuple(rows), tuple(column.side for column in table.columns), table.marked, table.rules)


def _drawn(grid: _Grid, width: int) -> Drawn:
    drawn = Drawn(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    drawn.header_style = "bold"
    widths = grid.widths(width)
    for head, side, columns in zip(grid.heads, grid.sides, widths, strict=True):
        text = Styled("\n".join(_wrapped(head, columns)))
        drawn.add_column(text, justify=cast(Any, side), width=columns, no_wrap=True, vertical="top")
    for number, row in enumerate(grid.rows):
        if number and number in grid.rules:
            drawn.add_section()
        drawn.add_row(*(_cell(part, columns) for part, columns in zip(row, widths, strict=True)))
    return drawn


def _cell(part: _Part, width: int) -> Styled:
    if part.whole and part.note and not part.stacked:
        return Styled.assemble((part.text, part.style), (f" ({part.note})", "dim"))
    lines = [Styled(line, part.style) for line in _wrapped(part.pieces[0], width)]
    lines += [Styled(line, "dim") for piece in part.pieces[1:] for line in _wrapped(piece, width)]
    return Styled("\n").join(lines)


def _pieces(text: str) -> list[str]:
    """What of a text stays together when it is wrapped: words, and the parts of names such as ``optimizer.lr``."""
    return [piece for piece in _BREAKS.findall(text) if piece.strip()]


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text; a word that is longer than a line is broken."""
    lines = [""]
    for piece in _BREAKS.findall(text):
        if cell_len(lines[-1]) + cell_len(piece.rstrip()) > width and lines[-1]:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece if lines[-1] or piece.strip() else ""
        while cell_len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines if line.strip()] or [""]
