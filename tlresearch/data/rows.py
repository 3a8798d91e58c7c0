"""The one reader of tables: CSV, TSV, text with tabs, and JSON lines, for images, texts and sounds alike.

Python's `csv` in its strict mode parses; everything else it leaves open is decided here: encoding, delimiter, header,
blank rows, and errors that name file, line and column.
"""

from __future__ import annotations

import codecs
import csv
import json
import logging
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tlresearch.base.errors import DataError, nearest, one_line
from tlresearch.base.files import disguise
from tlresearch.data.base import SplitName
from tlresearch.data.table import in_order, refuse, split_of

logger = logging.getLogger(__name__)

ENDINGS = (".csv", ".tsv", ".txt", ".jsonl")
"""Endings of tables, in small letters or capitals."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = (",", ";", "\t", "|")
_SAID = re.compile(r"\ufeff?sep=(?P<delimiter>[^\n])\n", re.IGNORECASE)
_SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u202f", " ") | dict.fromkeys("\ufeff\u200b", ""))
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?")

Label = str | Sequence[str]
"""One label, or several."""


def clean(text: str) -> str:
    """Returns a name or label as it is compared: composed letters, plain spaces, nothing around it."""
    return unicodedata.normalize("NFC", text.translate(_SPACES)).strip()


@dataclass(frozen=True)
class Rows:
    """The wanted columns of a table.

    Attributes:
        path: The file.
        lines: Number of the line that each row begins in, from 1.
        columns: Values of each wanted column by its name: text, of JSON whatever stands there.
        blank: Number of rows with nothing in them, which are left out.
    """

    path: Path
    lines: Sequence[int]
    columns: dict[str, list[Any]]
    blank: int = 0

    @property
    def passed(self) -> Counter[str]:
        """Rows that are no samples, as `Table.passed` counts them."""
        return Counter({"empty rows": self.blank} if self.blank else {})

    def place(self, row: int) -> str:
        """Says where a row stands, within the file."""
        return f"line {self.lines[row]}"

    def texts(self, column: str) -> list[str]:
        """Returns the cleaned text of a column; numbers of JSON as text.

        Raises:
            DataError: If a row has nothing there; the text names file, column and lines.
        """
        labels = [as_label(value) for value in self.columns[column]]
        self.refuse_empty(column, labels)
        return ["; ".join(label) if not isinstance(label, str) else label for label in labels if label is not None]

    def labels(self, column: str) -> list[Label]:
        """Returns the labels of a column; where one has ``;``, all are lists of labels, which may be empty.

        Raises:
            DataError: If a row has none although each has one at most, or the labels are no classes.
        """
        labels = [as_label(value) for value in self.columns[column]]
        if any(isinstance(label, str) and ";" in label for label in labels):
            parts = [label.split(";") if isinstance(label, str) else label or [] for label in labels]
            return [[clean(part) for part in row if part.strip()] for row in parts]
        self.refuse_empty(column, labels)
        present: list[Label] = [label for label in labels if label is not None]
        check_labels(f"{self.path}, column '{column}'", present)
        return present

    def refuse_empty(self, column: str, values: Sequence[Any]) -> None:
        """Refuses rows with nothing in a column.

        Raises:
            DataError: If there is one.
        """
        refuse(
            [self.place(row) for row, value in enumerate(values) if value is None or value == ""],
            what=f"{self.path}: rows with nothing in column '{column}'",
            cure="Fill it in or remove the row",
        )

    def splits(self, column: str) -> list[SplitName]:
        """Returns the split of each row.

        Raises:
            DataError: If a row names none.
        """
        texts = self.texts(column)
        names = [split_of(text) for text in texts]
        refuse(
            [f"{self.place(row)} has '{texts[row]}'" for row, name in enumerate(names) if name is None],
            what=f"{self.path}: unknown splits in column '{column}'",
            cure="A split is train, val or test",
        )
        return [name for name in names if name is not None]

    def refuse_repeated(self, names: Sequence[str], what: str, cure: str) -> None:
        """Refuses names that stand in more than one row.

        Raises:
            DataError: If one does; the text names the lines.
        """
        places: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            places.setdefault(name, []).append(self.lines[row])
        refuse(
            [f"{name} ({len(at)} rows: lines {', '.join(map(str, at[:5]))})" for name, at in places.items() if at[1:]],
            what=f"{self.path}: {what} listed more than once",
            cure=cure,
        )


def read_rows(
    path: Path,
    wanted: Sequence[str],
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    quotes: bool | None = None,
    key: str = "data.table",
) -> Rows:
    """Reads the wanted columns of a table.

    ``.csv`` has quotes, ``.tsv`` and ``.txt`` have none: there a quote is a letter. ``.jsonl`` holds an object in each
    line. Wanted columns that are all numbers, from 0, say that there is no header.

    Args:
        path: The file.
        wanted: Names of the columns.
        delimiter: What separates values; ``None`` takes the one with which the header has the wanted columns.
        encoding: Encoding of the file; ``None`` takes that of its byte-order mark, else UTF-8.
        quotes: Whether values may stand in double quotes; ``None`` by the ending.
        key: Key of the config that names the file, for errors.

    Raises:
        DataError: If the file or a column is missing, or the file cannot be parsed.
    """
    if not path.is_file():
        raise DataError(f"{key}: {path} does not exist; it is looked up inside data.root")
    if told := disguise(path):
        raise DataError(f"{path} is no text: {told}")
    text = read_text(path, encoding)
    reading = (
        _json_rows(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text, wanted, delimiter, quotes)
    )
    lines: list[int] = []
    columns: dict[str, list[Any]] = {column: [] for column in wanted}
    blank = 0
    for line, row in reading:
        for column in wanted:
            if column not in row:
                raise DataError(f"{path}, line {line}: {missing_column(column, list(row))}")
        if all(_is_blank(value) for value in row.values()):
            blank += 1
            continue
        lines.append(line)
        for column in wanted:
            columns[column].append(row[column])
    if not lines:
        raise DataError(f"{path} has no rows: add one per sample below the header")
    return Rows(path, lines, columns, blank)


def read_text(path: Path, encoding: str | None = None) -> str:
    """Reads a file as text, by its byte-order mark or else as UTF-8; line ends become line feeds.

    Raises:
        DataError: If it is in another encoding; the text names the line and the cure.
    """
    content = path.read_bytes()
    known = encoding or next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(known)
    except LookupError:
        raise DataError(f"data.encoding: Python knows no encoding '{known}'; try utf-8, utf-16 or cp1252") from None
    except UnicodeError as error:
        line = content.count(b"\n", 0, error.start) + 1 if isinstance(error, UnicodeDecodeError) else 1
        raise DataError(
            f"{path}, line {line}: not a text in {known.upper()}; name its encoding with data.encoding, such as cp1252 "
            "for a table saved by Excel on Windows, or save it as UTF-8"
        ) from None
    if known == "utf-8" and "\0" in text[:1000]:
        raise DataError(f"{path} holds NUL bytes: set data.encoding, such as utf-16-le, or save it as UTF-8")
    # A lone carriage return ends lines only where nothing else does: texts may hold it.
    return text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")


def missing_column(column: str, columns: Sequence[str]) -> str:
    """Says that a table has no such column, and which it has."""
    listing = ", ".join(f"'{name}'" for name in columns) or "none"
    return (
        f"no column '{column}'{nearest(column, columns)}; the columns are {listing}. Name it with data.label_column or "
        "its like; numbers, from 0, say that there is no header"
    )


def as_label(value: Any) -> Label | None:
    """Returns a value as a label, or a list of labels; ``None`` where nothing stands there.

    Numbers of JSON that are equal are one label: ``1`` and ``1.0`` differ in their spelling alone.
    """
    if isinstance(value, list):
        return [label for label in map(as_label, value) if isinstance(label, str)]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return clean(value if isinstance(value, str) else str(value)) or None


def check_labels(where: str, labels: Sequence[Label]) -> None:
    """Refuses labels that are no classes, and says of classes that look like slips.

    Raises:
        DataError: If they are measured numbers, or one number is spelt in two ways.
    """
    counts = Counter(label for row in labels for label in ([row] if isinstance(row, str) else row))
    decimal = [label for label in counts if _DECIMAL.fullmatch(label)]
    if decimal and len(counts) > max(10, len(labels) // 2) and all(_is_number(label) for label in counts):
        raise DataError(
            f"{where}: the labels are decimal numbers ({', '.join(list(counts)[:3])}, …), {len(counts)} different ones "
            f"in {len(labels)} rows, and no classes; put them into ranges, or name another column"
        )
    spelt = [(label, label.split(".")[0]) for label in decimal if set(label.partition(".")[2]) <= {"0"}]
    refuse(
        [f"'{whole}' and '{label}'" for label, whole in spelt if whole in counts],
        what=f"{where}: one number in two spellings",
        cure="They would be two classes; write each in one way",
    )
    folded: dict[str, list[str]] = {}
    for label in counts:
        folded.setdefault(label.casefold(), []).append(label)
    slips = [" and ".join(f"'{label}'" for label in alike) for alike in folded.values() if len(alike) > 1]
    if slips:
        logger.warning("%s: classes that differ in capitals alone: %s", where, "; ".join(slips[:5]))
    for label, count in counts.items():
        if label.casefold() == "nan":
            logger.warning("%s: %d rows have the label '%s', which is a class like any other", where, count, label)


def numbered(labels: Sequence[Label], classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], Tensor]:
    """Numbers labels by their classes, which are found and put in order unless given.

    Returns:
        Classes, and class numbers ``(rows,)`` int64, or 0/1 columns ``(rows, classes)`` float32 of lists of labels.
    """
    lists = [[label] if isinstance(label, str) else label for label in labels]
    ordered = tuple(classes) if classes is not None else in_order(label for row in lists for label in row)
    number = {label: position for position, label in enumerate(ordered)}
    if all(isinstance(label, str) for label in labels):
        return ordered, torch.tensor([number[row[0]] for row in lists], dtype=torch.int64)
    matrix = torch.zeros(len(lists), len(ordered))
    for row, members in enumerate(lists):
        matrix[row, [number[label] for label in members]] = 1
    return ordered, matrix


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a character can be written so, not stored
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {one_line(error, 200)}") from None
        if not isinstance(row, dict):
            raise DataError(f'{path}, line {number} is no JSON object such as {{"text": "…", "label": "…"}}')
        yield number, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [clean(name) for name, _ in pairs]
    twice = [name for name, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"the key '{twice[0]}' stands in it twice")
    return dict(zip(keys, (value for _, value in pairs), strict=True))


def _csv_rows(
    path: Path, text: str, wanted: Sequence[str], delimiter: str | None, quotes: bool | None
) -> Iterator[tuple[int, dict[str, str]]]:
    if quotes is None:
        quotes = path.suffix.lower() not in (".tsv", ".txt")
    said = _SAID.match(text)  # Excel says the delimiter in a line of its own; blank, so that lines keep their numbers
    text = f"\n{text[said.end() :]}" if said else text
    separator = delimiter or (said["delimiter"] if said else _delimiter(path, text, wanted))
    numbered_columns = all(column.isdecimal() for column in wanted)
    header: list[str] | None = None
    for line, row in _parsed(path, text, separator, quotes):
        if header is None:
            header = [str(number) for number in range(len(row))] if numbered_columns else [clean(name) for name in row]
            for column in wanted:
                if column not in header:
                    raise DataError(f"{path}: {missing_column(column, header)}")
                if header.count(column) > 1:
                    raise DataError(
                        f"{path}, line {line}: column '{column}' stands {header.count(column)} times in the header; "
                        "rename or remove all but one"
                    )
            if not numbered_columns:
                continue
        if len(row) > len(header) and not any(row[len(header) :]):
            row = row[: len(header)]  # delimiters at the end of the line
        if len(row) != len(header):
            short = f"column '{header[len(row)]}' is missing" if len(row) < len(header) else "a value holds a delimiter"
            raise DataError(
                f"{path}, line {line} has {len(row)} values, but the header has {len(header)} columns: {short}; "
                "put a value that contains the delimiter in double quotes, or set data.delimiter"
            )
        # Of unwanted columns with one name the last stays, which nobody asks for.
        yield line, dict(zip(header, row, strict=True))


def _delimiter(path: Path, text: str, wanted: Sequence[str]) -> str:
    """The delimiter by the ending, unless the header has the wanted columns with one other alone."""
    usual = "," if path.suffix.lower() == ".csv" else "\t"
    header = next((line for line in text.split("\n") if line.strip()), "")
    if all(column.isdecimal() for column in wanted):
        return usual
    fitting = [
        mark for mark in _DELIMITERS if set(wanted) <= {clean(name.strip().strip('"')) for name in header.split(mark)}
    ]
    return usual if usual in fitting or len(fitting) != 1 else fitting[0]


def _parsed(path: Path, text: str, delimiter: str, quotes: bool) -> Iterator[tuple[int, list[str]]]:
    """Rows of a file with the line each begins in; blank lines are left out."""
    lines = text.split("\n")
    if len(delimiter) != 1:
        raise DataError(f"data.delimiter: is one character, such as ';', but got '{delimiter}'")
    if not quotes:
        for number, line in enumerate(lines, start=1):
            if line.strip(" "):
                yield number, line.split(delimiter)
        return
    longest = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # 131072 characters are less than a document has
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    swallowed: list[str] = []
    start = 1
    try:
        for row in reader:
            if len(row) > 1 or any(value.strip() for value in row):
                spans = reader.line_num - start
                if spans > 1 and any(_looks_like_a_row(value, delimiter, len(row)) for value in row):
                    swallowed.append(f"{start} to {reader.line_num}")
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, {_fault(lines, start, delimiter, error)}") from None
    finally:
        csv.field_size_limit(longest)
    if swallowed:
        logger.warning(
            "%s: values in quotes hold lines that look like rows (lines %s): was a quote left open?",
            path,
            ", ".join(swallowed[:5]),
        )


def _fault(lines: Sequence[str], start: int, delimiter: str, error: csv.Error) -> str:
    """Says where strict parsing failed: most often a quote that opens a value and is never closed."""
    values = lines[start - 1].split(delimiter) if start <= len(lines) else []
    names = lines[0].split(delimiter)
    for number, value in enumerate(values):
        if value.startswith('"') and (value.count('"') % 2 or not value.endswith('"')):
            column = f"column '{clean(names[number])}'" if number < len(names) else f"value {number + 1}"
            return (
                f"line {start}, {column}: a quote opens and is not closed in front of a delimiter ({one_line(error)}); "
                "close it, or write a quote inside a value twice"
            )
    return f"line {start} cannot be read: {one_line(error, 200)}"


def _looks_like_a_row(value: str, delimiter: str, width: int) -> bool:
    """Whether a value in quotes holds a whole line with as many values as a row."""
    return width > 1 and any(line.count(delimiter) == width - 1 for line in value.split("\n")[1:-1])


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
