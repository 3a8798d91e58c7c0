"""The sweep as a user of tlresearch runs it: one YAML, recorded in MLflow, resumable."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, cast

from benchmarks.loops.spec import Outcome, Spec, main

EXPERIMENT = """
data: {{name: image_folder, root: {data}, batch_size: {batch}, resize: 256}}
backbone: {{name: torchvision/{model}, weights: {weights}}}
freeze: {{schedule: depth, unfreeze_depth: 0, epochs: {epochs}}}
optimizer: {{name: adamw, lr: 1.0e-3, weight_decay: {weight_decay}, decay_norm_and_bias: true}}
scheduler: {{name: constant}}
seed: {seed}
trainer: {{precision: {precision}, memory_format: {memory_format}}}
"""


def run(spec: Spec) -> Outcome:
    """Runs the trials; the time ends when the last one is recorded, before the best one is run again in full."""
    import tlresearch  # noqa: F401  # in front of torch, as in every command
    from benchmarks.loops.same import SEED, WEIGHT_DECAY

    os.environ["TLRESEARCH_HOME"] = spec.home
    folder = Path(spec.home)
    folder.mkdir(parents=True, exist_ok=True)
    precision = spec.precision or ["auto", "auto"]
    same = {"seed": SEED, "weight_decay": WEIGHT_DECAY}
    text = EXPERIMENT.format(**{**vars(spec), **same, "precision": precision[0], "memory_format": precision[1]})
    (folder / "experiment.yaml").write_text(text)
    sweep = {
        "name": spec.options.get("name", "benchmark"),
        "experiment": str(folder / "experiment.yaml"),
        "space": {
            "optimizer.lr": {"low": 1e-6, "high": 1.0, "log": True},
            "freeze.unfreeze_depth": {"low": 0, "high": len(_stages(spec))},
        },
        "enqueue": [{"optimizer.lr": point.lr, "freeze.unfreeze_depth": point.depth} for point in spec.points],
        "sampler": {"name": "random"},
        "trials": len(spec.points),
        "workers": int(spec.options.get("workers", "1")),
    }
    if "drawn" in spec.options:  # as a user's sweep: Optuna's database is not full of points that wait
        sweep |= {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}, "enqueue": []}
    (folder / "sweep.yaml").write_text(json.dumps(sweep))

    from tlresearch.studies.sweeps.run import run as run_sweep
    from tlresearch.tracking.records import Runs

    ended = _watch(by_turns=int(spec.options.get("by turns", "0")))
    began = time.time()
    result = run_sweep(folder / "sweep.yaml")
    complete = time.time()
    trials = [trial.duration.total_seconds() for trial in result.trials if trial.duration is not None]
    recorded = [trial.user_attrs["run_id"] for trial in result.trials if trial.user_attrs["run_id"]]
    runs = [Runs().get(run_id).stored for run_id in recorded]
    resolved = runs[-1].data.tags
    return Outcome(
        ended[1] - began,
        trials,
        [float(trial.value or 0.0) for trial in result.trials],
        [resolved[f"resolved.{part}.{key}"] for part in ("trainer", "cache") for key in ("precision", "memory_format")],
        {
            "with final run": complete - began,
            "records waited for": ended[1] - ended[0],
            "prefix passes": sum(int(run.data.tags["tlresearch.prefix_passes"]) for run in runs),
        },
    )


def _watch(*, by_turns: int) -> list[float]:
    """Notes when the last trial has ended, and when all trials are recorded.

    Args:
        by_turns: So many trials are recorded, then so many are not, and so on; 0 has all recorded.
    """
    from tlresearch.run import fit
    from tlresearch.studies.sweeps import run as sweep
    from tlresearch.tracking.base import SilentRun
    from tlresearch.tracking.courier import settle
    from tlresearch.tracking.run import JournalRun, open_run

    moments: list[float] = []
    opened = itertools.count()

    def watched_open(*arguments: Any, deferred: bool = False, **about: Any) -> JournalRun:
        if deferred and by_turns and next(opened) // by_turns % 2:
            return cast(JournalRun, SilentRun("", about["name"]))
        return open_run(*arguments, deferred=deferred, **about)

    def watched_settle(uri: str) -> None:
        moments.append(time.time())
        settle(uri)
        moments.append(time.time())

    setattr(fit, "open_run", watched_open)  # noqa: B010
    setattr(sweep, "settle", watched_settle)  # noqa: B010
    return moments


def _stages(spec: Spec) -> tuple[str, ...]:
    """Names of the stages; asked before the clock starts, so that everything is imported as in the other loops."""
    import mlflow.tracking  # noqa: F401

    import tlresearch.studies.sweeps.run  # noqa: F401
    from tlresearch.backbones.build import build_backbone
    from tlresearch.config.schema import BackboneConfig

    return build_backbone(BackboneConfig(name=f"torchvision/{spec.model}", weights=None)).stage_names


if __name__ == "__main__":
    main(run)
