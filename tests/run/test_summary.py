"""The page of a run: intervals beside their values, and of 77 classes the worst few."""

from __future__ import annotations

from tlresearch.run.summary import run_page
from tlresearch.show.terminal import plain_text


def test_many_classes_take_few_columns_and_intervals_none() -> None:
    metrics: dict[str, float] = {}
    for split in ("val", "test"):
        metrics |= {f"{split}/dice": 0.71, f"{split}/dice_low": 0.65, f"{split}/dice_high": 0.77}
        metrics |= {f"{split}/dice_organ_{number}": number / 100 for number in range(77)}
    page = run_page("organs", metrics, "0123")
    text = plain_text(page, 80)
    assert len(text.splitlines()) < 15
    assert "0.7100 (0.650 to 0.770)" in text
    assert "3 worst of 77 classes" in text
    assert "MLflow run 0123" in text
    titles = [column.title for column in page.elements[0].columns]  # type: ignore[union-attr]
    assert titles == ["", "dice", "dice organ 0", "dice organ 1", "dice organ 2"]
