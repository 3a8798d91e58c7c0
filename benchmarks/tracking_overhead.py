"""What recording costs: head-only trials of one sweep, by turns recorded in MLflow and not.

    python -m benchmarks.tracking_overhead --write

A trial that is not recorded is the same, Optuna's study and all, but every call to its run does nothing. Both kinds
alternate within a minute, since a machine may become faster or slower by more than recording costs. To the share of a
sweep's time counts also what the recording process has left to do when the last trial has ended.
"""

from __future__ import annotations

from random import Random
from statistics import mean, median

from benchmarks.contest import arguments, measure, spec, surroundings, write
from benchmarks.loops.spec import Point

TURN = 4  # trials
COUNTED = TURN - 1  # all but the first, beside which the trial before it is still being recorded, or not


def main() -> None:
    """Runs the contest and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=100, help="of each kind")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    count = 2 * options.trials
    aside = 2 * TURN  # the first turn of each kind: decoding, the frozen pass, timing
    points = [Point(0, 1e-3)] * (aside + count)  # their rates are drawn
    pairs: list[tuple[float, float]] = []
    kinds: tuple[list[float], list[float]] = ([], [])
    waited, first = [], []
    wanted = spec("mobilenet_v2", points=points, epochs=options.epochs, options={"by turns": str(TURN), "drawn": "yes"})
    for _ in range(options.repeats):
        done = measure("ours", wanted)
        turns = [done.trials[end - COUNTED : end] for end in range(aside + TURN, aside + count + 1, TURN)]
        for number, trials in enumerate(turns):
            kinds[number % 2].extend(trials)
        pairs += [(sum(one), sum(other)) for one, other in zip(turns[::2], turns[1::2], strict=True)]
        waited.append(done.notes["records waited for"])
        first.append(done.trials[0])
    recorded, silent = (sum(side) for side in zip(*pairs, strict=True))
    ratios = sorted(one / other for one, other in pairs)
    each, none = (side / len(pairs) / COUNTED for side in (recorded, silent))
    whole = mean(first) + (options.trials - 1) * each + mean(waited)  # a sweep whose trials are all recorded
    cost = options.trials * (each - none) + mean(waited)
    drawn = Random(0)
    again = [drawn.choices(pairs, k=len(pairs)) for _ in range(4000)]
    means = interval([sum(one for one, _ in some) / sum(other for _, other in some) for some in again])
    medians = interval([median(one / other for one, other in some) for some in again])
    text = [
        f"# Recording {options.trials} head-only trials",
        "",
        f"MobileNetV2 on hymenoptera, {options.epochs} epochs. One sweep of {count} trials, {TURN} recorded in MLflow "
        f"and {TURN} not by turns, after {aside} that are not counted, nor is the first of each turn; "
        f"{options.repeats} such sweeps.",
        "",
        "| seconds of a trial | mean | median |",
        "| :-- | ---: | ---: |",
        f"| recorded in MLflow | {each:.3f} | {median(kinds[0]):.3f} |",
        f"| not recorded | {none:.3f} | {median(kinds[1]):.3f} |",
        "",
        f"Seconds that were waited for records when the last trial had ended: {median(waited):.2f}.",
        "",
        f"A sweep of {options.trials} recorded trials, the frozen pass included, takes {whole:.1f} s: "
        f"recording takes {cost:.2f} s of them, **{100 * cost / whole:.1f} %**, that wait included.",
        "",
        f"Trials alone, recorded / not recorded: mean {each / none:.3f} (95 % interval {means}); "
        f"median of each kind {median(kinds[0]) / median(kinds[1]):.3f}; "
        f"median of {len(pairs)} pairs of turns {median(ratios):.3f} (95 % interval {medians}; "
        f"the pairs {ratios[0]:.2f} to {ratios[-1]:.2f}). Intervals are of pairs drawn with replacement.",
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)


def interval(figures: list[float]) -> str:
    """What 95 % of the figures lie between."""
    ordered = sorted(figures)
    return f"{ordered[len(ordered) // 40]:.3f} to {ordered[-1 - len(ordered) // 40]:.3f}"


if __name__ == "__main__":
    main()
