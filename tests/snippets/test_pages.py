"""Every shell block of the pages is run by a shell, in a reader's folder with small data and short trainings.

Commands are as they stand on the page. What is put in for them: ids of runs, addresses of servers and passwords, which
are a reader's own. `PRELUDE` is what a page takes for granted.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.nursery import Nursery
from tests.servers import PASSWORD, free_port, mlflow_server, postgres
from tests.snippets.downloads import hub, torchvision_files
from tests.snippets.workspace import Workspace
from tests.test_docs import NAMES, blocks, file_name

pytestmark = pytest.mark.filterwarnings("ignore")
PATIENCE = 600.0  # seconds for a block
SHELL = ("sh", "bash", "console")
PAGES = tuple(name for name in NAMES if blocks(name, *SHELL))
PROBE = "tlresearch run hymenoptera/linear_probe"
PRELUDE = {
    "README.md": ["ray start --head", "tlresearch run hymenoptera/full", "tlresearch run digits/pretrain name=scratch"],
    "CONTRIBUTING.md": ["tlresearch run digits/pretrain"],
    "docs/comparing.md": [PROBE, "tlresearch run hymenoptera/full", "tlresearch sweep hymenoptera/lr_x_unfreeze_depth"],
    "docs/devices.md": ["tlresearch run digits/pretrain"],
    "docs/performance.md": ["tlresearch run digits/pretrain"],
    "docs/repeating.md": [
        PROBE, "tlresearch run hymenoptera/full", "tlresearch sweep hymenoptera/lr_x_unfreeze_depth",
    ],
    "docs/reports.md": [PROBE, "tlresearch sweep hymenoptera/lr_x_unfreeze_depth"],
    "docs/scaling.md": ["MLFLOW_TRACKING_URI=$TRACKING tlresearch run digits/pretrain"],
    "docs/schedules.md": ["tlresearch run digits/pretrain"],
    "docs/shipping.md": [
        PROBE,
        "tlresearch run sst2/linear_probe name=text && tlresearch export text --to onnx --out exported/texts",
        "tlresearch run free_spoken_digit/probe name=sound && tlresearch export sound --to onnx --out exported/sounds",
        "tlresearch export linear_probe --to onnx --out exported/photos",
        "cp photo.jpg another.png exported/photos && cp digit.wav exported/sounds",
    ],
    "docs/understanding.md": ["tlresearch run hymenoptera/full name=look"],
    "docs/using.md": [PROBE, "tlresearch run isbi2012_em/unet", "tlresearch run sst2/linear_probe"],
}  # fmt: skip
ELSEWHERE = {
    "make test": "this is part of it",
    "make lint": "CI runs it",
    "make setup": "CI begins with it",
}
DEMO = "make demo"
"""Of several pages: run for the README alone, which passes over what other pages run besides."""
LONG = ("README", "choosing", "detection", "devices", "domain_shift", "learning_curves", "shipping", "speech", "text")
"""Pages that take minutes: for `make test-pages`, not for every run of CI."""
STANDS_IN = {
    "python predict.py model.onnx photo.jpg another.png": "exported/photos",
    'python predict.py model.onnx "A touching film." "Far too long."': "exported/texts",
    "python predict.py model.onnx digit.wav": "exported/sounds",
}
"""Folders in which a page supposes its reader."""


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables that lead to what a reader would have downloaded."""
    weights = os.environ.get("TLRESEARCH_WEIGHTS", "")
    if not weights or not os.environ.get("TLRESEARCH_DATA"):
        pytest.skip("TLRESEARCH_DATA and TLRESEARCH_WEIGHTS do not name the folders with real data and weights")
    folder = tmp_path_factory.mktemp("downloads")
    torchvision_files(folder / "torch", Path(weights))
    with hub(folder / "hub") as variables:
        yield {"TORCH_HOME": str(folder / "torch"), **variables}


@pytest.fixture(scope="module")
def nursery(downloaded: dict[str, str]) -> Iterator[Nursery]:
    with Nursery("tests.snippets.foreign_weights", **downloaded) as processes:
        yield processes


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, nursery: Nursery) -> Iterator[Workspace]:
    folder = Workspace(tmp_path / "reader", Path(os.environ["TLRESEARCH_DATA"]), empty_database)
    yield folder
    for process in folder.servers.iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(process.name), signal.SIGTERM)


@pytest.fixture
def surroundings(
    request: pytest.FixtureRequest, nursery: Nursery, downloaded: dict[str, str], workspace: Workspace
) -> Iterator[dict[str, str]]:
    """The variables of a reader of this page, whose servers are there."""
    variables = workspace.environment(nursery.address, **downloaded)
    with contextlib.ExitStack() as stack:
        if request.getfixturevalue("name") in ("README.md", "docs/scaling.md"):
            pytest.importorskip("ray", reason="the extra ray is not installed")
            server = stack.enter_context(postgres())
            server.database("optuna")
            # libpq takes these for any host that an address names.
            variables |= {"PGHOSTADDR": "127.0.0.1", "PGPORT": str(server.port)}
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
            stack.callback(end_processes_of, temporary)
            variables |= {
                "RAY_ADDRESS": f"127.0.0.1:{free_port()}",
                "RAY_TMPDIR": temporary,
                "RAY_AUTH_MODE": "disabled",
            }
        if request.getfixturevalue("name") in ("docs/scaling.md", "docs/security.md"):
            tracking = stack.enter_context(mlflow_server(workspace.folder / "tracking"))
            variables["TRACKING"] = tracking.uri
        yield variables


def marked(name: str) -> Any:
    """A page, marked by how long it takes."""
    return pytest.param(name, marks=pytest.mark.pages if Path(name).stem in LONG else pytest.mark.slow)


@pytest.mark.parametrize("name", [marked(name) for name in PAGES])
def test_the_commands_of_a_page_run(name: str, workspace: Workspace, surroundings: dict[str, str]) -> None:
    for body in blocks(name, "yaml"):
        if file_name(body):
            workspace.write(file_name(body), body)
    for line in PRELUDE.get(name, []):
        run(line, workspace, surroundings)
    # Variables that one block exports are there in the next.
    exported: list[str] = []
    elsewhere = passed_over(name)
    for body in blocks(name, *SHELL):
        lines = [line for line in body.splitlines() if line.partition("#")[0].strip() not in elsewhere]
        lines = [judged(line) for line in lines]
        lines = [f"(cd {STANDS_IN[line]} && {line})" if line in STANDS_IN else line for line in lines]
        script = put_in("\n".join(lines), workspace, surroundings)
        run("\n".join([*exported, script]), workspace, surroundings)
        exported += [line for line in script.splitlines() if line.startswith("export ")]


def passed_over(name: str) -> set[str]:
    """Lines of a page that are run elsewhere."""
    if name != "README.md":
        return {*ELSEWHERE, DEMO}
    others = [body for page in PAGES if page != name for body in blocks(page, *SHELL)]
    return {*ELSEWHERE, *(line.partition("#")[0].strip() for body in others for line in body.splitlines())} - {DEMO}


def judged(line: str) -> str:
    """A line whose exit code is a verdict on the model, which after an epoch or two is none to be proud of."""
    command = line.partition("#")[0].strip()
    if re.search(r"reproduce (EXP=)?\w+/\w+|reproduce-all", command):
        given = (
            "/verdict|reproduced|refused|written to/ { ok = 1 } /Traceback|error: / { bad = 1 } END { exit bad || !ok }"
        )
        return f"({command} || true) 2>&1 | tee /dev/stderr | awk '{given}'"
    return line


def put_in(script: str, workspace: Workspace, surroundings: dict[str, str]) -> str:
    """A page's block with the reader's own ids, addresses and passwords."""
    for placeholder, run_name in (("3f2a9c1b", "linear_probe"), ("9c1b7d20", "full"), ("3f2a", "linear_probe")):
        if placeholder in script:
            script = script.replace(placeholder, newest(run_name, workspace))
    script = re.sub(r"\b9c1b\b", lambda _: newest("full", workspace), script)
    script = script.replace("me:password@database", f"researcher:{PASSWORD}@database")
    script = script.replace("postgresql+psycopg://…", f"postgresql+psycopg://researcher:{PASSWORD}@database/optuna")
    for address in ("http://tracking:5000", "http://127.0.0.1:5000"):
        script = script.replace(address, surroundings.get("TRACKING", address))
    weights = Path(surroundings["TORCH_HOME"]) / "hub" / "checkpoints"
    script = script.replace("path/to/weights.pth", str(next(weights.glob("mobilenet_v2-*"))))
    script = re.sub(r"^tlresearch sweep photos/$", r"\g<0> trials=2", script, flags=re.MULTILINE)
    return script.replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")


def end_processes_of(folder: str) -> None:
    """Kills what a Ray node has started: `ray stop` would take those of other tests too."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                process.kill()


def newest(run_name: str, workspace: Workspace) -> str:
    """The id of the newest run of photos with this name."""
    query = (
        "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) "
        "WHERE runs.name = ? AND experiments.name IN ('hymenoptera', 'photos') ORDER BY start_time DESC LIMIT 1"
    )
    with contextlib.closing(sqlite3.connect(workspace.home / "mlflow.db", timeout=60)) as database:
        return str(database.execute(query, (run_name,)).fetchone()[0])


def run(script: str, workspace: Workspace, variables: dict[str, str]) -> None:
    """Runs lines of a shell; the first that fails is told with what it said."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    log = workspace.folder / "output.txt"
    with log.open("a") as output, (workspace.folder / "input.txt").open() as given:
        done = subprocess.run(
            [bash, "-euxo", "pipefail", "-c", script],
            cwd=workspace.folder,
            env=variables,
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, f"{script}\n{log.read_text()[-6000:]}"
