"""The elements of a page as plain values: text, tables with typed columns, figures, notes, commands to type next.

Nothing here knows how a page looks: `terminal`, `markdown` and `html` render it. `page.Page` combines the two.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Tone = Literal["plain", "good", "bad", "warning", "faint", "strong"]
"""The meaning of a text. Each renderer has a colour for it, and none relies on the colour alone."""

Better = Literal["higher", "lower"]
Value = str | int | float | None
MISSING = "-"
"""Shown where a number was not measured."""


@dataclass(frozen=True)
class Cell:
    """A value of a table, with notes and marks.

    Attributes:
        value: The value; a number is written in the format of its column, None as a dash.
        spread: Standard deviation, written behind ±.
        note: Faint text next to or below the value: an interval, or the epoch of the best value.
        tone: The meaning of the value.
        starred: Whether a star marks it: as the best of its column, unless the table's note says otherwise.
        format: Format of this cell alone, instead of the column's.
    """

    value: Value
    spread: float | None = None
    note: str = ""
    tone: Tone = "plain"
    starred: bool = False
    format: str = ""


Entry = Value | Cell


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and how its cells are written.

    Attributes:
        title: The text of the head.
        format: Format of numbers, such as ``.4f``; empty for texts.
        unit: Unit, written behind the title.
        better: Which direction is better, written behind the title as an arrow.
        align: Alignment of the cells; by default right for numbers, left for texts.
        code: Whether cells are code: keys, commands.
    """

    title: str
    format: str = ""
    unit: str = ""
    better: Better | None = None
    align: Literal["left", "right"] | None = None
    code: bool = False

    @property
    def head(self) -> str:
        """Title, unit and direction."""
        # A no-break space, so that no line begins with the arrow.
        arrow = {"higher": "\u00a0↑", "lower": "\u00a0↓", None: ""}[self.better]
        return f"{self.title}{f' ({self.unit})' if self.unit else ''}{arrow}"

    @property
    def side(self) -> Literal["left", "right"]:
        """Alignment of the cells."""
        return self.align or ("right" if self.format else "left")


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        columns: The columns, the most important first: a narrow terminal leaves out the last ones.
        rows: The rows, each with an entry per column.
        title: Title above the table.
        note: Explanation below the table.
        marked: Position of a highlighted row.
        rules: Positions of rows with a line above them.
        more: How to see columns for which a terminal has no room, such as a command.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    title: str = ""
    note: str = ""
    marked: int | None = None
    rules: frozenset[int] = frozenset()
    more: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} entries in a table of {len(self.columns)} columns: {row}")

    def filled(self) -> Table:
        """Returns the table without columns that are empty in every row."""
        filled = [
            at for at in range(len(self.columns)) if any(as_cell(row[at]).value not in ("", None) for row in self.rows)
        ]
        rows = tuple(tuple(row[at] for at in filled) for row in self.rows)
        return replace(self, columns=tuple(self.columns[at] for at in filled), rows=rows)

    def text(self, row: int, column: int) -> str:
        """Returns the value of a cell as text, with its spread."""
        cell = as_cell(self.rows[row][column])
        form = cell.format or self.columns[column].format
        if cell.value is None:
            return MISSING
        text = format(cell.value, form) if form and not isinstance(cell.value, str) else str(cell.value)
        return text if cell.spread is None else f"{text} ± {format(cell.spread, form)}"


def as_cell(entry: Entry) -> Cell:
    """Returns an entry as a cell; a plain value becomes a cell without notes and marks."""
    return entry if isinstance(entry, Cell) else Cell(entry)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Note:
    """One line of information, such as about a table."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Facts:
    """Names with their values, a line each."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Command:
    """A command to type next.

    Attributes:
        command: The command line.
        purpose: Its purpose, in a word or two.
    """

    command: str
    purpose: str


def typed(verb: str, argument: str = "") -> str:
    """Returns a command line the way its reader types them: a target of the Makefile under make, else the program.

    Args:
        verb: ``run``, ``compare`` or ``ui``.
        argument: The experiment that is run, or the sweep that is compared.
    """
    under_make = "MAKELEVEL" in os.environ  # make sets it for everything that it starts
    forms = {"run": ("EXP={}", "{}"), "compare": ("SWEEP={}", "--sweep {}"), "ui": ("", "")}
    form = forms[verb][0 if under_make else 1].format(argument)
    return f"{'make' if under_make else 'tlresearch'} {verb} {form}".rstrip()


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        caption: Its caption.
        png: Its content, for a page that embeds it.
        file: Its path, for a page that links to it.
    """

    caption: str
    png: bytes = b""
    file: Path | None = None

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Listing:
    """A text of many lines, such as a config; collapsed where the renderer can do so.

    Attributes:
        name: Its name, such as ``config.yaml``.
        text: Its content.
    """

    name: str
    text: str


Element = Text | Table | Note | Facts | Command | Figure | Listing


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: Its heading; a page's first section has none.
        elements: Its elements; an empty section is not shown.
    """

    title: str
    elements: tuple[Element, ...] = ()


@dataclass(frozen=True)
class Badge:
    """A verdict, or the status of a run, in a word or two."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Number:
    """A result on top of a page.

    Attributes:
        name: Name of the metric, such as ``test/accuracy``.
        value: The value as it is shown.
        note: A note such as an interval; may be empty.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Contents:
    """The contents of a page, from top to bottom.

    Attributes:
        title: Name of the run, the study or the question.
        sections: The body.
        kind: Kind of the page's subject, such as ``study``.
        description: The author's description of the subject.
        badges: Status and verdicts.
        numbers: Its results.
        footer: The origin of the page.
    """

    title: str
    sections: tuple[Section, ...] = field(default=())
    kind: str = ""
    description: str = ""
    badges: tuple[Badge, ...] = ()
    numbers: tuple[Number, ...] = ()
    footer: str = ""

    @property
    def shown(self) -> tuple[Section, ...]:
        """The sections that have elements."""
        return tuple(section for section in self.sections if section.elements)

    @property
    def elements(self) -> tuple[Element, ...]:
        """The elements of all sections, in order."""
        return tuple(element for section in self.sections for element in section.elements)


def numbers(titles: Iterable[str], form: str) -> tuple[Column, ...]:
    """Makes columns of numbers in one format."""
    return tuple(Column(title, form) for title in titles)
