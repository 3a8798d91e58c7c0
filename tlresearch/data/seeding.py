"""Random numbers that are a pure function of what they belong to, such as (seed, epoch, index)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """Hashes the parts to a seed below 2**63; equal parts give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seeds torch's random numbers on the CPU and on the GPUs that are there.

    `torch.manual_seed` does the same, but where there is no GPU it keeps a traceback for a later one in each call,
    which takes longer than a small step.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


_drawing = threading.RLock()
"""Held while torch's one generator stands for a block's own: several threads may load samples."""


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Runs the block with torch's CPU random numbers seeded from the parts, then puts the old state back.

    Only the CPU generator is touched: `torch.manual_seed` would reseed every GPU as well, and the
    transforms draw on the CPU.
    """
    generator = torch.default_generator
    with _drawing:
        state = generator.get_state()
        generator.manual_seed(derive_seed(*parts))
        try:
            yield
        finally:
            generator.set_state(state)
