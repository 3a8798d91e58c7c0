"""Parts by name: what a section may say, what is made of it, and one line for whatever is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_load import GOOD
from tlresearch.base.code import _code_under
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.config.parts import check_own, identities, make
from tlresearch.config.schema import OptimizerConfig, type_of


def test_an_argument_beside_the_name_is_one_of_the_options() -> None:
    beside = load_text(GOOD)
    within = load_text(GOOD.replace("momentum: 0.9", "options: {momentum: 0.9}"))
    assert beside.config.optimizer.options == {"momentum": 0.9}
    assert beside == within
    assert load_text(beside.recorded) == beside
    assert type_of("optimizer.momentum") == (float | None)


def test_the_last_word_counts() -> None:
    loaded = load_text(GOOD, {"optimizer.momentum": 0.5})
    assert loaded.config.optimizer.options == {"momentum": 0.5}
    assert load_text(loaded.recorded, ["optimizer.nesterov=true"]).config.optimizer.options == {
        "momentum": 0.5,
        "nesterov": True,
    }


def test_a_missing_argument_is_the_parts_own_default() -> None:
    import torch

    weights = [torch.nn.Parameter(torch.zeros(2))]
    made = make(OptimizerConfig(name="adamw"), "optimizer", weights, lr=0.25)
    assert made.defaults["betas"] == torch.optim.AdamW(weights).defaults["betas"]
    assert made.defaults["lr"] == 0.25


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "argument of another": ({"name": "adam", "momentum": 0.9}, "optimizer.momentum: is only read by sgd and rmsprop"),
    "misspelt": ({"name": "sgd", "momentun": 0.9}, "optimizer.momentun: unknown key (did you mean 'momentum'?)"),
    "of another type": ({"name": "sgd", "momentum": "much"}, "optimizer.momentum: must be a number or null"),
    "out of bounds": ({"name": "sgd", "momentum": 1.5}, "optimizer.momentum: must be below 1, but got 1.5"),
    "unknown": ({"name": "sdg"}, "optimizer.name: 'sdg' is unknown (did you mean 'sgd'?)"),
    "no module": ({"name": "nowhere.Sgd"}, "optimizer.name: there is no module 'nowhere'"),
    "no such class": ({"name": "torch.optim.Sdg"}, "optimizer.name: the module 'torch.optim' has no 'Sdg'"),
    "no such argument": (
        {"name": "torch.optim.NAdam", "momentum_decoy": 0.1},
        "optimizer.momentum_decoy: torch.optim.NAdam has no such argument (did you mean 'momentum_decay'?)",
    ),
    "argument of another type": (
        {"name": "torch.optim.NAdam", "eps": "small"},
        "optimizer.eps: must be a number, but got 'small'",
    ),
    "needed": ({"name": "tests.config.parts_of_mine.Needy"}, "optimizer.rank: is needed by"),
    "does not import": (
        {"name": "tests.config.parts_broken.Sgd"},
        "optimizer.name: 'tests.config.parts_broken' cannot",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_part_is_one_line_that_names_the_key(case: str) -> None:
    section, expected = BAD[case]
    with pytest.raises(ConfigError) as caught:
        check_own(load_text(GOOD, {"optimizer": {"momentum": None, **section}}).config, "here")
    assert len(caught.value.problems) == 1
    assert expected in caught.value.problems[0]


def test_what_a_part_gives_is_checked_and_what_it_raises_is_one_line() -> None:
    import torch

    weights = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(ConfigError, match=r"must give a torch\.optim\.Optimizer, but gave int"):
        make(OptimizerConfig(name="tests.config.parts_of_mine.number"), "optimizer", weights)
    with pytest.raises(ConfigError, match=r"optimizer: .*refuse cannot be made .* ValueError: never \(parts_of_mine"):
        make(OptimizerConfig(name="tests.config.parts_of_mine.refuse"), "optimizer", weights)


def test_short_names_are_checked_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD + "scheduler: {name: cosine, gamma: 2}\n")
    code = (
        "import sys\nfrom tlresearch.config.load import load_experiment\n"
        "try:\n    load_experiment(sys.argv[1], ['optimizer.rho=2'])\nexcept Exception as error:\n    print(error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "False"
    assert "2 problems" in lines[0]


def test_the_source_of_a_part_is_part_of_what_identifies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "changing_part.py"

    def source(text: str) -> str:
        module.write_text(text)
        _code_under.cache_clear()
        loaded = load_text(GOOD, {"optimizer": {"name": "changing_part.Mine", "momentum": None}})
        return str(identities(loaded.config)["optimizer"]["source"])

    first = source("class Mine: ...\n")
    assert first.startswith("sha256:")
    assert source("class Mine: ...\n") == first
    assert source("class Mine:\n    changed = True\n") != first
    library = load_text(GOOD, {"optimizer": {"name": "torch.optim.NAdam", "momentum": None}})
    assert identities(library.config)["optimizer"]["source"].startswith("torch 2")
    assert identities(load_text(GOOD).config) == {}
