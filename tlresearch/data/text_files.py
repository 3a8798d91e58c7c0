"""Sources `text_table`, `text_lines` and `conll`: texts in CSV, TSV, JSON lines, plain lines, and tagged columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.base import SplitName
from tlresearch.data.folders import is_hidden, list_files
from tlresearch.data.rows import ENDINGS, read_rows, read_text
from tlresearch.data.table import SPLITS, Table, refuse, split_of, splits_among
from tlresearch.data.targets import Learning
from tlresearch.data.text_table import Texts, label_table, tag_table


def read_text_table(
    root: Path,
    files: Mapping[str, str],
    *,
    text_columns: Sequence[str],
    label_column: str,
    targets: Sequence[str] = (),
    split_column: str | None,
    delimiter: str | None = None,
    encoding: str | None = None,
    quotes: bool | None = None,
) -> Table:
    """Reads tables of texts, or of pairs of texts, with labels or numbers; see `read_rows`.

    Columns that are given as numbers, from 0, say that a file has no header. Several labels of one text are separated
    by ``;``, or are a list in JSON.

    Args:
        root: Folder of the files, or the only file.
        files: File below `root` for each split; empty looks for ``train.*``, ``val.*`` (``dev.*``) and ``test.*``.
        text_columns: Column of the text, or the columns of the two texts of a pair.
        label_column: Column of the label.
        targets: Columns of numbers, which are learnt instead of the label.
        split_column: Column of the split, where a file holds several.
        delimiter: What separates values; ``None`` finds it.
        encoding: Encoding of the files; ``None`` finds it.
        quotes: Whether values may stand in double quotes; ``None`` for ``.csv`` alone.

    Raises:
        DataError: If a file, column or field is missing.
    """
    paths = split_files(root, files, ENDINGS)
    learning = Learning(label_column, targets)
    columns = [*text_columns, *learning.columns, *([split_column] if split_column else [])]
    names: list[str] = []
    texts: list[Any] = []
    splits: list[SplitName] = []
    passed: Counter[str] = Counter()
    for split, path in paths:
        rows = read_rows(path, columns, delimiter=delimiter, encoding=encoding, quotes=quotes, key="data.files")
        for column in text_columns:
            rows.refuse_empty(column, [text if isinstance(text, str) else "" for text in rows.columns[column]])
        names += [f"{_short(root, path)}:{line}" for line in rows.lines]
        read = [rows.columns[column] for column in text_columns]
        texts += zip(*read, strict=True) if len(read) > 1 else read[0]
        learning.add(rows)
        splits += rows.splits(split_column) if split_column else [split or "train"] * len(rows.lines)
        passed += rows.passed
    passed += _beside(root, [path for _, path in paths])
    given = None if len(paths) == 1 and not split_column else splits
    learnt = learning.learnt()
    return Table(root.stem, names=names, images=Texts(texts), splits=given, samples="texts", passed=passed, **learnt)


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
    table = tag_table(root.stem, names=names, sentences=sentences, tags=tags, splits=given)
    return replace(table, passed=_beside(root, [path for _, path in paths]))


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
        meant = splits_among(files, "data.files")
        refuse(
            [f"'{split}'{nearest(split, SPLITS)}" for split in files if split not in meant],
            what="data.files: unknown splits",
            cure="A split is train, val or test",
        )
        named = {meant[split]: _existing(root, name) for split, name in files.items()}
    else:
        there = [path for path in sorted(root.iterdir()) if not is_hidden(path.name)]
        readable = {path.name: path for path in there if suffixes is None or path.suffix.lower() in suffixes}
        stems = {name: path.stem for name, path in readable.items() if split_of(path.stem)}
        doubled = [name for name, stem in stems.items() if list(stems.values()).count(stem) > 1]
        if doubled:
            raise DataError(
                f"{root} has two files for one split: {' and '.join(doubled)}; say with data.files which one"
            )
        meant = splits_among(stems.values(), str(root))
        named = {meant[stem]: readable[name] for name, stem in stems.items() if stem in meant}
    if "train" not in named:
        raise DataError(
            f"{root} has no file for train; name the files, such as data.files={{train: a.tsv, val: b.tsv}}"
        )
    return [(split, named[split]) for split in SPLITS if split in named]


def _beside(root: Path, read: Sequence[Path]) -> Counter[str]:
    """Files of a folder that are none of those that are read, by their ending."""
    if not root.is_dir():
        return Counter()
    files = list_files(root, ("",), deep=False)
    further = {root / name for name in files.names} - set(read)
    return files.passed + Counter(path.suffix.lower() or "without an ending" for path in further)


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
    return enumerate(read_text(path).split("\n"), start=1)


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
