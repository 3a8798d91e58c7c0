"""How well the scores of `tlresearch rank` order backbones by what training comes to, over several data sets.

Each backbone is ranked without training, then trained: a linear probe, and LP-FT (a probe, then everything), each
through `experiment.fit` with several seeds. Printed are the mean accuracies, and for each score Kendall's tau to them.
Run it with ``python -m benchmarks.ranking``; with ``--write`` the tables replace those in `ranking.md`. What has been
measured is kept in ``--results``, so that it can be stopped and goes on. Needs the data sets under TLRESEARCH_DATA and
weights files under TLRESEARCH_WEIGHTS.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = {
    "torchvision/mobilenet_v2": "torchvision/mobilenet_v2-tflite_ptq.pth",
    "torchvision/squeezenet1_1": "torchvision/squeezenet1_1-ncnn_fp16.pth",
    "torchvision/squeezenet1_0": "torchvision/squeezenet1_0-deep_compression.pth",
    "torchvision/resnet18": "torchvision/resnet18-partial_without_layer4_3x3.pth",
    "torchvision/shufflenet_v2_x0_5": "null",
}
"""Backbones with the weights that are at hand; one is random, as the one that must come last."""

SETS: Mapping[str, Sequence[str]] = {
    "hymenoptera_data": (),
    "cats_vs_dogs": ("data.val_fraction=0.3",),
    "office_caltech10/amazon": ("data.labels_per_class=20",),
    "cifar10_subset": ("data.labels_per_class=30", "data.val_fraction=0.3"),
}
METHODS = ("logme", "h_score", "leep", "nce", "knn", "probe")
TRAINED = ("linear probe", "LP-FT")
SHARED = ("tracking.figures=false", "tracking.model=false", "tracking.weights=false", "tracking.system_metrics=false")


def main(arguments: Sequence[str] | None = None) -> int:
    """Ranks, trains and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="side of the input in pixels")
    parser.add_argument("--epochs", type=int, default=4, help="epochs in which all is trained; 0: linear probes only")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds that every backbone is trained with")
    parser.add_argument("--sets", nargs="*", default=list(SETS), help="data sets")
    parser.add_argument("--results", type=Path, default=Path("ranking.json"), help="where results are kept on the way")
    parser.add_argument("--write", action="store_true", help="write benchmarks/ranking.md")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = json.loads(options.results.read_text()) if options.results.is_file() else {}
    for name in options.sets:
        measure(found, name, options)
    text = report(found, options)
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text)
    return 0


def measure(found: dict[str, Any], name: str, options: argparse.Namespace) -> None:
    """Adds what is missing of a data set."""
    from tlresearch.config.load import load_text
    from tlresearch.run.fit import fit
    from tlresearch.understand.ranking.rank import rank

    shared = [*SETS[name], f"data.image_size={options.size}"]
    rows = found.setdefault(name, {})
    if not rows:
        ranking = rank(name, list(WEIGHTS), shared, weights=WEIGHTS)
        for one in ranking.backbones:
            if one.problem:
                raise SystemExit(f"{one.name}: {one.problem}")
            rows[one.name] = {"scores": dict(one.scores), "depth": one.depth, "seconds": one.seconds}
        rows["samples"] = list(ranking.samples)
    phases = json.dumps(
        [
            {"unfreeze_depth": 0, "epochs": 15, "lr": 3e-3},
            {"unfreeze_depth": "all", "epochs": options.epochs, "lr": 1e-4},
        ]
    )
    schedules = {
        "linear probe": ["freeze.schedule=linear_probe", "freeze.epochs=30", "optimizer.lr=3e-3"],
        "LP-FT": ["freeze.schedule=phases", f"freeze.phases={phases}", "data.batch_size=16"],
    }
    for backbone, weights in WEIGHTS.items():
        for kind, schedule in schedules.items():
            if kind == "LP-FT" and not options.epochs:
                continue
            found_by_seed = rows[backbone].setdefault(kind, {})
            for seed in range(options.seeds):
                if str(seed) in found_by_seed:
                    continue
                chosen = [f"backbone.name={backbone}", f"backbone.weights={weights}", *schedule, *SHARED]
                text = json.dumps({"name": Path(name).name, "data": {"name": "image_folder", "root": name}})
                # Another order and another head, on the samples that the ranking saw.
                fixed = ["trainer.precision=32-true", f"seed={seed}", "data.split_seed=0"]
                result = fit(load_text(text, [*shared, *chosen, *fixed]))
                accuracy = result.metrics["val/accuracy"]
                found_by_seed[str(seed)] = accuracy
                options.results.write_text(json.dumps(found, indent=1))
                print(name, backbone, kind, f"seed {seed}", f"{accuracy:.3f}", f"{result.seconds:.0f} s", flush=True)


def tau(scores: Sequence[float], accuracies: Sequence[float]) -> float:
    """Kendall's tau-b of two lists."""
    from scipy.stats import kendalltau

    return float(kendalltau(scores, accuracies).statistic)


def report(found: Mapping[str, Any], options: argparse.Namespace) -> str:
    """The tables as Markdown."""
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, commit "
        f"{commit}; images {options.size} x {options.size}; accuracies are the mean "
        f"and standard deviation of {options.seeds} seeds; linear probe 30 epochs of AdamW at 3e-3, LP-FT 15 of them, "
        f"then {options.epochs} of all stages at 1e-4.",
        "",
        "| data (training, validation) | backbone | LogME | H-score | LEEP | NCE | kNN | probe | depth | linear probe "
        "| LP-FT |",
        "| --- | --- | " + "---: | " * 9,
    ]
    for name, rows in found.items():
        label = f"{name} ({rows['samples'][0]}, {rows['samples'][1]})"
        for backbone in WEIGHTS:
            row = rows[backbone]
            cells = [_number(row["scores"].get(method)) for method in METHODS]
            cells += [str(row["depth"]), *(_spread(row.get(kind)) for kind in TRAINED)]
            shown = backbone.removeprefix("torchvision/") + (" (random)" if WEIGHTS[backbone] == "null" else "")
            lines.append(f"| {label} | {shown} | " + " | ".join(cells) + " |")
            label = ""
    lines += ["", "Kendall's tau between a score and the trained accuracy, mean over the data sets (each of them):", ""]
    lines += ["| score | backbones | linear probe | LP-FT |", "| --- | ---: | --- | --- |"]
    for method in METHODS:
        cells = []
        known = [b for b in WEIGHTS if all(method in rows[b]["scores"] for rows in found.values())]
        for kind in TRAINED:
            values = [
                tau([rows[b]["scores"][method] for b in known], [_mean(rows[b][kind]) for b in known])
                for rows in found.values()
                if all(rows[b].get(kind) for b in known)
            ]
            each = ", ".join(f"{value:.2f}" for value in values)
            cells.append(f"{np.mean(values):.2f} ({each})" if values else "-")
        lines.append(f"| {method} | {len(known)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(by_seed: Mapping[str, float]) -> float:
    return float(np.mean(list(by_seed.values())))


def _spread(by_seed: Mapping[str, float] | None) -> str:
    if not by_seed:
        return "-"
    spread = f" ± {np.std(list(by_seed.values()), ddof=1):.3f}" if len(by_seed) > 1 else ""
    return f"{_mean(by_seed):.3f}{spread}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    raise SystemExit(main())
