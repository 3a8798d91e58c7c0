"""Traces a network into a graph that behaves in train and in eval mode, without its head."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import map_aggregate
from torchvision.ops import StochasticDepth

from tlresearch.backbones.base import evaluating, unchanged

BATCH = 1009
"""Batch size of shape propagation; a prime no other size equals, so that a batch size can be recognised."""

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


class TraceError(Exception):
    """The network cannot be written as one graph that holds in train and in eval mode."""


class _StageTracer(fx.Tracer):
    """Keeps as called modules whatever looks at ``training`` or is a layer of torch, subclasses included."""

    # Otherwise what is computed from buffers alone would be baked in as constants.
    proxy_buffer_attributes = True

    def __init__(self, leaves: tuple[type[nn.Module], ...], functions: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=functions)
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tells whether `m` is called as a whole."""
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        if isinstance(m, (StochasticDepth, *self.leaves)):
            return True
        if "Drop" in type(m).__name__ and not any(True for _ in m.children()):
            return True
        if isinstance(m, containers):
            return False
        layers = (base for base in type(m).__mro__ if base is not nn.Module)
        return any(base.__module__.startswith(("torch.nn", "torch.ao.nn")) for base in layers)


def trace(
    model: nn.Module,
    *,
    leaves: Iterable[type[nn.Module]] = (),
    functions: Iterable[Callable[..., Any]] = (),
) -> fx.Graph:
    """Traces `model` once in train and once in eval mode and merges the two.

    Constants that differ, such as ``training=`` of a functional dropout, become a choice by the ``training``
    flag of the module that runs the graph.

    Args:
        model: A network with one tensor input; further inputs keep their defaults.
        leaves: Further module classes that are called as a whole.
        functions: Functions that are called as a whole.

    Raises:
        TraceError: If the control flow depends on data, or differs between the two modes.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    defaults = {p.name: p.default for p in parameters[1:] if p.default is not inspect.Parameter.empty}
    modes = {name: module.training for name, module in model.named_modules()}
    graphs = []
    try:
        for training in (True, False):
            model.train(training)
            tracer = _StageTracer(tuple(leaves), tuple(functions))
            try:
                graphs.append(tracer.trace(model, concrete_args=defaults or None))
            except Exception as error:  # torch.fx raises whatever the model's control flow makes of a proxy
                raise TraceError(f"{type(model).__name__} cannot be traced: {error}") from error
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
    for name in [name for name in vars(model) if name.startswith("_tensor_constant")]:
        # As a buffer it moves with the model; not persistent, so that no file needs to hold it.
        constant = getattr(model, name)
        delattr(model, name)
        model.register_buffer(name, constant, persistent=False)
    for graph in graphs:
        _drop_further_inputs(graph)
    return _merge(*graphs)


def _drop_further_inputs(graph: fx.Graph) -> None:
    # Their defaults are in the graph as constants; torch.fx only checks that they were given those.
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        _erase(graph, node)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        if user.op == "output":
            raise TraceError("the network returns one of its further inputs")
        _erase(graph, user)
    graph.erase_node(node)


def _merge(train: fx.Graph, evaluation: fx.Graph) -> fx.Graph:
    train_nodes, eval_nodes = list(train.nodes), list(evaluation.nodes)
    if [_operation(node) for node in train_nodes] != [_operation(node) for node in eval_nodes]:
        raise TraceError("the network runs other operations in train than in eval mode")
    counterpart = dict(zip(eval_nodes, train_nodes, strict=True))
    flag: fx.Node | None = None

    def choose(node: fx.Node, in_train: Any, in_eval: Any) -> Any:
        nonlocal flag
        if isinstance(in_train, (tuple, list)) and isinstance(in_eval, (tuple, list)):
            if len(in_train) != len(in_eval):
                raise TraceError(f"the arguments of {node} differ between train and eval mode")
            return type(in_train)(choose(node, a, b) for a, b in zip(in_train, in_eval, strict=True))
        if isinstance(in_train, fx.Node):
            if counterpart.get(in_eval) is not in_train:
                raise TraceError(f"the arguments of {node} differ between train and eval mode")
            return in_train
        if isinstance(in_train, (dict, slice)) or in_train == in_eval:
            return in_train
        if not isinstance(in_train, (bool, int, float, str)):
            raise TraceError(f"the arguments of {node} differ between train and eval mode")
        if flag is None:
            with train.inserting_before(train_nodes[0]):
                flag = train.create_node("get_attr", "training")
        with train.inserting_before(node):
            return train.call_function(operator.getitem, ((in_eval, in_train), flag))

    for here, there in zip(train_nodes, eval_nodes, strict=True):
        here.args = tuple(choose(here, a, b) for a, b in zip(here.args, there.args, strict=True))
        here.kwargs = {key: choose(here, value, there.kwargs[key]) for key, value in here.kwargs.items()}
    return train


def _operation(node: fx.Node) -> tuple[str, Any]:
    # Constants met while tracing are numbered on, from the first trace to the second.
    constant = isinstance(node.target, str) and node.target.startswith("_tensor_constant")
    return node.op, "_tensor_constant" if constant else node.target


def strip_head(model: nn.Module, graph: fx.Graph) -> str | None:
    """Ends the graph in front of the last linear layer and the dropout before it.

    A network without a linear layer (SqueezeNet) ends in front of its last convolution; global average
    pooling and flattening are added there.

    Returns:
        Qualified name of the head.

    Raises:
        TraceError: If the network has neither a linear layer nor a convolution.
    """
    for kinds in ((nn.Linear,), (nn.Conv2d,)):
        layers = [n for n in graph.nodes if n.op == "call_module" and isinstance(_submodule(model, n), kinds)]
        if layers:
            break
    else:
        raise TraceError(f"{type(model).__name__} has no linear layer and no convolution that could be its head")
    head = layers[-1]
    value = head.args[0]
    while isinstance(value, fx.Node) and value.op == "call_module":
        if not isinstance(_submodule(model, value), nn.modules.dropout._DropoutNd):
            break
        value = value.args[0]
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        if isinstance(_submodule(model, head), nn.Conv2d):
            value = graph.call_function(nn.functional.adaptive_avg_pool2d, (value, (1, 1)))
            value = graph.call_method("flatten", (value, 1))
    output.args = (value,)
    # Not eliminate_dead_code: assertions about the input's size are dead too, and worth keeping.
    for node in reversed(list(graph.nodes)):
        if node.op not in ("output", "placeholder") and not node.users and not _is_check(node):
            graph.erase_node(node)
    return str(head.target)


def _submodule(model: nn.Module, node: fx.Node) -> nn.Module:
    return model.get_submodule(str(node.target))


def _is_check(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "_assert"


class _Shapes(fx.Interpreter):
    """Runs a graph on fake tensors and notes every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        result = super().run_node(n)
        self.values[n] = map_aggregate(result, _snapshot)
        return result


class Shape(tuple[int, ...]):
    """Shape of a tensor; what shape propagation keeps of it."""


def _snapshot(value: Any) -> Any:
    return Shape(value.shape) if isinstance(value, Tensor) else value


def propagate(model: nn.Module, graph: fx.Graph, example: Tensor) -> dict[fx.Node, Any]:
    """Returns every node's value for a batch of `BATCH` samples like `example`, tensors as their `Shape`.

    Nothing is computed: the samples are fake tensors.

    Raises:
        TraceError: If an operation does not work on fake tensors or on an input of this shape.
    """
    try:
        with unchanged(model), evaluating(model), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            sample = mode.from_tensor(example)
            batch = sample.expand(BATCH, *example.shape[1:]).contiguous()
            assert isinstance(batch, FakeTensor)
            shapes = _Shapes(fx.GraphModule(model, graph))
            shapes.run(batch)
    except Exception as error:  # any operation of a foreign network may refuse the shape
        raise TraceError(f"{type(model).__name__} does not run on an input {tuple(example.shape)}: {error}") from error
    return shapes.values
