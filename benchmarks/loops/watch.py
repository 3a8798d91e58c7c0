"""How long epochs take, and the share of one in which the GPU computes."""

from __future__ import annotations

import time

import torch
from torch.profiler import ProfilerActivity, profile

from tlresearch.finetuning.callback import EpochReport


class EpochWatch:
    """Called at each epoch's end; the first epoch warms up, the second is profiled on a GPU, the others are timed.

    Attributes:
        seconds: Seconds of each timed epoch.
        busy: Share of the profiled epoch in which at least one kernel or copy ran; ``None`` on the CPU.
        warm_up: Seconds from the making of this object to the first epoch's end: set-up, timing and compiling too.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self.busy: float | None = None
        self.warm_up = 0.0
        self._gpu = device.type == "cuda"
        self._epochs = 0
        self._profile = profile(activities=[ProfilerActivity.CUDA]) if self._gpu else None
        self._began = time.perf_counter()

    def __call__(self, report: EpochReport | None = None) -> None:
        """Takes the time of the epoch that ends."""
        if self._gpu:
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - self._began
        self._epochs += 1
        if self._epochs == 1:
            self.warm_up = elapsed
            if self._profile:
                self._profile.start()
        elif self._epochs == 2 and self._profile:
            self._profile.stop()
            self.busy = _covered(self._profile) / elapsed
            self._profile = None
        else:
            self.seconds.append(elapsed)
        self._began = time.perf_counter()


def _covered(recorded: profile) -> float:
    """Seconds in which the GPU did something: the union of all its events."""
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.device_type() == torch.autograd.DeviceType.CUDA and not event.is_user_annotation()
    )
    covered, end = 0, 0
    for start, stop in spans:
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e9
