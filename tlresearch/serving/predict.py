"""Predictions of a recorded run's model from raw files: one row per file, in order; what cannot be read is named."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tlresearch.base.errors import UserError, first_line
from tlresearch.data.folders import list_files, summary
from tlresearch.data.rows import read_rows
from tlresearch.modality.base import RawInput
from tlresearch.show import page as pages
from tlresearch.show.elements import Column, Facts, Note, Table
from tlresearch.tasks.predictor import Predictor, Shown

log = logging.getLogger(__name__)

FORMATS = (".csv", ".jsonl")
PRINTED = 20
"""Rows that are printed where all of them stand in a file."""
TABLES = (".csv", ".tsv", ".jsonl")
"""Endings of tables with a text, or a pair of them, in each row."""
_NAMED = 20  # unreadable files that are named
_WIDTH = 60  # characters of an input in the terminal


@dataclass(frozen=True)
class Source:
    """One sample to predict.

    Attributes:
        name: Path of the file, or the text itself; of a row of a table its place, of an array its number.
        value: Path of the file, the text, the texts of a pair, or the array.
    """

    name: str
    value: Any


@dataclass(frozen=True)
class Predicted(pages.Shown):
    """What came of predicting.

    Attributes:
        model: The model, and the run it is from.
        answers: Inputs with their answers, in order.
        unreadable: Reason of every input that could not be read, by its name.
        rows: Every column of each answer; none where they are in `out`.
        out: File with every column of every answer.
        pictures: How many pictures were written.
    """

    model: str
    answers: tuple[tuple[Source, Shown], ...]
    unreadable: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]
    out: Path | None
    pictures: int

    @property
    def exit_code(self) -> int:
        """1 if an input could not be read."""
        return int(bool(self.unreadable))

    @property
    def page(self) -> pages.Page:
        """The answers (the first ones, where a file holds all), and what could not be read."""
        limit = PRINTED if self.out else len(self.answers)
        rows = tuple(
            (_short(source), _plain(prediction), "" if probability is None else probability)
            for source, (prediction, probability) in self.answers[:limit]
        )
        rest = len(self.answers) - limit
        table = Table(
            (Column("input"), Column("prediction"), Column("probability", ".3f")),
            rows,
            title=self.model,
            note=f"… and {rest} more" if rest > 0 else "",
        )
        facts, notes = [], []
        if self.out:
            pictures = f", {self.pictures} pictures in {pictures_folder(self.out)}" if self.pictures else ""
            facts.append(Facts((("written", f"{len(self.answers)} rows in {self.out}{pictures}"),)))
        if self.unreadable:
            notes.append(Note(f"{len(self.unreadable)} could not be read:", "bad"))
            notes += [Note(f"  {name}: {reason}") for name, reason in list(self.unreadable.items())[:_NAMED]]
        if len(self.unreadable) > _NAMED:
            notes.append(Note(f"  … and {len(self.unreadable) - _NAMED} more"))
        return pages.page_of("", table, *facts, *notes)


def predict(
    predictor: Predictor,
    inputs: Sequence[Any] = (),
    *,
    name: str,
    texts: Iterable[str] = (),
    out: str | None = None,
    batch: int = 32,
) -> Predicted:
    """Predicts raw samples by the model of a run.

    Args:
        predictor: The model.
        inputs: Files, folders, whose files are taken in order, and arrays; of models of texts also tables.
        name: What to call the model.
        texts: Texts, for models of text; two after one another are a pair, for models of pairs.
        out: File for the answers, ``.csv`` or ``.jsonl``, or a folder; pictures go to the folder of that name.
        batch: Samples that are read and run at once.

    Raises:
        UserError: If there is no such file, the model does not read such samples, or nothing could be read.
    """
    sources = [*_sources(inputs, predictor.raw), *_given([text for text in texts if text.strip()], predictor.raw)]
    if not sources:
        raise UserError(f"nothing to predict: name {predictor.raw.name} files or folders that hold some")
    if batch < 1:
        raise UserError(f"--batch must be at least 1 but is {batch}")
    answers: list[tuple[Source, Shown]] = []
    rows: list[Mapping[str, Any]] = []
    unreadable: dict[str, str] = {}
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(Path(out))) if out else None
        for start in range(0, len(sources), batch):
            samples = list(_read(predictor, sources[start : start + batch], unreadable))
            table = predictor.table([sample for _, sample in samples])
            for position, (source, sample) in enumerate(samples):
                row = {name: column[position] for name, column in table.items()}
                answers.append((source, predictor.shown(row)))
                if not writer:
                    rows.append(row)
                else:
                    writer.write(source, row, predictor.pictures(sample, row))
        if not answers:
            first, reason = next(iter(unreadable.items()))
            raise UserError(f"none of {len(sources)} inputs is a readable {predictor.raw.name}; {first}: {reason}")
    written = (writer.file, writer.pictures) if writer else (None, 0)
    return Predicted(name, tuple(answers), unreadable, tuple(rows), *written)


class Writer:
    """Writes answers as they come, and the pictures that belong to them.

    Args:
        out: A ``.csv`` or ``.jsonl`` file, or a folder, which then holds ``predictions.csv``.

    Raises:
        UserError: If it is neither, or cannot be written.
    """

    def __init__(self, out: Path) -> None:
        if out.suffix and out.suffix not in FORMATS and not out.is_dir():
            raise UserError(f"--out: {out} is neither {' nor '.join(FORMATS)} nor a folder")
        self.file = out if out.suffix in FORMATS else out / "predictions.csv"
        self.pictures = 0
        self._taken: set[str] = set()
        self._columns: list[str] = []

    def __enter__(self) -> Writer:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream: IO[str] = self.file.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise UserError(f"--out: {self.file} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, source: Source, row: Mapping[str, Any], pictures: Mapping[str, Any]) -> None:
        """Writes an answer; the path of a picture stands for the column it shows."""
        record = {"input": source.name, **row}
        if pictures:
            folder = pictures_folder(self.file)
            folder.mkdir(parents=True, exist_ok=True)
            stem = self._stem(source)
            for name, picture in pictures.items():
                path = folder / f"{stem}_{name}.png"
                picture.save(path)
                record[name] = str(path)
                self.pictures += 1
        if self.file.suffix == ".jsonl":
            self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            return
        writer = csv.writer(self._stream, lineterminator="\n")
        if not self._columns:
            self._columns = list(record)
            writer.writerow(self._columns)
        # A picture may be missing of one sample, such as the overlay of one that was cropped.
        writer.writerow([_cell(record.get(name, "")) for name in self._columns])

    def _stem(self, source: Source) -> str:
        """A name for the pictures of a sample; files of equal name in different folders get a number."""
        stem = wanted = Path(source.name).stem
        number = 1
        while stem in self._taken:
            number += 1
            stem = f"{wanted}-{number}"
        self._taken.add(stem)
        return stem


def pictures_folder(file: Path) -> Path:
    """The folder of the pictures that belong to a file of answers."""
    return file.parent if file.name == "predictions.csv" else file.with_suffix("")


def _given(texts: Sequence[str], raw: RawInput) -> Iterator[Source]:
    """Samples from texts, as many for each as the model reads."""
    if texts and not raw.texts:
        raise UserError(f"--text: the model reads {raw.name}s, not texts; name files")
    if texts and len(texts) % raw.texts:
        raise UserError(f"--text: the model reads pairs of texts; give {raw.texts} for each, but got {len(texts)}")
    for start in range(0, len(texts), raw.texts or 1):
        yield _of_texts(" / ".join(texts[start : start + raw.texts]), texts[start : start + raw.texts])


def _of_texts(name: str, texts: Sequence[str]) -> Source:
    return Source(name, tuple(texts) if len(texts) > 1 else texts[0])


def _rows(given: str, path: Path, raw: RawInput) -> Iterator[Source]:
    """Samples from the rows of a table."""
    rows = read_rows(path, raw.columns, key="predict")
    columns = [rows.columns[column] for column in raw.columns]
    for line, texts in zip(rows.lines, zip(*columns, strict=True), strict=True):
        yield _of_texts(f"{given}:{line}", ["" if text is None else str(text) for text in texts])


def _sources(inputs: Sequence[Any], raw: RawInput) -> Iterator[Source]:
    suffixes = raw.suffixes
    for number, given in enumerate(inputs):
        if not isinstance(given, (str, Path)):
            yield Source(f"sample {number}", given)
            continue
        path = Path(given).expanduser()
        if path.is_dir():
            inside = list_files(path, suffixes)
            if inside.passed:
                log.warning("%s: %d files to predict, %s", given, len(inside.names), summary(inside.passed))
            if not inside.names:
                raise UserError(f"{given} holds no files that this model reads ({' '.join(suffixes)})")
            for name in sorted(inside.names, key=Path):
                yield from _of_file(str(path / name), path / name, raw)
        elif path.exists():
            yield from _of_file(str(given), path, raw)
        else:
            raise UserError(f"there is no file or folder {given}")


def _of_file(given: str, path: Path, raw: RawInput) -> Iterator[Source]:
    if raw.texts and path.suffix.lower() in TABLES:
        return _rows(given, path, raw)
    return iter([Source(given, path)])


def _read(predictor: Predictor, sources: Sequence[Source], unreadable: dict[str, str]) -> Iterator[tuple[Source, Any]]:
    """Reads samples; those that cannot be read are noted."""
    for source in sources:
        try:
            sample = predictor.raw.sample(source.value)
        except OSError as error:
            unreadable[source.name] = error.strerror or first_line(error)
        except ValueError as error:
            unreadable[source.name] = first_line(error)
        else:
            yield source, sample


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _short(source: Source) -> str:
    """The end of a path, or the beginning of a text."""
    if isinstance(source.value, Path) and len(source.value.parts) > 3:
        return str(Path("…", *source.value.parts[-2:]))
    line = _plain(source.name)
    return line if len(line) <= _WIDTH else f"{line[:_WIDTH]}…"


def _plain(text: str) -> str:
    return " ".join(text.split())
