"""A backbone from an earlier run: every tensor that it kept is taken, and its channels may be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.toy import toy_text
from tlresearch import fit
from tlresearch.backbones.lineage import build_with_lineage
from tlresearch.base.errors import WeightsError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.tracking.records import CONFIG, TRAINED, Record, Runs


@pytest.fixture
def run() -> Record:
    """A run that trained the last two stages of four."""
    text = toy_text(freeze="{schedule: depth, unfreeze_depth: 2, epochs: 1}")
    return Runs().get(fit(load_text(text)).run_id)


@pytest.fixture
def source(run: Record) -> Path:
    """Where its artifacts lie."""
    return Path(str(run.stored.info.artifact_uri).removeprefix("file://"))


def rebuilt(run: Record, **changes: object) -> dict[str, Tensor]:
    """The tensors of a backbone that goes on from what a run kept."""
    options = {"in_channels": 1, "width": 4}
    config = BackboneConfig(name="small_cnn", checkpoint=run.run_id, options=options, **changes)  # type: ignore[arg-type]
    return build_with_lineage(config, run.runs).original_state_dict()


@pytest.mark.parametrize("change", ["missing", "renamed", "another shape"])
def test_a_tensor_that_is_not_as_it_was_is_named(change: str, run: Record, source: Path) -> None:
    tensors = load_file(source / TRAINED)
    name = next(name for name in tensors if name.startswith("backbone.stages.2") and name.endswith("weight"))
    short = name.removeprefix("backbone.")
    tensor = tensors.pop(name)
    if change == "renamed":
        tensors[name.replace("weight", "wieght")] = tensor
    elif change == "another shape":
        tensors[name] = tensor[:1].clone()
    save_file(tensors, source / TRAINED)
    with pytest.raises(WeightsError) as caught:
        rebuilt(run)
    assert str(caught.value).startswith(f"backbone.checkpoint: {TRAINED} of run {run.run_id} does not fit: '{short}'")
    assert ("has no place" in str(caught.value)) == (change == "renamed")


def test_channels_are_changed_after_the_weights_are_loaded(run: Record) -> None:
    plain, wide = rebuilt(run), rebuilt(run, in_channels=3)
    first = next(name for name, tensor in plain.items() if tensor.ndim == 4)
    assert wide[first].shape[1] == 3
    torch.testing.assert_close(wide[first].sum(dim=1, keepdim=True), plain[first])
    assert all(torch.equal(tensor, wide[name]) for name, tensor in plain.items() if name != first)


def test_a_run_that_goes_on_takes_over_the_channels_it_finds(run: Record, source: Path) -> None:
    changed = (source / CONFIG).read_text().replace("in_channels: null", "in_channels: 2")
    assert "in_channels: 2" in changed
    (source / CONFIG).write_text(changed)
    tensors = {n: t for n, t in load_file(source / TRAINED).items() if ".stages.0." not in n}
    save_file(tensors, source / TRAINED)
    first = next(tensor for tensor in rebuilt(run).values() if tensor.ndim == 4)
    assert first.shape[1] == 2
