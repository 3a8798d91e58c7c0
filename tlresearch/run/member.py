"""The trial that a function of the user's runs as: what trains inside of it belongs to the study by itself.

`tlresearch.sweep(objective, …)` sets it around each call. `Track` then writes into the trial's run, `fit` nests its run
there, and both tell the study of each epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from tlresearch.tracking.base import Run


@dataclass
class Member:
    """A trial under way in this process.

    Attributes:
        run: Its run.
        metric: The objective.
        report: Tells the study of the objective after an epoch; raises `RunPrunedError` to end the trial.
        written: Whether a `Track` writes into the run: a second one gets a run of its own, nested in it.
    """

    run: Run
    metric: str
    report: Callable[[float, int], None]
    written: bool = False

    def heard(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Reports an epoch, if the objective is among its metrics."""
        if self.metric in metrics:
            self.report(metrics[self.metric], epoch)


_member: ContextVar[Member | None] = ContextVar("member", default=None)


def current() -> Member | None:
    """The trial that this code runs in, if any."""
    return _member.get()


@contextlib.contextmanager
def running(member: Member) -> Iterator[None]:
    """Makes a trial the current one while the context lasts."""
    token = _member.set(member)
    try:
        yield
    finally:
        _member.reset(token)
