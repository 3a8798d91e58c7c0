"""Settings that a run makes for the whole process and restores at its end, so that a notebook goes on unchanged."""

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
"""Lightning's advice on settings that we chose on purpose, and its own use of a deprecated part of torch."""
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set by Lightning for deterministic algorithms


@contextlib.contextmanager
def prepared(config: ExperimentConfig) -> Iterator[None]:
    """Silences libraries, and sets threads, determinism and the seed, for the time of a run.

    Only `keep_freed_memory` is not undone: the C library does not tell its earlier settings, and no result depends on
    them.
    """
    with (
        quiet("lightning.pytorch", "lightning.fabric", messages=_ADVICE),
        _torch_settings_restored(),
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
        # With deterministic algorithms torch fills new memory, which takes time and only reveals reads of memory that
        # was never written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        seed_all(config.seed)
        yield


@contextlib.contextmanager
def _torch_settings_restored() -> Iterator[None]:
    """Restores the settings of torch that a run, or Lightning in its fit, changes."""
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
    """Lists the GPUs whose random state must be restored: none before CUDA is initialized, which asking would do."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return range(torch.cuda.device_count()) if initialized else ()
