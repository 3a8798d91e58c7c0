"""One full fine-tuning, where nothing can be shared: ours against plain Lightning defaults and a bare PyTorch loop.

    python -m benchmarks.full_finetune --write

The bare loop has the precision and memory format that tlresearch has chosen, and decoded images in memory. It neither
times what to choose nor makes a database: a first run of ours does, a second one in the same home does not. What that
one would find decoded is removed before it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from benchmarks.contest import arguments, measure, ratio, spec, surroundings, write
from benchmarks.loops.spec import Outcome, Point

LABELS = {
    "peer": "plain Lightning",
    "ours": "tlresearch, first run",
    "again": "tlresearch, second run",
    "floor": "bare PyTorch",
}
DEPTH = {"resnet18": 5, "mobilenet_v2": 9}


def main() -> None:
    """Runs the contest and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    options = parser.parse_args()
    rows = [row for model in options.models for row in contest(model, options.epochs, options.repeats)]
    text = [
        "# Full fine-tuning",
        "",
        f"hymenoptera (244 + 153 photos, 224 pixels, no augmentation), {options.epochs} epochs, AdamW, batch 32; "
        f"{options.repeats} runs of each by turns. Seconds of the whole run with what it times, decodes, records and "
        f"saves, imports aside; and seconds of a further epoch: the run of {options.epochs} epochs less one of a "
        f"single epoch, by {options.epochs - 1}.",
        "",
        "| model | | computes in | whole run, s | a further epoch, s | times faster than Lightning: run | epoch | "
        "of the bare loop's time: run | epoch | accuracy |",
        "| :-- | :-- | :-- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


def contest(model: str, epochs: int, repeats: int) -> list[str]:
    """Runs the loops, each for one epoch and for all of them, and returns the rows of a model."""
    whole: dict[str, list[Outcome]] = {"ours": [], "again": [], "floor": [], "peer": []}
    single: dict[str, list[Outcome]] = {"ours": [], "again": [], "floor": [], "peer": []}
    points = [Point(DEPTH[model], 1e-4)]
    for _ in range(repeats):
        for found, length in ((whole, epochs), (single, 1)):
            first, second = ours_twice(model, points, length)
            found["ours"].append(first)
            found["again"].append(second)
            same = whole["ours"][0].precision[:2]
            found["floor"].append(measure("floor", spec(model, points=points, epochs=length, precision=same)))
            found["peer"].append(measure("peer", spec(model, points=points, epochs=length)))
    seconds = {name: [outcome.seconds for outcome in outcomes] for name, outcomes in whole.items()}
    further = {
        name: [(run.seconds - one.seconds) / (epochs - 1) for run, one in zip(whole[name], single[name], strict=True)]
        for name in whole
    }
    return [
        f"| {model} | {label} | {', '.join(whole[name][0].precision[:2])} | {min(seconds[name]):.1f} | "
        f"{min(further[name]):.2f} | {ratio(seconds['peer'], seconds[name])} | "
        f"{ratio(further['peer'], further[name])} | "
        f"{ratio(seconds[name], seconds['floor'])} | {ratio(further[name], further['floor'])} | "
        f"{whole[name][0].accuracies[0]:.4f} |"
        for name, label in LABELS.items()
    ]


def ours_twice(model: str, points: list[Point], epochs: int) -> tuple[Outcome, Outcome]:
    """A first and a second run in one home."""
    home = Path(tempfile.mkdtemp(prefix="tlresearch-benchmark-"))
    try:
        first = measure("ours", spec(model, points=points, epochs=epochs), keep=home)
        shutil.rmtree(home / "cache" / "activations")
        return first, measure("ours", spec(model, points=points, epochs=epochs, options={"name": "again"}), keep=home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
