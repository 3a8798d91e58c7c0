"""A backbone from an earlier run of ours: rebuilt from what the run recorded, so that transfer chains keep lineage."""

from __future__ import annotations

from safetensors.torch import load_file
from torch import Tensor

from tlresearch.backbones.base import End, StagedBackbone, WeightsRecord
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.channels import adapt_channels
from tlresearch.backbones.weights import digest, load_tensors
from tlresearch.base.errors import ConfigError, WeightsError, first_line
from tlresearch.config.schema import BackboneConfig
from tlresearch.tracking.records import TRAINED, Record, Runs


def build_with_lineage(config: BackboneConfig, runs: Runs, end: End = "pooled") -> StagedBackbone:
    """Builds a backbone from its weights, or from an earlier run's: its own weights first, then what it trained.

    Args:
        config: The `backbone` section.
        runs: Where earlier runs are found.
        end: What the task needs at the backbone's end.

    Raises:
        ConfigError: If the earlier run had another backbone.
        WeightsError: If the earlier run kept no weights.
    """
    if config.checkpoint is None:
        return build_backbone(config, end)
    run = runs.get(config.checkpoint)
    source = run.loaded.config
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
    backbone = build_with_lineage(source.backbone, runs, end)
    tensors = {
        name.removeprefix("backbone."): tensor
        for name, tensor in trained_tensors(run, "backbone.checkpoint").items()
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


def trained_tensors(run: Record, key: str) -> dict[str, Tensor]:
    """The tensors that training could change, as a run kept them.

    Args:
        run: The run.
        key: The config key that names it, for the error.

    Raises:
        WeightsError: If it kept none.
    """
    try:
        with run.file(TRAINED) as file:
            return load_file(file)
    except Exception as error:
        raise WeightsError(
            f"{key}: {run.title} kept no weights ({first_line(error)}); run it again with tracking.weights=true"
        ) from None


def _stage_of(name: str) -> str:
    """The number of the stage in the name of a tensor, such as ``stages.3.conv.weight``."""
    return name.split(".")[1]
