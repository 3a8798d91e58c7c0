"""The key of a stored value follows the code that made it: helpers, decoders, libraries."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tlresearch
from tests.finetuning.test_callback import make_phase
from tests.toy import toy_backbone, toy_data
from tlresearch.activations.code import code_behind, code_of
from tlresearch.activations.plan import FrozenPrefix
from tlresearch.activations.store import ActivationStore
from tlresearch.base import code
from tlresearch.base.code import code_under
from tlresearch.data.images import ImageSplit

NETWORK = """
from torch import nn
from fault_lab.helpers import scale

class Scaled(nn.Module):
    def forward(self, x):
        return scale(x)
"""
SPLIT = """
from tests.toy import ToySplit
from fault_lab.helpers import scale

class Lab(ToySplit):
    def __getitem__(self, key):
        inputs, *rest = super().__getitem__(key)
        return (scale(inputs), *rest)
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user's own, with a network and a split that call a helper; gives the helper's file."""
    package = tmp_path / "fault_lab"
    package.mkdir()
    helper = package / "helpers.py"
    for name, text in {"__init__": "", "network": NETWORK, "split": SPLIT}.items():
        (package / f"{name}.py").write_text(text)
    helper.write_text("def scale(x):\n    return x * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield helper
    for name in ("", ".network", ".split", ".helpers"):
        sys.modules.pop(f"fault_lab{name}", None)
    code._code_under.cache_clear()


def made(name: str) -> Any:
    module, _, kind = name.rpartition(".")
    return getattr(importlib.import_module(module), kind)


def edit(helper: Path, text: str) -> None:
    """Changes a file as between two processes: what this one has hashed is hashed again."""
    helper.write_text(text)
    code._code_under.cache_clear()


def test_a_helper_of_a_stage_is_part_of_its_code(lab: Path) -> None:
    stage = nn.Sequential(made("fault_lab.network.Scaled")())
    before = code_of(stage)
    assert code_of(stage) == before
    edit(lab, "def scale(x):\n    return x * 3\n")
    assert code_of(stage) != before


def test_activations_are_computed_again_after_a_helper_of_the_data_changed(lab: Path, tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "cache", max_bytes=10**9)

    def passes() -> int:
        split = made("fault_lab.split.Lab")(8, 0, noisy=False)
        data = replace(toy_data(), splits={"train": split, "val": split})
        prefix = FrozenPrefix(data, toy_backbone(), store, batch_size=4)
        prefix.enter(make_phase(0))
        return prefix.passes

    assert (passes(), passes()) == (2, 0)
    edit(lab, "def scale(x):\n    return x * 3\n")
    assert passes() == 2


def test_code_that_decodes_and_resizes_counts_and_code_that_reports_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = object.__new__(ImageSplit)
    file, whole = code.file_of, code_behind(split)
    for name, counts in {"tlresearch.modality.decoding": True, "tlresearch.data.transforms": True,
                         "tlresearch.base.errors": False}.items():  # fmt: skip
        changed = tmp_path / f"{name}.py"
        shutil.copy(str(file(name)), changed)
        changed.write_text(f"{changed.read_text()}\n# changed\n")
        code._code_under.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(code, "file_of", lambda n, one=name, at=changed: at if n == one else file(n))
            assert (code_behind(split) != whole) is counts, name
    code._code_under.cache_clear()


@pytest.mark.parametrize("library", ["torch", "torchvision", "pillow"])
def test_another_version_of_a_library_is_other_code(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split, version = object.__new__(ImageSplit), importlib.metadata.version
    before = code_behind(split)
    code._code_under.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == library else version(name))
    assert code_behind(split) != before
    code._code_under.cache_clear()


def test_another_version_of_ours_is_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_under(["torch"])
    code._code_under.cache_clear()
    monkeypatch.setattr(tlresearch, "__version__", "99")
    assert code_under(["torch"]) != before
    code._code_under.cache_clear()
