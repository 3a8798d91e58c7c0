"""All pairs of an experiment: a cell per source, set and way, and the page they are written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import UserError
from tlresearch.cli import main
from tlresearch.config.load import load_variants
from tlresearch.studies.shift_pairs import BEGIN, END, fit_pairs, write

pytestmark = [pytest.mark.usefixtures("tables"), *(pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY)]
SETS = "data: {shift: {dark: {corruptions: {kinds: [contrast], severities: [5]}}}}"


def test_every_variant_is_tested_on_its_sets_and_the_tables_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.yaml"
    text = toy_text(
        freeze="{schedule: linear_probe, epochs: 1}",
        tracking="{figures: false, model: false, weights: false, system_metrics: false}",
        seeds="[0, 1]",
        variants=f"{{low.probe: {{{SETS}}}, low.full: {{{SETS}, freeze: {{schedule: full}}}}}}",
    )
    file.write_text(text)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["shift", str(file), "--write", str(page)]) == 0
    shown = capsys.readouterr().out
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith(f"{END}\nafter\n")
    assert "old" not in written
    result = fit_pairs(file)  # recorded: nothing runs
    assert (result.rows, result.ways) == ([("low", "dark_contrast_5")], ["probe", "full"])
    probe, full = (result.cell(("low", "dark_contrast_5"), way) for way in result.ways)
    assert probe is not None
    assert full is not None
    assert probe.against is None
    assert full.against is not None
    assert full.against.difference == pytest.approx(full.reached.mean - probe.reached.mean)
    assert full.drop.mean == pytest.approx(full.source_reached.mean - full.reached.mean)
    assert full.reached.n == 2
    line = f"{full.reached.mean:.3f} ± {full.reached.std:.3f} ({full.source_reached.mean:.3f}; {full.drop.mean:+.3f})"
    assert line in written
    assert "low → dark_contrast_5" in shown
    assert "- Versions: Python" in written


def test_an_experiment_without_shifted_sets_and_a_page_without_marks_are_named(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(toy_text())
    with pytest.raises(UserError, match=r"toy names no shifted set; add data\.shift"):
        fit_pairs(file)
    with pytest.raises(UserError, match="has no lines '<!-- begin"):
        write(file, "text")


def test_the_worked_example_names_all_six_pairs_three_ways() -> None:
    from tlresearch.config import checks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "find_data", Path)
        patch.setattr(checks, "find_weights", Path)
        found = load_variants(REPOSITORY / "experiments" / "office_caltech10" / "all_pairs.yaml")
    pairs = {(name.partition(".")[0], target) for name, one in found.items() for target in one.config.data.shift}
    domains = {"amazon", "webcam", "dslr"}
    assert pairs == {(a, b) for a in domains for b in domains if a != b}
    for name, one in found.items():
        assert (one.config.data.root or "").endswith(name.partition(".")[0])
    assert len(found) == 9
