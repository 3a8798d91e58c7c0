"""Settings for main memory during training: freed blocks stay with the process, lasting objects are not collected."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
from collections.abc import Iterator

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # numbers of parameters in glibc's malloc.h
_NEVER = 2**31 - 1
_STEP = 64 * 2**20  # bytes by which the heap grows


@functools.cache
def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory for the next step; returns whether it does.

    Every training step allocates its activations and frees them. By default glibc gets blocks of that size from the
    system one by one and returns them, so the system clears every page again in every step. docs/performance.md has
    the measured cost; see mallopt(3).

    Nothing is changed in other C libraries, or if the environment has settings (``MALLOC_...``, ``GLIBC_TUNABLES``).
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # No block by mmap, which would be returned when freed; a heap that is never trimmed, and grows in large steps.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _STEP))
    return all(mallopt(parameter, value) for parameter, value in settings)


@contextlib.contextmanager
def lasting_objects_spared() -> Iterator[None]:
    """Freezes existing objects (`gc.freeze`), so that garbage collection skips them while the context lasts.

    Every few short trials Python runs a full collection. It would look through the million objects of torch,
    Lightning and MLflow, which takes 0.5 to 1 s and frees none of them.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
