"""Which sample is in which split: stratified, seeded, and nested for growing training subsets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.data.base import SplitName
from tlresearch.data.seeding import derive_seed
from tlresearch.data.table import SPLITS, refuse

Rows = list[int]


def assign_splits(
    labels: Tensor,
    names: Sequence[str],
    *,
    rows: Sequence[int],
    given: Sequence[SplitName] | None,
    classes: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    whose: Sequence[str] | None = None,
) -> dict[SplitName, Rows]:
    """Distributes the rows over train, val and (perhaps) test; each list is in the order of the table.

    Given splits are kept. A missing test split is taken from the training samples if `test_fraction` asks
    for it, then a missing val split as the share `val_fraction` of what remains. Samples are picked by a hash
    of their name and the seed, class by class: a sample added later hardly moves the others about. With `whose`
    (what each sample is of, such as a patient) whole groups are picked in the same way.

    Raises:
        DataError: If a class has too few samples to be in every split.
    """
    splits: dict[SplitName, Rows] = {"train": list(rows)}
    if given is not None:
        splits = {split: [row for row in rows if given[row] == split] for split in SPLITS}
        splits = {split: members for split, members in splits.items() if members or split == "train"}
        if not splits["train"]:
            there = ", ".join(f"{len(members)} in {split}" for split, members in splits.items() if members)
            raise DataError(f"the train split is empty: of the samples that can be read, {there or 'none are left'}")
    held_out: tuple[tuple[SplitName, float], ...] = (("test", test_fraction), ("val", val_fraction))
    for split, fraction in held_out:
        if split not in splits and fraction > 0:
            part = (
                _hold_out(splits["train"], labels, names, fraction, f"{split} split", split_seed, classes)
                if whose is None
                else _hold_out_groups(splits["train"], labels, whose, fraction, f"{split} split", split_seed, classes)
            )
            taken = set(part)
            splits["train"] = [row for row in splits["train"] if row not in taken]
            splits[split] = part
    return {split: splits[split] for split in SPLITS if split in splits}


def subset(
    rows: Sequence[int],
    labels: Tensor,
    names: Sequence[str],
    *,
    classes: Sequence[str],
    labels_per_class: int | None,
    train_fraction: float,
    split_seed: int,
) -> Rows:
    """Keeps a share, then a number, of the training samples of each class.

    At one seed a smaller subset lies within every larger one. With several labels per sample, the share is
    taken of all samples, and the number is the least that each label gets.

    Raises:
        DataError: If a class has fewer samples than `labels_per_class`.
    """
    kept = set(rows)
    if train_fraction < 1:
        kept = set(_share(rows, labels, names, train_fraction, "subset", split_seed))
    if labels_per_class is None:
        return [row for row in rows if row in kept]
    ordered = [row for row in _shuffled(rows, names, "subset", split_seed) if row in kept]
    members = [[row for row in ordered if _has(labels, row, number)] for number in range(len(classes))]
    refuse(
        [
            f"'{name}' has {len(group)}"
            for name, group in zip(classes, members, strict=True)
            if len(group) < labels_per_class
        ],
        what=f"classes with fewer than data.labels_per_class={labels_per_class} training samples",
        cure="Lower data.labels_per_class or add samples",
    )
    chosen = {row for group in members for row in group[:labels_per_class]}
    return [row for row in rows if row in chosen]


def _hold_out(
    rows: Sequence[int],
    labels: Tensor,
    names: Sequence[str],
    fraction: float,
    purpose: str,
    seed: int,
    classes: Sequence[str],
    units: str = "samples",
) -> Rows:
    if len(rows) < 2:
        raise DataError(f"{len(rows)} training {units} are too few to hold out a {purpose}: add {units}")
    if labels.ndim == 1:
        refuse(
            [f"'{classes[number]}'" for number, group in _groups(rows, labels).items() if len(group) < 2],
            what=f"classes with a single training {units.removesuffix('s')}, which cannot also be in the {purpose}",
            cure=f"Add {units} or leave the class out with data.classes",
        )
    held_out = set(_share(rows, labels, names, fraction, purpose, seed, spare=True))
    return [row for row in rows if row in held_out]


def _hold_out_groups(
    rows: Sequence[int],
    labels: Tensor,
    whose: Sequence[str],
    fraction: float,
    purpose: str,
    seed: int,
    classes: Sequence[str],
) -> Rows:
    """Holds out the share of the groups of each class; a group counts to the class that most of its samples have."""
    members: dict[str, Rows] = {}
    for row in rows:
        members.setdefault(whose[row], []).append(row)
    # From here on a group is a sample: its number, name and class take their place.
    names = sorted(members)
    of_class = (
        torch.stack([labels[members[name]].bincount(minlength=len(classes)).argmax() for name in names])
        if labels.ndim == 1
        else labels[: len(names)]
    )
    held_out = _hold_out(range(len(names)), of_class, names, fraction, purpose, seed, classes, units="groups")
    taken = {row for number in held_out for row in members[names[number]]}
    return [row for row in rows if row in taken]


def _share(
    rows: Sequence[int],
    labels: Tensor,
    names: Sequence[str],
    fraction: float,
    purpose: str,
    seed: int,
    *,
    spare: bool = False,
) -> Rows:
    """Picks the share from each class, at least one sample and, with `spare`, never all of them."""
    ordered = _shuffled(rows, names, purpose, seed)
    groups = list(_groups(ordered, labels).values()) if labels.ndim == 1 else [ordered]
    return [row for group in groups for row in group[: max(1, min(len(group) - spare, _round(fraction * len(group))))]]


def _round(value: float) -> int:
    # Python rounds halves to even, so that 0.5 of 5 and 0.5 of 7 samples would go different ways.
    return int(value + 0.5)


def _groups(rows: Sequence[int], labels: Tensor) -> dict[int, Rows]:
    groups: dict[int, Rows] = {}
    for row in rows:
        groups.setdefault(int(labels[row]), []).append(row)
    return groups


def _has(labels: Tensor, row: int, number: int) -> bool:
    return bool(labels[row] == number) if labels.ndim == 1 else bool(labels[row, number])


def _shuffled(rows: Sequence[int], names: Sequence[str], purpose: str, seed: int) -> Rows:
    # The name breaks ties, so that the order never depends on that of the table.
    return sorted(rows, key=lambda row: (derive_seed(purpose, seed, names[row]), names[row]))
