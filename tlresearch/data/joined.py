"""Several splits as one, for tests on every sample of a set: in the order of the names, however it was split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tlresearch.data.base import Batch, SampleKey, Split, TwoStepSplit
from tlresearch.data.loading import collate, stack_targets
from tlresearch.data.values import Value, unstack


def join(parts: Sequence[Split]) -> Split:
    """Returns a split with the samples of all parts, in the order of their names; they must not be random."""
    if len(parts) == 1:
        return parts[0]
    two_steps = all(isinstance(part, TwoStepSplit) for part in parts)
    return JoinedTwoSteps(parts) if two_steps else Joined(parts)


class Joined:
    """Splits put together.

    Args:
        parts: The splits, all deterministic.
    """

    deterministic = True

    def __init__(self, parts: Sequence[Split]) -> None:
        if not all(part.deterministic for part in parts):
            raise ValueError("only splits that are the same in every epoch are joined.")
        self._parts = parts
        places = [(part, index) for part in parts for index in range(len(part))]
        self._places = sorted(places, key=lambda place: place[0].names[place[1]])
        self.names = [part.names[index] for part, index in self._places]
        self.targets = stack_targets([part.targets[index] for part, index in self._places])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: SampleKey) -> tuple[Any, Any, int]:
        """Returns network input, target and index of one sample."""
        part, index = self._places[key.index]
        inputs, target, _ = part[SampleKey(index, key.epoch)]
        return inputs, target, key.index

    def raw(self, index: int) -> Any:
        """Returns a sample before preprocessing."""
        part, place = self._places[index]
        return part.raw(place)


class JoinedTwoSteps(Joined):
    """Splits put together whose samples are made in two steps: what is loaded can be kept."""

    augment_key = ""

    @property
    def load_key(self) -> str:
        """What `load` depends on."""
        keys = dict.fromkeys(cast(TwoStepSplit, part).load_key for part in self._parts)
        return "; ".join(keys) if all(keys) else ""

    def load(self, index: int) -> Value:
        """Returns a sample before what follows in `finish`."""
        part, place = self._places[index]
        return cast(TwoStepSplit, part).load(place)

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Finishes each sample by its own split, which knows its target."""
        samples = []
        for value, key in zip(values, keys, strict=True):
            part, place = self._places[key.index]
            one = cast(TwoStepSplit, part).finish([value], [SampleKey(place, key.epoch)])
            samples.append((unstack(one.inputs)[0], one.targets[0], key.index))
        return collate(samples)
