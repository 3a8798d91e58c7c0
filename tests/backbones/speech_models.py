"""Tiny speech encoders of transformers with random weights, written as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
SHORTEST = 40  # samples that one frame sees


def save_speech(folder: Path, family: str, **settings: Any) -> nn.Module:
    """Writes config and weights of a random model, and returns it in eval mode."""
    import transformers

    config = transformers.AutoConfig.for_model(family, **{**SMALL, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return model.eval()
