"""Memory that one step frees is there for the next, without the system's help; what lasts is not looked through."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import weakref

import pytest

from tlresearch.run.devices.memory import lasting_objects_spared

PROGRAM = """
import resource, sys
import torch
from tlresearch.run.devices.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert keep_freed_memory() == (sys.argv[1] == "kept")
for step in range(3):
    before = faults()
    for _ in range(4):
        activations = [torch.ones(20_000_000, dtype=torch.uint8) for _ in range(3)]
        del activations
print(faults() - before)  # of the last step: 12 blocks of 20 MB, 4883 pages each
"""


def pages_fetched(how: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_a_step_takes_up_the_memory_of_the_one_before() -> None:
    assert pages_fetched("kept") < 5000
    # The variable says what is done anyway; it only shows that the environment is left its say.
    assert pages_fetched("left", MALLOC_MMAP_THRESHOLD_="131072") > 50_000


class Knot:
    """Something only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_the_collector_looks_only_through_what_is_new() -> None:
    before = len(gc.get_objects())
    with lasting_objects_spared():
        assert len(gc.get_objects()) < before / 10
        knot = weakref.ref(Knot())
        gc.collect()
        assert knot() is None
    assert len(gc.get_objects()) > before / 2
    assert gc.get_freeze_count() == 0
