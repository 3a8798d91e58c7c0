"""A loss that is not finite, no memory, a dead loader process: one clear line, and a sweep goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.hungry import hungry_yaml
from tests.toy import TRAINER, toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.base.errors import ConfigError
from tlresearch.cli import main
from tlresearch.config.load import load_text
from tlresearch.config.schema import DataConfig, ExperimentConfig, TrainerConfig
from tlresearch.run.faults import OUT_OF_MEMORY, halved
from tlresearch.tasks.base import Task
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
DIVERGES = 1e30


@pytest.fixture
def project(tmp_path: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs() -> list[Any]:
    client = connect().client
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def end(text: str, project: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs an experiment that must fail, and returns the line it ends with."""
    (project / "mine.yaml").write_text(text)
    assert main(["run", "mine.yaml"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = end(toy_text(optimizer=f"{{name: sgd, lr: {DIVERGES}}}"), project, capsys)
    assert "the training loss is nan in step 1 (epoch 0, batch 1, counted from 0) with rate 9.7e+29: lower opt" in line
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert "in step 1 (epoch 0, batch 1, counted from 0)" in run.data.tags["tlresearch.failure"]
    assert not list(project.glob("home/unfinished/*/last.ckpt"))  # nothing of it is gone on with


@pytest.mark.slow
def test_ranks_end_at_the_same_step(project: Path) -> None:
    trainer = TRAINER.replace("}", ", devices: 2, strategy: ddp, accelerator: cpu, threads: 1}")
    (project / "mine.yaml").write_text(toy_text(backbone=hungry_yaml(nan_on_rank=1), trainer=trainer))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tlresearch", "run", "mine.yaml", "data.batch_size=8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    assert "the training loss is not finite on another rank in step 1 (epoch 0, batch 1, " in done.stderr
    assert "Traceback" not in done.stderr
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_a_sweep_goes_on_without_the_trials_that_fail(project: Path) -> None:
    (project / "mine.yaml").write_text(toy_text(backbone=hungry_yaml(fits=20), freeze="{schedule: full, epochs: 1}"))
    sweep = {
        "experiment": "mine.yaml",
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1e31, "log": True}, "data.batch_size": {"choices": [16, 24]}},
        "enqueue": [
            {"optimizer.lr": DIVERGES, "data.batch_size": 16},
            {"optimizer.lr": 0.05, "data.batch_size": 24},
            {"optimizer.lr": 0.05, "data.batch_size": 16},
        ],
        "trials": 3,
        "overrides": {"data.eval_batch_size": 16},
    }
    (project / "s.yaml").write_text(yaml.safe_dump(sweep))
    from tlresearch.studies.sweeps.run import run as run_sweep

    result = run_sweep("s.yaml")
    assert [trial.state.name for trial in result.trials] == ["FAIL", "FAIL", "COMPLETE"]
    reasons = [trial.user_attrs.get("failure", "") for trial in result.trials]
    assert reasons[0].startswith("NonFiniteLossError: the training loss is nan in step 1 (epoch 0, batch 1")
    assert reasons[1].startswith("OutOfMemoryError: out of memory with data.batch_size=24: lower it")
    assert not list((project / "home" / "unfinished").iterdir())  # nobody would go on with them


def test_half_the_batch_makes_the_same_steps(project: Path) -> None:
    text = toy_text(backbone=hungry_yaml(fits=5), trainer=TRAINER.replace("}", ", on_oom: halve}"))
    result = fit(load_text(text, {"data.eval_batch_size": 8}))
    (run,) = runs()
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["resolved.data.batch_size"] == tags["resolved.trainer.accumulate"] == "4"
    assert tags["resolved.data.eval_batch_size"] == "4"
    assert tags[OUT_OF_MEMORY] == "out of memory with data.eval_batch_size=8: going on with data.eval_batch_size=4"
    assert "tlresearch.failure" not in tags
    # The repetition of such a run takes the batches it ended with; made so from the start, every number is the same.
    small = {"data.batch_size": 4, "data.eval_batch_size": 4, "trainer.accumulate": 4}
    assert fit(load_text(text, small)).history == result.history


def test_memory_that_runs_out_beside_a_step_is_put_down_to_its_batches(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Task.transfer_batch_to_device

    def move(task: Task, batch: Any, device: Any, number: int) -> Any:
        if task.trainer.training and len(batch.inputs) > 8:
            raise MemoryError
        return plain(task, batch, device, number)

    monkeypatch.setattr(Task, "transfer_batch_to_device", move)
    fit(load_text(toy_text(trainer=TRAINER.replace("}", ", on_oom: halve}"))))
    (run,) = runs()
    assert run.data.tags["resolved.data.batch_size"] == "8"
    assert "resolved.data.eval_batch_size" not in run.data.tags


def test_out_of_memory_names_the_cure(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = end(toy_text(backbone=hungry_yaml(fits=5)), project, capsys)
    assert line == (
        "error: out of memory with data.batch_size=16: lower it and raise trainer.accumulate as much "
        "(trainer.on_oom=halve does both), or set trainer.precision=bf16-mixed"
    )
    halve = TRAINER.replace("}", ", on_oom: halve}")
    data = "{name: digits, classes: ['0', '1'], labels_per_class: 4, batch_size: 1, eval_batch_size: 1}"
    line = end(toy_text(backbone=hungry_yaml(fits=0), trainer=halve, data=data), project, capsys)
    assert line == "error: out of memory with data.batch_size=1: lower it, or set trainer.precision=bf16-mixed"


def test_a_dead_loader_process_ends_the_run_with_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = "{name: digits, classes: ['0', '1'], labels_per_class: 24, test_fraction: 0.2, batch_size: 16, workers: 2}"
    text = toy_text(data=data, backbone=hungry_yaml(kill_loader=True), cache="{enabled: false}")
    line = end(text, project, capsys)
    assert re.search(r"a data loader process died \((is killed by signal: Killed|exited unexpectedly)\)", line)
    assert "data.workers=0 loads in the main process" in line


def test_a_step_keeps_its_samples_whatever_the_batch() -> None:
    def lowered(batch: int, accumulate: int = 1) -> list[int]:
        config = ExperimentConfig(data=DataConfig(batch_size=batch), trainer=TrainerConfig(accumulate=accumulate))
        return list(halved(config).values())[:2]

    assert lowered(16) == [8, 2]
    assert lowered(15, 2) == [5, 6]
    assert lowered(7) == [1, 7]
    assert halved(ExperimentConfig(data=DataConfig(batch_size=1, eval_batch_size=1))) == {}


def test_halving_is_for_one_device() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.on_oom: halve is for one device"):
        load_text(toy_text(trainer="{on_oom: halve, devices: 2, strategy: ddp}"))
