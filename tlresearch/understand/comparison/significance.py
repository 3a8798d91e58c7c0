"""Whether two compared runs, or groups, really differ: paired tests over the same samples and the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlresearch.tracking.items import Items
from tlresearch.understand.comparison.rows import Row

if TYPE_CHECKING:
    from tlresearch.base.statistics import PairedTest

LEVEL = 0.05
_MOST = 10  # other runs that are tested against the best


@dataclass(frozen=True)
class Paired:
    """A difference between two rows of a comparison.

    Attributes:
        first: Name of the run or group that is best, or stands first.
        second: Name of the other.
        metric: What differs.
        over: What the pairs are, such as ``"153 test samples"``.
        test: The test; `None` if there are no pairs.
        reason: Why there are none.
    """

    first: str
    second: str
    metric: str
    over: str
    test: PairedTest | None
    reason: str = ""

    @property
    def note(self) -> str:
        """What the test cannot show, with so few pairs."""
        smallest = 2.0 ** (1 - self.test.n) if self.test else 0.0
        return f"from {self.over} no p below {smallest:.2g} can come" if smallest > LEVEL else ""

    @property
    def within_noise(self) -> bool:
        """Whether a difference like this is to be expected between equals."""
        return self.test is None or not self.test.p_value < LEVEL


def paired_tests(rows: Sequence[Row], metrics: Sequence[str], best: Mapping[str, str]) -> tuple[Paired, ...]:
    """Tests the best run of the first metric (the first run in a tie) against the others, pair by pair.

    Args:
        rows: The runs and groups.
        metrics: The metrics they are compared by.
        best: Id of the best run by metric, where one is best.
    """
    if not metrics or len(rows) < 2:
        return ()
    metric = metrics[0]
    first = next(row for row in rows if row.run_id == best.get(metric, rows[0].run_id))
    others = [row for row in rows if row is not first][:_MOST]
    items = {row.run_id: _items(row) for row in (first, *others)}
    return tuple(test for other in others for test in _tests(first, other, metric, items))


def _tests(first: Row, other: Row, metric: str, items: Mapping[str, Mapping[int, Items]]) -> Iterator[Paired]:
    names = first.name, other.name
    if first.name == other.name:
        names = f"{first.name} {first.run_id[:8]}", f"{other.name} {other.run_id[:8]}"
    kept = [items[row.run_id] for row in (first, other)]
    if not first.members and not other.members:
        # Two single runs are compared on the same samples whatever their seeds.
        kept = [dict(zip([0], seeds.values(), strict=False)) for seeds in kept]
    found = list(_over_items(names, *kept))
    if found or first.data == other.data:
        found += _over_seeds(names, first, other, metric)
    reason = "no predictions of the same samples" + (
        ", and other data" if first.data != other.data else ", and no shared seeds"
    )
    yield from found or [Paired(*names, metric, "", None, reason)]


def _over_items(names: tuple[str, str], first: Mapping[int, Items], other: Mapping[int, Items]) -> Iterator[Paired]:
    """Compares which samples are right, or their errors; of groups, over the seeds that both have."""
    from tlresearch.base.statistics import paired_test

    seeds = sorted(set(first) & set(other))
    shares = [_shares([found[seed] for seed in seeds]) for found in (first, other)]
    if not seeds or not all(shares) or set(shares[0]) != set(shares[1]):
        return
    kept = first[seeds[0]]
    if (kept.split, kept.measure) != (other[seeds[0]].split, other[seeds[0]].measure):
        return
    order = sorted(shares[0])
    test = paired_test([shares[0][name] for name in order], [shares[1][name] for name in order])
    over = f"{len(order)} {kept.split} samples" + (f" x {len(seeds)} seeds" if len(seeds) > 1 else "")
    yield Paired(*names, f"{kept.split} {kept.judged_by}", over, test)


def _over_seeds(names: tuple[str, str], first: Row, other: Row, metric: str) -> Iterator[Paired]:
    from tlresearch.base.statistics import paired_test

    values = [row.metrics[metric].by_seed for row in (first, other) if metric in row.metrics]
    seeds = sorted(set(first.members) & set(other.members))
    if len(values) == 2 and len(seeds) > 1:
        test = paired_test([values[0][seed] for seed in seeds], [values[1][seed] for seed in seeds])
        yield Paired(*names, metric, f"{len(seeds)} seeds", test)


def _items(row: Row) -> dict[int, Items]:
    """Predictions by seed, of those runs that kept them."""
    return {seed: run.items for seed, run in row.runs.items() if run.items}


def _shares(runs: list[Items]) -> dict[tuple[str, str], float]:
    """Share of the runs in which a sample is right, or the mean error of its number, by its name and target."""
    right: dict[tuple[str, str], list[float]] = {}
    for items in runs:
        for item in items.items:
            right.setdefault((item.name, item.target), []).append(items.judged(item))
    return {key: sum(values) / len(values) for key, values in right.items() if len(values) == len(runs)}
