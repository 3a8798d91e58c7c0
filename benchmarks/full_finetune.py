"""One full fine-tuning, where nothing can be shared: ours against plain Lightning defaults and a bare PyTorch loop.

    python -m benchmarks.full_finetune --write

The bare loop has the precision and memory format that tlresearch has chosen, and decoded images in memory.
"""

from __future__ import annotations

from benchmarks.contest import arguments, measure, ratio, spec, surroundings, write
from benchmarks.loops.spec import Outcome, Point

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
        "of the bare loop's time: epoch | accuracy |",
        "| :-- | :-- | :-- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


def contest(model: str, epochs: int, repeats: int) -> list[str]:
    """Runs the three loops, each for one epoch and for all of them, and returns the rows of a model."""
    whole: dict[str, list[Outcome]] = {"ours": [], "floor": [], "peer": []}
    single: dict[str, list[Outcome]] = {"ours": [], "floor": [], "peer": []}
    points = [Point(DEPTH[model], 1e-4)]
    for _ in range(repeats):
        for found, length in ((whole, epochs), (single, 1)):
            found["ours"].append(measure("ours", spec(model, points=points, epochs=length)))
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
        f"{ratio(further[name], further['floor'])} | {whole[name][0].accuracies[0]:.4f} |"
        for name, label in (("peer", "plain Lightning"), ("ours", "tlresearch"), ("floor", "bare PyTorch"))
    ]


if __name__ == "__main__":
    main()
