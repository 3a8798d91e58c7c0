"""Sources `text_table`, `text_lines` and `conll`: texts in CSV, TSV, JSON lines, plain lines, and tagged columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlresearch.base.errors import DataError, nearest, one_line
from tlresearch.data.base import SplitName
from tlresearch.data.table import SPLIT_ALIASES, SPLITS, Table, refuse
from tlresearch.data.text_table import Label, label_table, tag_table

_ALIASES = {**SPLIT_ALIASES, "dev": SPLIT_ALIASES["val"]}
_TABLES = (".csv", ".tsv", ".txt", ".jsonl")

Row = Mapping[str, Any]


def read_text_table(
    root: Path, files: Mapping[str, str], *, text_column: str, label_column: str, split_column: str | None
) -> Table:
    """Reads tables of texts and labels: ``.csv`` (quoted), ``.tsv`` and ``.txt`` (tabs, no quotes), ``.jsonl``.

    Columns that are given as numbers, from 0, say that a file has no header. Several labels of one text are separated
    by ``;``, or are a list in JSON.

    Args:
        root: Folder of the files, or the only file.
        files: File below `root` for each split; empty looks for ``train.*``, ``val.*`` (``dev.*``) and ``test.*``.
        text_column: Column of the text.
        label_column: Column of the label.
        split_column: Column of the split, where a file holds several.

    Raises:
        DataError: If a file, column or field is missing.
    """
    paths = split_files(root, files, _TABLES)
    columns = [text_column, label_column, *([split_column] if split_column else [])]
    names: list[str] = []
    texts: list[str] = []
    labels: list[Label] = []
    splits: list[SplitName] = []
    problems: list[str] = []
    for split, path in paths:
        for line, row in _rows(path, columns):
            where = f"{_short(root, path)}:{line}"
            label = _label(row[label_column])
            if not isinstance(row[text_column], str) or label is None:
                problems.append(where)
                continue
            names.append(where)
            texts.append(row[text_column])
            labels.append(label)
            splits.append(_split(row[split_column], where) if split_column else split or "train")
    refuse(problems, what=f"{root}: lines without a text or a label", cure="Fill them in or remove the lines")
    if any(";" in label for label in labels if isinstance(label, str)):
        labels = [
            [part.strip() for part in label.split(";") if part.strip()] if isinstance(label, str) else label
            for label in labels
        ]
    given = None if len(paths) == 1 and not split_column else splits
    return label_table(root.stem, names=names, texts=texts, labels=labels, splits=given)


def read_text_lines(root: Path, files: Mapping[str, str]) -> Table:
    """Reads one file for each class, with one text in each line; empty lines are left out.

    Args:
        root: Folder of the files.
        files: File below `root` for each class.

    Raises:
        DataError: If fewer than two files are named, or one is missing.
    """
    if len(files) < 2:
        raise DataError("data.files: text_lines needs one file for each class, such as {pos: rt.pos, neg: rt.neg}")
    names, texts, labels = [], [], []
    for label, name in files.items():
        for line, text in _lines(_existing(root, name)):
            if text.strip():
                names.append(f"{name}:{line}")
                texts.append(text.strip())
                labels.append(label)
    return label_table(root.name, names=names, texts=texts, labels=labels, splits=None, classes=tuple(files))


def read_conll(
    root: Path, files: Mapping[str, str], *, token_column: int | None = None, tag_column: int | None = None
) -> Table:
    """Reads words and their tags in columns, one word in each line, an empty line between two sentences.

    Columns are separated by tabs, or else by spaces; lines that begin with ``-DOCSTART-`` are left out.

    Args:
        root: Folder of the files, or the only file.
        files: File below `root` for each split; empty looks for ``train.*``, ``val.*`` (``dev.*``) and ``test.*``.
        token_column: Column of the words, from 0; ``None`` is the first.
        tag_column: Column of the tags, from 0; ``None`` is the last.

    Raises:
        DataError: If a file is missing, or a line has too few columns.
    """
    paths = split_files(root, files, None)
    names, sentences, tags, splits = [], [], [], []
    for split, path in paths:
        for line, rows in _blocks(path, 1 + max(token_column or 0, tag_column if tag_column is not None else 1)):
            names.append(f"{_short(root, path)}:{line}")
            sentences.append([row[token_column or 0] for row in rows])
            tags.append([row[-1 if tag_column is None else tag_column].strip() for row in rows])
            splits.append(split or "train")
    given = None if len(paths) == 1 else splits
    return tag_table(root.stem, names=names, sentences=sentences, tags=tags, splits=given)


def split_files(
    root: Path, files: Mapping[str, str], suffixes: Sequence[str] | None
) -> list[tuple[SplitName | None, Path]]:
    """Returns the file of each split, those named or those found; a single file has no split.

    Raises:
        DataError: If a split or a file is unknown, or there is no training file.
    """
    if root.is_file():
        return [(None, root)]
    if files:
        refuse(
            [f"'{split}'{nearest(split, list(_ALIASES))}" for split in files if split not in _ALIASES],
            what="data.files: unknown splits",
            cure="A split is train, val or test",
        )
        named = {_ALIASES[split]: _existing(root, name) for split, name in files.items()}
    else:
        named = {}
        for path in sorted(root.iterdir()):
            split = _ALIASES.get(path.stem.lower())
            if split and (suffixes is None or path.suffix in suffixes):
                if split in named:
                    raise DataError(f"{root} has two files for {split}: {named[split].name} and {path.name}; "
                                    "say with data.files which one")  # fmt: skip
                named[split] = path
    if "train" not in named:
        raise DataError(
            f"{root} has no file for train; name the files, such as data.files={{train: a.tsv, val: b.tsv}}"
        )
    return [(split, named[split]) for split in SPLITS if split in named]


def _short(root: Path, path: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _existing(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_file():
        known = sorted(file.name for file in root.iterdir() if file.is_file())
        raise DataError(f"data.files: there is no {path}{nearest(name, known)}; {root} holds {', '.join(known[:20])}")
    return path


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1. Split at line feeds alone: texts may hold other separators of lines."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}; convert it, such as with iconv") from None
    return ((number, line.removesuffix("\r")) for number, line in enumerate(content.split("\n"), start=1))


def _blocks(path: Path, columns: int) -> Iterator[tuple[int, list[list[str]]]]:
    """Runs of lines without an empty one between them: number of the first line, and the columns of each."""
    block: list[list[str]] = []
    first = 0
    problems = []
    for number, line in [*_lines(path), (0, "")]:
        if not line.strip(" \t"):
            if block:
                yield first, block
            block = []
            continue
        if line.startswith("-DOCSTART-"):
            continue
        row = line.split("\t") if "\t" in line else line.split()
        if len(row) < columns:
            problems.append(f"line {number}")
            continue
        if not block:
            first = number
        block.append(row)
    refuse(problems, what=f"{path}: lines with fewer than {columns} columns", cure="Every word needs its tag beside it")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    if path.suffix == ".jsonl":
        yield from _json_rows(path, columns)
        return
    lines = (f"{line}\n" for _, line in _lines(path))
    tabs = path.suffix != ".csv"
    reader = csv.reader(
        lines, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL, strict=True
    )
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                numbered = all(column.isdecimal() for column in columns)
                header = [str(number) for number in range(len(row))] if numbered else [name.strip() for name in row]
                _check_columns(path, columns, header)
                if not numbered:
                    continue
            if len(row) != len(header):
                raise DataError(f"{path}:{reader.line_num} has {len(row)} fields, but {len(header)} are expected")
            yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} cannot be read: {one_line(error, 200)}") from None


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a character can be written so, not stored
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f'{path}:{number} is no JSON object such as {{"text": "…", "label": "…"}}')
        _check_columns(path, columns, list(row))
        yield number, row


def _check_columns(path: Path, columns: Sequence[str], known: Sequence[str]) -> None:
    for column in columns:
        if column not in known:
            raise DataError(
                f"{path} has no column '{column}'{nearest(column, known)}; it has {', '.join(known)}. Choose with "
                "data.text_column and data.label_column; numbers, from 0, say that there is no header"
            )


def _label(value: Any) -> Label | None:
    if isinstance(value, list):
        return [str(label) for label in value]
    text = str(value).strip() if value is not None else ""
    return text or None


def _split(value: Any, where: str) -> SplitName:
    if value not in _ALIASES:
        raise DataError(f"{where}: '{value}' is no split; data.split_column must hold train, val or test")
    return _ALIASES[value]
