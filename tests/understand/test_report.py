"""A report is one page that needs nothing else, says what MLflow holds, and takes no name or text for markup."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.recorded import Recorded
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.cli import main
from tlresearch.config.schema import TrackingConfig
from tlresearch.show.elements import Badge, Facts, Listing, Number, Table, as_cell
from tlresearch.show.page import Page
from tlresearch.tracking.figures import learning_curves
from tlresearch.tracking.manifest import damaged, read_manifest
from tlresearch.tracking.records import GROUP, SEED, STUDY_TAG, Runs
from tlresearch.tracking.run import JournalRun, open_run
from tlresearch.tracking.store import connect
from tlresearch.understand.report import gather

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
OUTSIDE = re.compile(r"(?:src|href)=[\"'](?!data:|#)|url\(|@import|<script|<link", re.IGNORECASE)
TRIALS = {
    "0": {"state": "complete", "value": 0.71, "params": {"optimizer.lr": 1e-4, "data.augment": "flip"}},
    "1": {"state": "complete", "value": 0.93, "params": {"optimizer.lr": 1e-2, "data.augment": "none"}},
    "2": {"state": "pruned", "value": None, "params": {"optimizer.lr": 0.5, "data.augment": "none"}},
}


class Cells(HTMLParser):
    """The text of a page, one entry per element that has some."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


@pytest.fixture
def store_here(home: Path, tables: None) -> Path:
    return home


def of(page: Page, title: str, kind: type) -> list[Any]:
    """The elements of a kind in a section."""
    (section,) = (section for section in page.sections if section.title == title)
    return [element for element in section.elements if isinstance(element, kind)]


def texts(table: Table) -> list[tuple[str, ...]]:
    """The rows as shown, notes in brackets."""
    rows = []
    for number, row in enumerate(table.rows):
        notes = [as_cell(entry).note for entry in row]
        cells = (table.text(number, position) for position in range(len(row)))
        rows.append(tuple(f"{cell} ({note})" if note else cell for cell, note in zip(cells, notes, strict=True)))
    return rows


def start(name: str, tags: dict[str, str], parent: str | None = None) -> JournalRun:
    config = TrackingConfig(system_metrics=False)
    return open_run(config, experiment="e", name=name, params={}, tags=tags, parent=parent)


def a_study() -> str:
    with start("toy/lr", {STUDY_TAG: "toy/lr", "tlresearch.best": "optimizer.lr=0.01  data.augment=none"}) as parent:
        parent.log_dict(TRIALS, "trials.json")
        parent.log_text("objective: {metric: val/accuracy, direction: maximize}\n", "sweep.yaml")
        parent.log_figure(learning_curves({"val/accuracy": [(0, 0.5), (1, 0.9)]}), "figures/history.png")
        parent.log_metrics({"study/best": 0.93, "study/complete": 2, "study/pruned": 1, "study/fail": 0}, step=3)
        with start("best", {}, parent.run_id) as best:
            best.log_metrics({"selected/val/accuracy": 0.93, "selected/test/accuracy": 0.875}, step=1)
    return parent.run_id


def test_a_study_on_one_page(store_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id, out = a_study(), tmp_path / "deep" / "study.html"
    assert main(["report", "toy/lr", "--out", str(out)]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    html = out.read_text()
    assert not OUTSIDE.findall(html)
    texts = Cells(html).texts
    ranked = [texts[texts.index("trial") :].index(value) for value in ("0.93", "0.71", "pruned")]
    assert ranked == sorted(ranked)  # the best first, those without a value last
    assert {"0.8750", "1 pruned, 0 failed", "sweep.yaml", "optimizer.lr"} <= set(texts)
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", html)]
    assert len(pictures) == 2  # the figure of the study, and the trials over parallel axes
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    store = connect()
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    assert "report.html" in manifest.files
    assert damaged(store, store.client.get_run(run_id), manifest) == []
    assert main(["report", "nothing/of/that/name"]) == 2


def test_a_run_with_its_lineage(recorded: Recorded) -> None:
    run = Runs().get(recorded.run)
    page = gather(run)
    assert (page.kind, page.title) == ("run", "base")
    accuracy = run.values["selected/test/accuracy"]
    assert ("test/accuracy", f"{accuracy:.4f}") in [(number.name, number.value) for number in page.numbers]
    facts = dict(of(page, "Where it comes from", Facts)[0].pairs)
    assert facts["weights"] == "weights.safetensors"
    assert facts["SHA-256 of the weights"] == run.tags["tlresearch.weights_sha256"]
    assert facts["train"].startswith("16 samples (8 dark, 8 light)")
    assert "torch " in facts["versions"]
    config = of(page, "Configuration", Listing)
    assert config == [Listing("config.yaml", recorded.artifact("config.yaml").read_text())]
    assert gather(Runs().get(recorded.trial)).badges[0].text.startswith("pruned")


def test_intervals_stand_beside_their_values_and_further_sets_have_a_table(store_here: Path) -> None:
    ends = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "auroc_of_bees": 0.7}
    moved = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8, "drop": 0.2, "mmd": 0.1, "frechet": 2.5}
    found = {f"selected/test/{key}": value for key, value in ends.items()}
    found |= {f"shift/theo/{key}": value for key, value in moved.items()} | {"shift/theo/stages/top/mmd": 0.3}
    with start("run", {}) as run:
        run.log_metrics(found, step=0)
    page = gather(Runs().get(run.run_id))
    assert page.numbers == (Number("test/accuracy", "0.9000", "0.800 to 0.950"),)
    (metrics,) = of(page, "Metrics", Table)
    assert texts(metrics) == [("accuracy", "0.9000 (0.800 to 0.950)"), ("auroc_of_bees", "0.7000")]
    (shifted,) = of(page, "Further test sets", Table)
    assert [column.title for column in shifted.columns] == ["set", "accuracy", "drop", "mmd", "frechet", "proxy a"]
    assert texts(shifted) == [("theo", "0.7000 (0.600 to 0.800)", "0.2000", "0.1000", "2.5000", "-")]


def test_a_group_gives_mean_and_interval(store_here: Path) -> None:
    with start("group", {GROUP: "g"}) as group:
        for seed, value in ((0, 0.8), (1, 0.9)):
            with start(f"seed {seed}", {GROUP: "g", SEED: str(seed)}, group.run_id) as run:
                run.log_metrics({"selected/val/accuracy": value}, step=0)
    page = gather(Runs().get(group.run_id))
    assert page.kind == "group of seeds"
    assert page.numbers[0].value == "0.8500"
    assert page.numbers[0].note == "± 0.0707, 2 seeds"
    rows = texts(of(page, "Seeds", Table)[0])
    assert [row[0] for row in rows] == ["0", "1", "mean", "std", "low", "high"]


def test_a_reproduction_says_its_verdict(store_here: Path) -> None:
    number = {"metric": "val/accuracy", "select": "best", "value": 0.95, "tolerance": 0.02}
    row = {"variant": "full", "number": number, "ours": {"mean": 0.9, "std": 0.01, "n": 3}, "difference": -0.05}
    with start("paper", {"tlresearch.verdict": "1 not reproduced"}) as run:
        run.log_dict({"experiment": "paper", "rows": [{**row, "verdict": "not reproduced"}]}, "reproduction.json")
    page = gather(Runs().get(run.run_id))
    assert Badge("1 not reproduced", "bad") in page.badges
    (cells,) = texts(of(page, "Published and ours", Table)[0])
    assert cells == ("full", "val/accuracy, best", "0.95", "0.9000 ± 0.0100", "3", "-0.0500", "0.02", "not reproduced")
