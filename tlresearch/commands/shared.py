"""What several commands say or need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tlresearch.ranks import is_leader

if TYPE_CHECKING:
    from rich.console import Console

OVERRIDES = "values by full key, such as optimizer.lr=3e-3; `tlresearch config` lists them all"


def console_of_leader() -> Console:
    """Returns the terminal; of several processes of one run, only the first writes to it."""
    from rich.console import Console

    return Console(quiet=not is_leader())
