"""`auto` becomes what is fastest here, is remembered, and is recorded with the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_text
from tlresearch import fit
from tlresearch.config.load import load_text
from tlresearch.run import autotune
from tlresearch.run.autotune import Way
from tlresearch.tracking.store import connect

AUTO = "{checkpoint_seconds: 0}"
TIMES = {
    ("32-true", "contiguous"): 1.0,
    ("32-true", "channels_last"): 0.8,
    ("bf16-mixed", "contiguous"): 0.9,
    ("bf16-mixed", "channels_last"): 0.2,
}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """What was timed; every way is run once for real, and then takes the time of `TIMES`."""
    ways: list[Way] = []

    def times(runs: Mapping[Way, Callable[[], None]], device: torch.device) -> dict[Way, float]:
        for way, run in runs.items():
            run()
            ways.append(way)
        return {way: TIMES[way] for way in runs}

    monkeypatch.setattr(autotune, "_time_all", times)
    return ways


def tags(run_id: str) -> dict[str, str]:
    found: dict[str, str] = connect().client.get_run(run_id).data.tags
    return found


def test_the_fastest_way_is_taken_and_recorded(timed: list[Way]) -> None:
    result = fit(load_text(toy_text(trainer=AUTO)))
    assert set(timed) == set(TIMES)
    recorded = tags(result.run_id)
    assert recorded["resolved.trainer.precision"] == "bf16-mixed"
    assert recorded["resolved.trainer.memory_format"] == "channels_last"
    path = connect().client.download_artifacts(result.run_id, "provenance/autotune.json")
    figures = json.loads(Path(path).read_text())
    assert figures["step from stage 0 bf16-mixed channels_last"] == 0.2
    assert result.task.memory_format == "channels_last"


def test_what_was_timed_once_is_remembered(timed: list[Way]) -> None:
    fit(load_text(toy_text(trainer=AUTO)))
    timed.clear()
    fit(load_text(toy_text(trainer=AUTO) + "\nseed: 1"))
    assert timed == []


def test_what_the_config_says_is_not_timed(timed: list[Way]) -> None:
    result = fit(load_text(toy_text()))
    assert timed == []
    assert tags(result.run_id)["resolved.trainer.precision"] == "32-true"
    fit(load_text(toy_text(trainer="{precision: 32-true}")))
    assert {precision for precision, _ in timed} == {"32-true"}


def test_bfloat16_must_be_clearly_faster() -> None:
    close = {("32-true", "contiguous"): 1.0, ("bf16-mixed", "contiguous"): 0.95}
    assert autotune._fastest(close) == ("32-true", "contiguous")
    assert autotune._fastest({**close, ("bf16-mixed", "contiguous"): 0.85}) == ("bf16-mixed", "contiguous")


def test_so_must_the_usual_order_in_memory() -> None:
    close = {("bf16-mixed", "contiguous"): 0.95, ("bf16-mixed", "channels_last"): 1.0}
    assert autotune._fastest(close) == ("bf16-mixed", "channels_last")
    assert autotune._fastest({**close, ("bf16-mixed", "contiguous"): 0.85}) == ("bf16-mixed", "contiguous")


def test_what_is_hopeless_is_not_timed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Way] = []
    monkeypatch.setattr(autotune, "_seconds", lambda run, device: run() or TIMES[taken[-1]])
    ways = dict.fromkeys(TIMES, 0)

    def measure(way: Way) -> Callable[[], None]:
        def run() -> None:
            taken.append(way)
            ways[way] += 1

        return run

    best = autotune._time_all({way: measure(way) for way in TIMES}, torch.device("cpu"))
    assert best == TIMES
    assert ways == {way: 1 if time > 0.4 else 1 + autotune.STEPS for way, time in TIMES.items()}


def test_heads_alone_are_not_timed_but_their_frozen_stages_are(timed: list[Way]) -> None:
    result = fit(load_text(toy_text(trainer=AUTO, freeze="{schedule: linear_probe, epochs: 1}")))
    recorded = tags(result.run_id)
    assert recorded["resolved.trainer.precision"] == "32-true"
    assert recorded["resolved.cache.precision"] == "bf16-mixed"


def test_timing_leaves_no_trace_in_the_result(timed: list[Way]) -> None:
    """Weights, statistics and random numbers are those of a run that is told the same settings."""
    chosen = fit(load_text(toy_text(trainer=AUTO)))
    told = "{precision: bf16-mixed, memory_format: channels_last, checkpoint_seconds: 0}"
    same = fit(load_text(toy_text(trainer=told, cache="{precision: bf16-mixed, memory_format: channels_last}")))
    assert chosen.history == same.history
    for name, tensor in chosen.task.state_dict().items():
        assert torch.equal(tensor, same.task.state_dict()[name]), name


def test_the_memory_format_changes_nothing_but_the_order_in_memory(timed: list[Way]) -> None:
    results: list[Any] = [
        fit(load_text(toy_text(trainer=f"{{precision: 32-true, memory_format: {each}, checkpoint_seconds: 0}}")))
        for each in ("contiguous", "channels_last")
    ]
    for one, other in zip(results[0].history, results[1].history, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
