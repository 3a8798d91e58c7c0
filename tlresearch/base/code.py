"""Code that something depends on: the files of ours and the user's, and the versions of the libraries they call."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

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
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))


def origin(path: str) -> str:
    """Says where the object at a dotted path comes from: library and version, or a hash of the user's files.

    The hash covers the file that defines the object, and those of the user's that it imports.
    """
    module = path.rpartition(".")[0]
    top = path.partition(".")[0]
    root = file_of(top)
    if top == _OWN or (root is not None and _is_installed(root)):
        return f"{top} {tlresearch.__version__ if top == _OWN or root is None else _version(top, root)}"
    return f"sha256:{code_under({module})}"


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
        root = file_of(top)  # of the package, since asking for the file of a module in it would import it
        if root is not None and top != _OWN and _is_installed(root):
            versions[top] = _version(top, root)
            continue
        file = file_of(name) if name != top else root
        if file is not None:
            files[name] = sha256(file)
            waiting += _imports(file, name)
    return hashlib.sha256(repr((sorted(files.items()), sorted(versions.items()))).encode()).hexdigest()


def _is_installed(file: Path) -> bool:
    return any(file.is_relative_to(folder) for folder in _INSTALLED)


def _version(top: str, root: Path) -> str:
    # Not `__version__`: whether a library has been imported yet must make no difference.
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(top, top))
    except importlib.metadata.PackageNotFoundError:
        return sha256(root)


def file_of(name: str) -> Path | None:
    """Returns the file of a module; ``None`` for what has none, such as a notebook or C code."""
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
