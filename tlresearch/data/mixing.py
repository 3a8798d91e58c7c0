"""Mixup and CutMix: whole batches mixed by a pure function of seed, epoch and batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from tlresearch.data.seeding import seeded


def mix_batch(
    inputs: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    classes: int,
    mixup: float,
    cutmix: float,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """Mixes a batch with itself shifted by one; with both alphas set, each batch draws one of the two.

    The draw depends on `seed`, `epoch` and the first indices of the batch alone, so that a resumed run mixes
    as the unbroken one would have, and no other random numbers move.

    Args:
        inputs: Images ``(batch, C, H, W)``, normalised.
        targets: Class numbers ``(batch,)``, or one column per class.
        indices: Positions of the samples in their split.
        classes: Number of classes.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of CutMix; 0 is off.
        seed: Seed of the run.
        epoch: Epoch of the batch.

    Returns:
        Mixed images and one float column per class; both as they were if both alphas are 0.
    """
    known = None if targets.ndim == 2 else classes
    choices = []
    if mixup > 0:
        choices.append(v2.MixUp(alpha=mixup, num_classes=known))
    if cutmix > 0:
        choices.append(v2.CutMix(alpha=cutmix, num_classes=known))
    if not choices:
        return inputs, targets
    with seeded("mix", seed, epoch, *indices[:4].tolist()):
        chosen = choices[int(torch.randint(len(choices), ()))]
        mixed, mixed_targets = chosen(inputs, targets)
    return mixed, mixed_targets
