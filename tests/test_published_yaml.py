"""Every YAML in experiments/ and sweeps/ is valid, builds its schedule, and says what it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tlresearch.config import checks
from tlresearch.config.load import load_experiment, load_sweep, load_text, load_variants, revise
from tlresearch.config.search_space import resolve_all

EXPERIMENTS = sorted((REPOSITORY / "experiments").rglob("*.yaml"))
SWEEPS = sorted((REPOSITORY / "sweeps").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def _data_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that a user downloads need not be here for a YAML to be right."""
    monkeypatch.setattr(checks, "find_data", Path)
    monkeypatch.setattr(checks, "find_weights", Path)


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def test_there_are_some() -> None:
    assert EXPERIMENTS
    assert SWEEPS


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiments_are_complete(path: Path) -> None:
    loaded = load_experiment(path)
    assert load_text(loaded.recorded).config == loaded.config
    assert loaded.config.tracking.experiment == path.parent.name


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_sweeps_fit_their_experiments(path: Path) -> None:
    sweep = load_sweep(path).config
    base = revise(load_experiment(sweep.experiment), sweep.overrides)
    for key, dimension in resolve_all(sweep.space, stages=4).items():
        for value in dimension.choices or (dimension.low, dimension.high):
            whole = key.endswith("depth") and value is not None
            revise(base, {key: int(value) if whole else value})
    for overrides in sweep.baselines.values():
        revise(base, overrides)


@pytest.mark.parametrize("path", EXPERIMENTS + SWEEPS, ids=name)
def test_the_header_says_purpose_command_and_time(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert len(header) >= 2
    assert "make run EXP=" in text or "make sweep SWEEP=" in text
    assert re.search(r"second|minute|hour|\d s\b", text)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_published_numbers_are_complete(path: Path) -> None:
    variants = load_variants(path)
    references = [loaded.config.reference for loaded in variants.values()]
    if not any(references):
        return
    assert all(references), "a variant without a published number belongs into an experiment of its own"
    assert f"make reproduce EXP={path.relative_to(REPOSITORY / 'experiments').with_suffix('')}" in path.read_text()
    for loaded in variants.values():
        # A number format chosen by timing would make two reproductions of one machine differ.
        assert loaded.config.trainer.precision != "auto"
        assert loaded.config.seeds


def test_there_are_published_numbers_of_every_kind() -> None:
    found = [load_variants(path) for path in EXPERIMENTS]
    references = [loaded.config.reference for variants in found for loaded in variants.values()]
    assert {reference.kind for reference in references if reference} == {"transfer", "baseline", "shift"}
