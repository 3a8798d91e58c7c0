"""What every source returns: one table of images, labels, names and given splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.data.base import SplitName, TargetKind

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
# Names other tools give the validation split; read-only data cannot be renamed.
SPLIT_ALIASES: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


class Checked(NamedTuple):
    """What is known of an image after it was decoded once.

    Attributes:
        digest: SHA-256 of its content, in hex.
        height: Height in pixels.
        width: Width in pixels.
        problem: Why it cannot be read; ``None`` if it can.
    """

    digest: str
    height: int
    width: int
    problem: str | None = None


class Images(Protocol):
    """Where the images of a table are read from."""

    def load(self, index: int, channels: int) -> Tensor:
        """Returns one image as uint8 ``(channels, H, W)``; `channels` is 1 or 3. Sounds are of their own shape.

        Raises:
            ValueError: If the image cannot be read; the text says why.
        """
        ...

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Reads every image once; an unreadable one is reported, not raised."""
        ...


@dataclass(frozen=True)
class Table:
    """All samples of a source.

    Attributes:
        name: Short name of the data set.
        classes: Class names in the order of their numbers.
        labels: Class numbers ``(samples,)`` int64, or 0/1 columns ``(samples, classes)`` float32.
        names: Unique name of each sample.
        images: The images, or sounds, by position in `names`.
        splits: Split of each sample where the source gives one.
        targets: What is learnt, where it is not the labels: such as transcripts; the labels are then of no effect.
        kind: What `targets` are.
        samples: What the samples are called in messages.
        groups: What each sample is of, such as a patient: samples of one group are never in two splits.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    names: Sequence[str]
    images: Images
    splits: Sequence[SplitName] | None = None
    targets: Sequence[Tensor] | None = None
    kind: TargetKind = "multiclass"
    samples: str = "images"
    groups: Sequence[str] | None = None

    @property
    def multilabel(self) -> bool:
        """Whether a sample can have several classes."""
        return self.labels.ndim == 2


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Different labels in their order: by value if all are numbers, else by the alphabet."""
    found = sorted(set(labels))
    numbers = all(label.isdecimal() and len(label) < 1000 for label in found)  # Python reads no longer ones
    return tuple(sorted(found, key=int) if numbers else found)


def refuse(problems: Sequence[str], *, what: str, cure: str) -> None:
    """Raises one error for all problems of a kind: the count, the first ten, and the cure.

    Args:
        problems: One short text per problem; nothing happens if there is none.
        what: What they are, such as ``"unreadable images"``.
        cure: What to do about it.

    Raises:
        DataError: If there is a problem.
    """
    if not problems:
        return
    more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
    raise DataError(f"{what} ({len(problems)}): {'; '.join(problems[:10])}{more}. {cure}")
