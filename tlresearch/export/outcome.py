"""What an export came to: the forms that were kept or refused, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tlresearch.data.base import SplitName
from tlresearch.export.formats import Form
from tlresearch.export.measure import Measured


@dataclass(frozen=True)
class Shipped:
    """A form that was written, or refused.

    Attributes:
        form: Format and number format.
        path: The file (or folder); removed if it was refused.
        measured: What was measured; `None` if it could not be written or run.
        refused: Why it was refused; empty if it was not.
    """

    form: Form
    path: Path
    measured: Measured | None
    refused: str = ""


@dataclass(frozen=True)
class Export:
    """What an export came to.

    Attributes:
        run_id: The run.
        name: Its name.
        reads: What a sample is: image, text or sound.
        split: The split it was measured on.
        samples: Number of samples.
        original: What the run's own model reaches.
        forms: The forms that were asked for.
        folder: Where they lie.
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


def show(console: Console, result: Export) -> None:
    """Prints size, speed, metric and agreement of each form, why forms were refused, and how to predict."""
    known = result.original.metrics
    key = next((name for name in ("dice", "accuracy") if name in known), next(iter(known)))
    title = f"{result.name}  run {result.run_id[:8]}: {result.samples} samples of {result.split}"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("form", no_wrap=True)
    for column in ("MB", "ms", f"{result.reads}s/s", key, "changed", "moved"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    answers = "answers of pixels" if "dice" in known else "answers"
    table.caption = f"ms: median of one {result.reads}; changed: {answers}; moved: largest change of a probability"
    table.caption_justify = "left"
    rows: list[tuple[str, Measured | None, str]] = [("original", result.original, "")]
    rows += [(s.form.name, s.measured, "[red]refused[/red]" if s.refused else "kept") for s in result.forms]
    for name, measured, state in rows:
        cells = _cells(measured, key) if measured else ["-"] * 6
        table.add_row(name, *cells, state)
    console.print(table)
    for shipped in result.forms:
        if shipped.refused:
            console.print(
                f"refused: {shipped.form.name}: {shipped.refused}", highlight=False, markup=False, soft_wrap=True
            )
    console.print(f"written to {result.folder}/", highlight=False, markup=False, soft_wrap=True)
    file = next((s.form.file for s in result.forms if s.form.to == "onnx" and not s.refused), None)
    if file:
        example = {"image": "PHOTO.jpg", "text": "'A text.'", "sound": "SOUND.wav"}[result.reads]
        command = f"cd {result.folder} && python predict.py {file} {example}"
        console.print(f"predict: {command}", highlight=False, markup=False, soft_wrap=True)


def _cells(measured: Measured, key: str) -> list[str]:
    return [
        f"{measured.size / 1e6:.2f}",
        f"{measured.latency:.2f}",
        f"{measured.throughput:.1f}",
        f"{measured.metrics[key]:.4f}",
        f"{measured.changed:.2%}",
        f"{measured.difference:.2g}",
    ]
