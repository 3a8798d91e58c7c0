"""Tiny models of every family of transformers with random weights, and a tokenizer for them, made offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WORDS = ("[PAD]", "[UNK]", "good", "bad", "a", "film", "the", "very", "not", "paris", "anna", "in", "##s", "went", "to")
SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
SHORT = {"max_position_embeddings": 40}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, **SHORT},
    "roberta": {**SIZES, **SHORT, "pad_token_id": 1},
    "xlm-roberta": {**SIZES, **SHORT, "pad_token_id": 1},
    "camembert": {**SIZES, **SHORT, "pad_token_id": 1},
    "electra": {**SIZES, **SHORT, "embedding_size": 8},
    "distilbert": {"vocab_size": 32, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, **SHORT},
    "deberta": {**SIZES, **SHORT, **RELATIVE},
    "deberta-v2": {
        **SIZES,
        **SHORT,
        **RELATIVE,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "conv_kernel_size": 3,
    },
    "gpt2": {"vocab_size": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40},
    "llama": {**SIZES, **SHORT, "num_key_value_heads": 1, "pad_token_id": 0},
    "t5": T5,
    "mt5": T5,
}


def save_model(folder: Path, family: str, *, weights: bool = False) -> nn.Module:
    """Writes ``config.json`` and the tokenizer, perhaps weights, and returns the original model in eval mode."""
    config = transformers.CONFIG_MAPPING[family](**CONFIGS[family])
    kind = transformers.MODEL_MAPPING[type(config)]
    if family in ("t5", "mt5"):
        kind = getattr(transformers, kind.__name__.replace("Model", "EncoderModel"))
    torch.manual_seed(3)
    model: nn.Module = kind(config).eval()
    if weights:
        model.save_pretrained(folder)  # type: ignore[operator]
    config.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
