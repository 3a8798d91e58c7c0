"""What every task and schedule sees of data: named splits of samples, and batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tlresearch.modality.base import Modality
from tlresearch.modality.values import Value, stack, unstack

SplitName = Literal["train", "val", "test"]
TargetKind = Literal[
    "binary", "multiclass", "multilabel", "tokens", "transcript", "masks", "boxes", "instances", "numbers"
]


class SampleKey(NamedTuple):
    """What a sampler yields and a split is asked for: the same key always gives the same sample.

    Attributes:
        index: Position in the split.
        epoch: Epoch the sample is drawn in; seeds its random augmentation, whatever the order or process.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    epoch: int


class Batch(NamedTuple):
    """A collated batch.

    Attributes:
        inputs: Network inputs, or the activations at `boundary`; the first dimension is the batch, or that of the parts
            of its samples one behind the other (see `Split.parts`).
        targets: Class numbers ``(batch,)`` int64, one column per label or number ``(batch, classes)`` float32, or
            whatever the task takes; targets of unequal shape are a list.
        indices: Positions of the samples in their split, ``(batch,)`` int64.
        boundary: Stages that have already been applied to `inputs`; 0 for raw inputs.
    """

    inputs: Value
    targets: Any
    indices: Tensor
    boundary: int = 0


class Split(Protocol):
    """One split of a data set; a split is made by subclassing, with `targets`, `names`, `load` and `raw` of its own.

    Samples are made in two steps, so that the first can be kept even if the second is random.

    Attributes:
        targets: All targets: a tensor whose rows they are, or one by one.
        names: Name of each sample, such as its path relative to the root.
    """

    targets: Tensor | Sequence[Any]
    names: Sequence[str]

    @property
    def lengths(self) -> Sequence[int] | None:
        """Length of each sample, in whatever unit; ``None`` where all are of one."""
        return None

    @property
    def load_key(self) -> str:
        """What `load` depends on beside the data set's content, in words; empty if it is not worth keeping."""
        return ""

    @property
    def augment_key(self) -> str:
        """What a random `finish` depends on beside its keys, such as a seed; empty if it is not random."""
        return ""

    @property
    def deterministic(self) -> bool:
        """Whether a sample is the same in every epoch, so that its activations can be kept."""
        return not self.augment_key

    @property
    def parts(self) -> Split:
        """What is loaded, kept and run through the stages: the samples, or what they are made of, each of it once."""
        return self

    def rows_of(self, index: int) -> Sequence[int]:
        """Positions in `parts` of what a sample is made of."""
        return (index,)

    def __len__(self) -> int:
        return len(self.names)

    def raw(self, index: int) -> Any:
        """Returns a sample before preprocessing, as a served model takes it: images uint8 ``(C, H, W)``."""
        ...

    def load(self, index: int) -> Value:
        """Returns a sample as it is in every epoch: decoded, and at the needed size where nothing random follows.

        It is called from several threads at once, since decoders let go of the interpreter's lock.
        """
        ...

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Makes a batch of what `load` gave of the `parts`: augmented by the keys, normalised, with its targets."""
        return Batch(stack(values), self.targets_at(keys), positions(keys))

    def targets_at(self, keys: Sequence[SampleKey]) -> Any:
        """Returns the targets of a batch, as the augmentation moves them."""
        return take_targets(self.targets, [key.index for key in keys])

    def __getitem__(self, key: SampleKey) -> tuple[Any, Any, int]:
        """Returns network input, target and index of one sample."""
        batch = self.__getitems__([key])
        return unstack(batch.inputs)[0], batch.targets[0], key.index

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at once; torch's loader asks for it by this name."""
        parts = self.parts
        return self.finish([parts.load(row) for key in keys for row in self.rows_of(key.index)], keys)


def positions(keys: Sequence[SampleKey]) -> Tensor:
    """Positions of samples in their split, ``(batch,)`` int64."""
    return torch.tensor([key.index for key in keys], dtype=torch.int64)


def stack_targets(targets: Sequence[Any]) -> Any:
    """Stacks targets that are tensors of one shape; others stay a list, which their task understands."""
    first = targets[0]
    if isinstance(first, Tensor) and all(isinstance(t, Tensor) and t.shape == first.shape for t in targets):
        return torch.stack(list(targets))
    return list(targets)


def take_targets(targets: Tensor | Sequence[Any], indices: Sequence[int]) -> Any:
    """Returns the targets of a batch, from all targets of its split."""
    return targets[list(indices)] if isinstance(targets, Tensor) else stack_targets([targets[i] for i in indices])


@dataclass(frozen=True)
class Fingerprint:
    """Content hash of a data set.

    Attributes:
        digest: SHA-256 over every sample's name, content hash, target and split.
        files: Content hash of every sample by name, so that a changed sample can be named.
    """

    digest: str
    files: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def listing(self) -> str:
        """The `files` as JSON, which every trial of a sweep records."""
        return json.dumps(dict(self.files), indent=2)


@dataclass(frozen=True)
class Data:
    """A data set ready for training.

    Attributes:
        name: Short name for tables.
        splits: ``train`` and ``val``, and ``test`` where there is one.
        classes: Class names in the order of their numbers; of numbers, the names of their columns.
        kind: What the targets are. Binary targets are class numbers 0 and 1.
        fingerprint: Content hash over all splits.
        preprocessing: What is done to each sample, with the config's changes to the backbone's own.
        skipped: Unreadable samples that were left out, with the reason, by name.
        passed: Number of files and rows beside the samples, by their ending or by why they are none.
    """

    name: str
    splits: Mapping[SplitName, Split]
    classes: tuple[str, ...]
    kind: TargetKind
    fingerprint: Fingerprint
    preprocessing: Modality | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    passed: Mapping[str, int] = field(default_factory=dict)
