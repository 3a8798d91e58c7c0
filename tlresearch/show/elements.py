"""What a page is made of, as plain values: text, tables with typed columns, figures, notes, commands to type next.

Nothing here knows how a page looks; `terminal`, `markdown` and `html` draw it, and `page.Page` puts it together.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Tone = Literal["plain", "good", "bad", "warning", "faint", "strong"]
"""What a text means to the reader; each renderer has a colour for it, and none relies on the colour alone."""

Better = Literal["higher", "lower"]
Value = str | int | float | None
MISSING = "-"
"""Shown where a number was not measured."""


@dataclass(frozen=True)
class Cell:
    """A value with what belongs to it.

    Attributes:
        value: The value; a number is written in the format of its column, None as a dash.
        spread: Standard deviation, written behind ±.
        note: Smaller, beside or below the value: an interval, or the epoch of the best value.
        tone: What the value means.
        starred: Whether a star marks it, as the best of its column or as the table's note says.
        format: Of this cell alone, instead of that of the column.
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
    """What the cells of a column are.

    Attributes:
        title: The head.
        format: How numbers are written, such as ``.4f``; empty for texts.
        unit: Written behind the title.
        better: Which direction is better; written behind the title as an arrow.
        align: Where cells stand; numbers stand right and texts left unless given.
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
        arrow = {"higher": "\u00a0↑", "lower": "\u00a0↓", None: ""}[self.better]  # no line begins with an arrow
        return f"{self.title}{f' ({self.unit})' if self.unit else ''}{arrow}"

    @property
    def side(self) -> Literal["left", "right"]:
        """Where the cells stand."""
        return self.align or ("right" if self.format else "left")


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        columns: The columns, the most telling first: a narrow terminal leaves out the last ones.
        rows: The rows, each with an entry per column.
        title: Above it.
        note: Explanations below it.
        marked: Position of a row that stands out.
        rules: Positions of rows with a line above them.
        more: How columns are seen that a terminal had no room for, such as a command.
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
        """The table without columns that are empty in every row."""
        there = [
            at for at in range(len(self.columns)) if any(as_cell(row[at]).value not in ("", None) for row in self.rows)
        ]
        rows = tuple(tuple(row[at] for at in there) for row in self.rows)
        return replace(self, columns=tuple(self.columns[at] for at in there), rows=rows)

    def main(self, row: int, column: int) -> str:
        """The value of a cell as text: number in the format of its column, spread behind it."""
        cell = as_cell(self.rows[row][column])
        form = cell.format or self.columns[column].format
        if cell.value is None:
            return MISSING
        text = format(cell.value, form) if form and not isinstance(cell.value, str) else str(cell.value)
        return text if cell.spread is None else f"{text} ± {format(cell.spread, form)}"


def as_cell(entry: Entry) -> Cell:
    """An entry of a row with nothing beside its value."""
    return entry if isinstance(entry, Cell) else Cell(entry)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Note:
    """One line that is worth knowing beside a table."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Facts:
    """Names with their values, one a line."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Command:
    """What to type next.

    Attributes:
        command: The command line.
        purpose: What it does, in a word or two.
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
        caption: What it shows.
        png: Its content, for a page that holds it.
        file: Where it lies, for a page that names it.
    """

    caption: str
    png: bytes = b""
    file: Path | None = None

    @property
    def source(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Listing:
    """A text of many lines that folds away where that can be done, such as a config.

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
        title: Its heading; a page's first part has none.
        elements: What stands in it; an empty section is not shown.
    """

    title: str
    elements: tuple[Element, ...] = ()


@dataclass(frozen=True)
class Badge:
    """A verdict, or how a run ended, in a word or two."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Number:
    """One of the results on top of a page.

    Attributes:
        name: Such as ``test/accuracy``.
        value: As shown.
        note: Such as an interval; may be empty.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Contents:
    """What stands on a page, from top to bottom.

    Attributes:
        title: Name of the run, the study or the question.
        sections: The body.
        kind: What the page is about, such as ``study``.
        description: What its author wrote about it.
        badges: How it ended, and verdicts.
        numbers: Its results.
        footer: Where the page comes from.
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
        """The sections that hold something."""
        return tuple(section for section in self.sections if section.elements)

    @property
    def elements(self) -> tuple[Element, ...]:
        """Everything in the sections, in order."""
        return tuple(element for section in self.sections for element in section.elements)


def numbers(titles: Iterable[str], form: str) -> tuple[Column, ...]:
    """Columns of numbers in one format."""
    return tuple(Column(title, form) for title in titles)
