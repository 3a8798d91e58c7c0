"""Running a network from one boundary to the next by its own forward: what a stub answers, and what crosses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

from tlresearch.backbones.base import evaluating, unchanged
from tlresearch.backbones.recording import Drive, Key, Leaf, shape_of
from tlresearch.modality.values import Value, from_leaves, leaves

MASK = "mask"


class CutError(Exception):
    """The network cannot be cut in this way; the message says why."""


class _StopReached(BaseException):
    """Ends a forward pass where the next part begins. No `Exception`: networks may catch those."""


@dataclass(frozen=True)
class Sized:
    """A tensor that a stub returns and nothing depends on: zeros of the right size.

    Attributes:
        dtype: Its type.
        sizes: Each side: a number, or the argument (its place among the leaves) and the side that it equals.
        passed: The argument that has the same shape and type and is handed on instead; ``None`` without one.
    """

    dtype: torch.dtype
    sizes: tuple[int | tuple[int, int], ...]
    passed: int | None = None

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The arguments that its size is read from."""
        read = [size[0] for size in self.sizes if not isinstance(size, int)]
        return tuple(read if self.passed is None else [*read, self.passed])

    def follows(self, given: Sequence[Any]) -> bool:
        """Whether the tensors that its size is read from are there: a mask that hides nothing may be left out."""
        return all(place < len(given) and isinstance(given[place], Tensor) for place in self.places)

    def made(self, given: Sequence[Any], device: torch.device) -> Tensor:
        """Returns the tensor for these arguments."""
        if self.passed is not None:
            passed: Tensor = given[self.passed]
            return passed
        sizes = [size if isinstance(size, int) else given[size[0]].shape[size[1]] for size in self.sizes]
        return torch.zeros(sizes, dtype=self.dtype, device=device)


@dataclass
class Answer:
    """What a call in front of a boundary returns when the network runs from there.

    Attributes:
        key: The call.
        spec: How the output is put together.
        content: The leaves of the output, sizes for tensors; ``None`` where sizes follow no rule that was seen: they
        come from a run of
            the module without numbers.
        runs: Whether the module runs, with the calls in it answered, because it makes a value that holds for all
        samples, such
            as a table of relative positions.
    """

    key: Key
    spec: TreeSpec
    content: list[Any] | None
    runs: bool = False
    _seen: dict[Any, tuple[list[Any], TreeSpec]] = field(default_factory=dict, repr=False)

    def __call__(self, forward: Callable[..., Any], stored: Mapping[Leaf, Tensor], args: Any, kwargs: Any) -> Any:
        """Returns the call's output, with what is stored in its place."""
        if self.runs:
            flat, spec = tree_flatten(forward(*args, **kwargs))
        else:
            content, spec, given = self.content, self.spec, self._arguments(args, kwargs)
            if content is None or not all(leaf.follows(given) for leaf in content if isinstance(leaf, Sized)):
                content, spec = self._sizes(forward, args, kwargs)
            device = next(iter(stored.values())).device
            flat = list(content)
            for index, leaf in enumerate(content):
                if isinstance(leaf, Sized) and (self.key, index) not in stored:
                    flat[index] = leaf.made(given, device)
        flat = [stored.get((self.key, index), leaf) for index, leaf in enumerate(flat)]
        return tree_unflatten(flat, spec)

    def _arguments(self, args: Any, kwargs: Any) -> Sequence[Any]:
        """The leaves of the arguments, as far as sizes are read from them."""
        places = (place for leaf in self.content or () if isinstance(leaf, Sized) for place in leaf.places)
        read = 1 + max(places, default=-1)
        # Taking arguments apart costs more than anything else that a stub does, and the first ones are mostly tensors.
        if len(args) < read or not all(isinstance(leaf, Tensor) for leaf in args[:read]):
            return tree_leaves((args, kwargs))
        leading: Sequence[Any] = args
        return leading

    def _sizes(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> tuple[list[Any], TreeSpec]:
        flat, _ = tree_flatten((args, kwargs))
        seen = tuple(shape_of(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in flat)
        if seen not in self._seen:
            module = forward.__self__  # type: ignore[attr-defined]  # a bound method, or `Watched`
            with torch.no_grad(), unchanged(module), evaluating(module), FakeTensorMode(allow_non_fake_inputs=True):
                args, kwargs = tree_map(_emptied, (args, kwargs))
                made, spec = tree_flatten(forward(*args, **kwargs))
            self._seen[seen] = (
                [Sized(leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, Tensor) else leaf for leaf in made],
                spec,
            )
        return self._seen[seen]


def _emptied(leaf: Any) -> Any:
    return torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf


@dataclass(frozen=True)
class Crossing:
    """A tensor that crosses a boundary.

    Attributes:
        leaf: Where the network makes it.
        name: Its name in the value that crosses.
        axis: The side that counts the samples.
        folded: Whether that side counts several rows of each sample, one sample after another.
        written: Whether the network changes it in place further on, so that a copy must be handed over.
    """

    leaf: Leaf
    name: str
    axis: int = 0
    folded: bool = False
    written: bool = False

    def packed(self, tensor: Tensor, batch: int) -> Tensor:
        """Brings the samples to the front."""
        tensor = tensor.movedim(self.axis, 0)
        return tensor.reshape(batch, -1, *tensor.shape[1:]) if self.folded else tensor

    def unpacked(self, tensor: Tensor) -> Tensor:
        """Brings the samples back to where the network has them."""
        tensor = (tensor.flatten(0, 1) if self.folded else tensor).movedim(0, self.axis)
        return tensor.clone() if self.written else tensor


@dataclass(frozen=True)
class Boundary:
    """A place where the network can be cut.

    Attributes:
        key: The call that it lies in front of.
        answers: The calls that are answered when the network runs from here.
        crossing: The tensors that cross.
        inputs: Names of the network's inputs that the rest still looks at; of the others the shape alone crosses.
        quiet: Paths of modules that run in front of it although they are none of the part's, in eval mode.
    """

    key: Key
    answers: dict[Key, Answer]
    crossing: tuple[Crossing, ...]
    inputs: frozenset[str]
    quiet: tuple[str, ...]

    @property
    def leaves(self) -> list[Leaf]:
        """The tensors that cross."""
        return [each.leaf for each in self.crossing]

    def packed(self, made: Mapping[Leaf, Tensor], inputs: Value) -> Value:
        """Makes the value that crosses."""
        named = leaves(inputs)
        batch = next(iter(named.values())).shape[0]
        value = {each.name: each.packed(made[each.leaf], batch) for each in self.crossing}
        mask = named.get(MASK)
        for name, tensor in named.items():
            if name in self.inputs:
                value[name] = tensor
            elif mask is None or tensor.shape != mask.shape:
                # Of no extent in its last side: it takes no memory, and is cut and padded as the tensor would be.
                value[name] = torch.empty((*tensor.shape, 0), dtype=torch.bool, device=tensor.device)
        return value

    def unpacked(self, value: Value, kinds: Mapping[str, torch.dtype]) -> tuple[dict[Leaf, Tensor], Value]:
        """Takes a value that crosses apart: the stored tensors, and the network's inputs, zeros where only shapes
        crossed.
        """
        named = leaves(value)
        stored = {each.leaf: each.unpacked(named[each.name]) for each in self.crossing}
        device = next(iter(stored.values())).device
        inputs = {}
        for name, dtype in kinds.items():
            if name in self.inputs:
                inputs[name] = named[name]
            else:
                shape = named[name].shape[:-1] if name in named else named[MASK].shape
                inputs[name] = torch.zeros((), dtype=dtype, device=device).expand(shape)
        return stored, from_leaves(inputs)


class Watched:
    """Stands in for a module's forward in the network of a part.

    Args:
        part: The part.
        path: Path of the module.
        forward: The module's own forward.
    """

    def __init__(self, part: Part, path: str, forward: Callable[..., Any]) -> None:
        self.part, self.path, self.forward = part, path, forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module, or answers for it."""
        return self.part.called(self, args, kwargs)


class Part:
    """The part of a network between two boundaries.

    Args:
        drive: How the network is run.
        start: Where the part begins; ``None`` for the network's beginning.
        stop: Where it ends; ``None`` for the network's end.
        kinds: The network's inputs by name, with their types.
    """

    def __init__(
        self, drive: Drive, start: Boundary | None, stop: Boundary | None, kinds: Mapping[str, torch.dtype]
    ) -> None:
        self.drive, self.start, self.stop, self.kinds = drive, start, stop, dict(kinds)
        self.watching = True
        self._answers = start.answers if start is not None else {}
        self._captured: dict[Key, list[Crossing]] = {}
        for each in stop.crossing if stop is not None else ():
            self._captured.setdefault(each.leaf[0], []).append(each)
        self._counts: dict[str, int] = {}
        self._stored: dict[Leaf, Tensor] = {}
        self._made: dict[Leaf, Tensor] = {}
        self._waiting: list[Callable[[], object]] = []

    @property
    def paths(self) -> list[str]:
        """Paths of the modules whose calls matter."""
        ends = [bound.key for bound in (self.start, self.stop) if bound is not None]
        return list(dict.fromkeys(path for path, _ in (*self._answers, *self._captured, *ends)))

    def watch(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Watched:
        """What stands in for the forward of a module."""
        return Watched(self, path, forward)

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Runs a network that is watched, from a value at the part's beginning to that at its end."""
        stored, inputs = ({}, value) if self.start is None else self.start.unpacked(value, self.kinds)
        result = self.run(network, inputs, stored)
        made, self._made = self._made, {}
        return result if self.stop is None else self.stop.packed(made, inputs)

    def run(self, network: nn.Module, inputs: Value, stored: Mapping[Leaf, Tensor]) -> Value:
        """Runs the network on its inputs and stored tensors; returns the end's result, of meaning at the network's end
        alone.
        """
        self._counts.clear()
        self._stored, self._made = dict(stored), {}
        self._wait(network)
        try:
            result = self.drive(network, inputs)
        except _StopReached:
            result = inputs
        else:
            if self.stop is not None:
                raise CutError(f"the call of {self.stop.key[0]} never came")
        finally:
            unreached = bool(self._waiting)
            self._arrive()
            self._stored = {}
        if unreached:
            raise CutError(f"the call of {self.start.key[0] if self.start else ''} never came")
        return result

    def called(self, watched: Watched, args: Any, kwargs: Any) -> Any:
        """Answers a call, or lets it run and keeps what crosses the next boundary."""
        if not self.watching:
            return watched.forward(*args, **kwargs)
        number = self._counts.get(watched.path, 0)
        self._counts[watched.path] = number + 1
        key = (watched.path, number)
        if self.stop is not None and key == self.stop.key:
            self._keep(key, tree_leaves((args, kwargs))[::-1])  # arguments count from the end
            raise _StopReached
        if self.start is not None and key == self.start.key:
            self._arrive()
            args, kwargs = self._entered(key, args, kwargs)
        answer = self._answers.get(key)
        if answer is not None:
            output = answer(watched.forward, self._stored, args, kwargs)
        else:
            output = watched.forward(*args, **kwargs)
        if key in self._captured:
            self._keep(key, tree_leaves(output))
        return output

    def _keep(self, key: Key, flat: Sequence[Any]) -> None:
        for each in self._captured.get(key, ()):
            tensor = flat[each.leaf[1]]
            self._made[each.leaf] = tensor.clone() if each.written else tensor

    def _entered(self, key: Key, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of the call behind the boundary, with what is stored in their place."""
        flat, spec = tree_flatten((args, kwargs))
        flat = [self._stored.get((key, -1 - place), leaf) for place, leaf in enumerate(flat)]
        entered: tuple[Any, Any] = tree_unflatten(flat, spec)
        return entered

    def _wait(self, network: nn.Module) -> None:
        """Up to the boundary nothing is random and no statistics move: those in front of it have had their turn."""
        if self.start is None:
            return
        self._waiting = [list]
        if network.training:
            for path in self.start.quiet:
                module = network.get_submodule(path)
                self._waiting.append(partial(setattr, module, "training", module.training))
                module.training = False
            self._waiting.append(partial(torch.set_rng_state, torch.get_rng_state()))
            device = next(iter(self._stored.values())).device
            if device.type == "cuda":
                self._waiting.append(partial(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device))

    def _arrive(self) -> None:
        for undo in self._waiting:
            undo()
        self._waiting = []
