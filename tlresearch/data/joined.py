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
        self.names = [part.names[index] for part, index in self._places]
        self.targets = stack_targets([part.targets[index] for part, index in self._places])

    @property
    def load_key(self) -> str:
        """What `load` depends on."""
        keys = dict.fromkeys(part.load_key for part in self._parts)
        return "; ".join(keys) if all(keys) else ""

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
        for value, key in zip(values, keys, strict=True):
            part, place = self._places[key.index]
            single = part.finish([value], [SampleKey(place, key.epoch)])
            inputs.append(unstack(single.inputs)[0])
            targets.append(single.targets[0])
        return Batch(stack(inputs), stack_targets(targets), positions(keys))
