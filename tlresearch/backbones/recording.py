"""One forward pass of a network, recorded as a tree of module calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from tlresearch.backbones.base import evaluating
from tlresearch.modality.values import Value

Key = tuple[str, int]
"""A call: path of the module, and how many calls of it came before."""
Leaf = tuple[Key, int]
"""A tensor: the call that returned it, and its place among the returned leaves; or, counted -1, -2, ..., the place
among the tensors that the call was given."""
Drive = Callable[[nn.Module, Value], Value]
"""Runs a network on a batch and makes of its output what the backbone ends in. It is copied with the stages."""


@dataclass
class Tensors:
    """Tensors that a call was given or returned.

    Attributes:
        copies: What they held; what is no tensor is kept as it is.
        traced: The tensors themselves, with their graph; ``None`` for what is no tensor.
        versions: How often each had been written to at that time.
    """

    copies: list[Any] = field(default_factory=list)
    traced: list[Tensor | None] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, flat: list[Any]) -> Tensors:
        """Keeps the leaves of an argument or output."""
        copies = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in flat]
        traced = [leaf if isinstance(leaf, Tensor) else None for leaf in flat]
        return cls(copies, traced, [leaf._version if isinstance(leaf, Tensor) else 0 for leaf in flat])

    @property
    def depends(self) -> bool:
        """Whether any of them depends on parameters or on numbers of the input."""
        return any(tensor is not None and tensor.requires_grad for tensor in self.traced)


@dataclass(eq=False)
class Call:
    """One call of a module in a recorded forward pass.

    Attributes:
        key: Which call.
        module: The module.
        parent: The call it was made from; ``None`` for the network itself.
        start: Position of its beginning among all beginnings and ends.
        end: Position of its end.
        children: The calls made from it, in order.
        given: The leaves of its arguments.
        made: The leaves of its output.
        spec: How its output is put together from them.
    """

    key: Key
    module: nn.Module
    parent: Call | None
    start: int
    given: Tensors
    end: int = 0
    children: list[Call] = field(default_factory=list)
    made: Tensors = field(default_factory=Tensors)
    spec: TreeSpec | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it depends on sizes, masks and token numbers alone, such as a table of rotations, and draws
        nothing.
        """
        if any(isinstance(layer, _DropoutNd) for layer in self.module.modules()) or size_of(self.module):
            return False
        return not self.made.depends


class Recording:
    """The calls of one forward pass, and its result.

    Args:
        network: The network.
        drive: How it is run.
        value: A batch.
        training: Whether it runs in train mode.
    """

    def __init__(self, network: nn.Module, drive: Drive, value: Value, *, training: bool = False) -> None:
        self.calls: dict[Key, Call] = {}
        self.clock = 0
        self._counts: dict[str, int] = {}
        self._open: list[Call] = []
        # Not by hooks: some networks call the forward of a layer, which runs none.
        with forwards_replaced(dict(network.named_modules()), self._seen), evaluating(network):
            network.train(training)
            self.result = drive(network, value)

    @property
    def roots(self) -> list[Call]:
        """The calls that were made by none of the others: that of the network itself."""
        return [call for call in self.calls.values() if call.parent is None]

    def at(self, leaf: Leaf) -> tuple[Tensors, int]:
        """Where a tensor is kept: among the arguments or the output of its call, and its place there."""
        call = self.calls[leaf[0]]
        return (call.given, -1 - leaf[1]) if leaf[1] < 0 else (call.made, leaf[1])

    def copy(self, leaf: Leaf) -> Tensor:
        """What a tensor held."""
        tensors, place = self.at(leaf)
        copied = tensors.copies[place]
        assert isinstance(copied, Tensor)
        return copied

    def written(self, leaf: Leaf) -> bool:
        """Whether a tensor was changed in place afterwards."""
        tensors, place = self.at(leaf)
        tensor = tensors.traced[place]
        return tensor is not None and tensor._version != tensors.versions[place]

    def _seen(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            number = self._counts.get(path, 0)
            self._counts[path] = number + 1
            self.clock += 1
            given = Tensors.of(tree_leaves((args, kwargs)))
            call = Call((path, number), module, self._open[-1] if self._open else None, self.clock, given)
            if call.parent is not None:
                call.parent.children.append(call)
            self.calls[call.key] = call
            self._open.append(call)
            output = forward(*args, **kwargs)
            self._open.pop()
            self.clock += 1
            call.end = self.clock
            flat, call.spec = tree_flatten(output)
            call.made = Tensors.of(flat)
            return output

        return run


@contextmanager
def forwards_replaced(
    modules: Mapping[str, nn.Module], replace: Callable[[str, nn.Module, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Puts something else in place of the forward of modules for the time of a block."""
    own = {path: module.__dict__.get("forward") for path, module in modules.items()}
    for path, module in modules.items():
        module.__dict__["forward"] = replace(path, module, module.forward)
    try:
        yield
    finally:
        for path, module in modules.items():
            del module.__dict__["forward"]
            if own[path] is not None:
                module.__dict__["forward"] = own[path]


def shape_of(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    """Returns shape and type."""
    return tuple(tensor.shape), tensor.dtype


def size_of(module: nn.Module) -> int:
    """Number of values in a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
