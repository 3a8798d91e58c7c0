"""What importing the package does to its process: threads of torch that have nothing to do leave their core alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import time
import tlresearch
import torch

print(int("libgomp" in open("/proc/self/maps").read()), end=" ")
torch.set_num_threads(2)
numbers = torch.ones(4_000_000)
used = []
for _ in range(3):
    numbers.mul_(1.0)  # by both threads
    before = time.process_time()
    time.sleep(0.3)
    used.append(time.process_time() - before)
print(min(used))
"""


def used_while_waiting(**variables: str) -> float:
    """Seconds of the processor's time that a process takes in the 0.3 s behind an operation of two threads."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
    known, used = done.stdout.split()
    if known == "0":
        pytest.skip("torch does not compute with GNU's OpenMP here")
    return float(used)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of Linux")
def test_a_thread_that_is_done_goes_to_sleep() -> None:
    # The environment has the last word. How long a thread spins depends on the machine: the two are compared.
    assert used_while_waiting() < used_while_waiting(GOMP_SPINCOUNT="100000000") / 2
