from __future__ import annotations

import pytest
import torch

from tlresearch.data.mixing import mix_batch

INPUTS = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
INDICES = torch.tensor([9, 4, 7, 1, 0, 3])


def mix(
    mixup: float, cutmix: float, epoch: int = 0, seed: int = 0, indices: torch.Tensor = INDICES
) -> tuple[torch.Tensor, torch.Tensor]:
    return mix_batch(
        INPUTS.clone(),
        TARGETS,
        indices,
        classes=3,
        mixup=mixup,
        cutmix=cutmix,
        seed=seed,
        epoch=epoch,
    )


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_is_a_pure_function_of_seed_epoch_and_batch(alphas: tuple[float, float]) -> None:
    state = torch.get_rng_state()
    first = mix(*alphas)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    second = mix(*alphas)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    others = [mix(*alphas, epoch=1), mix(*alphas, seed=1), mix(*alphas, indices=INDICES.flip(0))]
    assert all(not torch.equal(first[0], other[0]) for other in others)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)])
def test_targets_become_shares_of_classes(alphas: tuple[float, float]) -> None:
    _, targets = mix(*alphas)
    assert targets.shape == (6, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_both_kinds_are_drawn() -> None:
    # Mixup leaves no pixel as it was; CutMix leaves most.
    kept = {bool((mix(1.0, 1.0, epoch)[0] == INPUTS).any()) for epoch in range(20)}
    assert kept == {True, False}


def test_off_is_off() -> None:
    inputs, targets = mix(0.0, 0.0)
    assert torch.equal(inputs, INPUTS)
    assert targets is TARGETS


def test_several_labels_are_mixed_too() -> None:
    columns = torch.eye(3)[TARGETS]
    mixed = mix_batch(INPUTS.clone(), columns, INDICES, classes=3, mixup=0.5, cutmix=0.0, seed=0, epoch=0)[1]
    assert torch.equal(mixed, mix(0.5, 0.0)[1])
