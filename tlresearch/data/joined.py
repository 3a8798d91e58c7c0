"""Several splits as one, for tests on every sample of a set: in the order of the names, however it was split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tlresearch.data.base import Batch, SampleKey, Split, positions, stack_targets
from tlresearch.modality.values import Value, stack, unstack


def join(parts: Sequence[Split]) -> Split:
    """Returns a split with the samples of all parts, in the order of their names; they must not be random."""
    return parts[0] if len(parts) == 1 else Joined(parts)


class Joined(Split):
    """Splits put together.

    Args:
        parts: The splits, all deterministic.
    """

    def __init__(self, parts: Sequence[Split]) -> None:
        if not all(part.deterministic for part in parts):
            raise ValueError("only splits that are the same in every epoch are joined.")
        self._parts = parts
        places = [(part, index) for part in parts for index in range(len(part))]
        self._places = sorted(places, key=lambda place: place[0].names[place[1]])
        self._inner = None if all(part.parts is part for part in parts) else Joined([part.parts for part in parts])
        self.names = [part.names[index] for part, index in self._places]
        self._positions: dict[tuple[int, int], int] = {}
        self.targets = stack_targets([part.targets[index] for part, index in self._places])

    @property
    def load_key(self) -> str:
        """What `load` depends on."""
        keys = dict.fromkeys(part.load_key for part in self._parts)
        return "; ".join(keys) if all(keys) else ""

    @property
    def parts(self) -> Split:
        """What the samples of all splits are made of."""
        return self if self._inner is None else self._inner

    def rows_of(self, index: int) -> Sequence[int]:
        """Positions in `parts` of what a sample is made of."""
        if self._inner is None:
            return (index,)
        part, place = self._places[index]
        return [self._inner.position(part.parts, row) for row in part.rows_of(place)]

    def position(self, part: Split, row: int) -> int:
        """The position of a sample of one of the splits."""
        if not self._positions:
            self._positions |= {(id(split), place): number for number, (split, place) in enumerate(self._places)}
        return self._positions[id(part), row]

    def raw(self, index: int) -> Any:
        """Returns a sample before preprocessing."""
        part, place = self._places[index]
        return part.raw(place)

    def load(self, index: int) -> Value:
        """Returns a sample before what follows in `finish`."""
        part, place = self._places[index]
        return part.load(place)

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Finishes each sample by its own split, which knows its target."""
        inputs, targets = [], []
        each = len(values) // len(keys)
        for number, key in enumerate(keys):
            part, place = self._places[key.index]
            single = part.finish(values[number * each : (number + 1) * each], [SampleKey(place, key.epoch)])
            inputs += unstack(single.inputs)
            targets.append(single.targets[0])
        return Batch(stack(inputs), stack_targets(targets), positions(keys))
