"""A head-only sweep: 20 learning rates on the frozen MobileNetV2, ours against the loop a user writes today.

    python -m benchmarks.head_only_sweep --write

Nothing is cached before. The floor decodes once, runs the frozen network once and then trains the heads alone.
"""

from __future__ import annotations

import math

from benchmarks.contest import arguments, measure, ratio, spec, surroundings, write
from benchmarks.loops.spec import Outcome, Point


def main() -> None:
    """Runs the contest and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--peer-every", type=int, default=1, help="the peer runs every so many rates; time is scaled")
    options = parser.parse_args()
    rates = [10 ** (-4 + 3 * index / (options.trials - 1)) for index in range(options.trials)]
    found: dict[str, list[Outcome]] = {"ours": [], "ours32": [], "floor": [], "peer": []}
    for _ in range(options.repeats):
        sweep = spec("mobilenet_v2", points=[Point(0, rate) for rate in rates], epochs=options.epochs)
        safe = spec("mobilenet_v2", points=sweep.points, epochs=options.epochs, precision=["32-true", "channels_last"])
        found["ours"].append(measure("ours", sweep))
        found["ours32"].append(measure("ours", safe))
        found["floor"].append(measure("floor", safe))
        fewer = spec("mobilenet_v2", points=sweep.points[:: options.peer_every], epochs=options.epochs)
        found["peer"].append(measure("peer", fewer))
    write(__file__, report(found, options.trials, options.epochs, options.peer_every), save=options.write)


def report(found: dict[str, list[Outcome]], trials: int, epochs: int, every: int) -> str:
    """Returns the table as Markdown."""
    seconds = {name: [outcome.seconds for outcome in outcomes] for name, outcomes in found.items()}
    ran = len(found["peer"][0].trials)
    seconds["peer"] = [value * trials / ran for value in seconds["peer"]]
    scaled = (
        f" The peer ran {ran} of the rates; its seconds are scaled, since it shares nothing." if ran < trials else ""
    )
    first = {name: outcomes[0] for name, outcomes in found.items()}
    names = {
        "peer": "Lightning + Optuna + MLFlowLogger + ImageFolder",
        "ours": f"tlresearch, `precision: auto` (frozen stages ran in {', '.join(first['ours'].precision[2:])})",
        "ours32": "tlresearch, `precision: 32-true`",
        "floor": "bare PyTorch, nothing recorded",
    }
    same = sum(one == other for one, other in zip(first["ours32"].accuracies, first["floor"].accuracies, strict=True))
    rows = [
        f"| {label} | {sum(seconds[name]) / len(seconds[name]):.1f} | {ratio(seconds['peer'], seconds[name])} | "
        f"{_further(first[name]):.2f} | {max(first[name].accuracies):.4f} | "
        f"{_furthest(first['peer'], first[name], every):.2%} |"
        for name, label in names.items()
    ]
    return "\n".join(
        [
            f"# {trials} heads on one frozen MobileNetV2",
            "",
            f"hymenoptera (244 + 153 photos, 224 pixels, no augmentation), {trials} learning rates from 1e-4 to 1e-1, "
            f"{epochs} epochs each, AdamW, batch 32. Seconds until the last trial has ended, imports aside.{scaled}",
            "",
            "| | seconds | times faster than the peer | median trial | best accuracy | furthest from the peer's |",
            "| :-- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "All loops start from the same head, see the batches in the same order and decay the weights alike. The "
            "peer resizes with PIL, the others with torch: their pixels differ by a level here and there. The "
            f"validation set has 153 photos, one is 0.65 points. In float32, {same} of {trials} trials come to exactly "
            "the accuracy of the bare loop.",
            "",
            surroundings(),
            "",
        ]
    )


def _further(outcome: Outcome) -> float:
    return sorted(outcome.trials)[len(outcome.trials) // 2]


def _furthest(peer: Outcome, other: Outcome, every: int) -> float:
    """Largest difference of a trial's accuracy from the peer's, of those that the peer ran."""
    own = other.accuracies if other is peer else other.accuracies[::every]
    return max(math.fabs(a - b) for a, b in zip(peer.accuracies, own, strict=True))


if __name__ == "__main__":
    main()
