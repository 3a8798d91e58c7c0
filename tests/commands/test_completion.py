"""A shell completes commands, experiments, sweeps, keys, values and runs, without waiting for torch or MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.recorded import Recorded
from tlresearch.tracking.database import recent_runs

# Asks as the function does that argcomplete puts into a shell: the answer comes on descriptor 8.
ASK = """
import os, sys
os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 8)
os.dup2(2, 9)
import atexit, tlresearch.cli
leave = os._exit
def exit(code):
    print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "mlflow", "optuna"}), flush=True)
    leave(code)
os._exit = exit
tlresearch.cli.main([])
"""


def ask(line: str, tmp_path: Path, folder: Path = REPOSITORY) -> list[str]:
    """The completions of a line that is being typed."""
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    answer = tmp_path / "answer"
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(answer)],
        env={**os.environ, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "", "slow libraries were imported"
    return answer.read_text().split("\n")


@pytest.mark.parametrize(
    ("line", "among"),
    [
        ("tlresearch ", {"init", "run", "sweep", "compare"}),
        ("tlresearch run hymen", {"hymenoptera/full", "hymenoptera/linear_probe"}),
        ("tlresearch sweep digi", {"digits/lr_x_unfreeze_depth"}),
        ("tlresearch run digits/pretrain optimizer.l", {"optimizer.lr=", "optimizer.layer_lr_decay="}),
        ("tlresearch run digits/pretrain data.augment=", {"flip", "none"}),
        ("tlresearch sweep digits/lr_x_unfreeze_depth overrides.fr", {"overrides.freeze.epochs="}),
        ("tlresearch run docs/ex", {"docs/examples/"}),
        ("tlresearch sweep --", {"--help"}),
    ],
)
def test_what_may_follow_is_offered(line: str, among: set[str], tmp_path: Path) -> None:
    offered = {word.strip() for word in ask(line, tmp_path)}
    assert among <= offered
    assert len(offered) < 300


def test_names_of_recorded_runs_are_offered(recorded: Recorded, tmp_path: Path) -> None:
    names = {name for _, name in recent_runs()}
    assert names
    assert names <= {word.strip().replace("\\", "") for word in ask("tlresearch verify ", tmp_path)}
    run_id = recent_runs()[0][0]
    assert run_id[:8] in {word.strip() for word in ask(f"tlresearch verify {run_id[:4]}", tmp_path)}


def test_without_a_store_there_are_no_runs(home: Path) -> None:
    assert recent_runs() == []
    home.mkdir()
    (home / "mlflow.db").write_text("no database")
    assert recent_runs() == []
