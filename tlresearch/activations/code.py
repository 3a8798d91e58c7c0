"""Hashes of the code that stored values depend on: the files that compute them, and the versions of libraries."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

import tlresearch
from tlresearch.base.files import sha256

_OWN = "tlresearch"
_COMPUTING = (
    f"{_OWN}.data",
    f"{_OWN}.modality",
    f"{_OWN}.backbones",
    f"{_OWN}.activations.inference",
    f"{_OWN}.activations.features",
)
"""Modules of ours that make values; the others read configs, record and report."""
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Distributions that are called otherwise than what is imported; of others the package's first file counts."""
_MEMBERS = 8  # members of a list that are looked at: a list of samples holds one kind
_DEPTH = 4  # levels of nested objects that are searched for classes
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))


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


def code_under(modules: Iterable[str]) -> str:
    """Returns a hash of the code of modules, and of what they import."""
    return _code_under(frozenset(modules))


@functools.cache
def _code_under(modules: frozenset[str]) -> str:
    files: dict[str, str] = {}
    versions = {_OWN: tlresearch.__version__}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in files or (top in versions and top != _OWN) or top in sys.stdlib_module_names:
            continue
        if top == _OWN and not name.startswith(_COMPUTING):
            continue
        root = _file(top)  # of the package, since asking for the file of a module in it would import it
        if root is not None and top != _OWN and any(root.is_relative_to(folder) for folder in _INSTALLED):
            versions[top] = _version(top, root)
            continue
        file = _file(name) if name != top else root
        if file is not None:
            files[name] = sha256(file)
            waiting += _imports(file, name)
    return hashlib.sha256(repr((sorted(files.items()), sorted(versions.items()))).encode()).hexdigest()


def _version(top: str, root: Path) -> str:
    # Not `__version__`: whether a library has been imported yet must make no difference.
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(top, top))
    except importlib.metadata.PackageNotFoundError:
        return sha256(root)


def _file(name: str) -> Path | None:
    """The file of a module; ``None`` for what has none, such as a notebook or C code."""
    try:
        module = sys.modules.get(name)
        origin = module.__file__ if module is not None else getattr(importlib.util.find_spec(name), "origin", None)
    except (AttributeError, ImportError, ValueError):
        return None
    path = Path(origin).resolve() if origin else None
    return path if path is not None and path.is_file() else None


def _imports(file: Path, name: str) -> Iterator[str]:
    """Names that a module may import, wherever in it that stands; not all of them need to be modules."""
    if file.suffix != ".py":
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _home(function: Any) -> str:
    return str(getattr(function, "__module__", None) or "")


def _source_without_file(kind: type) -> str:
    """Returns the source of a class that no module file defines, as in a notebook; empty for any other class."""
    if _file(kind.__module__) is not None:
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
