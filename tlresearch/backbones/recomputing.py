"""Gradient checkpointing of a stage: its forward pass runs again in the backward pass, without traces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from tlresearch.modality.values import Value


def recomputed(run: Callable[[Value], Any], stage: nn.Module, x: Value) -> Any:
    """Runs a stage, and keeps no more of it for the backward pass than its input.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), with torch's `checkpoint`, which draws the
    same random numbers the second time.

    Args:
        run: What runs the stage.
        stage: The stage.
        x: Its input.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return contextlib.nullcontext(), _buffers_kept(stage)

    return checkpoint(run, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _buffers_kept(stage: nn.Module) -> Iterator[None]:
    """Lets what a forward pass writes into buffers go to copies: norm layers take a batch into account once."""
    layers = [layer for layer in stage.modules() if layer.training and layer._buffers]
    kept = [dict(layer._buffers) for layer in layers]
    for layer, buffers in zip(layers, kept, strict=True):
        layer._buffers.update({name: None if held is None else held.clone() for name, held in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer._buffers.update(buffers)
