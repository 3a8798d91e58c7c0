"""What recording costs: head-only trials of one sweep, by turns recorded in MLflow and not.

    python -m benchmarks.tracking_overhead --write

A trial that is not recorded is the same, Optuna's study and all, but every call to its run does nothing. Both kinds
alternate within a minute, since a machine may become faster or slower by more than recording costs. What the recording
process has left to do when the last trial has ended is added to the recorded ones.
"""

from __future__ import annotations

from statistics import median

from benchmarks.contest import arguments, measure, spec, surroundings, write
from benchmarks.loops.spec import Point

TURN = 10  # trials


def main() -> None:
    """Runs the contest and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=100, help="of each kind")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    count = 2 * options.trials
    aside = 2 * TURN  # the first turn of each kind: decoding, the frozen pass, timing
    points = [Point(0, 10 ** (-4 + 3 * (index % TURN) / TURN) * (1 + index / 1e6)) for index in range(aside + count)]
    pairs: list[tuple[float, float]] = []
    waited = []
    wanted = spec("mobilenet_v2", points=points, epochs=options.epochs, options={"by turns": str(TURN)})
    for _ in range(options.repeats):
        done = measure("ours", wanted)
        turns = [sum(done.trials[start : start + TURN]) for start in range(aside, aside + count, TURN)]
        pairs += zip(turns[::2], turns[1::2], strict=True)
        waited.append(done.notes["records waited for"])
    recorded, silent = (sum(side) for side in zip(*pairs, strict=True))
    ratios = sorted(one / other for one, other in pairs)
    end = sum(waited)
    text = [
        f"# Recording {options.trials} head-only trials",
        "",
        f"MobileNetV2 on hymenoptera, {options.epochs} epochs. One sweep of {count} trials, {TURN} recorded in MLflow "
        f"and {TURN} not by turns, after {aside} that are not counted; {options.repeats} such sweeps.",
        "",
        "| | seconds of a trial |",
        "| :-- | ---: |",
        f"| recorded in MLflow | {recorded / len(pairs) / TURN:.3f} |",
        f"| not recorded | {silent / len(pairs) / TURN:.3f} |",
        "",
        f"Seconds that were waited for records when the last trial had ended: {median(waited):.2f}.",
        "",
        f"Recorded / not recorded: {(recorded + end) / silent:.3f} with that wait, {recorded / silent:.3f} without; "
        f"turn by turn {median(ratios):.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}).",
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


if __name__ == "__main__":
    main()
