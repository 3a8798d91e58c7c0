"""How the models of transformers are built, family by family: their modules in order, and what a layer is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Pooling = Literal["cls", "mean", "last"]

Embed = Callable[[Any, Tensor, Tensor], Tensor]
"""Hidden states in front of the first layer, of model, token numbers and mask."""

Context = Callable[[Any, Tensor, Tensor], dict[str, Any]]
"""Arguments of a layer beside the hidden states, of model, hidden states and mask."""


@dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Whatever layers share (relative positions, rotations) is computed anew for each: nothing but hidden states and
    mask crosses from one stage to the next.

    Attributes:
        layers: Path of the list of layers.
        embeddings: Paths of the modules in front of them, and of what layers share.
        final: Paths of the modules behind them.
        pooling: What makes one vector of a text, unless `backbone.options.pooling` says otherwise.
        shared: Paths of the modules that `context` reads.
        embed: Runs the modules in front of the layers.
        context: Makes the arguments of a layer.
        beside_first: Path of a module that works beside the first layer; DeBERTa's convolution.
        encoder_of_two: Whether the model is the encoder of an encoder-decoder.
        arguments: Arguments of the model's constructor.
    """

    layers: str
    embeddings: tuple[str, ...]
    pooling: Pooling
    embed: Embed
    context: Context
    shared: tuple[str, ...] = ()
    final: tuple[str, ...] = ()
    beside_first: str = ""
    encoder_of_two: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _positions(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)


def _embed(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = model.embeddings(input_ids=ids)
    return hidden


def _both_ways(model: Any, hidden: Tensor, mask: Tensor) -> dict[str, Any]:
    from transformers.masking_utils import create_bidirectional_mask

    return {"attention_mask": create_bidirectional_mask(config=model.config, inputs_embeds=hidden, attention_mask=mask)}


def _embed_electra(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = model.embeddings(input_ids=ids)
    return model.embeddings_project(hidden) if hasattr(model, "embeddings_project") else hidden


def _embed_deberta(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = model.embeddings(input_ids=ids, token_type_ids=torch.zeros_like(ids), mask=mask.long())
    return hidden


def _relative(model: Any, hidden: Tensor, mask: Tensor) -> dict[str, Any]:
    encoder = model.encoder
    return {
        "attention_mask": encoder.get_attention_mask(mask.long()),
        "relative_pos": encoder.get_rel_pos(hidden),
        "rel_embeddings": encoder.get_rel_embedding(),
    }


def _embed_gpt2(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    tokens = model.wte(ids)
    hidden: Tensor = model.drop(tokens + model.wpe(_positions(tokens)))
    return hidden


def _causal(model: Any, hidden: Tensor, mask: Tensor) -> dict[str, Any]:
    from transformers.masking_utils import create_causal_mask

    positions = _positions(hidden)
    attention = create_causal_mask(
        config=model.config,
        inputs_embeds=hidden,
        attention_mask=mask,
        past_key_values=None,
        position_ids=positions,
    )
    return {"attention_mask": attention, "position_ids": positions, "use_cache": False}


def _embed_llama(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = model.embed_tokens(ids)
    return hidden


def _rotary(model: Any, hidden: Tensor, mask: Tensor) -> dict[str, Any]:
    given = _causal(model, hidden, mask)
    return {**given, "position_embeddings": model.rotary_emb(hidden, position_ids=given["position_ids"])}


def _embed_t5(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    # The model's dropout is that behind the last layer, which may train while the embeddings are frozen.
    table = model.encoder.embed_tokens
    return functional.dropout(table(ids), model.config.dropout_rate, training=table.training)


def _biased(model: Any, hidden: Tensor, mask: Tensor) -> dict[str, Any]:
    attention = model.encoder.block[0].layer[0].SelfAttention
    length = hidden.shape[1]
    return {
        **_both_ways(model.encoder, hidden, mask),
        "position_bias": attention.compute_bias(length, length, device=hidden.device),
    }


_BERT = Family(
    layers="encoder.layer",
    embeddings=("embeddings",),
    pooling="cls",
    embed=_embed,
    context=_both_ways,
    arguments={"add_pooling_layer": False},
)
_DEBERTA = Family(
    layers="encoder.layer",
    embeddings=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm"),
    pooling="cls",
    embed=_embed_deberta,
    context=_relative,
    shared=("encoder.rel_embeddings", "encoder.LayerNorm"),
    beside_first="encoder.conv",
)
_T5 = Family(
    layers="encoder.block",
    embeddings=("encoder.embed_tokens",),
    final=("encoder.final_layer_norm", "encoder.dropout"),
    pooling="mean",
    embed=_embed_t5,
    context=_biased,
    shared=("encoder.block.0.layer.0.SelfAttention.relative_attention_bias",),
    encoder_of_two=True,
)

MODEL_FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": Family(
        layers="encoder.layer",
        embeddings=("embeddings", "embeddings_project"),
        pooling="cls",
        embed=_embed_electra,
        context=_both_ways,
    ),
    "distilbert": Family(
        layers="transformer.layer", embeddings=("embeddings",), pooling="cls", embed=_embed, context=_both_ways
    ),
    "deberta": _DEBERTA,
    "deberta-v2": _DEBERTA,
    "gpt2": Family(
        layers="h",
        embeddings=("wte", "wpe", "drop"),
        final=("ln_f",),
        pooling="last",
        embed=_embed_gpt2,
        context=_causal,
    ),
    "llama": Family(
        layers="layers",
        embeddings=("embed_tokens", "rotary_emb"),
        final=("norm",),
        pooling="last",
        embed=_embed_llama,
        context=_rotary,
        shared=("rotary_emb",),
    ),
    "t5": _T5,
    "mt5": _T5,
}
"""Families by `model_type` of their ``config.json``."""
