"""Data sources of the published similarity numbers: test sets that come in a form of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tlresearch.data.base import SplitName
from tlresearch.data.table import Table
from tlresearch.data.text_table import Texts

Rows = Sequence[tuple[str, tuple[str, str], float]]
"""Name, pair and score of each row."""


def sts12(root: Path) -> Table:
    """STS12: its five test sets, whose scores lie in files beside the sentences; nothing is trained on them.

    Args:
        root: The folder of STS12-en-test and STSBenchmark.
    """
    rows = []
    for name in ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"):
        pairs = _lines(root / "STS12-en-test" / f"STS.input.{name}.txt")
        scores = _lines(root / "STS12-en-test" / f"STS.gs.{name}.txt")
        for line, (pair, score) in enumerate(zip(pairs, scores, strict=True), start=1):
            first, second = pair.split("\t")
            rows.append((f"{name}:{line}", (first, second), float(score)))
    return _table("STS12", root, rows)


def sick(root: Path) -> Table:
    """SICK-R: the relatedness of all 9927 pairs, as public benchmarks of embeddings take them; nothing is trained.

    Args:
        root: The folder of SICK and STSBenchmark.
    """
    rows = []
    for name in ("train", "trial", "test_annotated"):
        for line, row in enumerate(_lines(root / "SICK" / f"SICK_{name}.txt"), start=1):
            _, first, second, score, _ = row.split("\t")
            rows.append((f"{name}:{line}", (first, second), float(score)))
    return _table("SICK-R", root, rows)


def _table(name: str, root: Path, test: Rows) -> Table:
    """The test set; the splits that every run needs are from the STS benchmark."""
    rows = [*_benchmark(root, "train"), *_benchmark(root, "dev"), *test]
    splits: list[SplitName] = ["test"] * len(rows)
    for index, (place, _, _) in enumerate(rows[: len(rows) - len(test)]):
        splits[index] = "train" if place.startswith("train") else "val"
    return Table(
        name,
        classes=("score",),
        labels=torch.zeros(len(rows), dtype=torch.int64),
        names=[place for place, _, _ in rows],
        images=Texts([pair for _, pair, _ in rows]),
        splits=splits,
        targets=torch.tensor([[score] for _, _, score in rows]),
        kind="numbers",
        samples="texts",
    )


def _benchmark(root: Path, split: str) -> Rows:
    rows = [row.split("\t") for row in _lines(root / "STSBenchmark" / f"sts-{split}.csv")]
    return [(f"{split}.csv:{line}", (row[5], row[6]), float(row[4])) for line, row in enumerate(rows, start=1)]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
