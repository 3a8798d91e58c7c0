"""What became of a fault: nothing lost, nothing twice, nothing left running, or else what was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """What was found after a fault, or after several of one kind.

    Attributes:
        injected: How often the fault was caused.
        lost: Finished trials, epochs or promises that are gone.
        duplicated: Trials, runs or points that are there twice.
        running: MLflow runs and processes left running after the next start.
        notes: What was found, for a person.
    """

    injected: int = 0
    lost: int = 0
    duplicated: int = 0
    running: int = 0
    notes: tuple[str, ...] = field(default=())

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.injected + other.injected,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.running + other.running,
            self.notes + other.notes,
        )

    @property
    def harmless(self) -> bool:
        """Whether the fault was caused, and did no harm."""
        return self.injected > 0 and not (self.lost or self.duplicated or self.running)


Fault = Callable[[int], Outcome]
"""Causes a fault once or more (``moments`` is how often it may, at most) and looks at what it has done."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    fault: str
    outcome: Outcome
    seconds: float


def expect(condition: bool, note: str) -> Outcome:
    """An outcome that has lost something unless a promise was kept."""
    return Outcome() if condition else Outcome(lost=1, notes=(note,))


def table(rows: Sequence[Row]) -> str:
    """The table of all faults, as Markdown."""
    lines = ["| fault | injected | lost | duplicated | left running | seconds |", "|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        found = row.outcome
        counts = f"{found.injected} | {found.lost} | {found.duplicated} | {found.running}"
        lines.append(f"| {row.fault} | {counts} | {row.seconds:.0f} |")
    return "\n".join(lines)
