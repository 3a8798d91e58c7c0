"""Several experiments as one: each a group of seeds, all under one MLflow run that the same command finds again."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from tlresearch.base.errors import UserError
from tlresearch.base.statistics import PairedTest, paired_test
from tlresearch.config.load import Loaded
from tlresearch.config.schema import ExperimentConfig
from tlresearch.studies.seeds import GroupResult, fit_group
from tlresearch.tracking.family import open_family
from tlresearch.tracking.records import Runs
from tlresearch.tracking.run import JournalRun

FAMILY = "tlresearch.family"
"""Tag of the parent run: a hash of the members' configs and seeds."""


@dataclass(frozen=True)
class Family:
    """The members, run.

    Attributes:
        run: The parent run, still open: for tables and figures.
        groups: The group of seeds of each member, by name.
    """

    run: JournalRun
    groups: Mapping[str, GroupResult]


@contextlib.contextmanager
def fit_family(
    name: str,
    members: Mapping[str, Loaded[ExperimentConfig]],
    seeds: Sequence[int] = (),
    *,
    console: Console | None = None,
) -> Iterator[Family]:
    """Runs every member with every seed; what has finished before, with the same settings, is not run again.

    Args:
        name: Name of the parent run.
        members: The experiments by name.
        seeds: The seeds; each member's own unless given.
        console: Where progress is shown.

    Raises:
        UserError: If config, data, weights or store are wrong.
    """
    first = next(iter(members.values()))
    tracking = first.config.tracking
    text = "\n".join(f"{member}\n{loaded.recorded}" for member, loaded in members.items()) + f"\n{name}\n{list(seeds)}"
    identity = hashlib.sha256(text.encode()).hexdigest()[:16]
    runs = Runs(tracking.uri)
    with open_family(
        first.config,
        tracking,
        name,
        params={"family.members": " ".join(members), "family.seeds": " ".join(map(str, seeds))},
        tags={FAMILY: identity},
        run_id=next((run.run_id for run in runs.tagged(FAMILY, identity, limit=1)), None),
    ) as parent:
        groups = {}
        for number, (member, loaded) in enumerate(members.items(), start=1):
            if console is not None:
                console.print(f"[bold]{member}[/bold]  {number} of {len(members)}", highlight=False)
            groups[member] = fit_group(
                loaded, seeds, name=member, parent=parent.run_id, again=False, runs=runs, console=console
            )
        yield Family(parent, groups)


def values(group: GroupResult, metric: str) -> list[float]:
    """A metric of each run of a group, in the order of the seeds.

    Raises:
        UserError: If a run does not have it; the text names some that it has.
    """
    for run in group.runs:
        if metric not in run.metrics:
            known = ", ".join(key for key in run.metrics if key.startswith(("val/", "test/")) and "_of_" not in key)
            raise UserError(f"{group.name}: its runs have no {metric}; they have {known}")
    return [run.metrics[metric] for run in group.runs]


def paired(one: GroupResult, other: GroupResult, metric: str) -> PairedTest:
    """Tests the difference of two groups, seed by seed."""
    return paired_test(values(one, metric), values(other, metric))
