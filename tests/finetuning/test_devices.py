"""Runs over two devices (ranks on the CPU, gloo): what one device gives, in groups, in sweeps, and when they fail."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.finetuning.callback import EpochReport
from tlresearch.modality.image import Preprocessing
from tlresearch.run.devices import processes
from tlresearch.run.devices.processes import RankDiedError, start_ranks
from tlresearch.run.fit import Role, RunResult, fit
from tlresearch.studies.seeds import fit_group
from tlresearch.tracking.calls import STATE
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


def plain_backbone(**options: Any) -> StagedBackbone:
    """Nothing in it depends on the rest of a batch; a stage ends in a view, and the next one writes into its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages = {
            "stem": nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten()),
            "middle": nn.Sequential(nn.ReLU(inplace=True), nn.Linear(256, 16)),
            "top": nn.Sequential(nn.ReLU(), nn.Linear(16, 8), nn.ReLU()),
        }
    preprocessing = Preprocessing(crop=None, resize=None, mean=(0.5,), std=(0.5,))
    return StagedBackbone(stages, out_features=8, preprocessing=preprocessing)


def text(devices: int = 1, strategy: str = "auto", **sections: str) -> str:
    trainer = (
        "{precision: 32-true, memory_format: contiguous, checkpoint_seconds: 0, accelerator: cpu, threads: 1, "
        f"accumulate: 2, gradient_clip: 1.0, devices: {devices}, strategy: {strategy}}}"
    )
    # 56 samples for validation, in batches of 7: two ranks have equally many. 57 would give one of them a batch more.
    parts = {
        "data": "{name: digits, classes: ['0', '1'], labels_per_class: 24, test_fraction: 0.2, batch_size: 16, "
        "eval_batch_size: 7}",
        "backbone": f"{{name: {__name__}.plain_backbone}}",
        "freeze": "{schedule: lp_ft, probe_epochs: 1, epochs: 3}",
        "optimizer": "{name: adamw, lr: 0.02}",
        "tracking": "{figures: false, model: false, system_metrics: false}",
        "trainer": trainer,
    }
    return toy_text(**{**parts, **sections})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that a test's runs have started."""
    found: list[Any] = []
    start = processes._Leader.start

    def noted(led: Any, *arguments: Any) -> None:
        start(led, *arguments)
        found.append(led.processes[-1])

    monkeypatch.setattr(processes._Leader, "start", noted)
    return found


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in result.task.state_dict().items() if "meters" not in name}


@pytest.mark.slow
def test_two_devices_give_what_one_does_at_the_same_batch_size(tables: None) -> None:
    one = fit(load_text(text()))
    group = fit_group(load_text(text(devices=2)), seeds=[0])
    close(group.runs[0].history, one.history)
    assert group.runs[0].metrics["test/accuracy"] == pytest.approx(one.metrics["test/accuracy"])
    stored = connect().client.download_artifacts(group.runs[0].run_id, "weights/trained.safetensors")
    trained, wanted = (
        load_file(stored),
        load_file(connect().client.download_artifacts(one.run_id, "weights/trained.safetensors")),
    )
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)
    # Nothing of it is left in this process.
    assert not distributed.is_initialized()
    assert not {"LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE"} & os.environ.keys()


class BreaksAfter:
    """A listener of rank 0 that fails once."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, report: EpochReport) -> None:
        if report.epoch == self.epoch:
            raise ValueError("broken on purpose")


@pytest.mark.slow
def test_sharded_weights_give_what_one_device_does_also_after_an_interruption(tables: None, started: list[Any]) -> None:
    one = fit(load_text(text(optimizer="{name: sgd, lr: 0.1, momentum: 0.9}")))
    sharded = load_text(text(devices=2, strategy="fsdp", optimizer="{name: sgd, lr: 0.1, momentum: 0.9}"))
    with pytest.raises(ValueError, match="broken on purpose"):
        fit(sharded, role=Role("sharded", listener=BreaksAfter(2), test=True))
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    result = fit(sharded, role=Role("sharded", test=True))
    assert [process.returncode for process in started] == [-signal.SIGKILL, 0]
    close(result.history, one.history)
    assert result.metrics["test/loss"] == pytest.approx(one.metrics["test/loss"], rel=1e-4)
    wanted = weights(one)
    for name, tensor in weights(result).items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-5, rtol=1e-4)


def close(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert mine == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in other.items()}


SWEEP = """
experiment: {experiment}
space:
  optimizer.lr: {{low: 1.0e-6, high: 1.0e-1, log: true}}
objective: {{metric: val/accuracy}}
pruner: {{name: threshold, options: {{lower: 0.75, n_warmup_steps: 2}}}}
trials: 2
enqueue: [{{optimizer.lr: 5.0e-2}}, {{optimizer.lr: 1.0e-6}}]
"""


@pytest.mark.slow
def test_a_trial_over_two_devices_is_pruned_on_both(tables: None, started: list[Any], tmp_path: Path) -> None:
    from tlresearch.studies.sweeps import run as sweep

    experiment, file = tmp_path / "one.yaml", tmp_path / "pruned.yaml"
    experiment.write_text(text(devices=2, freeze="{schedule: full, epochs: 4}", optimizer="{name: adamw, lr: 0.02}"))
    file.write_text(SWEEP.format(experiment=experiment))
    result = sweep.run(file)
    assert [trial.state.name for trial in result.trials] == ["COMPLETE", "PRUNED"]
    assert result.final[0].metrics["test/accuracy"] > 0.75
    assert [process.returncode for process in started] == [0, 0, 0]
    store = connect()
    runs = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4  # the sweep, two trials, the best one in full
    assert sum(run.data.tags.get(STATE) == "pruned" for run in runs) == 1


@pytest.mark.slow
def test_a_rank_that_dies_before_it_joins_is_named_and_ends_the_run() -> None:
    named = pytest.raises(RankDiedError, match=r"rank 1 of the run ended with exit code 1: data.root")
    with named, start_ranks(2, {"experiment": "datum: {}", "final": True}) as ranks:
        ranks.meet()
    assert "LOCAL_RANK" not in os.environ


def test_what_several_devices_cannot_do_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size: .* multiple of trainer\.devices \(3\), but got 16"):
        load_text(text(devices=3))
    with pytest.raises(ConfigError, match=r"trainer\.strategy: fsdp .* set trainer\.devices"):
        load_text(text(strategy="fsdp"))
    with pytest.raises(ConfigError, match=r"regularize\.ema: .*fsdp"):
        load_text(text(devices=2, strategy="fsdp", regularize="{ema: 0.9}"))
    with pytest.raises(ConfigError, match=r"regularize\.l2_sp: .*fsdp"):
        load_text(text(devices=2, strategy="fsdp", regularize="{l2_sp: 0.1}"))
