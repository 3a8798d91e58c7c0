"""tlresearch: transfer-learning research with staged backbones, freeze schedules, sweeps and runs that repeat."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlresearch.backbones.stages import stages as stages
    from tlresearch.config.schema import ExperimentConfig as Experiment
    from tlresearch.config.search_space import choice as choice
    from tlresearch.config.search_space import depths as depths
    from tlresearch.config.search_space import integers as integers
    from tlresearch.config.search_space import log as log
    from tlresearch.config.search_space import uniform as uniform
    from tlresearch.finetuning.foreign import FreezeSchedule as FreezeSchedule
    from tlresearch.run.fit import RunResult as RunResult
    from tlresearch.run.pieces import fit as fit
    from tlresearch.run.recorded import RecordedRun as RecordedRun
    from tlresearch.run.recorded import load as load
    from tlresearch.run.track import Track as Track
    from tlresearch.studies.reproduction.reproduce import reproduce as reproduce
    from tlresearch.studies.reproduction.verify import verify as verify
    from tlresearch.studies.seeds import GroupResult as GroupResult
    from tlresearch.studies.seeds import fit_group as fit_group
    from tlresearch.studies.sweeps.function import Trial as Trial
    from tlresearch.studies.sweeps.result import SweepResult as SweepResult
    from tlresearch.studies.sweeps.run import sweep as sweep
    from tlresearch.understand.comparison.compare import compare as compare
    from tlresearch.understand.inspection.inspect import inspect as inspect
    from tlresearch.understand.ranking.rank import rank as rank

# GNU's OpenMP, with which torch computes, has a thread that is done look for more for some 10 ms before it sleeps: time
# of a core in which whoever records a run would be done. The variable is read once, when torch is loaded.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
    os.environ["GOMP_SPINCOUNT"] = "20000"  # 2 ms, which the pauses of a training step do not reach

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "FreezeSchedule",
    "GroupResult",
    "RecordedRun",
    "RunResult",
    "SweepResult",
    "Track",
    "Trial",
    "__version__",
    "choice",
    "compare",
    "depths",
    "fit",
    "fit_group",
    "inspect",
    "integers",
    "load",
    "log",
    "rank",
    "reproduce",
    "stages",
    "sweep",
    "uniform",
    "verify",
]

_WHERE = {
    "FreezeSchedule": ("tlresearch.finetuning.foreign", "FreezeSchedule"),
    "Track": ("tlresearch.run.track", "Track"),
    "fit": ("tlresearch.run.pieces", "fit"),
    "Experiment": ("tlresearch.config.schema", "ExperimentConfig"),
    "RunResult": ("tlresearch.run.fit", "RunResult"),
    "fit_group": ("tlresearch.studies.seeds", "fit_group"),
    "GroupResult": ("tlresearch.studies.seeds", "GroupResult"),
    "sweep": ("tlresearch.studies.sweeps.run", "sweep"),
    "Trial": ("tlresearch.studies.sweeps.function", "Trial"),
    **{name: ("tlresearch.config.search_space", name) for name in ("choice", "depths", "integers", "log", "uniform")},
    "SweepResult": ("tlresearch.studies.sweeps.result", "SweepResult"),
    "load": ("tlresearch.run.recorded", "load"),
    "RecordedRun": ("tlresearch.run.recorded", "RecordedRun"),
    "compare": ("tlresearch.understand.comparison.compare", "compare"),
    "inspect": ("tlresearch.understand.inspection.inspect", "inspect"),
    "rank": ("tlresearch.understand.ranking.rank", "rank"),
    "reproduce": ("tlresearch.studies.reproduction.reproduce", "reproduce"),
    "verify": ("tlresearch.studies.reproduction.verify", "verify"),
    "stages": ("tlresearch.backbones.stages", "stages"),
}


def __getattr__(name: str) -> Any:
    """Imports the Python API when it is used: the command line's --help must not wait for torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tlresearch' has no attribute '{name}'")
    import importlib

    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)
