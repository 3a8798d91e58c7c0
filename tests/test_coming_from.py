"""docs/coming_from.md: what other libraries' code names exists in them, and our side of each pair runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.backbones.text_models import save_model
from tests.test_docs import blocks, file_name
from tests.tracking.conftest import THIRD_PARTY
from tlresearch import fit
from tlresearch.config.load import load_experiment
from tlresearch.finetuning.presets import build_schedule

PAGE = "docs/coming_from.md"
THEIRS = blocks(PAGE, "py")
OURS = {file_name(body): body for body in blocks(PAGE, "yaml")}
RESNET = ("stem", "layer1", "layer2", "layer3", "layer4")
TINY = {
    "data.image_size": 32,
    "backbone.weights": None,
    "trainer.precision": "32-true",
    "trainer.memory_format": "contiguous",
    "tracking.figures": False,
    "tracking.model": False,
    "tracking.weights": False,
    "trainer.checkpoint_every": 0,
    "tracking.system_metrics": False,
}
pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A reader's folder: the files of the page, photos, texts, and a tiny text encoder."""
    folder = tmp_path_factory.mktemp("reader")
    noise = np.random.default_rng(0)
    for name, body in OURS.items():
        (folder / name).write_text(body)
    for kind, light in (("ants", 60), ("bees", 180)):
        (folder / "data" / "photos" / kind).mkdir(parents=True)
        for number in range(8):
            pixels = (light + noise.integers(-40, 40, (40, 48, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / "photos" / kind / f"{number}.png")
    (folder / "data" / "texts").mkdir()
    for split in ("train", "val"):
        rows = [f"{text} {number},{label}" for number in range(6) for text, label in (("good", "up"), ("bad", "down"))]
        (folder / "data" / "texts" / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    save_model(folder / "weights" / "distilbert", "distilbert", weights=True)
    (folder / "home").mkdir()
    shutil.copy(empty_database, folder / "home" / "mlflow.db")
    return folder


@pytest.fixture(autouse=True)
def at_the_readers(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, name in (("HOME", "home"), ("DATA", "data"), ("WEIGHTS", "weights")):
        monkeypatch.setenv(f"TLRESEARCH_{variable}", str(reader / name))
    monkeypatch.chdir(reader)


def overrides(name: str) -> dict[str, Any]:
    """What makes an experiment of the page small; the schedule stays as it is."""
    if name == "from_trainer.yaml":
        return {**TINY, "data.image_size": None, "backbone.weights": "default", "backbone.name": "hf/distilbert"}
    return TINY


def names_of(tree: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Yields what is imported: module, attribute (empty for the module itself) and the name it gets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module or "", alias.name, alias.asname or alias.name


def dotted(node: ast.expr) -> list[str]:
    """The parts of ``a.b.c``; empty for anything else."""
    if isinstance(node, ast.Name):
        return [node.id]
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else []
    return [*inner, node.attr] if inner and isinstance(node, ast.Attribute) else []


def test_there_is_a_pair_for_each_library() -> None:
    assert len(THEIRS) == len(OURS) == 5


@pytest.mark.parametrize("code", THEIRS, ids=list(OURS))
def test_their_code_parses_and_names_what_exists(code: str) -> None:
    tree = ast.parse(code)
    known: dict[str, Any] = {}
    for module, attribute, name in names_of(tree):
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            found = importlib.import_module(module)
            known[name] = getattr(found, attribute) if attribute else importlib.import_module(module.partition(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [known[name] for name in (dotted(base)[-1] for base in node.bases) if name in known]
            for base in bases:  # methods that are overridden, and those that are called on self
                called = {call.func.attr for call in ast.walk(node) if _on_self(call)}  # type: ignore[attr-defined]
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                assert all(hasattr(base, name) for name in called | methods)
        if isinstance(node, ast.Call) and (parts := dotted(node.func)) and parts[0] in known:
            called_object = known[parts[0]]
            for part in parts[1:]:
                called_object = getattr(called_object, part)
            keywords = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(called_object).bind_partial(*[None] * len(node.args), **keywords)


def _on_self(node: ast.AST) -> bool:
    """Whether it is a call of a method of the class's own, rather than of a layer that the class has made."""
    made = ("head", "backbone")
    return isinstance(node, ast.Call) and dotted(node.func)[:1] == ["self"] and dotted(node.func)[-1] not in made


@pytest.mark.parametrize("name", OURS)
def test_our_side_runs(name: str) -> None:
    short, phases = re.subn(r"(?<!_)epochs: \d+", "epochs: 2", OURS[name])  # the plans are looked at below
    Path(f"short_{name}").write_text(short)
    result = fit(f"short_{name}", overrides(name))
    assert result.status == "finished"
    assert len(result.history) == 2 * phases


def rates(name: str, stages: Sequence[str] = RESNET) -> list[tuple[int, tuple[int, ...], tuple[float, ...]]]:
    """Epochs, trained stages and their rates, the head's last, of each phase."""
    schedule = build_schedule(load_experiment(name, overrides(name)).config, stages)
    return [
        (phase.epochs, phase.stages, tuple(phase.rates[group] for group in (*phase.stages, len(phase.rates) - 1)))
        for phase in schedule.phases
    ]


def test_the_plan_is_that_of_fine_tune() -> None:
    head, everything = rates("from_fastai.yaml")
    assert head == (1, (), (2e-3,))
    assert everything[:2] == (4, (0, 1, 2, 3, 4))
    assert everything[2][-1] == 1e-3
    assert everything[2][0] == pytest.approx(1e-3 / 100, rel=0.05)  # base_lr / 2 / lr_mult


def test_the_plan_is_that_of_the_callback() -> None:
    assert rates("from_lightning.yaml") == [(3, (), (1e-3,)), (5, (4,), (1e-4, 1e-3))]


def test_the_plan_is_that_of_the_schedule_file() -> None:
    head, last, everything = rates("from_finetuning_scheduler.yaml")
    assert (head[0], head[0] + last[0], head[0] + last[0] + everything[0]) == (3, 9, 20)
    assert last[2] == (1e-4, 1e-3)
    assert everything[2] == (1e-5, 1e-5, 1e-5, 1e-5, 1e-4, 1e-3)


def test_the_plan_is_that_of_compiling_twice() -> None:
    (first, none, probe), (second, stages, rest) = rates("from_keras.yaml", [f"stage{number}" for number in range(9)])
    assert (first, none, probe) == (5, (), (1e-3,))
    assert (second, len(stages), set(rest)) == (5, 9, {1e-5})
