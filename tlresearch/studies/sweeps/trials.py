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
from tlresearch.studies.sweeps.storage import unwrapped_storage_error
from tlresearch.studies.sweeps.subject import Subject, TrialFailedError, Turn
from tlresearch.tracking.base import Run

LONGEST_PAUSE = 10.0  # seconds between two looks at the trials of other workers


class _NotOursError(Exception):
    """This trial must not run here: another worker claimed it, or the study already has its number of trials."""


@dataclass(frozen=True)
class Worker:
    """Runs the trials of a study, one after another in this process.

    Any number of workers can run trials of one study, on all machines that reach its database. Nothing coordinates
    them: each reads from the database which trials are left.
    """

    config: SweepConfig
    subject: Subject
    space: dict[str, SpaceConfig]
    study: Study
    parent: Run
    progress: SweepProgress
    identity: Identity = field(default_factory=Identity.own)

    def standing(self) -> studies.Standing:
        """Gives back trials whose workers are gone, then returns the progress of the study."""
        studies.give_back(self.study, self.identity)
        return studies.standing(self.study.get_trials(deepcopy=False), self.config.trials)

    @lasting_objects_spared()
    def run_all(self, *, wait: bool = True, leave: Callable[[], bool] = lambda: False) -> None:
        """Runs trials until the study has its total.

        Args:
            wait: Whether to wait for the trials of other workers, since one of them may be given back. Otherwise this
                returns as soon as no trial is left to begin.
            leave: Called before each trial; returns whether to stop.

        Raises:
            UserError: If a mistake in the config prevents a trial.
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
                # Pauses grow with the wait: each look is a query of the database by every waiting worker.
                time.sleep(min(LONGEST_PAUSE, 0.2 + 0.1 * (time.monotonic() - waiting_since)))
                self.progress.catch_up()
            else:
                return

    def run_next(self) -> None:
        """Asks Optuna for a trial and runs it, unless the trial is surplus."""
        not_ours = False

        def objective(trial: optuna.Trial) -> float:
            nonlocal not_ours
            try:
                if studies.claim(self.study, trial, self.config.trials, self.identity):
                    return self.objective(trial)
            except UpdateFinishedTrialError:
                # Our heartbeats did not arrive for `lost_after` seconds, so another worker has ended the trial.
                self.progress.note(f"trial {trial.number} was given to another worker: this one sent no heartbeat")
            except (SystemExit, KeyboardInterrupt) as signal:
                trial.set_user_attr(studies.STOPPED, True)
                # End the trial now: other machines would notice only after `lost_after` seconds. On Ctrl-C Optuna ends
                # it itself.
                if isinstance(signal, SystemExit):
                    self.study.tell(trial, state=TrialState.FAIL)
                raise
            not_ours = True
            raise _NotOursError

        try:
            callbacks = [self.progress.trial_ended]
            with unwrapped_storage_error():
                self.study.optimize(objective, n_trials=1, catch=(TrialFailedError, _NotOursError), callbacks=callbacks)
        except ValueError:  # Optuna tries to fail a trial that another worker has ended already
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
            UserError: If there is none; it names the reason of the last failure.
        """
        if not studies.complete(self.study):
            reasons = [
                t.user_attrs[studies.FAILURE] for t in studies.ended(self.study) if studies.FAILURE in t.user_attrs
            ]
            raise UserError(
                f"sweep '{self.config.name}': no trial was completed; "
                + (f"the last one failed: {reasons[-1]}" if reasons else "all were pruned: let the pruner wait longer")
            )
