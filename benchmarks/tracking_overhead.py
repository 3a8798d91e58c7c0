"""What recording costs: 100 head-only trials with and without MLflow, by turns.

    python -m benchmarks.tracking_overhead --write

Without MLflow the trials are the same, Optuna's study and all, but every call to a run does nothing.
"""

from __future__ import annotations

from benchmarks.contest import arguments, measure, ratio, spec, surroundings, write
from benchmarks.loops.spec import Outcome, Point


def main() -> None:
    """Runs the contest and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    points = [Point(0, 10 ** (-4 + 3 * index / (options.trials - 1))) for index in range(options.trials)]
    found: dict[str, list[Outcome]] = {"recorded": [], "silent": []}
    for _ in range(options.repeats):
        for name in found:
            wanted = spec("mobilenet_v2", points=points, epochs=options.epochs, options={"tracking": name})
            found[name].append(measure("ours", wanted))
    seconds = {name: [outcome.seconds for outcome in outcomes] for name, outcomes in found.items()}
    further = [sorted(outcome.trials)[len(outcome.trials) // 2] for outcome in found["recorded"]]
    text = [
        f"# Recording {options.trials} head-only trials",
        "",
        f"MobileNetV2 on hymenoptera, {options.epochs} epochs, nothing cached before; {options.repeats} runs of each "
        "by turns. Seconds until the last trial has ended and is recorded, imports aside.",
        "",
        "| | seconds, median | fastest | slowest |",
        "| :-- | ---: | ---: | ---: |",
        *(
            f"| {label} | {sorted(seconds[name])[len(seconds[name]) // 2]:.1f} | {min(seconds[name]):.1f} | "
            f"{max(seconds[name]):.1f} |"
            for name, label in (("recorded", "recorded in MLflow"), ("silent", "not recorded"))
        ),
        "",
        f"Recorded / not recorded: {ratio(seconds['recorded'], seconds['silent'])}. "
        f"A further trial takes {sorted(further)[len(further) // 2]:.2f} s.",
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


if __name__ == "__main__":
    main()
