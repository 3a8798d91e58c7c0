"""Which of the possible boundaries are used: blocks, their grouping into stages, and the names of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt, prod

from torch import nn

from tlresearch.backbones.tracing import NORMS

MOST_STAGES = 14
"""With more stages than this, only a clear change of resolution starts one."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Step:
    """One operation of the network that depends on its input.

    Attributes:
        index: Position among these operations.
        path: Qualified name of the module it belongs to, or of the called layer itself.
        is_module: Whether it calls a layer.
        owned: Identities of the parameters and buffers it uses.
        shape: Shape of its result if that is a tensor.
    """

    index: int
    path: str
    is_module: bool
    owned: frozenset[int]
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Block:
    """Consecutive operations that stay together.

    Attributes:
        start: First operation.
        stop: Operation to stop before.
        paths: Modules in it that carry its weights, in order.
        unit: Class of the first of them if that is a module made of layers, else ``None``.
        shape: Shape behind its last layer with weights, before any pooling.
    """

    start: int
    stop: int
    paths: tuple[str, ...]
    unit: type[nn.Module] | None
    shape: tuple[int, ...]

    @property
    def container(self) -> str:
        """Top-level container it lies in; empty for a layer directly in the network."""
        return self.paths[0].partition(".")[0] if "." in self.paths[0] else ""

    @property
    def extent(self) -> tuple[int, int]:
        """Size and side of the feature map, which tell tokens from images only where they differ."""
        return prod(self.shape), self.side

    @property
    def side(self) -> int:
        """Side of the feature map; 1 without one."""
        if len(self.shape) == 4:
            return self.shape[3] if self.shape[2] == self.shape[3] else self.shape[1]
        return isqrt(self.shape[1]) if len(self.shape) == 3 else 1


def find_blocks(model: nn.Module, steps: Sequence[Step], possible: Sequence[bool]) -> list[Block]:
    """Chooses blocks: a residual or transformer block each, or a single layer outside of those.

    A block begins with a layer that has weights; what follows without weights (activation, pooling) and norms
    belong to it, a dropout belongs to the layer behind it.
    """
    units = _Units(model)
    unit_of = [units.of(step.path) for step in steps]
    span: dict[str, tuple[int, int]] = {}
    for index, unit in enumerate(unit_of):
        if unit is not None:
            span[unit] = (span.get(unit, (index, index))[0], index)
    bearing = [step.index for step in steps if step.owned]
    starters = [i for i in bearing if _starts(model, steps[i], unit_of[i])]
    cuts: list[int] = []
    for starter in starters[1:]:
        previous = max(i for i in bearing if i < starter)
        window = [
            i
            for i in range(previous, starter)
            if possible[i] and not any(first <= i < last for first, last in _around(unit_of, span, i))
        ]
        if window:
            dropout = next((i for i in range(previous, starter) if _is_dropout(model, steps[i])), starter)
            early = [i for i in window if i < dropout]
            cuts.append(early[-1] if early else window[-1])
    bounds = [0, *(i + 1 for i in cuts), len(steps)]
    return [_block(model, steps, unit_of, starters, start, stop) for start, stop in pairwise(bounds)]


def _block(
    model: nn.Module,
    steps: Sequence[Step],
    unit_of: Sequence[str | None],
    starters: Sequence[int],
    start: int,
    stop: int,
) -> Block:
    paths = dict.fromkeys(unit_of[i] or steps[i].path for i in starters if start <= i < stop)
    shapes = [step.shape for step in steps[start:stop] if step.shape is not None]
    # Not a norm behind the last pooling: its resolution is not that of the block.
    weighted = [
        step.shape
        for step, unit in zip(steps[start:stop], unit_of[start:stop], strict=True)
        if step.owned and step.shape is not None and (unit or step.path) in paths
    ]
    first = next((i for i in starters if start <= i < stop), None)
    unit = unit_of[first] if first is not None else None
    return Block(
        start=start,
        stop=stop,
        paths=tuple(paths) or (steps[start].path,),
        unit=type(model.get_submodule(unit)) if unit is not None else None,
        shape=(weighted or shapes or [()])[-1],
    )


def _around(unit_of: Sequence[str | None], span: dict[str, tuple[int, int]], index: int) -> list[tuple[int, int]]:
    unit = unit_of[index]
    if unit is not None:
        return [span[unit]]
    # An operation outside may still run between two of a module that is called twice.
    return [(first, last) for first, last in span.values() if first <= index < last]


def _starts(model: nn.Module, step: Step, unit: str | None) -> bool:
    if unit is None and not step.is_module:
        return False
    module = model.get_submodule(unit if unit is not None else step.path)
    return not isinstance(module, NORMS) and any(p.ndim > 1 for p in module.parameters())


def _is_dropout(model: nn.Module, step: Step) -> bool:
    return step.is_module and "Dropout" in type(model.get_submodule(step.path)).__name__


class _Units:
    """Finds the block (in the sense of the network's author) a module lies in."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.known: dict[str, bool] = {"": False}

    def of(self, path: str) -> str | None:
        """Returns the outermost unit around `path`."""
        parts = path.split(".")
        for size in range(1, len(parts) + 1):
            prefix = ".".join(parts[:size])
            if prefix not in self.known:
                self.known[prefix] = self._is_unit(self.model.get_submodule(prefix))
            if self.known[prefix]:
                return prefix
        return None

    def _is_unit(self, module: nn.Module) -> bool:
        if type(module) in _CONTAINERS or not any(True for _ in module.children()):
            return False
        return _is_built(module) and not any(_lists_blocks(inner) for inner in module.modules())


def _is_built(module: nn.Module) -> bool:
    """Tells modules made of layers from the layers of torch and what inherits from them."""
    bases = (base for base in type(module).__mro__ if base not in (nn.Module, *_CONTAINERS))
    has_weights = any(True for _ in module.parameters())
    return has_weights and not any(base.__module__.startswith("torch.nn") for base in bases)


def _lists_blocks(module: nn.Module) -> bool:
    """Tells whether a container lists modules of one class that are made of layers themselves."""
    if not isinstance(module, _CONTAINERS):
        return False
    kinds = {type(child): child for child in module.children() if any(True for _ in child.parameters())}
    if len(kinds) != 1:
        return False
    (child,) = kinds.values()
    return _is_built(child) and not isinstance(child, _CONTAINERS) and any(True for _ in child.children())


def group_blocks(blocks: Sequence[Block]) -> list[list[Block]]:
    """Groups blocks into stages: a new one where resolution or width changes or a container ends.

    A plain transformer, which never changes either, has one stage per layer.
    """
    groups = _group(blocks, coarse=False)
    largest = max(groups, key=len)
    if len(groups) <= 3 and len(largest) >= 4 and 2 * len(largest) > len(blocks):
        return [part for group in groups for part in ([[b] for b in group] if group is largest else [group])]
    return groups if len(groups) <= MOST_STAGES else _group(blocks, coarse=True)


def _group(blocks: Sequence[Block], *, coarse: bool) -> list[list[Block]]:
    counts = [block.unit for block in blocks if block.unit is not None and not issubclass(block.unit, _CONTAINERS)]
    repeated = {unit for unit in counts if counts.count(unit) > 1}
    first = next((index for index, block in enumerate(blocks) if block.unit in repeated), 0)
    groups = [[blocks[0]]]
    for index, (before, block) in enumerate(pairwise(blocks), start=1):
        low, high = sorted((before.side, block.side))
        changed = 2 * high >= 3 * low if coarse else before.extent != block.extent
        if changed or before.container != block.container or index == first:
            groups.append([block])
        else:
            groups[-1].append(block)
    return groups


def name_groups(groups: Sequence[Sequence[Block]]) -> list[str]:
    """Names stages after the modules in them: short, unique and the same for every build of a network."""
    paths = [[path for block in group for path in block.paths] for group in groups]
    paths = [[_climb(path, paths[:i] + paths[i + 1 :]) for path in own] for i, own in enumerate(paths)]
    full = [_name(own) for own in paths]
    if len(full) == 1:
        return ["backbone"]
    short = [_shorten(name) if len(set(own)) == 1 else name for name, own in zip(full, paths, strict=True)]
    tops = {f.partition(".")[0] for s, f in zip(short, full, strict=True) if short.count(s) > 1}
    names = [f if f.partition(".")[0] in tops else s for s, f in zip(short, full, strict=True)]
    if "." not in full[0] and "stem" not in names:
        names[0] = "stem"
    return [n if names.count(n) == 1 else f"{n}_{names[:i].count(n)}" for i, n in enumerate(names)]


def _climb(path: str, elsewhere: Sequence[Sequence[str]]) -> str:
    """Returns the largest module around `path` that lies in no other stage."""
    others = [other for paths in elsewhere for other in paths]
    while "." in path:
        parent = path.rpartition(".")[0]
        if any(other == parent or other.startswith(f"{parent}.") for other in others):
            break
        path = parent
    return path


def _name(paths: Sequence[str]) -> str:
    split = list(dict.fromkeys(tuple(path.split(".")) for path in paths))
    if len(split) == 1:
        return ".".join(split[0])
    size = 0
    while all(len(parts) > size for parts in split) and len({parts[size] for parts in split}) == 1:
        size += 1
    rest = [".".join(parts[size:]) for parts in split]
    return ".".join((*split[0][:size], f"{rest[0]}-{rest[-1]}"))


def _shorten(name: str) -> str:
    parts = name.split(".")
    named = [index for index, part in enumerate(parts) if not part[0].isdigit()]
    return ".".join(parts[named[-1] :]) if named else name
