"""The sweep as a user of tlresearch runs it: one YAML, recorded in MLflow, resumable."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, cast

from benchmarks.loops.same import SEED, WEIGHT_DECAY
from benchmarks.loops.spec import Outcome, Spec, main

EXPERIMENT = """
data: {{name: image_folder, root: {data}, batch_size: {batch}}}
backbone: {{name: torchvision/{model}, weights: {weights}}}
freeze: {{schedule: depth, unfreeze_depth: 0, epochs: {epochs}}}
optimizer: {{name: adamw, lr: 1.0e-3, weight_decay: {weight_decay}, decay_norm_and_bias: true}}
scheduler: {{name: constant}}
seed: {seed}
trainer: {{precision: {precision}, memory_format: {memory_format}}}
"""


def run(spec: Spec) -> Outcome:
    """Runs the trials; the time ends when the last one is recorded, before the best one is run again in full."""
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
    (folder / "sweep.yaml").write_text(json.dumps(sweep))

    from tlresearch import run_sweep
    from tlresearch.tracking.store import connect

    recorded = _watch(silent=spec.options.get("tracking") == "silent")
    began = time.time()
    result = run_sweep(folder / "sweep.yaml")
    ended = time.time()
    trials = [trial.user_attrs["seconds"] for trial in result.trials]
    accuracies = [float(trial.value or 0.0) for trial in result.trials]
    if spec.options.get("tracking") == "silent":
        return Outcome(recorded[0] - began, trials, accuracies)
    runs = [connect().client.get_run(trial.user_attrs["run_id"]) for trial in result.trials]
    resolved = runs[-1].data.tags
    return Outcome(
        recorded[0] - began,
        trials,
        accuracies,
        [resolved[f"resolved.{part}.{key}"] for part in ("trainer", "cache") for key in ("precision", "memory_format")],
        {
            "with final run": ended - began,
            "prefix passes": sum(int(run.data.tags["tlresearch.prefix_passes"]) for run in runs),
        },
    )


def _watch(*, silent: bool) -> list[float]:
    """Notes when the last trial has ended and all trials are recorded; `silent` has nothing recorded."""
    from tlresearch.sweeps import run as sweep
    from tlresearch.tracking.remote import RemoteRun, RemoteTracker
    from tlresearch.tracking.silent import SilentRun

    moments: list[float] = []

    class Watched(RemoteTracker):
        def finish(self) -> None:
            super().finish()
            moments.append(time.time())

    class Nowhere(Watched):
        def __init__(self, *, warm: bool = False) -> None:
            """Starts no process."""

        def open_run(self, *arguments: Any, name: str, **about: Any) -> RemoteRun:
            return cast(RemoteRun, SilentRun("0" * 32, name))

        def finish(self) -> None:
            moments.append(time.time())

    setattr(sweep, "RemoteTracker", Nowhere if silent else Watched)  # noqa: B010
    return moments


def _stages(spec: Spec) -> tuple[str, ...]:
    """Names of the stages; asked before the clock starts, so that everything is imported as in the other loops."""
    import mlflow.tracking  # noqa: F401

    import tlresearch.sweeps.run  # noqa: F401
    from tlresearch.backbones.build import build_backbone
    from tlresearch.config.schema import BackboneConfig

    return build_backbone(BackboneConfig(name=f"torchvision/{spec.model}", weights=None)).stage_names


if __name__ == "__main__":
    main(run)
