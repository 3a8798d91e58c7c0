"""What a run sets for the whole process while it lasts, and sets back: a notebook goes on as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch

from tlresearch.base.quiet import quiet
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.seeding import seed_all
from tlresearch.run.devices.memory import keep_freed_memory
from tlresearch.run.training import device

_ADVICE = (".*does not have many workers.*", ".*treespec, LeafSpec.*")
"""Advice on settings we chose, and Lightning's own use of what torch has deprecated."""
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set by Lightning for deterministic algorithms


@contextlib.contextmanager
def prepared(config: ExperimentConfig) -> Iterator[None]:
    """Quiets libraries, and sets threads, determinism and the seed, for the time of a run.

    Freed memory is kept for good (`keep_freed_memory`): the C library does not say what it did before, and no result
    depends on it.
    """
    with (
        quiet("lightning.pytorch", "lightning.fabric", messages=_ADVICE),
        _torch_as_before(),
        torch.random.fork_rng(devices=_used_gpus()),
    ):
        on_cpu = device(config.trainer).type == "cpu"
        if on_cpu:
            keep_freed_memory()
        if config.trainer.threads is not None:
            torch.set_num_threads(config.trainer.threads)
        elif config.trainer.devices > 1 and on_cpu:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(min(torch.get_num_threads(), max(1, cores // config.trainer.devices)))
        torch.use_deterministic_algorithms(config.trainer.deterministic)
        # Filling new memory would cost time and only shows bugs of reading what was never written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        seed_all(config.seed)
        yield


@contextlib.contextmanager
def _torch_as_before() -> Iterator[None]:
    """Sets back what a run, or Lightning for it, sets in torch."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        os.environ.pop(_CUBLAS, None)
        if workspace is not None:
            os.environ[_CUBLAS] = workspace


def _used_gpus() -> Sequence[int]:
    """GPUs whose random numbers the process may have drawn already; asking for their state would start the others."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count()) if started else ()
