"""How a rate moves within a phase, as a factor of its base rate: courses by name, pure functions. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from tlresearch.config.setting import setting


class Course(Protocol):
    """How the rate moves within a phase."""

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor on the base rate after `elapsed` of `horizon` epochs."""
        ...


# One option per line, whatever its length: read as a table.
# fmt: off
@dataclass
class Constant:
    """The base rate throughout."""

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns 1."""
        return 1.0


@dataclass
class Linear:
    """Falls along a line."""

    min_factor: float = setting(0.0, "Last rate as a share of the base rate.", at_least=0, at_most=1)

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor; 1 at the start."""
        return self.min_factor + (1 - self.min_factor) * (1 - _progress(elapsed, horizon))


@dataclass
class Cosine:
    """Falls along half a cosine (Loshchilov and Hutter 2017)."""

    min_factor: float = setting(0.0, "Last rate as a share of the base rate.", at_least=0, at_most=1)

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor; 1 at the start."""
        return self.min_factor + (1 - self.min_factor) * _half_cosine(_progress(elapsed, horizon))


@dataclass
class Step:
    """Falls by a factor every so many epochs."""

    step_size: int = setting(10, "Epochs between two falls.", unit="epochs", at_least=1)
    gamma: float = setting(0.1, "Factor of each fall.", above=0, at_most=1)

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor; 1 at the start."""
        return self.gamma ** (math.floor(elapsed + 1e-9) // self.step_size)


@dataclass
class Exponential:
    """Falls by a factor in each epoch."""

    gamma: float = setting(0.1, "Factor of each fall.", above=0, at_most=1)

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor; 1 at the start."""
        return self.gamma ** math.floor(elapsed + 1e-9)


@dataclass
class OneCycle:
    """Rises to the base rate and falls far below it, both along half a cosine (Smith and Topin 2018)."""

    rise: float = setting(0.3, "Part of the phase in which the rate rises.", unit="share of epochs", above=0, below=1)
    start_factor: float = setting(0.04, "First rate as a share of the base rate.", above=0, at_most=1)
    end_factor: float = setting(4.0e-6, "Last rate as a share of the base rate.", at_least=0, at_most=1)

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor; 1 at the top."""
        progress = _progress(elapsed, horizon)
        if progress < self.rise:
            return 1 - (1 - self.start_factor) * _half_cosine(progress / self.rise)
        return self.end_factor + (1 - self.end_factor) * _half_cosine((progress - self.rise) / (1 - self.rise))


def _progress(elapsed: float, horizon: float) -> float:
    return min(1.0, elapsed / horizon) if horizon > 0 else 1.0


def _half_cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * progress))
