"""How metrics are shown: intervals next to their values, values by class folded to the worst few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tlresearch.show.elements import Cell, typed

MOST_CLASSES = 10
"""Number of classes above which a metric by class is folded."""
_WORST = 3
_NO_CLASSES = ("low", "high", "50", "75")
"""Endings that are no classes, in names such as ``accuracy_low`` and ``map_50``."""


def measured(values: Mapping[str, float], key: str, form: str = "") -> Cell:
    """Makes a cell of a metric, with its interval if there are ``key_low`` and ``key_high``."""
    return Cell(values.get(key), note=interval(values, key), format=form)


def interval(values: Mapping[str, float], key: str) -> str:
    """Returns the interval of a metric as text; empty if it has none."""
    low, high = values.get(f"{key}_low"), values.get(f"{key}_high")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def without_ends(values: Mapping[str, float]) -> list[str]:
    """Returns the names of metrics without the ends of their intervals, which are shown with the metric."""
    ends = {f"{key}{end}" for key in values for end in ("_low", "_high") if interval(values, key)}
    return [key for key in values if key not in ends]


def folded(values: Mapping[str, float], keep: str = "") -> tuple[list[str], list[str]]:
    """Hides values by class, such as ``dice_cell`` of ``dice``, of many classes except for the worst few.

    Args:
        values: Metrics of one split by name, without the split. All metrics by class are better when higher.
        keep: A name that is never hidden: the monitored metric.

    Returns:
        The names to show, in their order, and a line for each metric whose classes are partly hidden.
    """
    hidden: set[str] = set()
    lines = []
    for metric in values:
        classes = [name for name in values if _is_of_class(name, metric, values) and name not in hidden]
        if len(classes) > MOST_CLASSES:
            worst = sorted(classes, key=lambda name: values[name])[:_WORST]
            hidden |= set(classes) - {*worst, keep}
            worst_of = f"the {_WORST} worst of {len(classes)} classes"
            lines.append(f"{metric}: {worst_of}; all of them are in MLflow ({typed('ui')})")
    return [name for name in values if name not in hidden], lines


def _is_of_class(name: str, metric: str, values: Mapping[str, float]) -> bool:
    if not name.startswith(f"{metric}_") or name.removeprefix(f"{metric}_") in _NO_CLASSES:
        return False
    # A name belongs to the longest metric that it begins with: `mask_map_car` to `mask_map`, not to `mask`.
    return not any(len(longer) > len(metric) and name.startswith(f"{longer}_") for longer in _families(values))


def _families(values: Mapping[str, float]) -> Sequence[str]:
    """Returns the metrics with which many names begin: those that have values by class."""
    return [metric for metric in values if sum(name.startswith(f"{metric}_") for name in values) > MOST_CLASSES]
