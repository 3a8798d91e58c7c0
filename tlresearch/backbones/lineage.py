"""A backbone from an earlier run of ours: rebuilt from what the run recorded, so that transfer chains keep lineage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from tlresearch.backbones.base import End, StagedBackbone, WeightsRecord
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.channels import adapt_channels
from tlresearch.backbones.weights import digest, load_tensors
from tlresearch.base.errors import ConfigError, WeightsError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig

CONFIG = "config.yaml"
TRAINED = "weights/trained.safetensors"
"""Artifacts of a run: the recorded config, and the tensors that training could change."""

Download = Callable[[str, str], Path]
"""Fetches an artifact of a run: ``(run id, path) -> local file``."""


def build_with_lineage(config: BackboneConfig, download: Download, end: End = "pooled") -> StagedBackbone:
    """Builds a backbone from its weights, or from an earlier run's: its own weights first, then what it trained.

    Args:
        config: The `backbone` section.
        download: Fetches artifacts of earlier runs.
        end: What the task needs at the backbone's end.

    Raises:
        ConfigError: If the earlier run had another backbone.
        WeightsError: If the earlier run kept no weights.
    """
    if config.checkpoint is None:
        return build_backbone(config, end)
    source = load_text(download(config.checkpoint, CONFIG).read_text(), source=f"run {config.checkpoint}").config
    if (source.backbone.name, source.backbone.options) != (config.name, config.options):
        raise ConfigError(
            [
                f"backbone.checkpoint: run {config.checkpoint} trained {source.backbone.name} "
                f"{source.backbone.options or ''}, but backbone.name is {config.name} {config.options or ''}"
            ],
            "backbone",
        )
    if source.backbone.granularity != config.granularity:
        raise ConfigError(
            [f"backbone.granularity: run {config.checkpoint} has {source.backbone.granularity}; use the same"],
            "backbone",
        )
    try:
        file = download(config.checkpoint, TRAINED)
    except Exception as error:
        raise WeightsError(
            f"backbone.checkpoint: run {config.checkpoint} kept no weights ({error}); "
            "run it again with tracking.weights=true"
        ) from None
    backbone = build_with_lineage(source.backbone, download, end)
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in load_file(file).items()
        if name.startswith("backbone.")
    }
    # A run keeps the stages that its training could change, each as a whole.
    trained = {_stage_of(name) for name in tensors}
    required = [name for name in backbone.state_dict() if _stage_of(name) in trained]
    load_tensors(backbone, tensors, f"backbone.checkpoint: {TRAINED} of run {config.checkpoint}", required=required)
    if config.in_channels is not None:
        adapt_channels(backbone, config.in_channels)
    weights = digest(backbone.original_state_dict())
    backbone.weights = WeightsRecord(f"run {config.checkpoint}", weights, random_stages=())
    return backbone


def _stage_of(name: str) -> str:
    """The number of the stage in the name of a tensor, such as ``stages.3.conv.weight``."""
    return name.split(".")[1]
