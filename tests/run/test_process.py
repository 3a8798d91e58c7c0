"""The process is after a run, a sweep or a failure as it was before."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toy import TRAINER, toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.base.redact import HIDE
from tlresearch.config.load import load_text
from tlresearch.finetuning.callback import EpochReport, RunPrunedError
from tlresearch.run.fit import Role
from tlresearch.studies.sweeps.run import run as run_sweep
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "optuna", "alembic", "torch", "")


def settings() -> dict[str, Any]:
    """Everything that a run sets, or may, for the whole process."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic, but only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "new memory is filled": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "float32 matmul": torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "warnings": list(warnings.filters),
        "log levels": {name: logging.getLogger(name).level for name in LOGGERS},
        "log records": logging.getLogRecordFactory(),
        "errors": sys.excepthook,
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)],
        "environment": {name: value for name, value in os.environ.items() if name != HIDE},
        "folder": os.getcwd(),
    }


@pytest.fixture
def _set_otherwise(tables: None) -> Iterator[None]:
    """A notebook with settings of its own, none of which is what a run sets."""
    connect()  # which quiets MLflow as long as the process lasts
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    logging.getLogger("lightning.pytorch").setLevel(logging.DEBUG)
    logging.getLogger("optuna").setLevel(logging.INFO)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        yield
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    for name in ("lightning.pytorch", "optuna"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def stop(report: EpochReport) -> None:
    raise RunPrunedError("enough")


def fail(report: EpochReport) -> None:
    raise ArithmeticError


@pytest.mark.usefixtures("_set_otherwise")
@pytest.mark.parametrize("listener", [None, stop, fail], ids=["finished", "pruned", "failed"])
def test_a_run_leaves_the_process_as_it_was(listener: Callable[[EpochReport], None] | None) -> None:
    before = settings()
    threaded = toy_text(trainer=TRAINER.replace("}", ", threads: 1}"))
    try:
        fit(load_text(threaded), role=Role("noted", listener=listener))
    except ArithmeticError:
        assert listener is fail
    assert settings() == before


@pytest.mark.usefixtures("_set_otherwise")
def test_a_sweep_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(toy_text(freeze="{schedule: linear_probe, epochs: 1}"))
    (tmp_path / "s.yaml").write_text(
        f"experiment: {tmp_path}/toy.yaml\nspace: {{optimizer.lr: {{low: 0.01, high: 0.1}}}}\ntrials: 2\n"
    )
    before = settings()
    run_sweep(tmp_path / "s.yaml")
    assert settings() == before
