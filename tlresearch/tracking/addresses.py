"""Addresses of pages of MLflow's UI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote


def runs_url(base: str, experiment_id: str) -> str:
    """Address of the table of runs. Without `workflowType` MLflow 3 opens its page for language models."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def run_url(base: str, experiment_id: str, run_id: str) -> str:
    """Address of one run."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def compare_url(base: str, run_ids: Sequence[str], experiment_ids: Sequence[str]) -> str:
    """Address of the UI's comparison of runs."""
    runs, experiments = (
        quote(json.dumps(list(ids), separators=(",", ":")), safe="") for ids in (run_ids, dict.fromkeys(experiment_ids))
    )
    query = f"runs={runs}&experiments={experiments}&workflowType=machine_learning"
    return f"{base.rstrip('/')}/#/compare-runs?{query}"
