"""Any network as ordered stages: by the first way that works, checked on an example when it is made.

1. ``own``: the network says so itself, by a method ``stages()`` that returns modules by name, to be run one after
another. 2. ``graph``: its traced graph has places behind which a single value is live (`cutting.py`).
3. ``structure``: it lists layers that are alike (`structure.py`).
4. ``children``: its children are stages that can be frozen, but it only runs as a whole, so nothing can be stored
between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.backbones.base import StagedBackbone, Way, evaluating, unchanged
from tlresearch.backbones.cutting import Granularity, cut
from tlresearch.backbones.parts import MASK, CutError
from tlresearch.backbones.recording import Drive, size_of
from tlresearch.backbones.structure import attempt, cut_by_structure, difference, total
from tlresearch.base.errors import UserError, first_line
from tlresearch.modality.values import Value, from_leaves, leaves, unstack

log = logging.getLogger(__name__)

LARGE_SHARE = 0.8
"""A stage with a larger share of the parameters leaves next to nothing to choose by the depth of unfreezing."""
COMPARED = 50_000_000
"""Networks with more parameters are not compared by their gradients: that takes two more copies of them."""
FEW = 4
"""With fewer stages, unfreezing has hardly a depth."""


@dataclass(frozen=True)
class Division:
    """A network in stages.

    Attributes:
        stages: The stages by name, in order.
        way: How they were found.
        reasons: Why the ways before it were not taken.
        result: What the network gives for a batch like the example.
    """

    stages: dict[str, nn.Module]
    way: Way
    reasons: tuple[str, ...]
    result: Value


@dataclass(frozen=True)
class Vector:
    """Runs a network and makes one vector of each sample: the mean over positions, where it gives several.

    Attributes:
        width: Its number of features, which tells the channels of a map from its rows and columns; ``None`` if the
            network does not say it.
    """

    width: int | None = None

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Returns ``(batch, features)``."""
        output = network(value) if isinstance(value, Tensor) else network(**value)
        if not isinstance(output, Tensor):
            raise CutError(f"it returns {type(output).__name__}, not a tensor")
        shape = tuple(output.shape)
        if output.ndim not in (2, 3, 4):
            raise CutError(f"it ends in {shape}, not in (batch, features)")
        if output.ndim == 4:
            axes = [axis for axis in (1, 3) if self.width in (None, shape[axis])]
            if len(axes) != 1:
                raise CutError(f"it ends in {shape}, of which no axis can be told to be the features")
            return output.mean(dim=(1, 2) if axes == [3] else (2, 3))
        return output.mean(dim=1) if output.ndim == 3 else output


class AsItIs:
    """Runs a network and takes what it gives: a tensor, or tensors by name."""

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Returns the network's output."""
        output = network(value) if isinstance(value, Tensor) else network(**value)
        if isinstance(output, Tensor):
            return output
        if isinstance(output, Mapping):
            return {name: leaf for name, leaf in output.items() if isinstance(leaf, Tensor)}
        raise CutError(f"it returns {type(output).__name__}, neither a tensor nor tensors by name")

    def __repr__(self) -> str:
        return "AsItIs()"


def stages(
    network: nn.Module,
    example: Value,
    *,
    drive: Drive | None = None,
    granularity: Granularity = "stage",
    preprocessing: Any = None,
) -> StagedBackbone:
    """Takes any network apart into ordered stages that can be frozen and unfrozen by depth.

    Args:
        network: The network, without its head; its weights become those of the stages.
        example: A batch that it takes: a tensor, or its arguments by name. Values do not matter, shapes do.
        drive: Runs the network on a batch, where calling it is not enough.
        granularity: Coarse stages, or single blocks.
        preprocessing: What inputs must look like, for experiments.

    Returns:
        The backbone; its `way` says how the network was taken apart, and `reasons` why not otherwise.

    Raises:
        UserError: If the network does not run on the example.
    """
    division = divide(network, drive or AsItIs(), example, granularity=granularity)
    report(type(network).__name__, division)
    width = max(leaves(division.result).values(), key=torch.numel).shape[-1]
    return StagedBackbone(
        division.stages,
        out_features=int(width),
        preprocessing=preprocessing,
        way=division.way,
        reasons=division.reasons,
    )


def divide(
    network: nn.Module,
    drive: Drive,
    example: Value,
    *,
    granularity: Granularity = "stage",
    first: str = "stem",
    graph: Callable[[], dict[str, nn.Module]] | None = None,
    traced: bool = True,
) -> Division:
    """Takes a network apart by the first way whose stages give what the network gives.

    Args:
        network: The network, without its head.
        drive: Runs it on a batch and makes of its output what the backbone ends in.
        example: A batch like those it gets; of numbers, new ones are drawn.
        granularity: Coarse stages, or single blocks.
        first: Name of the stage in front of the first listed layer.
        graph: Cuts its traced graph; without it, that of a network whose example is a tensor is cut.
        traced: Whether to look at the graph at all.

    Raises:
        UserError: If the network does not run on the example.
    """
    batches = batches_like(network, drive, example)
    with torch.no_grad(), evaluating(network), unchanged(network):
        result = drive(network, batches[0])
    ways: dict[Way, Callable[[], dict[str, nn.Module]]] = {}
    own = getattr(network, "stages", None)
    if callable(own) and not isinstance(own, nn.Module):
        ways["own"] = lambda: dict(own())
    if graph is not None:
        ways["graph"] = graph
    elif traced and isinstance(batches[0], Tensor):
        ways["graph"] = partial(_by_graph, network, batches[0][:1], granularity)
    ways["structure"] = lambda: cut_by_structure(network, drive, batches, granularity=granularity, first=first).stages
    reasons: list[str] = []
    best: Division | None = None
    for way, make in ways.items():
        try:
            made = attempt(make)
            attempt(partial(check, network, drive, made, batches if way == "structure" else batches[:1]))
        except CutError as error:
            reasons.append(f"{way}: {error}")
            continue
        division = Division(made, way, tuple(reasons), result)
        lump, share = largest_share(made)
        if len(made) >= FEW and share <= LARGE_SHARE:
            return division
        if best is None or len(made) > len(best.stages):
            best = division
        reasons.append(f"{way}: {len(made)} stages, {share:.0%} of the parameters in {lump}")
    return best or Division(children(network, drive), "children", tuple(reasons), result)


def _by_graph(network: nn.Module, example: Tensor, granularity: Granularity) -> dict[str, nn.Module]:
    return cut(network, example, granularity=granularity, head="none").stages


def report(name: str, division: Division) -> None:
    """Says what a user would otherwise find out late: a network that is a lump, or cannot be stored in between."""
    lump, share = largest_share(division.stages)
    why = f" ({'; '.join(division.reasons)})" if division.reasons else ""
    if division.way == "children":
        log.warning(
            "%s runs only as a whole: its %d stages can be frozen, but the activation cache is off%s",
            name,
            len(division.stages),
            why,
        )
    if len(division.stages) < FEW:
        log.warning("%s has %d stage(s), so that unfreezing has hardly a depth%s", name, len(division.stages), why)
    elif share > LARGE_SHARE:
        log.warning("%s: %.0f %% of its parameters are in the stage %s%s", name, 100 * share, lump, why)


def largest_share(made: Mapping[str, nn.Module]) -> tuple[str, float]:
    """Returns the stage with the most parameters, and its share of all."""
    sizes = {name: size_of(stage) for name, stage in made.items()}
    name = max(sizes, key=lambda each: sizes[each])
    return name, sizes[name] / max(1, sum(sizes.values()))


def batches_like(network: nn.Module, drive: Drive, example: Value) -> list[Value]:
    """Makes batches of two and three samples, and one of another length or size of image if the network takes it.

    Numbers are drawn at random, since zeros would hide that two results differ. The first sample of each batch with a
    mask is shorter than the others.

    Raises:
        UserError: If the network does not run on such a batch.
    """
    two, three = (_drawn(example, samples) for samples in (2, 3))
    try:
        with torch.no_grad(), evaluating(network), unchanged(network):
            drive(network, two)
    except Exception as error:  # a foreign network may raise anything
        shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in leaves(two).items())
        raise UserError(
            f"{type(network).__name__} does not run on its example ({shapes}): {first_line(error, 200)}"
        ) from error
    for other in _resized(two):
        try:
            with torch.no_grad(), evaluating(network), unchanged(network):
                drive(network, other)
            return [two, three, other]
        except Exception:  # it does not take this size
            log.debug("%s takes no other size than that of its example", type(network).__name__)
    return [two, three]


def _drawn(example: Value, samples: int) -> Value:
    generator = torch.Generator().manual_seed(samples)
    drawn = {}
    for name, leaf in leaves(example).items():
        rows = leaf[[number % len(leaf) for number in range(samples)]].clone()
        if rows.is_floating_point():
            rows = torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
        elif name == MASK and rows.shape[1] > 2:
            rows[0, -(rows.shape[1] // 3) :] = False
        drawn[name] = rows
    return from_leaves(drawn)


def _resized(batch: Value) -> list[Value]:
    """The batch with a shorter length, or with smaller and larger images."""
    if isinstance(batch, dict) and MASK in batch:
        length = batch[MASK].shape[1]
        shorter = length - length // 4
        return (
            [{n: leaf[:, :shorter] if leaf.shape[1:2] == (length,) else leaf for n, leaf in batch.items()}]
            if shorter < length
            else []
        )
    pictures = {name: leaf for name, leaf in leaves(batch).items() if leaf.ndim == 4 and leaf.is_floating_point()}
    if not pictures:
        return []
    side = max(leaf.shape[-1] for leaf in pictures.values())
    sides = [side - 32, side + 32] if side > 96 else [side + 32]
    return [
        from_leaves({n: functional.interpolate(f, (s, s)) if n in pictures else f for n, f in leaves(batch).items()})
        for s in sides
    ]


def check(network: nn.Module, drive: Drive, made: Mapping[str, nn.Module], batches: Sequence[Value]) -> None:
    """Compares stages with the network that they were made of.

    In eval mode on each batch; in train mode with the same random numbers; the gradients of all parameters; and the
    samples of a padded batch one by one, if the network itself treats them alike.

    Raises:
        CutError: If anything differs.
    """
    in_order = nn.ModuleList(made.values())
    networks = (network, in_order)

    def staged(value: Value) -> Value:
        for stage in in_order:
            value = stage(value)
        return value

    with unchanged(network):  # the stages have its buffers; what they keep of their own stays, as in use
        with torch.no_grad(), evaluating(network), evaluating(in_order):
            for batch in batches:
                _compare(attempt(partial(staged, batch)), drive(network, batch), "in eval mode")
            _check_padding(network, drive, staged, batches[0])
        if size_of(network) <= COMPARED:
            with evaluating(network), evaluating(in_order):
                _check_gradients(network, made, attempt(partial(staged, batches[0])), drive(network, batches[0]))
        modes = [[(layer, layer.training) for layer in each.modules()] for each in networks]
        with torch.no_grad(), torch.random.fork_rng():
            try:
                results = []
                for each, run in ((network, partial(drive, network)), (in_order, staged)):
                    each.train()
                    torch.manual_seed(0)
                    results.append(attempt(partial(run, batches[-1])))
            finally:
                for layer, mode in (pair for pairs in modes for pair in pairs):
                    layer.training = mode
            _compare(results[1], results[0], "in train mode")


def _compare(value: Value, expected: Value, where: str) -> None:
    differs = difference(value, leaves(expected))
    if differs is not None:
        raise CutError(f"its stages give another result {where}: {differs}")


def _check_padding(network: nn.Module, drive: Drive, staged: Callable[[Value], Value], batch: Value) -> None:
    if not isinstance(batch, dict) or MASK not in batch:
        return
    single = from_leaves({name: leaf[None] for name, leaf in leaves(unstack(batch)[0]).items()})
    whole, alone = drive(network, batch), drive(network, single)
    first = from_leaves({name: leaf[None] for name, leaf in leaves(unstack(whole)[0]).items()})
    if difference(first, leaves(alone), 1e-4) is not None:
        log.debug("%s itself gives another result for a padded sample", type(network).__name__)
        return
    differs = difference(attempt(partial(staged, single)), leaves(alone), 1e-4)
    if differs is not None:
        raise CutError(f"its stages give another result for a single sample: {differs}")


def _check_gradients(network: nn.Module, made: Mapping[str, nn.Module], value: Value, expected: Value) -> None:
    held = [parameter for stage in made.values() for parameter in stage.parameters()]
    if len({id(parameter) for parameter in held}) != len(held):
        raise CutError("two of its stages hold the same parameter")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    totals = [total(each, squared=True) for each in (value, expected)]
    if not trained or totals[0] is None or totals[1] is None:
        return
    mine, theirs = (torch.autograd.grad(each, trained, allow_unused=True) for each in totals if each is not None)
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    for name, left, right in zip(names, mine, theirs, strict=True):
        if (left is None) != (right is None):
            raise CutError(f"its stages {'lack' if left is None else 'have'} a gradient of {name}")
        if left is not None and difference(left, {"value": right}, 1e-3) is not None:
            raise CutError(f"its stages have another gradient of {name}")


class Held(nn.Module):
    """Children of a network that runs only as a whole; the inputs pass by.

    Args:
        network: The network.
        paths: Paths of the children.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        super().__init__()
        for path in paths:
            self._modules[path] = network.get_submodule(path)

    def forward(self, value: Value) -> Value:
        """Returns the network's inputs as they are."""
        return value


class Whole(Held):
    """The last children, and the run of the whole network.

    Args:
        network: The network.
        paths: Paths of the children.
        drive: Runs the network.
    """

    _network: nn.Module
    _drive: Drive

    def __init__(self, network: nn.Module, paths: Sequence[str], drive: Drive) -> None:
        super().__init__(network, paths)
        self.__dict__.update(
            _network=network, _drive=drive
        )  # past the registry: earlier stages hold the other children
        for registry in ("_parameters", "_buffers"):
            self.__dict__[registry] = network.__dict__[registry]

    def forward(self, value: Value) -> Value:
        """Runs the network on its inputs."""
        network = self._network
        network.training = self.training
        return self._drive(network, value)


def children(network: nn.Module, drive: Drive) -> dict[str, nn.Module]:
    """Makes the children of a network stages that can be frozen; the last one runs it all.

    What the network holds beside its children is the last stage's.
    """
    names = [name for name, child in network.named_children() if size_of(child)]
    rest = [name for name, _ in network.named_children() if name not in names]
    made: dict[str, nn.Module] = {name: Held(network, [name]) for name in names[:-1]}
    made[names[-1] if names else "backbone"] = Whole(network, [*rest, *names[-1:]], drive)
    return made
