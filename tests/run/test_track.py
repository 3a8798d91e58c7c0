"""`Track`: the training of somebody else's module in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from safetensors.torch import load_file

from tests.finetuning.foreign import QUIET, STAGES, Photos, StopAt, StoppedError, copy, loaders, make_trainer, moved
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import FreezeSchedule, Track
from tlresearch.base.errors import ConfigError
from tlresearch.tracking.store import connect

pytestmark = [
    *(pytest.mark.filterwarnings(rule) for rule in (*QUIET, *THIRD_PARTY)),
    pytest.mark.usefixtures("tables"),
]


def callbacks(**options: Any) -> list[Any]:
    plan = FreezeSchedule("lp_ft", stages=STAGES, head="classifier", layer_lr_decay=0.5, **options)
    return [plan, Track("photos", tags={"who": "me"}, system_metrics=False)]


def runs() -> list[Run]:
    client = connect().client
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def points(run: Run, metric: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in connect().client.get_metric_history(run.info.run_id, metric))


def test_a_run_holds_schedule_rates_sizes_metrics_provenance_and_weights(tmp_path: Path) -> None:
    module = Photos()
    make_trainer(None, callbacks(), max_epochs=4).fit(module, *loaders())
    (run,) = runs()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "Photos")
    assert connect().client.get_experiment(run.info.experiment_id).name == "photos"
    params = run.data.params
    assert (params["freeze.schedule"], params["freeze.epochs"], params["optimizer.name"]) == ("lp_ft", "4", "AdamW")
    assert run.data.tags["who"] == "me"
    assert run.data.tags["tlresearch.stages"] == ", ".join(STAGES)
    assert "tlresearch.version" in run.data.tags
    assert points(run, "lr/head") == [(epoch, 0.01) for epoch in range(4)]
    assert points(run, "lr/encoder.stem") == [(2, 0.01 / 8), (3, 0.01 / 8)]
    assert points(run, "trainable/encoder.stem") == [(2, 48.0), (3, 48.0)]
    assert len(points(run, "val_loss")) == len(points(run, "train_loss")) == 4
    store = connect().client
    file = store.download_artifacts(run.info.run_id, "weights/trained.safetensors", str(tmp_path))
    assert not moved(copy(module), load_file(file))
    phases = json.loads(Path(store.download_artifacts(run.info.run_id, "freeze_schedule.json")).read_text())
    assert [phase["trained"] for phase in phases] == [["head"], [*STAGES, "head"]]


def test_a_resumed_training_goes_on_in_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        make_trainer(tmp_path, [*callbacks(), StopAt(20)], max_epochs=4).fit(Photos(), *loaders())
    (broken,) = runs()
    assert broken.info.status == "FAILED"
    make_trainer(tmp_path, callbacks(), max_epochs=4).fit(
        Photos(), *loaders(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (broken.info.run_id, "FINISHED")
    assert [step for step, _ in points(run, "val_loss")] == [0, 1, 2, 3]


def test_without_a_schedule_the_modules_metrics_are_recorded() -> None:
    make_trainer(None, [Track("plain", system_metrics=False)], max_epochs=2).fit(Photos(), *loaders())
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(run, "val_loss")] == [0, 1]


def test_what_is_refused_leaves_no_run() -> None:
    with pytest.raises(ConfigError):
        make_trainer(None, callbacks(epochs=9), max_epochs=4).fit(Photos(), *loaders())
    assert not runs()
