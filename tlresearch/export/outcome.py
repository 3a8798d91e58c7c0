"""The result of an export: the forms that were kept or refused, and their page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tlresearch.data.base import SplitName
from tlresearch.export.formats import Form
from tlresearch.export.measure import Measured
from tlresearch.show.elements import Cell, Column, Command, Entry, Facts, Note, Table, numbers
from tlresearch.show.page import Page, Shown, page_of


@dataclass(frozen=True)
class Shipped:
    """A form that was written, or refused.

    Attributes:
        form: Format and number format.
        path: The file (or folder); removed if it was refused.
        measured: Its measurements; `None` if it could not be written or run.
        refused: Why it was refused; empty if it was not.
    """

    form: Form
    path: Path
    measured: Measured | None
    refused: str = ""


@dataclass(frozen=True)
class Export(Shown):
    """The result of an export.

    Attributes:
        run_id: The run.
        name: Its name.
        reads: Kind of a sample: image, text or sound.
        split: The split on which the forms were measured.
        samples: Number of samples.
        original: Measurements of the run's own model.
        forms: The requested forms.
        folder: Their folder.
    """

    run_id: str
    name: str
    reads: str
    split: SplitName
    samples: int
    original: Measured
    forms: tuple[Shipped, ...]
    folder: Path

    @property
    def exit_code(self) -> int:
        """0 if every form was kept, else 1."""
        return int(any(shipped.refused for shipped in self.forms))

    @property
    def page(self) -> Page:
        """Size, speed, metric and agreement of each form, why forms were refused, and how to predict."""
        metrics = self.original.metrics
        key: str = next((name for name in ("dice", "accuracy", "mae") if name in metrics), next(iter(metrics)))
        answers = "answers of pixels" if "dice" in metrics else "answers"
        moved = "a number in standard deviations" if "mae" in metrics else "a probability"
        rows = [_row("original", self.original, key, "")]
        for shipped in self.forms:
            state = Cell("refused", tone="bad") if shipped.refused else "kept"
            rows.append(_row(shipped.form.name, shipped.measured, key, state))
        table = Table(
            (
                Column("form"),
                Column("size", ".2f", unit="MB"),
                Column("time", ".2f", unit="ms"),
                Column("speed", ".1f", unit=f"{self.reads}s/s"),
                *numbers((key,), ".4f"),
                Column("changed", ".2%"),
                Column("moved", ".2g"),
                Column("verdict"),
            ),
            tuple(rows),
            title=f"{self.name}  run {self.run_id[:8]}: {self.samples} samples of {self.split}",
            note=f"time: median of one {self.reads}; changed: {answers}; moved: largest change of {moved}",
        )
        notes = [Note(f"refused: {s.form.name}: {s.refused}", "bad") for s in self.forms if s.refused]
        file = next((s.form.file for s in self.forms if s.form.to == "onnx" and not s.refused), None)
        example = {"image": "PHOTO.jpg", "text": "'A text.'", "pair": "'A text.' 'Another.'", "sound": "SOUND.wav"}[
            self.reads
        ]
        command = Command(f"cd {self.folder} && python predict.py {file} {example}", "predict")
        return page_of("", table, *notes, Facts((("written to", f"{self.folder}/"),)), *([command] if file else []))


def _row(name: str, measured: Measured | None, key: str, state: Entry) -> tuple[Entry, ...]:
    if measured is None:
        return (name, *[None] * 6, state)
    size, metric = measured.size / 1e6, measured.metrics[key]
    return (name, size, measured.latency, measured.throughput, metric, measured.changed, measured.difference, state)
