"""What every source returns: one table of images, labels, names and given splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.data.base import SplitName, TargetKind
from tlresearch.modality.dicom import Window
from tlresearch.modality.image import Preprocessing

Size = tuple[int, int]
"""Height and width in pixels."""

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
# Names that other tools give the splits, in small letters; read-only data cannot be renamed.
_SPELLINGS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_of(name: str) -> SplitName | None:
    """Returns the split that a folder, file or entry of this name means; ``None`` if it means none."""
    return _SPELLINGS.get(name.strip().lower())


def splits_among(names: Iterable[str], where: str) -> dict[str, SplitName]:
    """Returns those of the names that mean a split, with the split.

    ``trainval`` is ``train`` unless that is there too: then it holds train and val once more.

    Raises:
        DataError: If two names mean one split.
    """
    meant = {name: split for name in names if (split := split_of(name)) is not None}
    joint = [name for name in meant if name.lower() == "trainval"]
    if joint and len(set(meant.values())) < len(meant):
        meant = {name: split for name, split in meant.items() if name not in joint}
    for split in SPLITS:
        alike = [name for name in meant if meant[name] == split]
        if len(alike) > 1:
            raise DataError(f"{where} holds {' and '.join(alike)}, which are one split ({split}): keep one of them")
    return meant


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


class PlaneTargets(Protocol):
    """Targets in the image plane, masks or boxes, by row of the table."""

    def whole(self, row: int) -> Tensor:
        """Returns a target at the size of its image."""
        ...

    def framed(self, target: Tensor, wanted: Preprocessing, size: Size) -> Tensor:
        """Brings a target of an image of this size to the input size."""
        ...

    def wrap(self, target: Tensor, size: Size) -> Any:
        """Returns what torchvision's transforms move with the image."""
        ...

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Makes a target of what was moved, given the target it was made from."""
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
        plane: Makes targets that lie in the image plane, from height and width of each readable row.
        fit: How its images get square; see `Preprocessing.fit`.
        windows: Intensities shown of its files; see `Preprocessing.windows`.
        passed: Number of files and rows that are no samples, by their ending or by why.
        problems: Why the targets of a row cannot be used, by row: such as text in a column of numbers.
    """

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    names: Sequence[str]
    images: Images
    splits: Sequence[SplitName] | None = None
    targets: Tensor | Sequence[Tensor] | None = None
    kind: TargetKind = "multiclass"
    samples: str = "images"
    groups: Sequence[str] | None = None
    plane: Callable[[Mapping[int, Size]], PlaneTargets] | None = None
    fit: Literal["crop", "stretch", "letterbox"] = "crop"
    windows: tuple[Window, ...] = ()
    passed: Mapping[str, int] = field(default_factory=dict)
    problems: Mapping[int, str] = field(default_factory=dict)

    @property
    def multilabel(self) -> bool:
        """Whether a sample can have several classes."""
        return self.labels.ndim == 2


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Different labels in their order: by value if all are numbers, else by the alphabet."""
    different = sorted(set(labels))
    numbers = all(label.isdecimal() and len(label) < 1000 for label in different)  # Python reads no longer ones
    return tuple(sorted(different, key=int) if numbers else different)


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
