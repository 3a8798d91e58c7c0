"""How cost grows with the number of trials and with depth, ours and the peer loop: a table and a plot.

    python -m benchmarks.growth --write

The peer's trials share nothing, so a few of them are run at each depth and its line is drawn through their mean.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from benchmarks.contest import arguments, measure, spec, surroundings, write
from benchmarks.loops.spec import Outcome, Point

DEPTHS = (0, 1, 2, 4)


def main() -> None:
    """Runs the contest, prints the table and draws the plot."""
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=8, help="trials of ours at each depth")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--model", default="mobilenet_v2")
    options = parser.parse_args()
    rates = [10 ** (-4 + 2 * index / (options.trials - 1)) for index in range(options.trials)]
    ours, peer = {}, {}
    for depth in DEPTHS:
        ours[depth] = measure(
            "ours", spec(options.model, points=[Point(depth, r) for r in rates], epochs=options.epochs)
        )
        one = spec(options.model, points=[Point(depth, rates[-1])], epochs=options.epochs)
        peer[depth] = measure("peer", one)
    lines = {depth: cumulated(outcome) for depth, outcome in ours.items()}
    rows = [
        f"| {depth} | {lines[depth][0]:.1f} | {lines[depth][-1] - lines[depth][-2]:.1f} | "
        f"{peer[depth].trials[0]:.1f} | "
        f"{peer[depth].trials[0] * options.trials / lines[depth][-1]:.1f} |"
        for depth in DEPTHS
    ]
    text = [
        f"# How the cost of a sweep grows: {options.model}",
        "",
        f"hymenoptera, {options.epochs} epochs, AdamW, batch 32; {options.trials} trials of ours at each depth, "
        "nothing cached before; one trial of the peer loop, which shares nothing.",
        "",
        f"| depth | first trial, s | a further one, s | peer's trial, s | times faster, {options.trials} trials |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        "![Seconds of a sweep against its number of trials, by depth](growth.png)",
        "",
        surroundings(),
        "",
    ]
    write(__file__, "\n".join(text), save=options.write)
    if options.write:
        draw(lines, peer, options.trials)


def cumulated(outcome: Outcome) -> list[float]:
    """Seconds of the sweep up to and with each trial; what came before the first counts to it."""
    times = list(accumulate(outcome.trials))
    return [outcome.seconds - times[-1] + time for time in times]


def draw(lines: dict[int, list[float]], peer: dict[int, Outcome], trials: int) -> None:
    """Draws seconds against trials: ours as lines, the peer's dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    numbers = range(1, trials + 1)
    for index, depth in enumerate(DEPTHS):
        axes.plot(numbers, lines[depth], color=f"C{index}", marker="o", label=f"depth {depth}")
        axes.plot(numbers, [peer[depth].trials[0] * n for n in numbers], color=f"C{index}", linestyle="--")
    axes.set(xlabel="trials", ylabel="seconds", yscale="log", title="solid: tlresearch, dashed: the peer loop")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
