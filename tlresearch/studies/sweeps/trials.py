"""The trials of a study: who runs them, which count, and what becomes of one that fails or is interrupted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import TrialState

from tlresearch.base.errors import UserError
from tlresearch.base.liveness import Identity
from tlresearch.config.search_space import suggest
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.run.devices.memory import lasting_objects_spared
from tlresearch.studies.sweeps import study as studies
from tlresearch.studies.sweeps.progress import SweepProgress
from tlresearch.studies.sweeps.storage import said_plainly
from tlresearch.studies.sweeps.subject import Subject, TrialFailedError, Turn
from tlresearch.tracking.base import Run

LONGEST_PAUSE = 10.0  # seconds between two looks at what other workers are doing


class _NotOursError(Exception):
    """A trial that another worker runs, or nobody has to."""


@dataclass(frozen=True)
class Worker:
    """Runs the trials of a study, one after another in this process.

    Any number of them work on one study, on as many machines as reach its database, and none is told what to do: the
    database says what is left.
    """

    config: SweepConfig
    subject: Subject
    space: dict[str, SpaceConfig]
    study: Study
    parent: Run
    progress: SweepProgress
    identity: Identity = field(default_factory=Identity.own)

    def standing(self) -> studies.Standing:
        """How far the study is, after trials of workers that are gone have been given back."""
        studies.give_back(self.study, self.identity)
        return studies.standing(self.study.get_trials(deepcopy=False), self.config.trials)

    @lasting_objects_spared()
    def run_all(self, *, wait: bool = True, leave: Callable[[], bool] = lambda: False) -> None:
        """Runs trials until the study has its total.

        Args:
            wait: Whether to wait for trials of other workers, one of which may be given back; otherwise this returns
                as soon as there is none to begin.
            leave: Asked before each trial whether to stop.

        Raises:
            UserError: If a trial cannot be run because of a mistake of the user's.
        """
        waiting_since = None
        while not leave():
            now = self.standing()
            if now.open:
                waiting_since = None
                self.run_next()
            elif now.running and wait:
                if waiting_since is None:
                    waiting_since = time.monotonic()
                    numbers = ", ".join(str(trial.number) for trial in now.running)
                    self.progress.note(f"waiting for other workers: trial {numbers}")
                time.sleep(min(LONGEST_PAUSE, 0.2 + 0.1 * (time.monotonic() - waiting_since)))
                self.progress.catch_up()
            else:
                return

    def run_next(self) -> None:
        """Asks for a trial and runs it, unless it turns out to be one too many."""
        not_ours = False

        def objective(trial: optuna.Trial) -> float:
            nonlocal not_ours
            try:
                if studies.claim(self.study, trial, self.config.trials, self.identity):
                    return self.objective(trial)
            except UpdateFinishedTrialError:
                self.progress.note(f"trial {trial.number} was given to another worker: nothing was heard of this one")
            except (SystemExit, KeyboardInterrupt) as signal:
                trial.set_user_attr(studies.STOPPED, True)
                # On another machine nobody would know before `lost_after` seconds; Optuna does it on Ctrl-C.
                if isinstance(signal, SystemExit):
                    self.study.tell(trial, state=TrialState.FAIL)
                raise
            not_ours = True
            raise _NotOursError

        try:
            callbacks = [self.progress.trial_ended]
            with said_plainly():
                self.study.optimize(objective, n_trials=1, catch=(TrialFailedError, _NotOursError), callbacks=callbacks)
        except ValueError:  # Optuna cannot end a trial that has ended
            if not not_ours:
                raise

    def objective(self, trial: optuna.Trial) -> float:
        """Runs one trial and returns its objective."""
        if trial.user_attrs.get(studies.DEATHS, 0) >= studies.MOST_DEATHS:
            reason = f"{studies.MOST_DEATHS} processes died while they ran it"
            trial.set_user_attr(studies.FAILURE, reason)
            raise TrialFailedError(reason)
        point = suggest(trial, self.space)
        trial.set_user_attr("overrides", point)
        turn = Turn(trial, point, self.config.objective.metric, self.config.name, self.parent.run_id)
        value = self.subject.run(turn)
        if not math.isfinite(value):
            trial.set_user_attr(studies.FAILURE, f"{turn.metric} is {value}")
            raise TrialFailedError(f"{turn.metric} is {value}")
        return value

    def check_complete(self) -> None:
        """Refuses to go on without a completed trial.

        Raises:
            UserError: With the reason of the last failure.
        """
        if not studies.complete(self.study):
            reasons = [
                t.user_attrs[studies.FAILURE] for t in studies.ended(self.study) if studies.FAILURE in t.user_attrs
            ]
            raise UserError(
                f"sweep '{self.config.name}': no trial was completed; "
                + (f"the last one failed: {reasons[-1]}" if reasons else "all were pruned: let the pruner wait longer")
            )
