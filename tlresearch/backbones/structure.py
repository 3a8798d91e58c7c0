"""Cuts a network between the layers that it lists, without knowing which network it is.

One forward pass is recorded (`recording.py`). A boundary lies in front of the call of a listed layer. To run from
there, the network's own forward runs: a call that ended before the boundary is answered by a stub, with stored values
where the rest of the network depends on them. To run up to the next boundary, it runs until that call begins
(`parts.py`). Masks, positions and rotations are thus computed by the network's own code in every stage, and no family
of networks needs code of ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import evaluating, unchanged
from tlresearch.backbones.parts import MASK, Answer, Boundary, Crossing, CutError, Part, Sized
from tlresearch.backbones.recording import Call, Drive, Key, Leaf, Recording, forwards_replaced, shape_of, size_of
from tlresearch.backbones.tracing import TraceError
from tlresearch.base.errors import first_line
from tlresearch.modality.values import Value, from_leaves, leaves

Result = TypeVar("Result")

LARGEST_SHARE = 0.5
"""A stage with a larger share of the parameters is cut again, at the lists inside of it."""


class Finder:
    """Finds where a network can be cut, and what crosses there.

    Args:
        network: The network.
        drive: How it is run.
        examples: Batches that differ in size: the first is cut with, the second has another number of samples, a third
        may have
            another length or another size of image.
    """

    def __init__(self, network: nn.Module, drive: Drive, examples: Sequence[Value]) -> None:
        self.network, self.drive = network, drive
        self.still: list[nn.Module] = []
        self.trained: list[Recording] = []
        self._answers: dict[tuple[Key, bool], Answer] = {}
        self.example = from_leaves({name: _tracked(leaf) for name, leaf in leaves(examples[0]).items()})
        self.kinds = {name: leaf.dtype for name, leaf in leaves(examples[0]).items()}
        self.recording = Recording(network, drive, self.example)
        with torch.no_grad():
            self.others = [Recording(network, drive, example) for example in examples[1:]]
        self.batches = [len(next(iter(leaves(example).values()))) for example in examples]
        self.expected = {name: leaf.detach() for name, leaf in leaves(self.recording.result).items()}

    def find_still(self) -> None:
        """Finds modules that draw tables for all samples at random in training, such as scaled rotations.

        Every stage makes such a table again, and could not draw the same: these modules stay in eval mode.
        """
        for seed in (0, 1):
            with torch.no_grad(), torch.random.fork_rng(), unchanged(self.network):  # statistics move in training
                torch.manual_seed(seed)
                self.trained.append(Recording(self.network, self.drive, self.example, training=True))
        for key, call in self.recording.calls.items():
            drawn = [recording.calls[key].made.copies for recording in self.trained if key in recording.calls]
            if call.is_constant and len(drawn) == 2 and not _same(*drawn):
                self.still.append(call.module)

    def places(self, granularity: str) -> list[Call]:
        """The calls that a boundary may lie in front of: listed layers, or the network's modules where nothing is
        listed.
        """
        levels = _listed(self.network, {path for path, _ in self.recording.calls})
        if not levels:
            call = self.recording.roots[0]
            while len(call.children) == 1:
                call = call.children[0]
            levels = list(dict.fromkeys(child.key[0] for child in call.children if size_of(child.module)))
        most = LARGEST_SHARE * sum(parameter.numel() for parameter in self.network.parameters())

        def chosen(path: str) -> bool:
            around = max((outer for outer in levels if path.startswith(f"{outer}.")), key=len, default=None)
            return around is None or granularity == "block" or size_of(self.network.get_submodule(around)) > most

        calls = [self.recording.calls[path, 0] for path in levels if chosen(path)]
        return sorted(calls, key=lambda call: call.start)

    def boundary(self, call: Call) -> Boundary:
        """Makes the boundary in front of a call.

        Raises:
            CutError: If the network does not answer as before when it runs from there.
        """
        running: set[Key] = set()
        tables: set[str] = set()
        loose: set[Leaf] = set()
        while True:
            stubs, ran = self.in_front(call.start, running, tables)
            answers = {each.key: self._answer(each) for each in stubs}
            answers |= {key: self._answer(self.recording.calls[key], runs=True) for key in running}
            offered = [leaf for leaf in self._leaves_at(call, answers) if leaf not in loose]
            live, inputs = self._live(call.key, answers, offered, tuple(ran))
            crossings = [self._crossing(number, leaf) for number, leaf in enumerate(live)]
            if None not in crossings:
                kept = tuple(each for each in crossings if each is not None)
                return Boundary(call.key, answers, kept, inputs, tuple(ran))
            for leaf in (leaf for leaf, each in zip(live, crossings, strict=True) if each is None):
                loose.add(leaf)
                running.add(leaf[0])
                tables |= self._tables(leaf)

    def in_front(self, start: int, running: set[Key], tables: set[str]) -> tuple[list[Call], dict[str, None]]:
        """The calls that ended before a moment, each as a whole; and the paths of modules that run all the same.

        Args:
            start: The moment.
            running: Calls that run although they have ended.
            tables: Paths of modules whose parameters are read again; the calls around them run too.
        """
        stubs: list[Call] = []
        ran: dict[str, None] = {}

        def walk(calls: Sequence[Call]) -> None:
            for call in calls:
                if call.start >= start:
                    return
                path = call.key[0]
                around = any(table == path or table.startswith(f"{path}.") for table in tables)
                if call.end > start or call.key in running or around or call.is_constant:
                    ran[path] = None
                    walk(call.children)
                else:
                    stubs.append(call)

        walk(self.recording.roots)
        return stubs, ran

    def _answer(self, call: Call, *, runs: bool = False) -> Answer:
        """How a call is answered at any size of input: what was the same in all recordings, or followed the
        arguments.
        """
        if (call.key, runs) not in self._answers:  # one for all boundaries: what it sees of sizes, it sees once
            self._answers[call.key, runs] = self._new_answer(call, runs=runs)
        return self._answers[call.key, runs]

    def _new_answer(self, call: Call, *, runs: bool) -> Answer:
        assert call.spec is not None
        others = [recording.calls.get(call.key) for recording in self.others]
        if runs or any(
            each is None
            or len(each.made.copies) != len(call.made.copies)
            or len(each.given.copies) != len(call.given.copies)
            for each in others
        ):
            return Answer(call.key, call.spec, None, runs)
        everywhere = [call, *(each for each in others if each is not None)]
        content = [
            _rule([each.made.copies[index] for each in everywhere], [each.given.copies for each in everywhere])
            for index in range(len(call.made.copies))
        ]
        return Answer(call.key, call.spec, None if _UNKNOWN in content else content)

    def _leaves_at(self, call: Call, answers: Mapping[Key, Answer]) -> list[Leaf]:
        """The tensors that can be handed over: those the call is given, sample by sample, and what earlier calls
        returned.
        """
        given = [(call.key, -1 - place) for place, leaf in enumerate(call.given.copies) if isinstance(leaf, Tensor)]
        # A mask or a rotation that it is given depends on nothing but sizes: the network makes it again.
        given = [leaf for leaf in given if self.depends(leaf) and self._crossing(0, leaf) is not None]
        earlier = sorted((self.recording.calls[key] for key in answers), key=lambda each: each.end, reverse=True)
        return given + [
            (each.key, place)
            for each in earlier
            for place, leaf in enumerate(each.made.copies)
            if isinstance(leaf, Tensor)
        ]

    def depends(self, leaf: Leaf) -> bool:
        """Whether a gradient reaches what the tensor was made of."""
        tensors, place = self.recording.at(leaf)
        tensor = tensors.traced[place]
        return tensor is not None and tensor.requires_grad

    def _live(
        self, key: Key, answers: dict[Key, Answer], offered: list[Leaf], ran: tuple[str, ...]
    ) -> tuple[list[Leaf], frozenset[str]]:
        """The tensors and inputs that the network's end depends on: those with a gradient, and what only running it
        shows.
        """
        names = set(self.kinds)
        part = Part(self.drive, Boundary(key, answers, (), frozenset(), ran), None, self.kinds)
        if not offered:
            raise CutError(f"nothing is computed in front of {key[0]}")
        live, read = self._with_gradient(part, offered)
        if self._answers_as_before(part, live, read | (names & {MASK})):
            return live, frozenset(read | (names & {MASK}))
        if not self._answers_as_before(part, offered, names):
            raise CutError(f"it answers otherwise when it is run from {key[0]}")
        # Numbers and flags have no gradient: each is kept without which the answer changes.
        for name in sorted(names - read - {MASK}):
            if self._answers_as_before(part, offered, names - {name}):
                names.discard(name)
        kept = list(offered)

        def drop(leaves_: Sequence[Leaf]) -> None:
            rest = [leaf for leaf in kept if leaf not in leaves_]
            if self._answers_as_before(part, rest, names):
                kept[:] = rest
            elif len(leaves_) > 1:
                drop(leaves_[: len(leaves_) // 2])
                drop(leaves_[len(leaves_) // 2 :])

        rest = [leaf for leaf in offered if leaf not in live]
        floats = [leaf for leaf in rest if self.recording.copy(leaf).is_floating_point()]
        for group in (floats, [leaf for leaf in rest if leaf not in floats]):
            if group:
                drop(group)
        return kept, frozenset(names)

    def _with_gradient(self, part: Part, offered: Sequence[Leaf]) -> tuple[list[Leaf], set[str]]:
        stored = {leaf: _tracked(self.recording.copy(leaf)) for leaf in offered}
        inputs = {name: _tracked(leaf) for name, leaf in leaves(self.example).items()}
        result = self._run(part, {leaf: tensor.clone() for leaf, tensor in stored.items()}, from_leaves(inputs))
        summed = total(result)
        if summed is None:
            raise CutError("its output has no gradient")
        tracked = {key: tensor for key, tensor in (*stored.items(), *inputs.items()) if tensor.requires_grad}
        gradients = torch.autograd.grad(summed, list(tracked.values()), allow_unused=True)
        reached = {key for key, gradient in zip(tracked, gradients, strict=True) if gradient is not None}
        return [leaf for leaf in offered if leaf in reached], {name for name in inputs if name in reached}

    def _answers_as_before(self, part: Part, live: Sequence[Leaf], names: set[str]) -> bool:
        stored = {leaf: self.recording.copy(leaf).clone() for leaf in live}
        inputs = {
            name: leaf.detach() if name in names else torch.zeros_like(leaf)
            for name, leaf in leaves(self.example).items()
        }
        if not stored:
            return False
        with torch.no_grad():
            try:
                result = self._run(part, stored, from_leaves(inputs))
            except CutError:
                return False
        return difference(result, self.expected) is None

    def _run(self, part: Part, stored: dict[Leaf, Tensor], inputs: Value) -> Value:
        with evaluating(self.network), _watched(part, self.network):
            return attempt(lambda: part.run(self.network, inputs, stored))

    def _crossing(self, number: int, leaf: Leaf) -> Crossing | None:
        """How a tensor crosses; ``None`` if it is the same for all samples, such as a table of relative positions."""
        tensor, shape = self.recording.copy(leaf), self.others[0].copy(leaf).shape
        # In train mode too: of a table that is dropped out for each sample, samples have their own.
        seen = [tensor, *(each.copy(leaf) for each in self.trained if leaf[0] in each.calls)]
        first, second = self.batches[:2]
        name = "inner" if any(each.startswith("hidden") for each in self.kinds) else "hidden"
        name = name if number == 0 else f"{name}_{number}"
        for axis, (size, grown) in enumerate(zip(tensor.shape, shape, strict=True)):
            if size != grown and size % first == 0 and size // first * second == grown:
                crossing = Crossing(leaf, name, axis, size != first, self.recording.written(leaf))
                packed = [crossing.packed(each, first) for each in seen]
                alike = all(torch.equal(each, each[:1].expand_as(each)) for each in packed)
                return None if alike else crossing
        return None

    def _tables(self, leaf: Leaf) -> set[str]:
        """Paths of the modules whose parameters a tensor depends on."""
        tensors, place = self.recording.at(leaf)
        tensor = tensors.traced[place]
        if tensor is None or not tensor.requires_grad:
            return set()
        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(tensor.sum(), parameters, retain_graph=True, allow_unused=True)
        read = {
            id(parameter) for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None
        }
        return {
            path
            for path, module in self.network.named_modules()
            if any(id(p) in read for p in module.parameters(recurse=False))
        }


class Still:
    """Stands in for the `train` of a module that stays in eval mode."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        """Leaves the module, and all in it, in eval mode."""
        for layer in self.module.modules():
            layer.training = False
        return self.module


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    pairs = [(one, two) for one, two in zip(left, right, strict=True) if isinstance(one, Tensor)]
    return all(one.shape == two.shape and torch.equal(one, two) for one, two in pairs)


_UNKNOWN = object()
_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def _rule(seen: Sequence[Any], given: Sequence[Sequence[Any]]) -> Any:
    """What all recordings of a returned leaf have in common.

    Args:
        seen: The leaf in each recording.
        given: The leaves of what the call was given in each recording.

    Returns:
        A number or text that never changed, the `Sized` of a tensor, or `_UNKNOWN` without a rule.
    """
    first = seen[0]
    if not isinstance(first, Tensor):
        plain = first is None or isinstance(first, (bool, int, float, str))
        return first if plain and all(type(leaf) is type(first) and leaf == first for leaf in seen) else _UNKNOWN
    if any(leaf.ndim != first.ndim for leaf in seen):
        return _UNKNOWN
    arguments = {
        number: argument
        for number, argument in enumerate(zip(*given, strict=True))
        if all(isinstance(leaf, Tensor) for leaf in argument)
    }
    for number, argument in arguments.items():
        if all(shape_of(leaf) == shape_of(tensor) for leaf, tensor in zip(seen, argument, strict=True)):
            return Sized(first.dtype, (), number)
    sides = [
        ((number, axis), [tensor.shape[axis] for tensor in argument])
        for number, argument in arguments.items()
        for axis in range(min(tensor.ndim for tensor in argument))
    ]
    sizes: list[int | tuple[int, int]] = []
    for axis in range(first.ndim):
        extents = [leaf.shape[axis] for leaf in seen]
        follows = [side for side, others in sides if others == extents]
        if len(set(extents)) > 1 and not follows:
            return _UNKNOWN
        sizes.append(extents[0] if len(set(extents)) == 1 else follows[0])
    return Sized(first.dtype, tuple(sizes))


def _listed(network: nn.Module, called: set[str]) -> list[str]:
    """Paths of the layers that the network lists: called modules beside others of their class, made of layers
    themselves.
    """
    listed: list[str] = []
    for path, module in network.named_modules():
        if not isinstance(module, _CONTAINERS):
            continue
        layers = {f"{path}.{name}".lstrip("."): child for name, child in module.named_children() if size_of(child)}
        layers = {inner: child for inner, child in layers.items() if inner in called}
        kinds = [type(child) for child in layers.values() if any(True for _ in child.children())]
        if len(kinds) > len(set(kinds)):
            listed += layers
    return listed


def _tracked(tensor: Tensor) -> Tensor:
    """A copy that gradients reach, where numbers have any."""
    copied = tensor.detach().clone()
    return copied.requires_grad_() if copied.is_floating_point() else copied


def total(value: Value, *, squared: bool = False) -> Tensor | None:
    """A number that all of a result takes part in; ``None`` if nothing of it has a gradient."""
    parts = [leaf.float().nan_to_num() for leaf in leaves(value).values() if leaf.requires_grad]
    parts = [(leaf.square() if squared else leaf).sum() for leaf in parts]
    return torch.stack(parts).sum() if parts else None


def attempt(run: Callable[[], Result]) -> Result:
    """Runs a foreign network, which may raise anything.

    Raises:
        CutError: If it does.
    """
    try:
        return run()
    except CutError:
        raise
    except TraceError as error:
        raise CutError(str(error)) from error
    except Exception as error:
        raise CutError(f"{type(error).__name__}: {first_line(error, 200)}") from error


def difference(value: Value, expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> str | None:
    """What differs between a result and the expected one, beyond rounding; ``None`` if nothing does."""
    made = leaves(value)
    if set(made) != set(expected):
        return f"{sorted(made)} instead of {sorted(expected)}"
    for name, right in expected.items():
        left = made[name]
        if left.shape != right.shape:
            return f"{name} of shape {tuple(left.shape)} instead of {tuple(right.shape)}"
        if not right.is_floating_point():
            if not torch.equal(left, right):
                return f"other {name}"
            continue
        scale = max(1.0, float(right.nan_to_num().abs().max())) if right.numel() else 1.0
        if not torch.allclose(left, right, rtol=0, atol=tolerance * scale, equal_nan=True):
            return f"{name} by up to {float((left - right).abs().nan_to_num().max()):.2g}"
    return None


def _watched(part: Part, network: nn.Module) -> AbstractContextManager[None]:
    """Lets a network be run by a part for the time of a block."""
    return forwards_replaced({path: network.get_submodule(path) for path in part.paths}, part.watch)


@contextmanager
def _trainable(network: nn.Module) -> Iterator[None]:
    """Lets gradients reach all parameters, and keeps what a forward pass writes into buffers from the network."""
    frozen = [
        parameter for parameter in network.parameters() if parameter.is_floating_point() and not parameter.requires_grad
    ]
    for parameter in frozen:
        parameter.requires_grad_()
    try:
        with unchanged(network):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@dataclass
class Holdings:
    """Which tensors each part has: every parameter and buffer is owned by one part, and lent to others that read it.

    Attributes:
        owned: Identities of the owned tensors, by part.
        lent: Identities of the tensors that a part reads and an earlier one owns, by part.
        read: Identities of all tensors that gradients or calls showed to be used by some part without a call of their
        module.
    """

    owned: list[set[int]]
    lent: list[set[int]]
    read: set[int]


def holdings(finder: Finder, parts: Sequence[Part]) -> Holdings:
    """Shares the tensors of a network out over its parts.

    A part uses the parameters that its own output has a gradient for; what has none, and buffers, it uses if their
    module ran in it, or the closest module around that did. So does a part that hands something over which no gradient
    reaches, such as a mask made of a first prediction. What several parts use belongs to the earliest.
    """
    network = finder.network
    used = _used(finder, parts)
    with_gradient = set().union(*used)
    ran = [_ran(finder.recording, part) for part in parts]
    silent = [part.stop is not None and not all(map(finder.depends, part.stop.leaves)) for part in parts]
    called = {path for path, _ in finder.recording.calls}
    owned: list[set[int]] = [set() for _ in parts]
    lent: list[set[int]] = [set() for _ in parts]
    read: set[int] = set()
    seen: set[int] = set()
    for path, module in network.named_modules():
        nearest = path
        while nearest not in called and nearest:
            nearest = nearest.rpartition(".")[0]
        present = [number for number, paths in enumerate(ran) if nearest in paths]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            reached = id(tensor) in with_gradient
            places = [n for n, ids in enumerate(used) if id(tensor) in ids or (silent[n] and n in present)]
            places = places if reached else present
            owner, *others = places or [0]
            owned[owner].add(id(tensor))
            for number in others:
                lent[number].add(id(tensor))
            if path not in called and reached:
                read.add(id(tensor))
    return Holdings(owned, lent, read)


def _used(finder: Finder, parts: Sequence[Part]) -> list[set[int]]:
    """Identities of the parameters that the output of each part has a gradient for."""
    network = finder.network
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    used = []
    value: Value = finder.example
    for part in parts:
        entering = from_leaves({name: _tracked(leaf) for name, leaf in leaves(value).items()})
        with evaluating(network), _watched(part, network):
            left = attempt(partial(part, network, entering))
        summed = total(left)
        gradients = torch.autograd.grad(summed, parameters, allow_unused=True) if summed is not None else ()
        used.append(
            {id(p) for p, gradient in zip(parameters, gradients, strict=bool(gradients)) if gradient is not None}
        )
        value = left
    return used


def _ran(recording: Recording, part: Part) -> set[str]:
    """Paths of the modules that run in a part, those in front of it that run again included."""
    calls = recording.calls
    first = calls[part.start.key].start if part.start is not None else -1
    last = calls[part.stop.key].start if part.stop is not None else recording.clock + 1
    within = {path for (path, _), call in calls.items() if first <= call.start < last}
    return within | set(part.start.quiet if part.start is not None else ())


class StructureStage(nn.Module):
    """A part of a network as a stage: a copy of the network that holds the tensors of this part under their own names.

    The copy has the modules of the whole network, so that its forward runs as it is. Modules of other parts hold
    nothing. What the part reads of an earlier one is lent at each run and is no parameter of this stage.

    Args:
        part: The part.
        network: The whole network; its tensors are taken over, not copied.
        owned: Identities of the tensors that belong to the stage.
        read: Identities of the tensors that are read without a call of their module.
    """

    _network: nn.Module
    _part: Part
    _lent: list[tuple[dict[str, Any], str, dict[str, Any]]]

    def __init__(self, part: Part, network: nn.Module, owned: set[int], read: set[int]) -> None:
        super().__init__()
        tensors = [*network.parameters(), *network.buffers()]
        view = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
        for module in view.modules():
            if any(id(tensor) in read & owned for tensor in module._parameters.values()):
                module.weights_are_read = True  # type: ignore[assignment]  # an adapter around it would have no effect
            for tensors_of in (module._parameters, module._buffers):
                for name, tensor in list(tensors_of.items()):
                    if tensor is not None and id(tensor) not in owned:
                        del tensors_of[name]
                        # Sizes and types are still looked at; an expanded zero takes no memory.
                        module.__dict__[name] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for path in part.paths:
            module = view.get_submodule(path)
            module.__dict__["forward"] = part.watch(path, module, module.forward)
        # The network is no module of the stage, or its name would be part of every name; it shares the stage's
        # registries.
        self.__dict__.update(_network=view, _part=part, _lent=[])
        for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[registry] = view.__dict__[registry]

    def lend(self, lender: StructureStage, network: nn.Module, lent: set[int]) -> None:
        """Lets this stage read tensors that another one owns, past the registry: they are trained and moved with their
        owner.
        """
        for path, module in network.named_modules():
            mine, theirs = (stage._network.get_submodule(path) for stage in (self, lender))
            for kind in ("_parameters", "_buffers"):
                for name, tensor in getattr(module, kind).items():
                    if id(tensor) in lent and name in getattr(theirs, kind):
                        del mine.__dict__[name]
                        self._lent.append((getattr(mine, kind), name, getattr(theirs, kind)))

    def forward(self, value: Value) -> Value:
        """Takes the value at the stage's beginning, returns that at its end."""
        network = self._network
        network.training = self.training
        for registry, name, source in self._lent:
            registry[name] = source[name]
        try:
            return self._part(network, value)
        finally:
            for registry, name, _ in self._lent:
                registry.pop(name, None)

    def run_whole(self, stages: Iterable[nn.Module], value: Value) -> Value:
        """Runs the network once from beginning to end with the tensors of all stages, as an exported graph has it.

        Args:
            stages: All stages, this one among them.
            value: The network's input.
        """
        borrowed: list[tuple[nn.Module, str, str, Any]] = []
        for stage in stages:
            assert isinstance(stage, StructureStage)
            for path, module in stage._network.named_modules() if stage is not self else ():
                mine = self._network.get_submodule(path)
                for kind in ("_parameters", "_buffers"):
                    for name, tensor in getattr(module, kind).items():
                        borrowed.append((mine, kind, name, mine.__dict__.pop(name, None)))
                        getattr(mine, kind)[name] = tensor
        self._part.watching = False
        try:
            return self._part.drive(self._network, value)
        finally:
            self._part.watching = True
            for mine, kind, name, empty in borrowed:
                del getattr(mine, kind)[name]
                if empty is not None:
                    mine.__dict__[name] = empty

    def extra_repr(self) -> str:
        """What the stage's results depend on beside its layers; stored activations are kept apart by it."""
        ends = [bound and (bound.key, bound.leaves) for bound in (self._part.start, self._part.stop)]
        return f"{type(self._network).__name__} by {self._part.drive}, from {ends[0]} to {ends[1]}"


@dataclass(frozen=True)
class StructureCut:
    """A network in stages.

    Attributes:
        stages: The stages by name, in order.
        result: What the network gives for the example.
        refused: Places where it could not be cut, with the reason.
    """

    stages: dict[str, nn.Module]
    result: Value
    refused: dict[str, str]


def cut_by_structure(
    network: nn.Module, drive: Drive, examples: Sequence[Value], *, granularity: str = "stage", first: str = "stem"
) -> StructureCut:
    """Cuts a network in front of the layers that it lists.

    Args:
        network: The network; the stages take its tensors over.
        drive: How it is run on a batch, and what is made of its output.
        examples: See `Finder`.
        granularity: ``stage`` cuts lists within lists where a stage would hold more than half of the parameters;
        ``block``
            always.
        first: Name of the stage in front of the first listed layer.

    Raises:
        CutError: If it does not run, or can be cut nowhere.
    """
    with _trainable(network):
        finder = _attempt_finder(network, drive, examples)
        finder.find_still()
        refused: dict[str, str] = {}
        boundaries: list[Boundary] = []
        front: Boundary | None = None  # the layer that the network begins with, if nothing with parameters comes before
        for call in finder.places(granularity):
            try:
                boundaries.append(finder.boundary(call))
            except CutError as error:
                refused[call.key[0]] = str(error)
        while True:
            bounds = [None, *boundaries, None]
            parts = [Part(drive, start, stop, finder.kinds) for start, stop in pairwise(bounds)]
            held = holdings(finder, parts)
            trainable = {id(parameter) for parameter in network.parameters()}
            empty = next((number for number, owned in enumerate(held.owned) if not owned & trainable), None)
            if empty is None or not boundaries:
                break
            # What has no parameters joins the part behind it; at the end, the one in front.
            gone = boundaries.pop(min(empty, len(boundaries) - 1))
            front = gone if empty == 0 else front
    if not boundaries:
        raise CutError(
            next(iter(refused.values()), "it has no layers beside each other that a boundary could lie between")
        )
    for module in finder.still:
        module.__dict__["train"] = Still(module)
        module.eval()
    stages = [StructureStage(part, network, owned, held.read) for part, owned in zip(parts, held.owned, strict=True)]
    for number, stage in enumerate(stages):
        for lender, owned in zip(stages[:number], held.owned, strict=False):
            stage.lend(lender, network, held.lent[number] & owned)
    places = [bound.key[0] for bound in (front, *boundaries) if bound is not None]
    names = _names(places) if front is not None else [first, *_names(places)]
    return StructureCut(dict(zip(names, stages, strict=True)), from_leaves(finder.expected), refused)


def _attempt_finder(network: nn.Module, drive: Drive, examples: Sequence[Value]) -> Finder:
    try:
        return Finder(network, drive, examples)
    except Exception as error:  # a foreign network may raise anything
        raise CutError(f"it does not run on the example: {first_line(error, 200)}") from error


def _names(paths: Sequence[str]) -> list[str]:
    """Names stages by their first layer: list and number, or the whole path where two lists have the same name."""

    def short(path: str) -> str:
        parts = path.split(".")
        named = [number for number, part in enumerate(parts) if not part.isdigit()]
        return "_".join(parts[named[-1] :] if named else ["layer", *parts])

    lists: dict[str, set[str]] = {}
    for path in paths:
        lists.setdefault(short(path).rpartition("_")[0], set()).add(path.rpartition(".")[0])
    unique = {name for name, places in lists.items() if len(places) == 1}
    return [short(path) if short(path).rpartition("_")[0] in unique else path.replace(".", "_") for path in paths]
