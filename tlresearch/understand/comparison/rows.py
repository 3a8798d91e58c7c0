"""What a comparison shows of one run, or of a group of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tlresearch.tracking.records import Record, State

if TYPE_CHECKING:
    from tlresearch.base.statistics import Summary


@dataclass(frozen=True)
class Value:
    """A metric of one run: its last value, and the best over its history; of a group its mean over the seeds."""

    last: float
    best: float
    best_step: int
    over_seeds: Summary | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One run of a comparison, or a group of seeds.

    Attributes:
        run_id: Its id.
        name: Its name without the mark of pruned runs.
        state: How it ended.
        params: All its params.
        metrics: Its metrics.
        seconds: How long it took, or has taken so far.
        runs: The run, or those of a group by seed.
        members: Id of the run of each seed; empty unless it is a group.
        data: Name and fingerprint of its data; empty if it recorded none.
    """

    run_id: str
    name: str
    state: State
    params: Mapping[str, str]
    metrics: Mapping[str, Value]
    seconds: float
    runs: Mapping[int, Record]
    members: Mapping[int, str] = field(default_factory=dict)
    data: str = ""
