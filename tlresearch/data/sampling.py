"""Balanced sampling: an epoch in which every class is drawn equally often, however rare it is."""

from __future__ import annotations

import torch
from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.data.base import Data, Split


def balanced_order(classes: Tensor, generator: torch.Generator) -> list[int]:
    """Draws as many samples as there are, equally many of each class, in random order (Kang et al. 2020).

    A sample of a rare class comes again only when all others of its class have come; of a frequent class, each epoch
    shows other samples.

    Args:
        classes: Class number of each sample, ``(samples,)``.
        generator: Where the order is drawn from.

    Returns:
        Positions of the drawn samples.
    """
    present = torch.unique(classes)
    present = present[torch.randperm(len(present), generator=generator)]  # the first ones take what cannot be shared
    share, left = divmod(len(classes), len(present))
    drawn = [
        _drawn((classes == number).nonzero().flatten(), share + (position < left), generator)
        for position, number in enumerate(present)
    ]
    positions = torch.cat(drawn)
    order: list[int] = positions[torch.randperm(len(positions), generator=generator)].tolist()
    return order


def _drawn(members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rounds = [members[torch.randperm(len(members), generator=generator)] for _ in range(-(-count // len(members)))]
    return torch.cat([members[:0], *rounds])[:count]


def classes_of(split: Split) -> Tensor:
    """Returns the class number of each sample, ``(samples,)``.

    Raises:
        DataError: If a sample has no single class.
    """
    targets = split.targets
    if not isinstance(targets, Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise DataError("data.sampling: balanced needs one class per sample; set it to uniform")
    return targets


def check_sampling(data: Data) -> None:
    """Refuses balanced sampling of data whose samples have no single class.

    Raises:
        DataError: If they have not; the text names the cure.
    """
    if data.kind == "multilabel":
        raise DataError(
            f"data.sampling: balanced needs one class per sample, but those of {data.name} have several labels; "
            "set it to uniform, and task.class_weights to balanced"
        )
    if data.kind not in ("binary", "multiclass"):
        raise DataError(
            f"data.sampling: balanced needs one class per sample, but the targets of {data.name} are {data.kind}; "
            "set it to uniform"
        )
