"""What the process does while a phase trains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.toy import TRAINER, toy_text
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.run.fit import Role, fit


@pytest.fixture
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("tables", "_two_threads")
def test_a_head_on_stored_vectors_is_trained_by_one_thread() -> None:
    counts: list[int] = []

    def threads_of(overrides: list[str]) -> list[int]:
        counts.clear()
        counting = Role("counted", listener=lambda report: counts.append(torch.get_num_threads()))
        text = toy_text(freeze="{schedule: lp_ft, probe_epochs: 2, epochs: 4}", trainer=TRAINER)
        fit(load_text(text), overrides, role=counting)
        assert torch.get_num_threads() == 2
        return list(counts)

    assert threads_of([]) == [1, 1, 2, 2]  # the head alone, then all of it
    assert threads_of(["cache.enabled=false"]) == [2, 2, 2, 2]
    assert threads_of(["data.batch_size=1000000"]) == [2, 2, 2, 2]  # enough for two


@pytest.mark.usefixtures("tables")
@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"trainer.accelerator: gpu is not there.*set it to auto or cpu"):
        fit(load_text(toy_text(trainer="{accelerator: gpu}")))
