"""A sweep over depth and rate: depths 0, 1, 2 times 4 rates, ours against the peer loop and a floor.

    python -m benchmarks.mixed_sweep --write

The floor is told the precision and memory format that tlresearch has chosen. It runs one trial after another on all
cores, as ours with one worker; with two, each worker has its share of them.
"""

from __future__ import annotations

from benchmarks.contest import arguments, measure, ratio, spec, surroundings, write
from benchmarks.loops.spec import Outcome, Point

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
DEPTHS = (0, 1, 2)


def main() -> None:
    """Runs the contest and prints the table."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--peer-rates", type=int, default=len(RATES), help="rates the peer runs; its time is scaled")
    options = parser.parse_args()
    found: dict[str, dict[str, list[Outcome]]] = {}
    for model in options.models:
        found[model] = {"ours": [], "two": [], "floor": [], "peer": []}
        for _ in range(options.repeats):
            points = [Point(depth, rate) for depth in DEPTHS for rate in RATES]
            ours = measure("ours", spec(model, points=points, epochs=options.epochs))
            found[model]["ours"].append(ours)
            two = spec(model, points=points, epochs=options.epochs, options={"workers": "2"})
            found[model]["two"].append(measure("ours", two))
            chosen = ours.precision[:2] if ours.precision[0] != "32-true" else ["32-true", "channels_last"]
            found[model]["floor"].append(
                measure("floor", spec(model, points=points, epochs=options.epochs, precision=chosen))
            )
            fewer = [Point(depth, rate) for depth in DEPTHS for rate in RATES[-options.peer_rates :]]
            found[model]["peer"].append(measure("peer", spec(model, points=fewer, epochs=options.epochs)))
    write(__file__, report(found, options.epochs, options.peer_rates), save=options.write)


def report(found: dict[str, dict[str, list[Outcome]]], epochs: int, peer_rates: int) -> str:
    """Returns the table as Markdown."""
    rows = []
    for model, loops in found.items():
        seconds = {name: [outcome.seconds for outcome in outcomes] for name, outcomes in loops.items()}
        peer = [value * len(RATES) / peer_rates for value in seconds["peer"]]
        mean = {name: sum(values) / len(values) for name, values in seconds.items()}
        rows.append(
            f"| {model} | {', '.join(loops['ours'][0].precision[:2])} | {sum(peer) / len(peer):.0f} | "
            f"{mean['ours']:.1f} | {mean['two']:.1f} | {mean['floor']:.1f} | "
            f"{ratio(peer, seconds['ours'])} | {ratio(peer, seconds['two'])} | "
            f"{ratio(seconds['ours'], seconds['floor'])} | {ratio(seconds['two'], seconds['floor'])} |"
        )
    depths = []
    for model, loops in found.items():
        for depth, number in zip(DEPTHS, range(len(DEPTHS)), strict=True):
            ours, floor = (_median(loops[name][0].trials, number, len(RATES)) for name in ("ours", "floor"))
            peer_one = _median(loops["peer"][0].trials, number, peer_rates)
            best = [max(_of(loops[name][0].accuracies, number, n)) for name, n in (("peer", peer_rates), ("ours", 4))]
            depths.append(
                f"| {model} | {depth} | {peer_one:.1f} | {ours:.2f} | {floor:.2f} | {best[0]:.4f} | {best[1]:.4f} |"
            )
    scaled = (
        ""
        if peer_rates == len(RATES)
        else f" The peer ran {peer_rates} of the {len(RATES)} rates at each depth; its seconds are scaled by "
        f"{len(RATES)}/{peer_rates}, since it shares nothing between trials."
    )
    return "\n".join(
        [
            f"# {len(DEPTHS) * len(RATES)} trials over unfreeze depth and learning rate",
            "",
            f"hymenoptera (244 + 153 photos, 224 pixels, no augmentation), depths {', '.join(map(str, DEPTHS))} times "
            f"{len(RATES)} rates, {epochs} epochs, AdamW, batch 32. Seconds until the last trial has ended, imports "
            f"aside, nothing cached before.{scaled}",
            "",
            "| model | chosen | peer | ours | with 2 workers | floor | peer / ours | with 2 workers | ours / floor | "
            "with 2 workers |",
            "| :-- | :-- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "The median trial at each depth:",
            "",
            "| model | depth | peer, s | ours, s | floor, s | best accuracy, peer | ours |",
            "| :-- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *depths,
            "",
            surroundings(),
            "",
        ]
    )


def _of(values: list[float], number: int, each: int) -> list[float]:
    return values[number * each : (number + 1) * each]


def _median(values: list[float], number: int, each: int) -> float:
    part = sorted(_of(values, number, each))
    return part[len(part) // 2]


if __name__ == "__main__":
    main()
