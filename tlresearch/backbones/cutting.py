"""Cuts a network into stages: finds the boundaries in its traced graph and builds one module per stage."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx, nn

from tlresearch.backbones.grouping import Step, find_blocks, group_blocks, name_groups
from tlresearch.backbones.tracing import BATCH, Shape, TraceError, propagate, strip_head, trace

Granularity = Literal["stage", "block"]

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


@dataclass(frozen=True)
class Cut:
    """A network in stages.

    Attributes:
        stages: One module per stage by name; their parameters are those of the network, not copies.
        out_features: Width of the last stage's output.
        head: Qualified name of the stripped head; ``None`` if the network had none.
    """

    stages: dict[str, nn.Module]
    out_features: int
    head: str | None


def cut(
    model: nn.Module,
    example: Tensor,
    *,
    granularity: Granularity = "stage",
    head: Literal["strip", "none"] = "strip",
    leaves: Iterable[type[nn.Module]] = (),
    functions: Iterable[Callable[..., Any]] = (),
) -> Cut:
    """Cuts `model` into stages that give its output without the head when run one after another.

    Args:
        model: An image classification network.
        example: An input of one sample; only its shape counts.
        granularity: Coarse stages, or single blocks.
        head: Whether the network still has its head, which is then taken off.
        leaves: Module classes not to look into.
        functions: Functions not to look into.

    Raises:
        TraceError: If the network cannot be traced or its output is not a tensor ``(batch, features)``.
    """
    graph = trace(model, leaves=leaves, functions=functions)
    stripped = strip_head(model, graph) if head == "strip" else None
    program = _Program(model, graph, propagate(model, graph, example))
    blocks = find_blocks(model, program.steps, program.boundaries())
    groups = [[block] for block in blocks] if granularity == "block" else group_blocks(blocks)
    bounds = [(group[0].start, group[-1].stop) for group in groups]
    kept = [
        name
        for name, _ in (*model.named_parameters(), *model.named_buffers())
        if stripped is None or not name.startswith(f"{stripped}.")
    ]
    graphs = [program.segment(start, stop) for start, stop in bounds]
    _attach_unused(model, graphs, kept)
    stages = [fx.GraphModule(model, segment, class_name="Stage") for segment in graphs]
    return Cut(dict(zip(name_groups(groups), stages, strict=True)), program.out_features, stripped)


class _Program:
    """The operations that depend on the input, in order, and what each needs and owns."""

    def __init__(self, model: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
        self.model = model
        self.values = values
        (self.input,) = (node for node in graph.nodes if node.op == "placeholder")
        (output,) = (node for node in graph.nodes if node.op == "output")
        self.result = output.args[0]
        shape = values.get(self.result) if isinstance(self.result, fx.Node) else None
        if not isinstance(shape, Shape) or len(shape) != 2 or shape[0] != BATCH:
            raise TraceError(f"{type(model).__name__} does not end in a tensor (batch, features)")
        self.out_features = shape[1]
        dependent = {self.input}
        self.nodes: list[fx.Node] = []
        for node in graph.nodes:
            if node.op != "output" and any(arg in dependent for arg in node.all_input_nodes):
                dependent.add(node)
                self.nodes.append(node)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self._tensors_above: dict[fx.Node, frozenset[int]] = {}
        self.steps = [self._step(index, node) for index, node in enumerate(self.nodes)]

    def _step(self, index: int, node: fx.Node) -> Step:
        owned: frozenset[int] = frozenset()
        if node.op == "call_module":
            owned = _tensors(self.model.get_submodule(str(node.target)))
        for argument in node.all_input_nodes:
            owned |= self._above(argument)
        path = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
        value = self.values.get(node)
        return Step(
            index=index,
            path=str(node.target) if node.op == "call_module" else (path[-1] if path else ""),
            is_module=node.op == "call_module",
            owned=owned,
            shape=tuple(value) if isinstance(value, Shape) else None,
        )

    def _above(self, node: fx.Node) -> frozenset[int]:
        """Tensors behind an operation that needs no input, such as the expansion of a class token."""
        if node in self.position or node is self.input:
            return frozenset()
        if node not in self._tensors_above:
            found: frozenset[int] = frozenset()
            if node.op == "get_attr":
                value = operator.attrgetter(str(node.target))(self.model)
                found = frozenset([id(value)]) if isinstance(value, Tensor) else found
            for argument in node.all_input_nodes:
                found |= self._above(argument)
            self._tensors_above[node] = found
        return self._tensors_above[node]

    def boundaries(self) -> list[bool]:
        """Tells for each operation whether the network can be cut right behind it.

        It can if its result is the only tensor used later, no parameter is used on both sides, and the other
        side does not change the tensor in place (it may lie in a cache).
        """
        end = len(self.nodes)
        last_use = [max([self.position.get(user, end) for user in node.users], default=-1) for node in self.nodes]
        shared = _spans(self.steps)
        # The network's own input counts as live too, as long as it is used.
        input_until = max([self.position.get(user, end) for user in self.input.users], default=-1)
        possible = []
        live: set[int] = set()
        for index, node in enumerate(self.nodes):
            live = {i for i in live if last_use[i] > index}
            if last_use[index] > index:
                live.add(index)
            value = self.values.get(node)
            others = [self.values.get(self.nodes[i]) for i in live if i != index]
            possible.append(
                isinstance(value, Shape)
                and len(value) > 1
                and value[0] == BATCH
                and index in live
                and input_until <= index
                # A batch size is read off the boundary again; any other number would be a guess there.
                and all(type(other) is int and other == BATCH for other in others)
                and not any(first <= index < last for first, last in shared)
                and not any(self._in_place(user) for user in node.users)
            )
        return possible

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.model.get_submodule(str(node.target)), "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_")
        return node.target in _IN_PLACE or bool(node.kwargs.get("inplace", False))

    def segment(self, start: int, stop: int) -> fx.Graph:
        """Builds the graph of the operations ``start`` to ``stop - 1``."""
        graph = fx.Graph()
        before = self.input if start == 0 else self.nodes[start - 1]
        known: dict[fx.Node, Any] = {before: graph.placeholder("x")}

        def resolve(node: fx.Node) -> Any:
            if node not in known:
                if node in self.position:
                    known[node] = graph.call_method("size", (known[before], 0))
                else:
                    copied = graph.node_copy(node, resolve)
                    copied.meta = {}
                    known[node] = copied
            return known[node]

        for node in self.nodes[start:stop]:
            known[node] = graph.node_copy(node, resolve)
            known[node].meta = {}
        graph.output(known[self.nodes[stop - 1]] if stop < len(self.nodes) else known[self.result])
        graph.lint()
        return graph


def _tensors(module: nn.Module) -> frozenset[int]:
    return frozenset(id(tensor) for tensor in (*module.parameters(), *module.buffers()))


def _spans(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """First and last use of every tensor that is used more than once."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step in steps:
        for tensor in step.owned:
            first.setdefault(tensor, step.index)
            last[tensor] = step.index
    return sorted({(first[tensor], last[tensor]) for tensor in first if first[tensor] != last[tensor]})


def _attach_unused(model: nn.Module, graphs: Sequence[fx.Graph], kept: Sequence[str]) -> None:
    """Gives what no operation uses, such as a mask token, to the stage whose modules lie nearest."""
    used: dict[str, int] = {}
    held: set[str] = set()
    for index, graph in enumerate(graphs):
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                used.setdefault(str(node.target), index)
                held.add(str(node.target))
    for name in kept:
        parts = name.split(".")
        if any(".".join(parts[:size]) in held for size in range(1, len(parts) + 1)):
            continue
        nearest = max(used, key=lambda target: _common(parts, target.split(".")), default="")
        graph = graphs[used.get(nearest, 0)]
        with graph.inserting_before(next(iter(graph.nodes)).next):
            # A node keeps the tensor through copies of the module, which keep only what the graph names.
            graph.create_node("get_attr", name)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    size = 0
    while size < min(len(one), len(other)) and one[size] == other[size]:
        size += 1
    return size
