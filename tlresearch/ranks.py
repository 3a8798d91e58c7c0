"""Which process of a distributed run this is, read from the environment before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping


def is_leader(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that records the run: rank 0, or the only one.

    Lightning starts the same command again for each further rank, with ``LOCAL_RANK`` set; torchrun sets ``RANK``.
    """
    if "RANK" in environment:
        return environment["RANK"] == "0"
    return all(environment.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))
