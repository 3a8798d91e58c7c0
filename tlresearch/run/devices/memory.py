"""How the process holds main memory while it trains: blocks that a step has freed, objects that last."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
from collections.abc import Iterator

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1
_STEP = 64 * 2**20  # bytes by which the heap grows


@functools.cache
def keep_freed_memory() -> bool:
    """Has the C library keep memory that was freed, so that the next step takes it up again; returns whether it does.

    Every training step allocates its activations and frees them. glibc takes blocks of that size from the system one
    by one and gives them back, and the system clears each page of them anew in every step. docs/performance.md says
    what that takes; see mallopt(3).

    A C library other than glibc is left as it is, and so are settings that the environment makes (``MALLOC_...``,
    ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(what, value) for what, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP)))


@contextlib.contextmanager
def lasting_objects_spared() -> Iterator[None]:
    """Has Python's collector pass over all objects that are there already, such as those that libraries have made.

    Short trials make enough objects that it looks through all of them every few trials: a million for torch, Lightning
    and MLflow, which takes half a second to a second, and none of them is ever free. See `gc.freeze`.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
