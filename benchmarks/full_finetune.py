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
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--model", default="resnet18")
    options = parser.parse_args()
    found: dict[str, list[Outcome]] = {"ours": [], "floor": [], "peer": []}
    points = [Point(DEPTH[options.model], 1e-4)]
    for _ in range(options.repeats):
        found["ours"].append(measure("ours", spec(options.model, points=points, epochs=options.epochs)))
        same = found["ours"][0].precision[:2]
        bare = spec(options.model, points=points, epochs=options.epochs, precision=same)
        found["floor"].append(measure("floor", bare))
        found["peer"].append(measure("peer", spec(options.model, points=points, epochs=options.epochs)))
    seconds = {name: [outcome.seconds for outcome in outcomes] for name, outcomes in found.items()}
    rows = [
        f"| {label} | {', '.join(found[name][0].precision[:2])} | {min(seconds[name]):.1f} | "
        f"{ratio(seconds['peer'], seconds[name])} | {ratio(seconds[name], seconds['floor'])} | "
        f"{found[name][0].accuracies[0]:.4f} |"
        for name, label in (("peer", "plain Lightning"), ("ours", "tlresearch"), ("floor", "bare PyTorch"))
    ]
    text = [
        f"# Full fine-tuning of {options.model}",
        "",
        f"hymenoptera, {options.epochs} epochs, AdamW, batch 32, no augmentation; {options.repeats} runs of each by "
        "turns. Seconds of the whole run with what it chooses, decodes, records and saves; imports aside.",
        "",
        "| | computes in | fastest, s | times faster than Lightning | of the bare loop's time | accuracy |",
        "| :-- | :-- | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


if __name__ == "__main__":
    main()
