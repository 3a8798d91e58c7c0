"""tlresearch: transfer-learning research with staged backbones, freeze schedules, sweeps and runs that repeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tlresearch.experiment import RunResult as RunResult
    from tlresearch.experiment import fit as fit
    from tlresearch.seeds import GroupResult as GroupResult
    from tlresearch.seeds import fit_group as fit_group
    from tlresearch.sweeps.run import SweepResult as SweepResult
    from tlresearch.sweeps.run import run as run_sweep

__version__ = "0.1.0"
__all__ = ["GroupResult", "RunResult", "SweepResult", "__version__", "fit", "fit_group", "run_sweep"]

_WHERE = {
    "fit": ("tlresearch.experiment", "fit"),
    "RunResult": ("tlresearch.experiment", "RunResult"),
    "fit_group": ("tlresearch.seeds", "fit_group"),
    "GroupResult": ("tlresearch.seeds", "GroupResult"),
    "run_sweep": ("tlresearch.sweeps.run", "run"),
    "SweepResult": ("tlresearch.sweeps.run", "SweepResult"),
}


def __getattr__(name: str) -> Any:
    """Imports the Python API when it is used: the command line's --help must not wait for torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tlresearch' has no attribute '{name}'")
    import importlib

    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)
