"""Many files: one after another as long as they are only looked up, in threads where they are read and decoded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_QUICK = 1e-4  # seconds of one file that is known, on a disk of this machine, and some to spare
_SLACK = 5e-3  # seconds


def for_each(work: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT]:
    """Applies a function to each item, in order; in threads as soon as that proves slow.

    Reading and decoding release the interpreter lock, and a network drive is waited for. Threads that only ask a disk
    of this machine for the state of a file would wait for each other, for longer than the answers take.
    """
    began = time.perf_counter()
    done: list[ResultT] = []
    for item in items:
        done.append(work(item))
        if time.perf_counter() - began > _SLACK + _QUICK * len(done):
            break
    left = items[len(done) :]
    if not left:
        return done
    threads = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        return done + list(pool.map(work, left, chunksize=max(1, min(16, len(left) // (4 * threads)))))
