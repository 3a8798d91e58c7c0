"""How well two runs agree: every metric of every epoch, identical, within tolerance, or different. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tlresearch.tracking.records import Record

Verdict = Literal["identical", "within tolerance", "differs"]
History = Mapping[str, Mapping[int, float]]
"""Value of each metric at each step."""

RELATIVE = 1e-3
ABSOLUTE = 1e-6
TOLERANCE = f"{RELATIVE:g} of the value, and {ABSOLUTE:g}"
"""What rounding in another order may come to over a training; a flipped sample of a few hundred is more than that."""

_ORDER: tuple[Verdict, ...] = ("identical", "within tolerance", "differs")
_NOT_RESULTS = ("system/", "time/", "speed/")  # what depends on the machine's load


@dataclass(frozen=True)
class Agreement:
    """One metric of two runs.

    Attributes:
        name: Its name.
        verdict: How well they agree.
        points: Number of epochs compared.
        step: Epoch at which they differ most; the first one if they are identical.
        old: Value of the earlier run there; `None` where it has none.
        new: Value of the later run there; `None` where it has none.
    """

    name: str
    verdict: Verdict
    points: int
    step: int
    old: float | None
    new: float | None


def read_history(run: Record) -> dict[str, dict[int, float]]:
    """Reads every metric of a run that is a result, at every epoch."""
    return {name: run.series(name) for name in sorted(run.values) if not name.startswith(_NOT_RESULTS)}


def agreements(old: History, new: History, *, whole: bool = True) -> tuple[Agreement, ...]:
    """Compares what the earlier run recorded with the later one; metrics only the later one has are passed over.

    Args:
        old: The earlier run.
        new: The later run.
        whole: Whether the earlier run came to its end; if not, the epochs after its last are no difference.
    """
    return tuple(_agreement(name, points, new.get(name, {}), whole=whole) for name, points in old.items())


def overall(parts: Sequence[Agreement]) -> Verdict:
    """The worst verdict of all; ``"differs"`` if there is nothing to compare."""
    return max((part.verdict for part in parts), key=_ORDER.index, default="differs")


def _agreement(name: str, old: Mapping[int, float], new: Mapping[int, float], *, whole: bool) -> Agreement:
    steps = sorted({*old, *new} if whole else old)
    worst = max(steps, key=lambda step: (_rank(old.get(step), new.get(step)), -step))
    verdict = _ORDER[int(_rank(old.get(worst), new.get(worst))[0])]
    return Agreement(name, verdict, len(steps), worst, old.get(worst), new.get(worst))


def _rank(old: float | None, new: float | None) -> tuple[int, float]:
    """Number of the verdict, and the size of the difference."""
    if old is None or new is None:
        return 2, math.inf
    if old == new or (math.isnan(old) and math.isnan(new)):
        return 0, 0.0
    size = abs(old - new)
    return (1 if math.isclose(old, new, rel_tol=RELATIVE, abs_tol=ABSOLUTE) else 2), size
