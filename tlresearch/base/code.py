"""Hashes of code: our files and the user's with all that they import, and the versions of libraries."""

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
"""Our modules that compute values. A change of the others, which read configs, record and report, changes no hash."""
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
"""Distributions whose name differs from that of the imported package."""
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib"))


def origin(path: str) -> str:
    """Returns the origin of the object at a dotted path: library and version, or a hash of the user's files.

    The hash covers the file that defines the object, and the user's files that it imports.
    """
    module = path.rpartition(".")[0]
    top = path.partition(".")[0]
    root = file_of(top)
    if top == _OWN or (root is not None and _is_installed(root)):
        return f"{top} {tlresearch.__version__ if top == _OWN or root is None else _version(top, root)}"
    return f"sha256:{code_under({module})}"


def code_under(modules: Iterable[str]) -> str:
    """Returns a hash of the code of modules and of everything that they import."""
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
        # The file of the package first: to look up a module in a package, Python would import the package.
        root = file_of(top)
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
    # Not `__version__`, which exists only once the library is imported: the hash must not depend on that.
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(top, top))
    except importlib.metadata.PackageNotFoundError:  # the distribution has another name: hash the package's first file
        return sha256(root)


def file_of(name: str) -> Path | None:
    """Returns the file of a module; ``None`` if it has none, as a notebook or a module in C."""
    try:
        module = sys.modules.get(name)
        origin = module.__file__ if module is not None else getattr(importlib.util.find_spec(name), "origin", None)
    except (AttributeError, ImportError, ValueError):
        return None
    path = Path(origin).resolve() if origin else None
    return path if path is not None and path.is_file() else None


def _imports(file: Path, name: str) -> Iterator[str]:
    """Yields names that a module may import, also within functions; some are no modules but objects in them."""
    if file.suffix != ".py":
        return
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import: `from ..x import y` has level 2, one above the own package.
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
