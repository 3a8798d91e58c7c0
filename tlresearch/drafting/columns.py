"""Tables whose columns nobody has named: what separates them, whether there is a header, and which column is what."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tlresearch.data.rows import clean, read_text
from tlresearch.data.table import split_of

_ROWS = 2000  # rows that are looked at
_LABEL = re.compile(r"label|class|categor|target|sentiment|species|diagnos|emotion|topic|intent|^y$", re.IGNORECASE)
_TEXT = re.compile(r"text|sentence|review|comment|message|content|tweet|document|body", re.IGNORECASE)
_MEASURED = re.compile(r"score|value|age|price|rating|count|weight|length|size|similarity", re.IGNORECASE)
_INDEX = re.compile(r"(^|_)(id|index|no|number)$", re.IGNORECASE)
_CLASSES = 20  # different numbers of one column that may be classes
_SPLIT = re.compile(r"split|subset|partition|^set$", re.IGNORECASE)
_GROUP = re.compile(r"patient|subject|group|speaker|person", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")


class Learnt(NamedTuple):
    """What the samples of a table are learnt for.

    Attributes:
        task: Classes, or numbers.
        data: Values of the `data` section that say so.
    """

    task: Literal["classification", "regression"]
    data: dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A table as it was seen.

    Attributes:
        path: The file.
        columns: Values by column; names are numbers, from 0, where there is no header.
        reading: What the reader of tables must be told: the delimiter, if it would take another one.
    """

    path: Path
    columns: dict[str, list[str]]
    reading: dict[str, str]

    def column_of_files(self, names: Collection[str], folder: str) -> str | None:
        """The column whose values are files, nearly all of them; their ending may be left out.

        Args:
            names: Paths of the files that are here.
            folder: Folder that the paths are relative to.
        """
        here = {name.removeprefix(f"{folder}/") for name in names}
        here |= {str(Path(name).with_suffix("")) for name in here}
        for column, values in self.columns.items():
            looked_at = [value.replace("\\", "/") for value in values[:200] if value]
            if looked_at and sum(value in here for value in looked_at) >= 0.9 * len(looked_at):
                return column
        return None

    def label_column(self, *taken: str) -> str | None:
        """The column of labels: by its name, else the one with the fewest different values."""
        rows = len(next(iter(self.columns.values())))
        reserved = {*taken, self.split_column(), self.group_column()}
        kinds = {name: len(set(values)) for name, values in self.columns.items() if name not in reserved}
        fitting = {name: count for name, count in kinds.items() if 2 <= count <= max(2, rows / 2)}
        named = [name for name in fitting if _LABEL.search(name)]
        few = [name for name, count in fitting.items() if count <= max(2, rows / 5)]
        return min(named or few, key=lambda name: fitting[name], default=None)

    def number_column(self, *taken: str) -> str | None:
        """The column of measured numbers: by its name, else the only one; what numbers the rows is none."""
        fitting = []
        for name, values in self.columns.items():
            numbers = all(_NUMBER.fullmatch(value) for value in values)
            counts = [str(number) for number in range(len(values))]
            is_index = _INDEX.search(name) or values in (counts, [*counts[1:], str(len(counts))])
            if numbers and len(set(values)) > 2 and not is_index and name not in (*taken, self.group_column()):
                fitting.append(name)
        named = [name for name in fitting if _LABEL.search(name) or _MEASURED.search(name)]
        return next(iter(named), fitting[0] if len(fitting) == 1 else None)

    def learnt(self, *taken: str) -> Learnt | None:
        """What is to be learnt beside the columns that are taken: a label, or else a number."""
        label, number = self.label_column(*taken), self.number_column(*taken)
        if number is not None and number in (label, None) and len(set(self.columns[number])) > _CLASSES:
            label = None
        if label is not None:
            return Learnt("classification", {"label_column": label})
        return Learnt("regression", {"targets": [number]}) if number is not None else None

    def text_column(self) -> str | None:
        """The column of texts, by its name or its length."""
        lengths = {name: statistics.fmean(map(len, values)) for name, values in self.columns.items()}
        named = [name for name in lengths if _TEXT.search(name) and not _LABEL.search(name)]
        text = max(named or lengths, key=lambda name: lengths[name])
        words = statistics.fmean(len(value.split()) for value in self.columns[text])
        return text if named or words >= 2 else None

    def split_column(self) -> str | None:
        """The column whose every value means a split."""
        for name, values in self.columns.items():
            if _SPLIT.search(name) and all(split_of(value) for value in values):
                return name
        return None

    def group_column(self) -> str | None:
        """The column that says what samples are of, such as a patient, if some share it."""
        for name, values in self.columns.items():
            if _GROUP.search(name) and 2 < len(set(values)) < len(values):
                return name
        return None


def read_sheet(path: Path) -> Sheet | None:
    """Reads the first rows of a table; ``None`` if it is none.

    Raises:
        DataError: If it is in an unknown encoding.
    """
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        return _json_sheet(path, text)
    lines = [line for line in text.split("\n") if line.strip()][:_ROWS]
    usual = "," if path.suffix.lower() == ".csv" else "\t"
    splits = {mark: list(_rows(lines, mark, usual == ",")) for mark in (usual, "\t", ",", ";", "|")}
    regular = {mark: width for mark, rows in splits.items() if (width := _width(rows)) > 1}
    if not regular:
        return None
    mark = next(iter(regular))
    rows = [row for row in splits[mark] if len(row) == regular[mark]]
    header = _has_header(rows)
    names = [clean(name) for name in rows[0]] if header else [str(number) for number in range(len(rows[0]))]
    if len(set(names)) < len(names) or len(rows) < 2 + header:
        return None
    columns = {name: [clean(row[number]) for row in rows[header:]] for number, name in enumerate(names)}
    reading = {} if mark == usual or header else {"delimiter": mark}  # by a header the reader finds it
    return Sheet(path, columns, reading)


def _rows(lines: list[str], mark: str, quotes: bool) -> Iterator[list[str]]:
    if not quotes:
        yield from (line.split(mark) for line in lines)
        return
    try:
        yield from csv.reader((f"{line}\n" for line in lines), delimiter=mark)
    except csv.Error:
        return


def _width(rows: list[list[str]]) -> int:
    """Number of columns that nearly all rows have; 0 if they differ."""
    width, count = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
    return width if count >= 0.9 * len(rows) else 0


def _has_header(rows: list[list[str]]) -> bool:
    """A header has words that are no numbers, each once, none of which stands below it again."""
    first = rows[0]
    if not all(first) or any(_NUMBER.fullmatch(value.strip()) or len(value) > 60 for value in first):
        return False
    return not any(value == row[number] for row in rows[1:] for number, value in enumerate(first))


def _json_sheet(path: Path, text: str) -> Sheet | None:
    columns: dict[str, list[str]] = {}
    for line in [line for line in text.split("\n") if line.strip()][:_ROWS]:
        try:
            entry: Any = json.loads(line)
        except ValueError:
            return None
        if not isinstance(entry, dict):
            return None
        for name, value in entry.items():
            columns.setdefault(str(name), []).append(value if isinstance(value, str) else json.dumps(value))
    lengths = {len(values) for values in columns.values()}
    return Sheet(path, columns, {}) if len(lengths) == 1 else None
