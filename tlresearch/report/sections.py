"""What a report's page is made of: facts, tables, pictures and texts, as plain values."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Badge:
    """A verdict, or how the run ended, in a word or two."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Number:
    """One of the numbers on top of the page.

    Attributes:
        name: Such as ``test/accuracy``.
        value: As shown.
        note: Such as an interval; may be empty.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Heads of the columns.
        rows: The cells as shown.
        numeric: Positions of the columns that are set to the right.
        marked: Position of the row that stands out; `None` marks none.
        note: A line below it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    marked: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG picture inside the page.

    Attributes:
        caption: What it shows.
        png: Its content.
    """

    caption: str
    png: bytes

    @property
    def source(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: The heading.
        facts: Names and values.
        tables: Tables.
        pictures: Pictures.
        texts: Texts that fold, such as a config, by name.
    """

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.facts or self.tables or self.pictures or self.texts)


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: Name of the run or study.
        kind: ``run``, ``study``, ``group of seeds`` or ``reproduction``.
        run_id: Its MLflow run.
        description: What its author wrote about it.
        badges: How it ended, and verdicts.
        numbers: Its results.
        sections: The rest, in the order of reading.
        made: Date, and the version of tlresearch that made the page.
    """

    title: str
    kind: str
    run_id: str
    description: str
    badges: tuple[Badge, ...]
    numbers: tuple[Number, ...]
    sections: tuple[Section, ...] = field(default=())
    made: str = ""
