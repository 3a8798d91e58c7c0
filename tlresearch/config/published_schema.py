"""What a published experiment says of the numbers it is held against. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tlresearch.config.setting import setting


# One option per line, whatever its length: read as a table.
# fmt: off
@dataclass
class NumberConfig:
    """One published number and how far ours may lie from it."""

    metric: str = setting("", "Metric that is compared: val/<name> or test/<name>.")
    value: float | None = setting(None, "The published number, in the metric's own unit: 0.92, not 92.")
    spread: float | None = setting(None, "Its published standard deviation over runs.", at_least=0)
    tolerance: float | None = setting(None, "Largest difference of our mean that counts as reproduced.", at_least=0)
    reason: str = setting("", "Why this tolerance, such as the standard error of a share of 153 images.")
    select: int | str = setting("last", "Epoch the number is of: last, best (by trainer.monitor), or its number, 1 first.", unit="epochs", at_least=1)


@dataclass
class SourceConfig:
    """Where a published number stands, so that anybody can look it up."""

    title: str = setting("", "Title of the tutorial, page or paper.")
    repository: str = setting("", "Repository that holds it, owner/name.")
    path: str = setting("", "File in the repository.")
    commit: str = setting("", "Commit of the repository in which the number was read.")
    paper: str = setting("", "Authors, venue and year, or arXiv number.")
    table: str = setting("", "Table or figure of the paper.")


@dataclass
class ReferenceConfig:
    """What `tlresearch reproduce` holds an experiment against."""

    kind: Literal["transfer", "baseline", "shift", "evaluation"] = setting("transfer", "What it shows: transfer, a baseline trained from scratch, a shift of distribution, or an evaluation without training (`freeze.schedule: none`).")
    source: SourceConfig = setting(SourceConfig, "Source.")
    numbers: list[NumberConfig] = setting([], "The published numbers of one run.")
    runs: int = setting(1, "Runs the published number is the mean (or median) of.", unit="runs", at_least=1)
    deviations: list[str] = setting([], "Where this differs from the published protocol, as far as is known.")
    note: str = setting("", "What explains a gap between our number and the published one.")
    needs: list[str] = setting([], "Data and weights it needs, and how to get them.")
    slow: bool = setting(False, "Left out by `tlresearch reproduce --all` unless --slow is given: an hour or more on 2 cores, or needs a GPU.")
