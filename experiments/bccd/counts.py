"""How many red cells a picture of BCCD shows: a number from boxes that people have drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from tlresearch.data.base import SplitName
from tlresearch.data.files import FileImages
from tlresearch.data.table import Table


def red_cells(root: Path) -> Table:
    """Reads the pictures with the number of their boxes of red cells; whole pictures, as cells lie up to the border.

    Args:
        root: The folder of JPEGImages, Annotations and ImageSets.
    """
    names: list[str] = []
    splits: list[SplitName] = []
    counts: list[float] = []
    split: SplitName
    for split in ("train", "val", "test"):
        for stem in (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            boxes = ElementTree.parse(root / "Annotations" / f"{stem}.xml").iterfind("object/name")
            names.append(f"JPEGImages/{stem}.jpg")
            splits.append(split)
            counts.append(float(sum(box.text == "RBC" for box in boxes)))
    return Table(
        "bccd red cells",
        classes=("red_cells",),
        labels=torch.zeros(len(names), dtype=torch.int64),
        names=names,
        images=FileImages(root, names),
        splits=splits,
        targets=torch.tensor(counts)[:, None],
        kind="numbers",
        fit="stretch",
    )
