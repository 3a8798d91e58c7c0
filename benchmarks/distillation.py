"""What a small network gains from a better teacher beside its labels: digits, several seeds, with and without one.

The teacher is trained once, on all digits; the student, a network of a fraction of its size, with each seed alone and
taught, for few and for many epochs: soft answers are learnt slowly (Beyer et al. 2022, arXiv:2106.05237). Run it with
``python -m benchmarks.distillation``; ``--write`` puts the table into `distillation.md`. It needs no files. About five
minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

DATA = "{name: digits, test_fraction: 0.3, batch_size: 32}"
QUIET = "{figures: false, model: false, system_metrics: false}"


def train(name: str, width: int, epochs: int, seed: int, task: str) -> tuple[str, float]:
    """Trains a network of a width; returns the run's id and its accuracy on the test split."""
    from tlresearch.config.load import load_text
    from tlresearch.run.fit import fit

    sections = {
        "name": name,
        "data": DATA,
        "backbone": f"{{name: small_cnn, weights: null, options: {{in_channels: 1, width: {width}}}}}",
        "task": task,
        "freeze": f"{{schedule: full, epochs: {epochs}}}",
        "optimizer": "{name: adamw, lr: 3.0e-3}",
        "scheduler": "{name: cosine}",
        "trainer": "{precision: 32-true, memory_format: contiguous}",
        "tracking": QUIET,
        "seed": str(seed),
    }
    result = fit(load_text("\n".join(f"{key}: {value}" for key, value in sections.items())))
    return result.run_id, result.metrics["test/accuracy"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds of the student")
    parser.add_argument("--epochs", type=int, nargs="*", default=[10, 60], help="epochs of the student")
    parser.add_argument("--width", type=int, default=2, help="width of the student; the teacher's is 16")
    parser.add_argument("--alpha", type=float, default=0.7, help="share of the teacher's part")
    parser.add_argument("--temperature", type=float, default=4.0, help="what logits are divided by")
    parser.add_argument("--write", action="store_true", help="write benchmarks/distillation.md")
    options = parser.parse_args(arguments)
    teacher, reached = train("teacher", 16, 20, 0, "{name: classification}")
    learns = f"teacher: {teacher}, distill_alpha: {options.alpha}, temperature: {options.temperature}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, commit {commit}. Digits, a test split "
        f"of 30 %; teacher of width 16: {reached:.4f}; student of width {options.width}, alpha {options.alpha:g}, "
        f"temperature {options.temperature:g}, {options.seeds} seeds: mean ± standard deviation of the test accuracy.",
        "",
        "| epochs | alone | taught | gain, seed by seed |",
        "| ---: | ---: | ---: | --- |",
    ]
    for epochs in options.epochs:
        alone, taught = (
            np.array([train("student", options.width, epochs, seed, task)[1] for seed in range(options.seeds)])
            for task in ("{name: classification}", f"{{name: classification, {learns}}}")
        )
        gains = ", ".join(f"{gain:+.3f}" for gain in taught - alone)
        cells = [f"{found.mean():.4f} ± {found.std(ddof=1):.4f}" for found in (alone, taught)]
        lines.append(f"| {epochs} | {cells[0]} | {cells[1]} | {gains} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
