"""Schedules by name, over a backbone whose stages are counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.finetuning.presets import build_schedule
from tlresearch.finetuning.schedule import FreezeSchedule

STAGES = ("stem", "layer1", "layer2")


def build(**freeze: Any) -> FreezeSchedule:
    overrides = {f"freeze.{key}": value for key, value in freeze.items()}
    text = "data: {name: digits}\nbackbone: {name: small_cnn, weights: null}\noptimizer: {lr: 1.0, layer_lr_decay: 0.5}"
    return build_schedule(load_text(text, overrides).config, STAGES)


def trained(schedule: FreezeSchedule) -> list[tuple[tuple[int, ...], int]]:
    return [(phase.stages, phase.epochs) for phase in schedule.phases]


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ({"schedule": "linear_probe"}, [((), 6)]),
        ({"schedule": "full"}, [((0, 1, 2), 6)]),
        ({"schedule": "scratch"}, [((0, 1, 2), 6)]),
        ({"schedule": "depth", "unfreeze_depth": 0}, [((), 6)]),
        ({"schedule": "depth", "unfreeze_depth": 1}, [((2,), 6)]),
        ({"schedule": "depth", "unfreeze_depth": 3}, [((0, 1, 2), 6)]),
        ({"schedule": "depth", "unfreeze_depth": "all"}, [((0, 1, 2), 6)]),
        ({"schedule": "lp_ft"}, [((), 3), ((0, 1, 2), 3)]),
        ({"schedule": "lp_ft", "probe_epochs": 1}, [((), 1), ((0, 1, 2), 5)]),
        ({"schedule": "gradual"}, [((), 1), ((2,), 1), ((1, 2), 1), ((0, 1, 2), 3)]),
        ({"schedule": "top_down"}, [((0,), 1), ((0, 1), 1), ((0, 1, 2), 4)]),
        ({"schedule": "surgical", "stages": ["layer1"]}, [((1,), 6)]),
        ({"schedule": "surgical", "stages": ["0", "layer2"]}, [((0, 2), 6)]),
        ({"schedule": "norm_only"}, [((0, 1, 2), 6)]),
        ({"schedule": "bias_only"}, [((0, 1, 2), 6)]),
    ],
)
def test_presets(freeze: dict[str, Any], expected: list[tuple[tuple[int, ...], int]]) -> None:
    assert trained(build(epochs=6, **freeze)) == expected


def test_phases_by_fraction_may_freeze_again() -> None:
    phases = [
        {"unfreeze_depth": "all", "fraction": 0.5},
        {"unfreeze_depth": 1, "fraction": 0.25},
        {"stages": ["stem"], "epochs": 2, "head": False},
    ]
    schedule = build(schedule="phases", epochs=8, phases=phases)
    assert trained(schedule) == [((0, 1, 2), 4), ((2,), 2), ((0,), 2)]
    assert not schedule.phases[2].trains(3)


def test_layer_wise_decay_starts_below_the_head() -> None:
    assert build(schedule="full").phases[0].rates == (0.125, 0.25, 0.5, 1.0)


def test_explicit_rates_replace_decayed_ones() -> None:
    phases = [{"unfreeze_depth": "all", "epochs": 1, "lr": 0.1, "stage_lrs": {"stem": 0.7, "head": 0.9}}]
    assert build(schedule="phases", phases=phases).phases[0].rates == (0.7, 0.025, 0.05, 0.9)


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ({"schedule": "depth", "unfreeze_depth": 4}, "must be at most 3, the number of stages"),
        ({"schedule": "surgical", "stages": ["layr1"]}, "there is no stage 'layr1' (did you mean 'layer1'?)"),
        (
            {"schedule": "gradual", "epochs": 3},
            "has 4 phases on this backbone and needs at least 4 epochs, but got 3",
        ),
        (
            {"schedule": "phases", "epochs": 2, "phases": [{"unfreeze_depth": 0, "fraction": 0.1}]},
            "0.1 of 2 epochs is no epoch",
        ),
        (
            {"schedule": "phases", "phases": [{"unfreeze_depth": 0, "epochs": 1, "warmup_epochs": 2}]},
            "the warm-up of 2 epochs leaves nothing of phase '0', which has 1",
        ),
        (
            {"schedule": "phases", "phases": [{"unfreeze_depth": 0, "epochs": 1, "stage_lrs": {"haed": 1}}]},
            "there is no stage 'haed'",
        ),
    ],
)
def test_what_does_not_fit_the_backbone_is_a_clear_error(freeze: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**freeze)
    assert expected in str(caught.value)
