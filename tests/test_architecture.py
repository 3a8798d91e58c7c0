"""The house: imports go downwards, nobody imports through a package's __init__, modules stay readable."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tlresearch"

FLOORS = [
    ["base"],
    ["show"],
    ["config"],
    ["data.values", "data.dicom", "data.decoding"],
    ["modality"],
    ["data.base"],
    ["studies.reproduction.verdict"],
    ["tracking"],
    ["data"],
    ["backbones"],
    ["finetuning"],
    ["activations"],
    ["tasks", "shift.sets"],
    ["serving", "run.progress", "understand.comparison", "studies.sweeps.storage", "studies.sweeps.study"],
    ["run.autotune"],
    ["run.results", "run.devices", "run.training", "run.process", "run.shared"],
    ["run.faults"],
    ["shift"],
    ["run.summary"],
    ["run", "studies.reproduction.present"],
    ["studies.seeds"],
    [
        "understand",
        "export",
        "serving.predict",
        "studies.sweeps.progress",
        "studies.sweeps.result",
        "studies.reproduction.scoreboard",
        "studies.reproduction.verify",
    ],
    ["studies.sweeps.trials", "studies.sweeps.confirm", "studies.sweeps.joining", "studies.reproduction.repeat"],
    ["studies.launch"],
    ["studies.family"],
    ["studies.curve", "studies.shift_pairs"],
    ["studies.sweeps", "studies.reproduction"],
    ["commands"],
    ["cli"],
    ["__init__", "__main__"],
]
"""From the ground up; a module belongs to the longest name that it begins with."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not (name.endswith("__init__") and name != "__init__"):
            found[name] = path
    return found


MODULES = modules()


def floor(module: str) -> int:
    best = (-1, -1)
    for number, names in enumerate(FLOORS):
        for name in names:
            if module == name or module.startswith(f"{name}."):
                best = max(best, (len(name), number))
    assert best[0] > 0, f"tlresearch.{module} is on no floor: add it to FLOORS"
    return best[1]


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, those for type checking only left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tlresearch":
            base = node.module.removeprefix("tlresearch").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in MODULES else base or inner)
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("tlresearch.") for alias in node.names if "tlresearch." in alias.name}
    return found


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    for imported in imports(MODULES[module]):
        if module.rpartition(".")[0] != imported.rpartition(".")[0] or "." not in module:
            assert floor(imported) <= floor(module), f"{module} imports {imported}, which is on a higher floor"


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_through_a_package(module: str) -> None:
    packages = {path.parent.name for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE}
    if module != "tests":
        assert not imports(MODULES[module]) & packages


def test_there_is_no_import_cycle() -> None:
    TopologicalSorter({module: imports(path) - {module} for module, path in MODULES.items()}).prepare()


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
