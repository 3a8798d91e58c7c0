"""Predictions sample by sample, as a small CSV artifact, so that two runs can be compared item by item. No torch."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Literal, NamedTuple

PREDICTIONS = "predictions"
"""Folder of the artifacts."""
SPLITS = ("test", "val")
Measure = Literal["score", "error"]


class Item(NamedTuple):
    """One sample and what was predicted for it.

    Attributes:
        name: Name of the sample.
        target: Its class; several are joined by ';'.
        prediction: The predicted class, or classes.
        score: Probability of the prediction; of several labels, that of the least sure one. Of numbers the absolute
            error, of several its mean in standard deviations.
    """

    name: str
    target: str
    prediction: str
    score: float

    @property
    def right(self) -> float:
        """1.0 if the prediction is the target, else 0.0."""
        return float(self.prediction == self.target)


@dataclass(frozen=True)
class Items:
    """The predictions of a split.

    Attributes:
        split: ``test``, or ``val`` where there is no test split.
        items: One for each sample of the split.
        measure: What `Item.score` is: how sure a class is, or the error of a number.
    """

    split: str
    items: tuple[Item, ...]
    measure: Measure = "score"

    @property
    def path(self) -> str:
        """Path of the artifact."""
        return f"{PREDICTIONS}/{self.split}.csv"

    @property
    def judged_by(self) -> str:
        """What `judged` says of a sample, in a word."""
        return "error" if self.measure == "error" else "right"

    def judged(self, item: Item) -> float:
        """Whether a class is right, 0 or 1; of a number its error."""
        return item.score if self.measure == "error" else item.right

    def text(self) -> str:
        """The table as CSV."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow((*Item._fields[:-1], self.measure))
        writer.writerows((item.name, item.target, item.prediction, f"{item.score:.6g}") for item in self.items)
        return out.getvalue()


def parse_items(split: str, text: str) -> Items:
    """Reads what `Items.text` wrote of a split."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    measure: Measure = "error" if "error" in (rows.fieldnames or ()) else "score"
    items = tuple(Item(r["name"], r["target"], r["prediction"], float(r[measure])) for r in rows)
    return Items(split, items, measure)
