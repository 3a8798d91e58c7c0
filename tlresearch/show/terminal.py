"""A page in a terminal, or as plain text in a log.

A table is laid out before it is drawn. If it does not fit the width, notes go below their values; then the table is
turned, if it has few rows; then it is split, or its last columns are left out and named. A number is never cut, and a
head breaks only between words. Long texts in cells wrap.

A file or a pipe has no width: tables there are laid out for `LOG_WIDTH` columns, and become wider rather than lose a
column.
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
"""Characters per line of a table outside a terminal."""
UNBOUNDED = 10_000
"""Width of a console that is no terminal: only the texts in tables are wrapped."""

_GAP = 2  # spaces between columns
_WRAPPED = (24, 14)  # characters at which a long text wraps: normally, and in a table that must become narrower
_FEW_ROWS = 6  # a table with more rows is not turned
_MOST_LINES = 40  # a table that would take more lines in portions loses columns instead
_STYLES: dict[Tone, str] = {
    "plain": "",
    "good": "green",
    "bad": "red",
    "warning": "yellow",
    "faint": "dim",
    "strong": "bold",
}
# The units that a line break keeps together: spaces, parts of a name with the sign behind them, words.
_BREAKS = re.compile(r"[ \n]+|[^ \n/_.,=]*[/_.,=]+|[^ \n/_.,=]+")


class Sheet:
    """A page in a form that rich prints.

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
    """Prints a page. Commands and paths are not broken into lines, so that they can be copied."""
    console.print(Sheet(page), soft_wrap=True)


def plain_text(page: Contents, width: int = UNBOUNDED) -> str:
    """Returns the page as text without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(Sheet(page), soft_wrap=True)
    return stream.getvalue()


def open_console(stream: TextIO, *, quiet: bool = False) -> Console:
    """Opens a console on a stream. If that is no terminal, lines have no maximal length."""
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
        for element in _aligned(part.elements):
            yield from _element(element, width, wider=wider, say=say)
    if page.footer:
        yield Styled(say(page.footer), "dim", no_wrap=False, overflow="fold")


def _aligned(elements: Sequence[Element]) -> Iterator[Element]:
    """Joins successive facts and commands into one element, so that their values are aligned."""
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
class _CellLayout:
    """The layout of a cell.

    Attributes:
        text: The value.
        note: The note.
        style: Style of the value.
        whole: Whether the value must not be broken into lines, as a number.
        stacked: Whether the note goes below the value, not behind it.
        wrapped: Width at which a text may wrap.
    """

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
    def full(self) -> int:
        """Width without any wrapping."""
        return max(cell_len(piece) for piece in self.pieces)

    @property
    def least(self) -> int:
        """Minimal width."""
        return self.full if self.whole else min(self.full, self.wrapped)


@dataclass(frozen=True)
class _Grid:
    """A table as strings: heads, rows, and the alignment (`sides`) of columns. All widths are in characters."""

    heads: tuple[str, ...]
    rows: tuple[tuple[_CellLayout, ...], ...]
    sides: tuple[str, ...]
    marked: int | None = None
    rules: frozenset[int] = frozenset()

    def stacked(self) -> _Grid:
        """Returns the grid with notes below their values."""
        return self._with(stacked=True)

    def narrow(self) -> _Grid:
        """Returns the grid with texts that wrap earlier, except the names of rows."""
        return self._with(1, wrapped=_WRAPPED[1])

    def _with(self, first: int = 0, **changes: Any) -> _Grid:
        rows = ((*row[:first], *(replace(cell, **changes) for cell in row[first:])) for row in self.rows)
        return replace(self, rows=tuple(rows))

    def turned(self) -> _Grid:
        """Returns the grid with rows and columns exchanged."""
        heads = (self.heads[0], *(f"{row[0].text} {row[0].note}".rstrip() for row in self.rows))
        columns = range(1, len(self.heads))
        rows = tuple((_CellLayout(self.heads[at]), *(row[at] for row in self.rows)) for at in columns)
        return _Grid(heads, rows, ("left", *["right"] * len(self.rows)))

    def only(self, columns: Sequence[int]) -> _Grid:
        """Returns the grid with only these columns."""
        rows = tuple(tuple(row[at] for at in columns) for row in self.rows)
        heads = tuple(self.heads[at] for at in columns)
        return replace(self, heads=heads, rows=rows, sides=tuple(self.sides[at] for at in columns))

    def least(self, column: int) -> int:
        """Minimal width of a column."""
        head = max(map(cell_len, _pieces(self.heads[column])), default=0)
        return max(head, *(row[column].least for row in self.rows), 1) if self.rows else max(head, 1)

    def full(self, column: int) -> int:
        """Width of a column without any wrapping."""
        return max(cell_len(self.heads[column]), *(row[column].full for row in self.rows), 0)

    def _lines(self, column: int, width: int) -> int:
        """Approximate number of lines that the cells of a column take together."""
        return sum(-(-row[column].full // width) for row in self.rows if row[column].full)

    def fits(self, width: int) -> bool:
        """Whether the grid can be drawn in `width` characters without cutting anything."""
        count = len(self.heads)
        return sum(map(self.least, range(count))) + _GAP * (count - 1) <= width

    def widths(self, width: int) -> list[int]:
        """Distributes `width` over the columns: first their minimal widths, then room for texts, then for heads."""
        columns = range(len(self.heads))
        widths = [self.least(column) for column in columns]
        room = width - sum(widths) - _GAP * (len(widths) - 1)
        for _ in range(max(0, room)):  # each character goes to the column that takes the most lines
            lines = [self._lines(column, widths[column]) for column in columns]
            if max(lines) <= len(self.rows):
                break
            widths[lines.index(max(lines))] += 1
        room = width - sum(widths) - _GAP * (len(widths) - 1)
        # The remaining room goes to the columns that lack least, which makes most heads fit in one line.
        for column in sorted(columns, key=lambda at: self.full(at) - widths[at]):
            extra = max(0, min(room, self.full(column) - widths[column]))
            widths[column], room = widths[column] + extra, room - extra
        return widths


def _table(table: Table, width: int, *, wider: bool, say: Callable[[str], str]) -> Iterator[RenderableType]:
    grid = _grid(table, say)
    grids, hidden = _fitted(grid, width, wider=wider)
    yield Styled(f"\n{say(table.title)}" if table.title else "", "bold", no_wrap=False, overflow="fold")
    for number, portion in enumerate(grids):
        if number:
            yield Styled("")
        full = sum(portion.full(at) + _GAP for at in range(len(portion.heads)))
        yield _drawn(portion, width if portion.fits(width) else full)
    lines = [say(table.note)] if table.note else []
    if hidden:
        ways = table.more or "a wider terminal shows them"
        lines.append(say(f"{len(hidden)} more columns: {', '.join(hidden)}; {ways}"))
    if lines:
        yield Styled("\n".join(lines), "dim", no_wrap=wider, overflow="fold")


def _fitted(grid: _Grid, width: int, *, wider: bool) -> tuple[list[_Grid], list[str]]:
    """Lays out a table: whole, or in portions of its columns; also returns the heads of columns left out."""
    stacked, turned = grid.stacked(), grid.turned()
    layouts = [grid, stacked, stacked.narrow()]
    if len(grid.rows) <= _FEW_ROWS and len(grid.heads) > 3:
        layouts += [turned, turned.stacked()]
    for layout in layouts:
        if layout.fits(width):
            return [layout], []
    stacked = stacked.narrow()
    portions = _balanced_portions(stacked, width)
    height = 1 + any(cell.note for row in grid.rows for cell in row)
    if len(portions) * (height * len(grid.rows) + 3) <= _MOST_LINES:
        return [stacked.only(portion) for portion in portions], []
    if wider:
        return [grid], []
    first = _portions(grid.narrow(), width)[0]  # not stacked: notes below would double the many rows
    hidden = [head.partition("\u00a0")[0] for at, head in enumerate(grid.heads) if at not in first]
    return [grid.narrow().only(first)], hidden


def _balanced_portions(grid: _Grid, width: int) -> list[list[int]]:
    """Splits the columns into as few portions as fit, about equally wide; the first column is in every portion."""
    portions = _portions(grid, width)
    # Filled greedily the last portion would be the narrowest. The smallest width with as many portions evens them out.
    for narrower in range(width - 1, width // 2, -1):
        candidate = _portions(grid, narrower)
        if len(candidate) > len(portions):
            break
        portions = candidate
    return portions


def _portions(grid: _Grid, width: int) -> list[list[int]]:
    least = [grid.least(column) + _GAP for column in range(len(grid.heads))]
    portions, room = [[0]], width + _GAP - least[0]
    for column in range(1, len(least)):
        if len(portions[-1]) > 1 and least[column] > room:
            portions.append([0])
            room = width + _GAP - least[0]
        portions[-1].append(column)
        room -= least[column]
    return portions


def _grid(table: Table, say: Callable[[str], str]) -> _Grid:
    rows = []
    for number, row in enumerate(table.rows):
        cells = []
        for position, entry in enumerate(row):
            cell, text = as_cell(entry), say(table.text(number, position))
            style = " ".join(
                filter(None, (_STYLES[cell.tone], "bold" if cell.starred or number == table.marked else ""))
            )
            cells.append(
                _CellLayout(
                    f"{say('★')} {text}" if cell.starred else text,
                    say(cell.note),
                    style,
                    whole=not isinstance(cell.value, str)
                    or (table.columns[position].side == "right" and len(text) <= _WRAPPED[0]),
                )
            )
        rows.append(tuple(cells))
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
        drawn.add_row(*(_drawn_cell(cell, columns) for cell, columns in zip(row, widths, strict=True)))
    return drawn


def _drawn_cell(cell: _CellLayout, width: int) -> Styled:
    if cell.whole and cell.note and not cell.stacked:
        return Styled.assemble((cell.text, cell.style), (f" ({cell.note})", "dim"))
    lines = [Styled(line, cell.style) for line in _wrapped(cell.pieces[0], width)]
    lines += [Styled(line, "dim") for piece in cell.pieces[1:] for line in _wrapped(piece, width)]
    return Styled("\n").join(lines)


def _pieces(text: str) -> list[str]:
    """Splits a text into the units that stay together: words, and the parts of names such as ``optimizer.lr``."""
    return [piece for piece in _BREAKS.findall(text) if piece.strip()]


def _wrapped(text: str, width: int) -> list[str]:
    """Breaks a text into lines; a word that is longer than a line is broken too."""
    lines = [""]
    for piece in _BREAKS.findall(text):
        if cell_len(lines[-1]) + cell_len(piece.rstrip()) > width and lines[-1]:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += piece if lines[-1] or piece.strip() else ""
        while cell_len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return [line.rstrip() for line in lines if line.strip()] or [""]
