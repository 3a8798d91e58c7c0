"""All faults by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.chaos import computation, damage, databases, disk, outages, processes
from tests.chaos.outcome import Outcome
from tests.chaos.surroundings import Surroundings


@dataclass(frozen=True)
class Fault:
    """A fault that can be caused.

    Attributes:
        title: What it is called in the table.
        cause: Causes it as often as it is told, and says what became of it.
        share: How often, as a share of `--moments`.
    """

    title: str
    cause: Callable[[Surroundings, int], Outcome]
    share: float


FAULTS: Mapping[str, Fault] = {
    "kill": Fault("SIGKILL of a sweep and all its processes", processes.kill_everything, 1.0),
    "kill-two": Fault("the same with two workers", processes.kill_everything_of_two_workers, 0.1),
    "kill-worker": Fault("SIGKILL of one of two workers", processes.kill_a_worker, 0.1),
    "kill-run": Fault("SIGKILL of a single run", processes.kill_a_run, 0.2),
    "kill-between": Fault("SIGKILL of all just when a trial has ended", processes.kill_between_databases, 0.2),
    "power": Fault("power failure: all killed, unsynced files cut", processes.lose_power, 0.2),
    "interrupt": Fault("SIGINT", processes.interrupt, 0.1),
    "terminate": Fault("SIGTERM", processes.terminate, 0.1),
    "checkpoint-full": Fault("disk full at a checkpoint", disk.full_checkpoints, 0.02),
    "home-read-only": Fault("disk read-only at a checkpoint", disk.read_only_home, 0.02),
    "cache-full": Fault("disk full at the cache", disk.full_cache, 0.02),
    "cache-read-only": Fault("disk read-only at the cache", disk.read_only_cache, 0.02),
    "artifacts-full": Fault("disk full at an artifact", disk.full_artifacts, 0.02),
    "artifacts-read-only": Fault("disk read-only at an artifact", disk.read_only_artifacts, 0.02),
    "memory": Fault("out of memory", computation.out_of_memory, 0.04),
    "nan": Fault("loss that is not finite", computation.not_finite, 0.04),
    "loader": Fault("SIGKILL of a loader process", computation.loader_killed, 0.06),
    "checkpoint-damaged": Fault("a changed bit in a checkpoint", damage.checkpoint, 0.1),
    "folder-damaged": Fault("a cut description of an unfinished run", damage.run_folder, 0.06),
    "cache-damaged": Fault("a changed bit in the cache", damage.cache, 0.1),
    "tracking-away": Fault(
        "MLflow's server refused, hanging, slow, answering 500 or into the void", outages.tracking_away, 0.2
    ),
    "study-away": Fault("crash of the PostgreSQL that holds the study", outages.study_away, 0.1),
    "sqlite": Fault("ten processes writing to the same SQLite files", databases.ten_writers, 0.2),
}
