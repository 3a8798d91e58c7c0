"""The house: imports go downwards, nobody imports through a package's __init__, modules stay readable."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tlresearch"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

FLOORS = [
    ["base", "show"],
    ["config", "modality"],
    ["tracking", "data"],
    ["backbones"],
    ["finetuning", "drafting"],
    ["activations"],
    ["tasks"],
    ["serving"],
    ["run"],
    ["understand", "export"],
    ["studies"],
    ["commands", "__init__"],
]
"""Packages from the ground up. Two on one floor don't import each other, not even for types."""

LONGEST = 60
"""Lines of a function, its docstring among them."""


def modules() -> dict[str, Path]:
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: names[name] for name in sorted(names) if not name.endswith(".__init__")}


MODULES = modules()


def floor(module: str) -> int:
    best = (-1, -1)
    for number, names in enumerate(FLOORS):
        for name in names:
            if package(module) == name or module == name or module.startswith(f"{name}."):
                best = max(best, (len(name), number))
    assert best[0] > 0, f"tlresearch.{module} is on no floor: add it to FLOORS"
    return best[1]


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, those for types only among them."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tlresearch":
            base = node.module.removeprefix("tlresearch").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                imported.add(inner if inner in MODULES else base or "__init__")
        elif isinstance(node, ast.Import):
            imported |= {alias.name.removeprefix("tlresearch.") for alias in node.names if "tlresearch." in alias.name}
    return imported


def package(module: str) -> str:
    return "commands" if module in ("cli", "__main__") else module.split(".")[0]  # the command line is one thing


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    for imported in imports(MODULES[module]):
        if package(imported) != package(module):
            assert floor(imported) < floor(module), f"{module} imports {imported}, which is not on a lower floor"


def test_floors_are_whole_packages() -> None:
    assert len(FLOORS) <= 12
    assert {name for names in FLOORS for name in names} >= {package(module) for module in MODULES}


def test_nobody_imports_through_a_package() -> None:
    packages = {".".join(path.relative_to(PACKAGE).parent.parts) for path in PACKAGE.rglob("__init__.py")} - {""}
    assert packages
    assert not {module: both for module, path in MODULES.items() if (both := imports(path) & packages)}


def test_there_is_no_import_cycle() -> None:
    TopologicalSorter({module: imports(path) - {module} for module, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short(module: str) -> None:
    functions = [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, FUNCTIONS)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_own(module: str) -> None:
    text = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says in one sentence what it owns"
    assert not module.rpartition(".")[2].endswith(("utils", "helpers", "common", "misc"))


def test_only_tracking_uses_mlflow() -> None:
    """Others may name its types."""
    users = {module for module, path in MODULES.items() if "mlflow" in foreign_imports(path)}
    assert users
    assert {user.split(".")[0] for user in users} == {"tracking"}


def test_a_store_is_opened_in_few_places_and_handed_down() -> None:
    """By `Runs`, and by those who write to it."""
    users = {module for module, path in MODULES.items() if re.search(r"(?<!def )\bconnect\(", path.read_text())}
    assert users - {"base.exclusive", "tracking.database", "tracking.store", "studies.sweeps.storage"} == {
        "tracking.records",
        "tracking.run",
        "tracking.courier",
        "commands.sync",
        "tracking.ui",
    }


def foreign_imports(path: Path) -> set[str]:
    """Packages that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found
