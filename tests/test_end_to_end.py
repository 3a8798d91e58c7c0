"""The main job through the commands a user types: run, sweep, continue, compare, serve the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.toy import toy_text
from tlresearch import fit
from tlresearch.cli import main
from tlresearch.config.load import load_text
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.tracking.store import connect

SPACE = {
    "optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "freeze.unfreeze_depth": {"low": 0, "high": "all"},
}


@pytest.fixture
def project(tmp_path: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder with an experiment and a sweep."""
    (tmp_path / "experiments" / "toy").mkdir(parents=True)
    (tmp_path / "sweeps" / "toy").mkdir(parents=True)
    freeze = "{schedule: depth, unfreeze_depth: 1, epochs: 2}"
    (tmp_path / "experiments" / "toy" / "base.yaml").write_text(toy_text(freeze=freeze))
    sweep = {
        "experiment": "toy/base",
        "space": SPACE,
        "trials": 2,
        "pruner": {"name": "threshold", "options": {"lower": -1.0}},
        "baselines": {"scratch": {"freeze.schedule": "full", "freeze.unfreeze_depth": None}},
    }
    (tmp_path / "sweeps" / "toy" / "s.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def client() -> MlflowClient:
    found: MlflowClient = connect().client
    return found


def runs(query: str = "") -> list[Any]:
    ids = [experiment.experiment_id for experiment in client().search_experiments()]
    return list(client().search_runs(ids, query))


def test_a_run_records_what_it_takes_to_see_and_repeat_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["tracking.figures=true", "tracking.model=true", "optimizer.lr=0.03"]
    assert main(["run", "toy/base", *overrides]) == 0
    assert "val" in capsys.readouterr().out
    (run,) = runs()
    data = run.data
    assert run.info.status == "FINISHED"
    assert data.params["optimizer.lr"] == "0.03"
    assert {"train/loss", "val/accuracy", "val/auroc", "test/accuracy", "lr/head", "trainable/head"} <= set(
        data.metrics
    )
    assert data.tags["tlresearch.weights"] == "random"
    assert len(client().get_metric_history(run.info.run_id, "val/accuracy")) == 2
    assert len(client().get_metric_history(run.info.run_id, "test/accuracy")) == 1  # touched once
    assert {entry.tags[0].value for entry in run.inputs.dataset_inputs} == {"train", "val", "test"}
    artifacts = {
        item.path for folder in ("", "figures", "weights") for item in client().list_artifacts(run.info.run_id, folder)
    }
    assert {
        "config.yaml",
        "figures/schedule.png",
        "figures/learning_curves.png",
        "figures/confusion_matrix.png",
    } <= artifacts
    assert "weights/trained.safetensors" in artifacts

    recorded = Path(client().download_artifacts(run.info.run_id, "config.yaml"))
    again = fit(load_text(recorded.read_text()))
    before = {key: value for key, value in data.metrics.items() if key.startswith(("train/", "val/", "test/"))}
    assert {key: again.metrics[key] for key in before} == before  # bit for bit


def test_rates_gradients_and_sizes_are_recorded_of_stages_that_are_trained(project: Path) -> None:
    result = fit("toy/base", {"freeze": {"schedule": "lp_ft", "probe_epochs": 3, "epochs": 7, "unfreeze_depth": None}})
    found = {
        key: [(point.step, point.value) for point in client().get_metric_history(result.run_id, key)]
        for key in ("lr/head", "lr/block1", "gradient_norm/block1", "trainable/head", "trainable/block1")
    }
    assert [step for step, _ in found["lr/head"]] == list(range(7))
    for key in ("lr/block1", "gradient_norm/block1"):
        assert [step for step, _ in found[key]] == [3, 4, 5, 6], key
        assert all(value > 0 for _, value in found[key][:-1]), key
    for key, steps in (("trainable/head", [0, 2, 3, 6]), ("trainable/block1", [3, 6])):
        assert [step for step, _ in found[key]] == steps, key  # the first and the last epoch of a phase
        assert found[key][0][1] == found[key][-1][1] > 0, key


def test_the_logged_model_predicts_from_raw_images(project: Path) -> None:
    import mlflow

    result = fit("toy/base", {"tracking.model": True})
    mlflow.set_tracking_uri(connect().uri)
    model = mlflow.pyfunc.load_model(f"runs:/{result.run_id}/model")
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), dtype=np.uint8)
    table = model.predict(images)
    assert list(table["class"].isin(["0", "1"])) == [True] * 3
    assert np.allclose(table["p(0)"] + table["p(1)"], 1.0)


def test_a_sweep_continues_to_its_total_and_its_best_config_runs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "toy/s"]) == 0
    first = capsys.readouterr().out
    assert "final run: best" in first
    assert "final run: scratch" in first
    result = run_sweep("toy/s", ["trials=3"])
    assert len(result.trials) == 3
    parent = client().get_run(result.run_id)
    children = [run for run in runs() if run.data.tags.get("mlflow.parentRunId") == result.run_id]
    trials = [run for run in children if "tlresearch.trial" in run.data.tags]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics[result.objective] == result.best_value  # in the study's row of the table of runs
    assert sorted(run.data.tags["tlresearch.trial"] for run in trials) == ["0", "1", "2"]
    assert {run.info.status for run in children} == {"FINISHED"}
    assert not any("test/accuracy" in run.data.metrics for run in trials)  # trials never see the test split
    best = next(run for run in result.final if run.name == "best")
    assert "test/accuracy" in best.metrics
    assert best.metrics[result.objective] == result.best_value  # the same config gives the same number
    assert (result.figures["depth_lr_map"]).stat().st_size > 5000
    capsys.readouterr()
    assert main(["compare", "--sweep", "toy/s"]) == 0
    assert "compare-runs" in capsys.readouterr().out
    assert main(["run", str(result.best_yaml)]) == 0


def test_transfer_from_an_earlier_run_keeps_its_weights_and_lineage(project: Path) -> None:
    source = fit("toy/base", {"freeze.schedule": "full", "freeze.unfreeze_depth": None, "name": "source"})
    probe = {"freeze.schedule": "linear_probe", "freeze.unfreeze_depth": None}
    target = fit("toy/base", {"backbone.checkpoint": "latest:source", "data.classes": ["2", "3"], **probe})
    for name, tensor in source.task.backbone.state_dict().items():
        assert (tensor == target.task.backbone.state_dict()[name]).all(), name
    tags = client().get_run(target.run_id).data.tags
    assert tags["tlresearch.parent_run"] == source.run_id
    assert client().get_run(target.run_id).data.params["backbone.checkpoint"] == source.run_id


def test_pruned_and_failed_trials_are_shown_as_such_and_the_sweep_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlresearch.tasks.classification import ClassificationTask

    plain, calls = ClassificationTask.configure_optimizers, []

    def second_fails(self: ClassificationTask) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("out of memory")
        return plain(self)

    monkeypatch.setattr(ClassificationTask, "configure_optimizers", second_fails)
    sweep = yaml.safe_load((project / "sweeps/toy/s.yaml").read_text())
    enqueue = [{"optimizer.lr": 1e-2, "freeze.unfreeze_depth": depth} for depth in (0, 1, 2)]
    sweep |= {"enqueue": enqueue, "trials": 4, "baselines": {}}
    sweep["pruner"] = {"name": "percentile", "options": {"percentile": 1.0, "n_startup_trials": 1, "n_warmup_steps": 0}}
    (project / "sweeps/toy/mixed.yaml").write_text(yaml.safe_dump(sweep))
    result = run_sweep("toy/mixed")
    states = [trial.state.name for trial in result.trials]
    assert states[1] == "FAIL"
    assert "out of memory" in result.trials[1].user_attrs["failure"]
    failed = runs("attributes.status = 'FAILED'")
    assert [run.data.tags["tlresearch.failure"] for run in failed] == [
        "OutOfMemoryError: out of memory with data.batch_size=16: lower it and raise trainer.accumulate as much "
        "(trainer.on_oom=halve does both), or set trainer.precision=bf16-mixed"
    ]
    for run in runs("tags.`tlresearch.state` = 'pruned'"):
        assert run.info.status == "FINISHED"
    assert len(runs("tags.`tlresearch.state` = 'pruned'")) == states.count("PRUNED")


def test_a_config_error_in_a_trial_stops_the_sweep(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = yaml.safe_load((project / "sweeps/toy/s.yaml").read_text())
    sweep["space"]["freeze.unfreeze_depth"] = {"low": 9, "high": 9}
    (project / "sweeps/toy/deep.yaml").write_text(yaml.safe_dump(sweep))
    assert main(["sweep", "toy/deep"]) == 2
    assert "must be at most 4, the number of stages" in capsys.readouterr().err


def test_a_changed_sweep_does_not_mix_with_the_old_one(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_sweep("toy/s", ["trials=1"])
    assert main(["sweep", "toy/s", "overrides.data.batch_size=8"]) == 2
    assert "give the new sweep another name" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_an_interrupted_sweep_goes_on_and_leaves_nothing_running(
    kind: signal.Signals, project: Path, home: Path
) -> None:
    code = "import sys; from tlresearch.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-W", "ignore", "-c", code, "sweep", "toy/s", "trials=3", "overrides.freeze.epochs=20"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list(home.glob("unfinished/*/last.ckpt")):  # the first trial has finished an epoch
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(kind)
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "Traceback" not in output
    if kind != signal.SIGKILL:
        assert not runs("attributes.status = 'RUNNING'")
        assert runs("attributes.status = 'KILLED'")
    result = run_sweep("toy/s", ["trials=3", "overrides.freeze.epochs=20"])
    assert len([trial for trial in result.trials if trial.state.name == "COMPLETE"]) == 3
    assert not runs("attributes.status != 'FINISHED'")
    trials = [run for run in runs() if "tlresearch.trial" in run.data.tags]
    assert len(trials) == 3  # the interrupted trial's run was continued, not doubled
    for run in trials:
        steps = [point.step for point in client().get_metric_history(run.info.run_id, "val/accuracy")]
        assert sorted(steps) == list(range(20))


def test_the_command_needs_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(toy_text(freeze="{schedule: linear_probe, epochs: 1}"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", os.fspath(path)]) == 0
