"""The terminal's view of a sweep: a line per trial, a bar with the time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.studies.sweeps import study as studies


class SweepProgress:
    """Shows trials as they end.

    Args:
        console: The console; ``None`` shows nothing. The bar is drawn only in a terminal.
        study: The study.
        config: The sweep.
        retried: Number of interrupted trials that are tried again.
        all_workers: Whether to show trials of other workers too.
    """

    def __init__(
        self, console: Console | None, study: Study, config: SweepConfig, retried: int, *, all_workers: bool = True
    ) -> None:
        self.console = console or Console(quiet=True)
        self.study = study
        self.config = config
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("trials"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.all_workers = all_workers
        self.shown = {trial.number for trial in studies.ended(study)}
        done = len(self.shown)
        self.bar_id = self.bar.add_task(config.name, total=config.trials, completed=done)
        if done:
            self.note(f"continuing after {done} of {config.trials} trials")
        if retried:
            self.note(f"{retried} interrupted trials are tried again")

    def catch_up(self) -> int:
        """Shows trials that other workers have finished since the last call; returns their number."""
        if not self.all_workers:
            return 0
        fresh = [trial for trial in studies.ended(self.study) if trial.number not in self.shown]
        for trial in fresh:
            self._show(trial)
        return len(fresh)

    def trial_ended(self, study: Study, trial: FrozenTrial) -> None:
        """Shows a trial of this process, after those that other workers have finished; a callback for Optuna."""
        self.catch_up()
        if studies.is_counted(trial) and trial.number not in self.shown:
            self._show(trial)

    def _show(self, trial: FrozenTrial) -> None:
        self.shown.add(trial.number)
        point = "  ".join(f"{key} {_short(value)}" for key, value in trial.params.items())
        state = trial.state.name.lower()
        value = f"{trial.value:.4f}" if state == "complete" and trial.value is not None else state
        done = studies.complete(self.study)
        mark = "  best" if done and done[0].number == trial.number else ""
        why = f"  {trial.user_attrs[studies.FAILURE]}" if studies.FAILURE in trial.user_attrs else ""
        seconds = f"{trial.user_attrs['seconds']:.1f} s" if "seconds" in trial.user_attrs else ""
        self.note(f"trial {trial.number:>3}  {value:>8}  {point}  {seconds}{mark}{why}")
        self.bar.update(self.bar_id, completed=len(self.shown))

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the bar."""
        self.bar.stop()


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
