"""A run over two ranks from the command line: one MLflow run, written by rank 0 alone, and exact after a kill."""

from __future__ import annotations

import contextlib
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.toy import TRAINER, toy_text
from tlresearch.base.errors import ConfigError
from tlresearch.base.ranks import is_leader
from tlresearch.config.load import load_text
from tlresearch.tracking.base import Run, SilentRun
from tlresearch.tracking.store import Store, connect

NOLOAD = pytest.mark.filterwarnings("ignore:The .*noload.* loader strategy is deprecated:DeprecationWarning")
TWO_RANKS = toy_text(
    trainer=TRAINER.replace("}", ", devices: 2, strategy: ddp, accelerator: cpu, threads: 1}"),
    freeze="{schedule: lp_ft, probe_epochs: 1, epochs: 3}",
    regularize="{ema: 0.9}",
    cache="{memory_format: contiguous}",  # each home would time it anew, and might choose otherwise
)


def command(text: str, folder: Path) -> list[str]:
    (folder / "two.yaml").write_text(text)
    return [sys.executable, "-m", "tlresearch", "run", str(folder / "two.yaml")]


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    return {**kept, "TLRESEARCH_HOME": str(home), "PYTHONWARNINGS": "ignore"}


def ranks_of(home: Path) -> list[int]:
    """The ranks above 0 that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = "tlresearch.studies.launch.rank" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
            if ours and process.environ().get("TLRESEARCH_HOME") == str(home):
                found.append(process.pid)
    return found


def weights(store: Store, run_id: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(store.client.download_artifacts(run_id, "weights/trained.safetensors"))


@NOLOAD
@pytest.mark.slow
def test_two_ranks_are_one_run_that_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("unbroken", "killed"):
        home = tmp_path / name
        home.mkdir()
        arguments = command(TWO_RANKS, tmp_path)
        if name == "killed":
            process = subprocess.Popen(arguments, env=environment(home), stderr=subprocess.DEVNULL)
            until = time.monotonic() + 120
            while not list(home.glob("unfinished/*/last.ckpt")) and time.monotonic() < until:
                time.sleep(0.01)
            assert process.poll() is None
            assert ranks_of(home)
            process.kill()
            process.wait()
            while ranks_of(home) and time.monotonic() < until:
                time.sleep(0.1)
            assert not ranks_of(home), "a rank has outlived rank 0"
        done = subprocess.run(
            arguments, env=environment(home), capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("MLflow run ") == 1
        assert not list((home / "unfinished").iterdir())
        monkeypatch.setenv("TLRESEARCH_HOME", str(home))
        store = connect()
        runs = store.client.search_runs([e.experiment_id for e in store.client.search_experiments()])
        assert [run.info.status for run in runs] == ["FINISHED"]
        run_id = runs[0].info.run_id
        points = {
            key: [(point.step, point.value) for point in store.client.get_metric_history(run_id, key)]
            for key in ("train/loss", "val/loss", "val/accuracy", "test/accuracy", "lr/block1")
        }
        assert [step for step, _ in points["val/loss"]] == [0, 1, 2]
        found.append((points, weights(store, run_id)))
    assert found[0][0] == found[1][0]
    for key, tensor in found[0][1].items():
        assert torch.equal(tensor, found[1][1][key]), key


def test_every_method_of_a_run_is_silent_above_rank_0() -> None:
    for name, member in inspect.getmembers(Run):
        if callable(member) and not name.startswith("_"):
            assert name in vars(SilentRun), name


def test_rank_0_leads() -> None:
    assert is_leader({})
    assert is_leader({"LOCAL_RANK": "0", "NODE_RANK": "0"})
    assert not is_leader({"LOCAL_RANK": "1"})
    assert not is_leader({"LOCAL_RANK": "0", "NODE_RANK": "1"})
    assert not is_leader({"RANK": "2", "LOCAL_RANK": "0"})


def test_a_strategy_that_does_not_keep_what_is_promised_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy: 'deepspeed' is unknown.*; known: auto, ddp, fsdp"):
        load_text(toy_text(trainer="{strategy: deepspeed}"))
