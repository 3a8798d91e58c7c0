"""Chooses precision and memory format for `auto` in a config, by timing this network on this machine."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tlresearch.activations.code import code_of
from tlresearch.activations.inference import Inference, arranged, autocast, frozen
from tlresearch.backbones.base import evaluating
from tlresearch.base.files import locked, write
from tlresearch.base.paths import home
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Batch, Data, SampleKey
from tlresearch.finetuning.param_groups import apply_modes, apply_phase
from tlresearch.finetuning.parts import staged_parts
from tlresearch.finetuning.schedule import FreezeSchedule, Phase
from tlresearch.modality.values import to_device
from tlresearch.tasks.base import Task

log = logging.getLogger(__name__)

SAMPLES = 8  # in a timed step, at most
# Samples per CPU thread in a timed step. Two suffice: on six networks the ranking was the same as with batches of 32.
PER_THREAD = 2
SECONDS = 0.05  # time for which each way of computing is timed, without its first step
STEPS = 1  # number of steps for which it is timed at least
GAIN = 0.9  # a way that is not preferred must take less than this share of the time of the preferred way
PREFERRED = ("32-true", "channels_last")  # the safer precision; the format that is faster in larger batches
HOPELESS = (1.5, 1.25)  # after one step, and after more: a way that is slower than the fastest by this factor drops out

Way = tuple[str, str]  # a way of computing: precision and memory format
Times = dict[str, float]


@dataclass(frozen=True)
class Tuned:
    """The chosen ways of computing.

    Attributes:
        step: Precision and memory format of the training step.
        prefix: Precision and memory format of frozen stages that run as inference.
        times: Measured seconds, such as ``{"step from stage 3 bf16-mixed channels_last": 0.21}``.
    """

    step: Way
    prefix: Way
    times: Times

    @property
    def inference(self) -> Inference:
        """Precision and memory format of frozen stages."""
        return Inference(*self.prefix)

    def settings(self) -> dict[str, str]:
        """Returns the options, by full key, with which another run computes in the same way."""
        return {
            "trainer.precision": self.step[0],
            "trainer.memory_format": self.step[1],
            "cache.precision": self.prefix[0],
            "cache.memory_format": self.prefix[1],
        }


def tune(config: ExperimentConfig, task: Task, data: Data, schedule: FreezeSchedule, device: torch.device) -> Tuned:
    """Replaces ``auto`` in precision and memory format by the fastest way on this machine.

    A step is timed at the deepest unfreezing of the schedule, where it costs most. Frozen stages are timed as
    inference of the whole backbone, independently of the depth, so that all trials of a sweep choose the same way and
    share their activations. The times are stored under the home folder, so that the same experiment computes in the
    same way the next time.

    Args:
        config: The experiment.
        task: The task; it is not changed.
        data: The data; its first training samples are used.
        schedule: The freeze schedule.
        device: The device of the run.
    """
    trainer, cache = config.trainer, config.cache
    deepest = min(schedule.phases, key=lambda phase: phase.boundary)
    bench = _Bench(task, data, device)
    times: Times = {}

    def choose(name: str, ways: Sequence[Way], measure: Callable[[Way], Callable[[], None]] | None) -> Way:
        if len(ways) == 1 or measure is None:
            return ways[0]
        measured = bench.times(name, ways, measure)
        times.update({f"{name} {' '.join(way)}": measured[way] for way in ways})
        return _fastest(measured)

    head_only = deepest.boundary == len(task.backbone.stages)
    step_ways = _ways(trainer.precision, trainer.memory_format, device)
    step = choose(f"step from stage {deepest.boundary}", step_ways, None if head_only else bench.step(deepest))
    # If the precision of training is fixed and that of the cache is `auto`, frozen stages use the fixed one.
    precision = trainer.precision if cache.precision == "auto" else cache.precision
    ahead = cache.enabled and any(phase.boundary for phase in schedule.phases)
    prefix = choose("frozen stages", _ways(precision, cache.memory_format, device), bench.inference if ahead else None)
    return Tuned(step, prefix, times)


def _ways(precision: str, memory_format: str, device: torch.device) -> list[Way]:
    """Lists all ways that the options leave open, the safest first."""
    bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    precisions = (["32-true", "bf16-mixed"] if bf16 else ["32-true"]) if precision == "auto" else [precision]
    formats = ["contiguous", "channels_last"] if memory_format == "auto" else [memory_format]
    return list(itertools.product(precisions, formats))


def _fastest(times: Mapping[Way, float]) -> Way:
    """Returns the fastest way; a way that is not preferred must be clearly faster."""
    return min(times, key=lambda way: times[way] * GAIN ** sum(option in PREFERRED for option in way))


class _Bench:
    """Times ways of computing a task on samples of its own data."""

    def __init__(self, task: Task, data: Data, device: torch.device) -> None:
        self._task = task
        self._data = data
        self._device = device
        self._samples = min(SAMPLES, PER_THREAD * torch.get_num_threads()) if device.type == "cpu" else SAMPLES
        self._batches: dict[int, Batch] = {}

    def times(self, name: str, ways: Sequence[Way], measure: Callable[[Way], Callable[[], None]]) -> dict[Way, float]:
        """Returns the seconds of each way, stored per network, input, number of threads, machine and torch version."""
        conditions = [
            name,
            *(code_of(stage) for stage in self._task.backbone.stages),
            repr(self._data.preprocessing),
            platform.processor() or platform.machine(),
            self._device.type,
            torch.get_num_threads(),
            self._samples,
            torch.__version__,
        ]
        key = hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:32]
        file = home() / "cache" / "timings" / f"{key}.json"
        with locked(file.with_suffix(".lock")):  # two processes that time at once would slow each other down
            try:
                times = {tuple(way.split()): float(value) for way, value in json.loads(file.read_text()).items()}
            except (OSError, ValueError):
                times = {}
            if not set(ways) <= times.keys():
                with torch.random.fork_rng(), evaluating(self._task):
                    times |= _time_all({way: measure(way) for way in ways}, self._device)
                write(file, json.dumps({" ".join(way): value for way, value in times.items()}))
        return {way: times[way] for way in ways}

    def step(self, phase: Phase) -> Callable[[Way], Callable[[], None]]:
        """Prepares forward and backward pass of the stages that a phase trains."""

        def prepare(way: Way) -> Callable[[], None]:
            precision, memory_format = way
            batch = self._batch(phase.boundary)
            task = copy.deepcopy(self._task).to(self._device)
            parts = staged_parts(task.backbone, task.head)
            apply_phase(phase, parts)
            apply_modes(phase, parts)
            if memory_format == "channels_last":
                task.backbone.to(memory_format=torch.channels_last)

            def run() -> None:
                with autocast(precision, self._device):
                    loss = task.loss(task(arranged(batch.inputs, memory_format), batch.boundary), batch.targets)
                torch.autograd.backward(loss)
                task.zero_grad()

            return run

        return prepare

    def inference(self, way: Way) -> Callable[[], None]:
        """Prepares the forward pass of the whole backbone."""
        batch = self._batch(0)
        forward = frozen(self._task.backbone, Inference(*way), self._device)

        def run() -> None:
            forward(batch.inputs)

        return run

    def _batch(self, boundary: int) -> Batch:
        """Returns the first training samples at a boundary; computed once per boundary."""
        if boundary not in self._batches:
            split = self._data.splits["train"]
            keys = [SampleKey(index, 0) for index in range(min(self._samples, len(split)))]
            batch = to_device(split.__getitems__(keys), self._device)
            with torch.no_grad(), evaluating(self._task.backbone):
                inputs = self._task.backbone.to(self._device)(batch.inputs, stop=boundary)
            self._batches[boundary] = Batch(inputs, batch.targets, batch.indices, boundary)
        return self._batches[boundary]


def _time_all(runs: Mapping[Way, Callable[[], None]], device: torch.device) -> dict[Way, float]:
    """Returns the best time of each run. Runs take turns, so that other work on the machine affects all of them."""
    best = dict.fromkeys(runs, float("inf"))
    spent = dict.fromkeys(runs, 0.0)
    # Step 0 includes work that libraries do once (choosing kernels, allocating); it only rules out hopeless ways.
    for step in itertools.count():
        running = [way for way in runs if step <= STEPS or spent[way] < SECONDS]
        if step:
            limit = HOPELESS[min(step, len(HOPELESS)) - 1] * min(best.values())
            # Nothing below SECONDS is ruled out: chance decides over so short a step, and timing it again is cheap.
            running = [way for way in running if best[way] <= max(limit, SECONDS)]
        if not running:
            return best
        for way in running:
            seconds = _seconds(runs[way], device)
            best[way] = min(best[way], seconds)
            spent[way] += seconds if step else 0.0
    raise AssertionError


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels are queued: the clock must see earlier ones finished, and ours
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
