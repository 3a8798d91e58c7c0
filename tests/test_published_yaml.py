"""Every YAML in experiments/ and sweeps/ is valid, builds its schedule, and says what it is."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tlresearch.config import checks
from tlresearch.config.load import load_experiment, load_sweep, load_text, load_variants, revise
from tlresearch.config.schema import ExperimentConfig
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


@cache
def variants(path: Path) -> tuple[ExperimentConfig, ...]:
    """What a file holds, read once for all tests that look at it."""
    return tuple(loaded.config for loaded in load_variants(path).values())


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
    references = [config.reference for config in variants(path) if config.reference]
    if not references:
        return
    assert len(references) == len(variants(path)), "a variant without a published number is an experiment of its own"
    assert f"make reproduce EXP={path.relative_to(REPOSITORY / 'experiments').with_suffix('')}" in path.read_text()
    for config in variants(path):
        # A number format chosen by timing would make two reproductions of one machine differ.
        assert config.trainer.precision != "auto"
        assert config.seeds or (config.reference and config.reference.kind == "evaluation")  # nothing is drawn there
    for number in (number for reference in references for number in reference.numbers):
        assert number.value is not None
        assert number.tolerance is not None
        assert 0 < number.value <= 1  # 0.92, not 92: every metric here is a share
        assert 0 < number.tolerance <= 0.12


def test_there_are_published_numbers_of_every_kind() -> None:
    published = [configs for path in EXPERIMENTS if (configs := variants(path)) and configs[0].reference]
    assert len(published) >= 12
    configs = [config for configs in published for config in configs]
    assert {config.reference.kind for config in configs if config.reference} == {
        *("transfer", "baseline", "shift", "evaluation"),
    }
    assert {config.task.name for config in configs} >= {"classification", "tokens", "segmentation", "instances"}
    assert {config.data.name for config in configs} >= {"image_folder", "text_lines", "audio_folder", "torchvision"}
    assert {config.freeze.schedule for config in configs} == {
        *("scratch", "linear_probe", "full", "depth", "phases", "none"),
    }
    assert len({config.reference.source.repository for config in configs if config.reference}) > 6
