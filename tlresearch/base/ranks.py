"""The rank of this process in a distributed run, read from the environment before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

SOCKET = "TLRESEARCH_RANK_SOCKET"
"""Environment variable with the socket on which rank 0 tells a rank which run to join."""


def is_leader(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the process that records the run: rank 0, or the only process.

    Ranks above 0 are started with ``LOCAL_RANK`` set (`tlresearch.run.devices.processes`); torchrun sets ``RANK`` too.
    """
    if "RANK" in environment:
        return environment["RANK"] == "0"
    return all(environment.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))
