"""Sweeps over parts: optimizers by name and by dotted path, and transforms; run on, continued, and repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.code import _code_under
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.studies.reproduction.repeat import repeat_run
from tlresearch.studies.reproduction.verify import verify
from tlresearch.studies.sweeps.run import run

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
FLIP = [{"name": "albumentations.HorizontalFlip", "p": 0.5}]
TURN = ["parts_of_a_sweep.turned"]
SOURCE = """
def turned(image):
    return image.rot90(1, (1, 2))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment, a sweep over it, and a module of one's own."""
    (tmp_path / "parts_of_a_sweep.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = "{name: digits, classes: ['0', '1'], test_fraction: 0.2, transforms: [parts_of_a_sweep.turned]}"
    (tmp_path / "base.yaml").write_text(
        toy_text(data=data, optimizer="{lr: 0.01}", freeze="{schedule: full, epochs: 1}")
    )
    sweep = {
        "experiment": "base.yaml",
        "space": {
            "optimizer.name": {"choices": ["sgd", "timm.optim.Lamb"]},
            "data.transforms": {"choices": [FLIP, TURN]},
        },
        "sampler": {"name": "grid"},
        "trials": 2,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path


def test_a_sweep_over_parts_is_run_on_and_its_best_repeated(folder: Path) -> None:
    assert len(run("sweep.yaml").trials) == 2
    result = run("sweep.yaml", ["trials=4"])
    assert len(result.trials) == 4
    assert {trial.params["optimizer.name"] for trial in result.trials} == {"sgd", "timm.optim.Lamb"}
    assert len({trial.params["data.transforms"] for trial in result.trials}) == 2
    best = yaml.safe_load(result.best_yaml.read_text())
    assert best["optimizer"]["name"] == result.best["optimizer.name"]

    repetition = repeat_run(result.final[0].run_id)
    assert repetition.verdict == "identical", repetition.page

    # The code of a part changes: the study does not go on with it, and whoever asks is told.
    (folder / "parts_of_a_sweep.py").write_text(SOURCE.replace("rot90(1", "rot90(3"))
    _code_under.cache_clear()
    with pytest.raises(UserError, match="the code of a part has changed since its first trial"):
        run("sweep.yaml", ["trials=5"])
    turned = [final for final in result.final if "parts_of_a_sweep" in result.best_yaml.read_text()]
    for final in turned:
        checks = {check.name: check for check in verify(final.run_id).checks}
        assert checks["parts"].state == "failed"
        assert "the source of parts_of_a_sweep.turned has changed" in checks["parts"].detail


def test_a_wrong_choice_is_found_before_the_first_trial(folder: Path) -> None:
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    sweep["space"]["optimizer.name"]["choices"] = ["sgd", "timm.optim.Lamm", "adam"]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    with pytest.raises(ConfigError, match=r"optimizer\.name: the module 'timm\.optim' has no 'Lamm'"):
        run("sweep.yaml")
