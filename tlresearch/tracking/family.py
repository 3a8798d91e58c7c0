"""A family: a parent run and the runs nested in it, such as seeds, trials, variants or backbones.

Members name their parent, and `records.Record.members` finds them again. The parent is found again by a tag with its
identity.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from tlresearch.config.schema import ExperimentConfig, TrackingConfig
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.tracking.provenance import collect
from tlresearch.tracking.run import JournalRun, open_run


def open_family(
    config: ExperimentConfig | SweepConfig,
    tracking: TrackingConfig,
    name: str,
    *,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    texts: Mapping[str, str] | None = None,
    parent: str | None = None,
    run_id: str | None = None,
) -> JournalRun:
    """Opens the parent run of a family, or the one that an earlier process left.

    It carries no parameter or metric of its members by name: MLflow's charts would count it among them.

    Args:
        config: What the members are made from; its name is the MLflow experiment unless `tracking` has one.
        tracking: Where it is recorded.
        name: Name of the run.
        params: Params.
        tags: Tags, the family's identity among them.
        texts: Text artifacts by path, recorded with the provenance by the first process.
        parent: Id of the run that the family is nested in.
        run_id: Id of the run that an earlier process left.
    """
    run = open_run(
        replace(tracking, system_metrics=False),
        experiment=config.name,
        name=name,
        params=params,
        tags=tags,
        description=config.description,
        parent=parent,
        run_id=run_id,
    )
    if not run.begun:
        for path, text in (texts or {}).items():
            run.log_text(text, path)
        collect(sys.argv).log(run)
    return run
