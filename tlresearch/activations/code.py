"""Hashes of the code that stored values depend on: the files that compute them, and the versions of libraries."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from tlresearch.base.code import code_under, file_of

_MEMBERS = 8  # members of a list that are looked at: a list of samples holds one kind
_DEPTH = 4  # levels of nested objects that are searched for classes


def code_of(module: nn.Module) -> str:
    """Returns a hash of what a module computes, without its weights: its layers, their settings and their code.

    The code covers the files that define the classes and the files they import, if these are ours or the user's.
    Installed libraries count by their version.
    """
    kinds, graphs, names = set(), [], set()
    for layer in module.modules():
        if isinstance(layer, GraphModule):  # torch.fx makes this class anew: its generated code says what it does
            graphs.append(layer.code)
            names |= {_home(node.target) for node in layer.graph.nodes if node.op == "call_function"}
        else:
            kinds.add(type(layer))
    sources = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds} | {
        _source_without_file(kind) for kind in kinds
    }
    code = code_under({*names, *(kind.__module__ for kind in kinds)})
    return hashlib.sha256("\n".join([repr(module), *graphs, *sorted(sources), code]).encode()).hexdigest()


def code_behind(value: Any) -> str:
    """Returns a hash of the code of an object and of the objects in it, such as a split with its transforms."""
    return code_under({kind.__module__ for kind in _kinds(value, _DEPTH)})


def _home(function: Any) -> str:
    return str(getattr(function, "__module__", None) or "")


def _source_without_file(kind: type) -> str:
    """Returns the source of a class that no module file defines, as in a notebook; empty for any other class."""
    if file_of(kind.__module__) is not None:
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # the cell is gone, or the class is written in C
        return ""


def _kinds(value: Any, depth: int) -> set[type]:
    kinds = {type(value)}
    members: Iterable[Any] = ()
    if isinstance(value, (list, tuple)):
        members = value[:_MEMBERS]
    elif hasattr(value, "__dict__") and not isinstance(value, (Tensor, type, ModuleType)):
        members = vars(value).values()
    for member in members if depth else ():
        kinds |= _kinds(member, depth - 1)
    return kinds
