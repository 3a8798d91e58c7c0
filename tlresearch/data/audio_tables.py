"""Sources `audio_folder` and `audio_manifest`: which sound files there are, with label or transcript, and split."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.base import SplitName
from tlresearch.data.table import SPLIT_ALIASES, refuse
from tlresearch.modality.sound import EXTENSIONS

Groups = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Listing:
    """Sound files with what is said of them.

    Attributes:
        root: Folder the names are relative to.
        names: Paths of the files.
        texts: Label or transcript of each.
        splits: Split of each where the source gives one; a source without a test split may leave rows of it out.
    """

    root: Path
    names: Sequence[str]
    texts: Sequence[str]
    splits: Sequence[SplitName] | None = None


def list_folder(
    root: Path, *, pattern: str | None = None, test: Groups | None = None, val: Groups | None = None
) -> Listing:
    r"""Lists the sound files below a folder.

    Args:
        root: ``<class>/<file>`` or ``{train,val,test}/<class>/<file>``, or any folders with a `pattern`.
        pattern: Regular expression that the path of a file (relative to `root`) must contain, with the named group
            ``label`` and any others: ``(?P<label>\d)_(?P<speaker>\w+)_(?P<take>\d+)\.wav``.
        test: Files of the test split by values of the pattern's groups: ``{speaker: [theo, lucas]}``.
        val: Files of the val split, likewise.

    Raises:
        DataError: If there are no files, the pattern does not fit, or files would be in two splits.
    """
    if not root.is_dir():
        raise DataError(f"data.root: {root} is a file; audio_folder needs a folder of sound files")
    names = _sounds(root)
    if not names:
        raise DataError(f"{root} holds no sound files ({' '.join(EXTENSIONS)}): check data.root")
    for key, chosen in (("test", test), ("val", val)):
        if chosen and not isinstance(chosen, Mapping):
            raise DataError(f"data.options.{key}: maps groups of the pattern to lists of values, but got {chosen!r}")
    if pattern is None:
        if test or val:
            raise DataError("data.options: test and val choose by the groups of data.options.pattern, which is not set")
        return _by_folder(root, names)
    return _by_pattern(root, names, _compile(pattern), {"test": test or {}, "val": val or {}})


def list_manifest(root: Path, table: str, *, path_column: str, text_column: str, split_column: str | None) -> Listing:
    """Reads a manifest: a CSV file with a header, or JSON lines, one sound file per row.

    Args:
        root: Folder that holds the manifest; paths in it are relative to this folder.
        table: Name of the manifest, ending in ``.csv``, ``.tsv`` or ``.jsonl``.
        path_column: Column (key) of the paths.
        text_column: Column of labels or transcripts.
        split_column: Column of splits; ``None`` if there is none.

    Raises:
        DataError: If the manifest or a column is missing, or a row is incomplete.
    """
    path = root / table
    wanted = [path_column, text_column, *([split_column] if split_column else [])]
    rows = _read_rows(path, wanted)
    for column in (path_column, text_column):
        refuse(
            [f"row {number}" for number, row in enumerate(rows, start=1) if not row[column].strip()],
            what=f"{path}: rows with nothing in '{column}'",
            cure="Fill it in or remove the row",
        )
    names = [Path(row[path_column].strip()).as_posix() for row in rows]
    refuse(
        [f"{name} ({count} rows)" for name, count in Counter(names).items() if count > 1],
        what=f"{path}: files listed more than once",
        cure="Keep one row per file",
    )
    splits = None
    if split_column:
        found = [row[split_column].strip() for row in rows]
        refuse(
            [f"row {number} has '{text}'" for number, text in enumerate(found, start=1) if text not in SPLIT_ALIASES],
            what=f"{path}: unknown splits in '{split_column}'",
            cure="A split is train, val or test",
        )
        splits = [SPLIT_ALIASES[text] for text in found]
    return Listing(root, names, [" ".join(row[text_column].split()) for row in rows], splits)


def _sounds(root: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(root, followlinks=True):
        # Notebooks and macOS leave folders of their own behind.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        below = Path(place).relative_to(root)
        found += [(below / file).as_posix() for file in sorted(files) if file.lower().endswith(EXTENSIONS)]
    return sorted(found)


def _by_folder(root: Path, names: Sequence[str]) -> Listing:
    parts = [name.split("/") for name in names]
    given = any(part[0] in SPLIT_ALIASES for part in parts)
    depth = 1 + given
    refuse(
        [
            name
            for name, part in zip(names, parts, strict=True)
            if len(part) <= depth or (given and part[0] not in SPLIT_ALIASES)
        ],
        what=f"{root}: sound files outside a class folder",
        cure="Expected <root>/<class>/<file> or <root>/{train,val,test}/<class>/<file>; "
        "labels in file names are read by data.options.pattern",
    )
    splits = [SPLIT_ALIASES[part[0]] for part in parts] if given else None
    return Listing(root, names, [part[depth - 1] for part in parts], splits)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"data.options.pattern: '{pattern}' is not a regular expression: {error}") from None
    if "label" not in compiled.groupindex:
        raise DataError(f"data.options.pattern: '{pattern}' has no group (?P<label>...) for the class")
    return compiled


def _by_pattern(
    root: Path, names: Sequence[str], pattern: re.Pattern[str], chosen: Mapping[SplitName, Groups]
) -> Listing:
    matches = [pattern.search(name) for name in names]
    refuse(
        [name for name, match in zip(names, matches, strict=True) if match is None],
        what=f"{root}: file names that data.options.pattern does not fit",
        cure="Correct the pattern or move these files elsewhere",
    )
    groups = [match.groupdict() for match in matches if match is not None]
    given = {split: _choose(split, wanted, groups) for split, wanted in chosen.items() if wanted}
    both = sorted(set.intersection(*given.values())) if len(given) == 2 else []
    refuse(
        [names[row] for row in both], what=f"{root}: files in both test and val", cure="Choose disjoint groups for them"
    )
    splits: list[SplitName] | None = None
    if given:
        splits = ["train"] * len(names)
        for split, rows in given.items():
            for row in rows:
                splits[row] = split
    return Listing(root, names, [group["label"] for group in groups], splits)


def _choose(split: SplitName, wanted: Groups, groups: Sequence[Mapping[str, str]]) -> set[int]:
    """Rows of a split: those whose every named group has one of the wanted values."""
    rows = set(range(len(groups)))
    for name, values in wanted.items():
        key = f"data.options.{split}"
        if name not in groups[0]:
            known = list(groups[0])
            raise DataError(
                f"{key}: the pattern has no group '{name}'{nearest(name, known)}; it has {', '.join(known)}"
            )
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise DataError(f"{key}.{name}: must be a list of values but got {values!r}")
        present = {group[name] for group in groups}
        refuse(
            [f"'{value}'" for value in values if str(value) not in present],
            what=f"{key}.{name}: values that no file has",
            cure=f"The files have {', '.join(sorted(present)[:20])}",
        )
        rows &= {row for row, group in enumerate(groups) if group[name] in {str(value) for value in values}}
    return rows


def _read_rows(path: Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"data.table: {path} does not exist; it is looked up inside data.root")
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        content = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(content, path) if path.suffix == ".jsonl" else _csv_rows(content, path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table in UTF-8: {error}") from None
    if not rows:
        raise DataError(f"{path} has no rows: add one per sound file")
    for column in wanted:
        lacking = [number for number, row in enumerate(rows, start=1) if column not in row]
        if lacking:
            known = list(rows[lacking[0] - 1])
            raise DataError(
                f"{path}: row {lacking[0]} has no '{column}'{nearest(column, known)}; it has {', '.join(known)}"
            )
    return rows


def _csv_rows(content: str, path: Path) -> list[dict[str, str]]:
    reader = csv.DictReader(content.splitlines(), restval="", delimiter="\t" if path.suffix == ".tsv" else ",")
    rows: list[dict[str, Any]] = list(reader)
    refuse(
        [f"row {number}" for number, row in enumerate(rows, start=1) if None in row],
        what=f"{path}: rows with more fields than the header",
        cure="Put a text that contains the separator in double quotes",
    )
    return rows


def _json_rows(content: str, path: Path) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # half a character can be written so, not stored
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is not a JSON object")
        rows.append({key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()})
    return rows
