"""A user's function as the subject of a study: called for each trial, recorded, pruned, tried again after a kill."""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial

from tlresearch.base.errors import ConfigError, RunFailedError, UserError, first_line
from tlresearch.base.interrupt import interruptible
from tlresearch.config.schema import TrackingConfig
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.finetuning.callback import RunPrunedError
from tlresearch.finetuning.resume import RunFolder
from tlresearch.run.member import Member, running
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.subject import FinalRun, Turn
from tlresearch.tracking.base import Run
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.run import open_run


class Trial(Mapping[str, Any]):
    """The argument of an objective function: a mapping of the suggested values, and the way to report progress.

    Attributes:
        number: Number of the trial, 0 first.
        params: The values by name, as a dict.
        folder: A folder that lasts until the trial ends. After a kill the trial is tried again with the same values,
            and finds its files there, such as a checkpoint.
    """

    def __init__(self, turn: Turn, run: Run, folder: Path) -> None:
        self._turn, self._run = turn, run
        self._last: tuple[int, float] | None = None
        self._reason = ""
        self.number: int = turn.trial.number
        self.params = dict(turn.point)
        self.folder = folder

    def __getitem__(self, name: str) -> Any:
        return self.params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)

    def report(self, value: float, step: int) -> None:
        """Records the objective after a step, such as an epoch; then `should_prune` says whether to stop."""
        self._run.log_metrics({self._turn.metric: value}, step)
        self._pass_on(value, step, raises=False)

    def should_prune(self) -> bool:
        """Whether the pruner stops the trial; ``raise optuna.TrialPruned()`` ends it."""
        return bool(self._reason)

    def _pass_on(self, value: float, step: int, *, raises: bool = True) -> None:
        self._last = step, value
        try:
            self._turn.report(value, step)
        except RunPrunedError as reason:
            self._reason = str(reason)
            if raises:
                raise

    def _end(self, value: float) -> None:
        """Records the value that the objective returned, unless it reported the same value last."""
        if self._last is None or self._last[1] != value:
            self._run.log_metrics({self._turn.metric: value}, self._last[0] + 1 if self._last else 0)


@dataclass(frozen=True)
class Function:
    """A function that takes a trial and returns its objective.

    Attributes:
        call: The function.
        name: Its dotted path.
        tracking: Where its trials are recorded.
    """

    call: Callable[[Trial], float]
    name: str
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def texts(self) -> Mapping[str, str]:
        """Its source, or its bytecode if there is no source."""
        return {"objective.py": source(self.call)}

    def run(self, turn: Turn) -> float:
        """Calls the function with the trial's values. What it trains meanwhile is recorded in the trial's run."""
        ended: Exception
        with RunFolder(f"{turn.study}\n{turn.parent}\n{yaml.safe_dump(turn.point)}") as folder:
            try:
                return self._recorded(turn, folder)
            except UpdateFinishedTrialError:
                raise
            except optuna.TrialPruned as pruned:
                ended = pruned
            except Exception as error:
                if isinstance(error, UserError) and not isinstance(error, RunFailedError):
                    raise
                ended = turn.failed(error)
                ended.__cause__ = error
        raise ended

    def _recorded(self, turn: Turn, folder: RunFolder) -> float:
        began = time.monotonic()
        run = open_run(
            self.tracking,
            experiment=self.tracking.experiment or turn.study,
            name=turn.name,
            params=turn.point,
            tags=turn.tags,
            parent=turn.parent,
            run_id=folder.read().get("run_id"),
            deferred=True,
        )
        with run:
            if "run_id" not in folder.read():
                folder.write(run_id=run.reference)
                collect().log(run)
            files = folder.path / "files"
            files.mkdir(exist_ok=True)
            trial = Trial(turn, run, files)
            try:
                with interruptible(), running(Member(run, turn.metric, trial._pass_on)):
                    value = self._checked(self.call(trial))
            except (RunPrunedError, optuna.TrialPruned) as pruned:
                reason = trial._reason or first_line(pruned) or "by the objective"
                run.mark_pruned(reason)
                raise optuna.TrialPruned(reason) from None
            finally:
                turn.ended(run.run_id, time.monotonic() - began)
            trial._end(value)
        return value

    def _checked(self, value: object) -> float:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise ConfigError(
                [f"{self.name}: must return the number that is searched for, but returned {type(value).__name__}"],
                "sweep",
            ) from None

    def at(self, point: Mapping[str, Any]) -> None:
        """Returns ``None``: no YAML runs a function."""

    def finish(
        self, config: SweepConfig, study: Study, parent: Run, progress: SweepProgress, best: FrozenTrial
    ) -> list[FinalRun]:
        """Returns no final run: a trial of a function records everything already."""
        return []


def named(path: str) -> Function:
    """Imports the function at a dotted path.

    Raises:
        ConfigError: If it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        call = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError([f"function: '{path}' cannot be imported: {first_line(error)}"], "sweep") from None
    return Function(call, path)


def source(call: Callable[..., Any]) -> str:
    """Returns the source of a function, or its bytecode if there is no source, as in an interactive session."""
    try:
        return inspect.getsource(call)
    except (OSError, TypeError):
        code = getattr(call, "__code__", None)
        return repr(call) if code is None else f"{code.co_code.hex()} {code.co_consts} {code.co_names}"
