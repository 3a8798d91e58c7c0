"""One line in the terminal that says how far a run is and how long it will take."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tlresearch.finetuning.callback import EpochReport


class RunProgress(L.Callback):
    """A progress bar over all steps of a run, and a line per phase.

    Args:
        console: Where it is drawn; nothing is drawn unless it is a terminal.
        name: Name of the run.
        monitor: Metric shown beside the bar.
    """

    def __init__(self, console: Console, name: str, monitor: str) -> None:
        self.monitor = monitor
        self.name = name
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar_id = self.bar.add_task(name, total=None, status="")
        self._batches = 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the bar where the run starts."""
        self._batches = max(1, int(trainer.num_training_batches))
        self.bar.update(self.bar_id, total=trainer.max_epochs, completed=trainer.current_epoch)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        self.bar.update(self.bar_id, completed=trainer.current_epoch + (batch_idx + 1) / self._batches)

    def __call__(self, report: EpochReport) -> None:
        """Shows an epoch's metrics; as a listener of the freeze schedule."""
        shown = [name for name in ("train/loss", self.monitor) if name in report.metrics]
        status = "  ".join(f"{name} {report.metrics[name]:.4f}" for name in shown)
        self.bar.update(self.bar_id, status=f"{report.phase.name}:  {status}")
        if report.phase_end:
            self.console.print(
                f"  epoch {report.epoch + 1:>3}: phase '{report.phase.name}' ends ({report.phase_end})  {status}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        """Says something in a line above the bar."""
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Takes the bar away."""
        self.bar.stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the bar away."""
        self.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Takes the bar away."""
        self.stop()
