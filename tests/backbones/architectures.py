"""Tiny networks of every architecture of transformers, with random weights, and batches that they take.

A config is made of the architecture's own defaults: what counts something (widths, layers, heads, tokens, pixels) is
replaced by a small number. What does not fit together then is said in `SETTINGS`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tlresearch.modality.values import Value

_LISTS = {
    head: names.split()
    for head, names in re.findall(r"\[(\w+)\]([^\[]+)", Path(__file__).with_name("networks.txt").read_text("utf-8"))
}
SOUNDS, IMAGES = _LISTS["sounds"], _LISTS["images"]
ARCHITECTURES = (*_LISTS["texts"], *SOUNDS, *IMAGES)
"""The architectures of transformers that must be cut, by `model_type`."""
FURTHER = tuple(_LISTS["further"])
"""Further ones, for which the defaults made small are enough."""
TIMM = tuple(_LISTS["timm"])
"""One or more models of every family of timm."""

WIDTH, INNER, LAYERS, HEADS, WORDS, POSITIONS = 32, 64, 3, 4, 128, 128

_NAMES: tuple[tuple[int, str], ...] = (
    (
        WIDTH,
        "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim embed_dim encoder_hidden_dim feature_size "
        "mask_feature_size fpn_feature_size encoder_hidden_size projection_dim",
    ),
    (
        INNER,
        "d_ff d_inner intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim mlp_dim ffn_hidden_size "
        "moe_intermediate_size encoder_feedforward_dim dim_feedforward",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers decoder_num_hidden_layers",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "decoder_num_attention_heads num_experts num_local_experts n_routed_experts rotary_dim state_size "
        "time_step_rank",
    ),
    (2, "num_key_value_heads num_experts_per_tok"),
    (8, "head_dim d_kv d_head patch_size num_queries"),
    (POSITIONS, "max_position_embeddings n_positions"),
    (WORDS, "vocab_size"),
    (16, "num_mel_bins"),
)
SMALL = {name: size for size, names in _NAMES for name in names.split()} | {"image_size": 32}
TOKENS = {
    "pad_token_id": 0,
    "unk_token_id": 1,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "mask_token_id": 4,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "decoder_start_token_id": 0,
}
FIRST_WORD = 12
"""Token numbers below it may mean something to a network."""

_PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}
_RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_SWIN = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    "window_size": 4,
}
_ALL_LEVELS = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_THREE_LEVELS = {"out_features": ["stage2", "stage3", "stage4"]}
_NO_TIMM = {"use_timm_backbone": False, "backbone": None}
_WAVES = {
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "conv_depthwise_kernel_size": 7,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
_RT_DETR = {
    **_NO_TIMM,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_denoising": 0,
    "decoder_in_channels": [32, 32, 32],
    "backbone_config": {**_RESNET, **_THREE_LEVELS, "model_type": "rt_detr_resnet", "layer_type": "basic"},
    "encoder_in_channels": [16, 24, 32],
}
_MASKED = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_intermediate_size": 64}
_VISION = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64, "projection_dim": 16}
_VISION |= {"num_hidden_layers": 3, "num_attention_heads": 4}
_TEXT = {name: size for name, size in _VISION.items() if name not in ("image_size", "patch_size")} | {
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 6,
}
_NAFLEX = {**{name: size for name, size in _VISION.items() if name != "image_size"}, "num_patches": 16}

SETTINGS: dict[str, dict[str, Any]] = {
    **{key: {"pad_token_id": 1} for key in ("roberta", "xlm-roberta", "camembert", "mpnet", "opt", "esm", "luke")},
    "deberta": {"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": "p2c|c2p",
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "longformer": {"pad_token_id": 1, "attention_window": [8, 8, 8]},
    "funnel": {"block_sizes": [2, 2], "num_decoder_layers": 2},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32, "hidden_size": 64},
    "esm": {**TOKENS, **_TEXT, "pad_token_id": 1, "position_embedding_type": "rotary", "token_dropout": True},
    "xmod": {"default_language": "en_XX"},
    "luke": {"pad_token_id": 1, "entity_vocab_size": 20, "entity_emb_size": 32},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "attention_head_size": 8,
        "feed_forward_size": 64,
        "local_attn_chunk_length": 4,
    },
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gemma2": {"query_pre_attn_scalar": 8, **_MIXED},
    "gemma3_text": {"query_pre_attn_scalar": 8, **_MIXED},
    "gpt_oss": _MIXED,
    "mistral": {"sliding_window": 8},
    "mamba2": {"num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "qwen3_moe": {"decoder_sparse_step": 1},
    "ctrl": {"dff": 64},
    "whisper": {"max_source_positions": 50, "max_target_positions": 64},
    "wavlm": {**_WAVES, "num_buckets": 32, "max_bucket_distance": 80},
    "data2vec-audio": {**_WAVES, "num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 5},
    **dict.fromkeys(("wav2vec2", "hubert", "unispeech", "unispeech-sat"), _WAVES),
    **{key: {**_WAVES, "squeeze_factor": 2} for key in ("sew", "sew-d")},
    "wav2vec2-conformer": {**_WAVES, "position_embeddings_type": "relative"},
    "wav2vec2-bert": {
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "feature_projection_input_dim": 16,
        "conv_depthwise_kernel_size": 7,
    },
    "audio-spectrogram-transformer": {"max_length": 64, "frequency_stride": 8, "time_stride": 8},
    "clap": {
        "text_config": {**_TEXT, "pad_token_id": 1},
        "audio_config": {
            "spec_size": 64,
            "num_mel_bins": 16,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "window_size": 4,
            "hidden_size": 32,
            "num_classes": 2,
            "projection_dim": 16,
        },
        "projection_dim": 16,
    },
    **{
        key: {"patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        for key in ("swin", "swinv2")
    },
    **{key: {**_PYRAMID, "patch_size": 4} for key in ("convnext", "convnextv2", "dinov3_convnext")},
    "resnet": {"embedding_size": 8, **_PYRAMID},
    "regnet": {"embedding_size": 8, "groups_width": 4, **_PYRAMID},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.3, "hidden_dim": 128},
    "mobilevit": {
        "image_size": 64,
        "patch_size": 2,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 24, 24, 32, 64],
    },
    "poolformer": {**_PYRAMID, "patch_size": 7},
    **dict.fromkeys(
        ("pvt", "pvt_v2"),
        {**_PYRAMID, "image_size": 64, "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2] * 4}
        | {"patch_sizes": [4, 2, 2, 2]},
    ),
    "segformer": {**_PYRAMID, "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 16, "mlp_ratios": [2] * 4},
    "hiera": {
        "image_size": [64, 64],
        "embed_dim": 16,
        "depths": [1, 2, 2],
        "num_heads": [1, 2, 4],
        "query_stride": [2, 2],
        "num_query_pool": 2,
        "masked_unit_size": [4, 4],
        "patch_size": [7, 7],
        "patch_stride": [4, 4],
        "patch_padding": [3, 3],
    },
    "levit": {
        "image_size": 64,
        "patch_size": 16,
        "hidden_sizes": [32, 48, 64],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 4], "drop_path_rate": [0.0] * 3},
    "focalnet": {
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 2],
        "hidden_sizes": [8, 16],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "videomae": {**_MASKED, "num_frames": 4},
    "vit_mae": _MASKED,
    "sam_vision_model": {"image_size": 64, "output_channels": 16, "window_size": 4, "global_attn_indexes": [1]},
    "dinov3_vit": {"num_register_tokens": 2},
    **{key: {"use_relative_position_bias": True} for key in ("beit", "data2vec-vision")},
    "yolos": {"image_size": [32, 48], "num_detection_tokens": 5, "use_mid_position_embeddings": True},
    "dpt": {
        "neck_hidden_sizes": [8, 8, 16, 16],
        "backbone_out_indices": [0, 1, 2, 2],
        "fusion_hidden_size": 16,
        "is_hybrid": False,
        "num_hidden_layers": 4,
    },
    "clip": {"vision_config": _VISION, "text_config": _TEXT, "projection_dim": 16},
    "siglip": {"vision_config": _VISION, "text_config": _TEXT},
    "siglip2": {"vision_config": _NAFLEX, "text_config": _TEXT},
    "siglip2_vision_model": {"num_patches": 16},
    **{
        key: {**_NO_TIMM, "backbone_config": {**_RESNET, "out_features": ["stage4"]}, "num_queries": 7}
        for key in ("detr", "conditional_detr")
    },
    "deformable_detr": {
        **_NO_TIMM,
        "backbone_config": {**_RESNET, **_THREE_LEVELS},
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_feature_levels": 3,
    },
    **dict.fromkeys(("rt_detr", "rt_detr_v2"), _RT_DETR),
    "d_fine": {
        **_RT_DETR,
        "encoder_in_channels": [32, 64, 64],
        "backbone_config": {
            "model_type": "hgnet_v2",
            "stage_in_channels": [16, 16, 32, 64],
            "stage_mid_channels": [8, 8, 16, 16],
            "stage_out_channels": [16, 32, 64, 64],
            "stage_num_blocks": [1, 1, 2, 1],
            "stage_numb_of_layers": [3, 3, 3, 3],
            "stem_channels": [3, 8, 16],
            "depths": [1, 1, 2, 1],
            "hidden_sizes": [16, 32, 64, 64],
            "embedding_size": 8,
            **_THREE_LEVELS,
        },
    },
    "mask2former": {"backbone_config": {**_SWIN, **_ALL_LEVELS}, "encoder_layers": 2, "hidden_dim": 32},
    "maskformer": {
        "backbone_config": {**_SWIN, **_ALL_LEVELS},
        "decoder_config": {"model_type": "detr", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 7}
        | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
    },
    "upernet": {
        "backbone_config": {"model_type": "convnext", **_PYRAMID, **_ALL_LEVELS},
        "hidden_size": 16,
        "auxiliary_in_channels": 24,
        "pool_scales": [1, 2],
    },
    "grounding-dino": {
        **_NO_TIMM,
        "backbone_config": {**_SWIN, **_THREE_LEVELS},
        "text_config": {"model_type": "bert", **_TEXT, "num_hidden_layers": 2},
        "encoder_layers": 2,
        "decoder_layers": 2,
        "num_feature_levels": 3,
        "max_text_len": 16,
        "query_dim": 4,
    },
    "timm_wrapper": {"architecture": "resnet18", "num_labels": 2},
}
"""What the architecture's defaults, made small, need beside that."""


def small_config(kind: str) -> Any:
    """A config of an architecture, so small that it runs in milliseconds."""
    made = transformers.CONFIG_MAPPING[kind]
    if kind == "timm_wrapper":
        return made(**SETTINGS[kind])
    try:
        defaults = made().to_dict()
    except Exception:  # some have none without a config of their parts
        defaults = {}
    return made(**{**shrunk(defaults), **SETTINGS.get(kind, {})})


def shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What counts something, by a small number; the settings of parts likewise."""
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value.get("model_type") in transformers.CONFIG_MAPPING:
            inner = dict(transformers.CONFIG_MAPPING[value["model_type"]]().to_dict()) | dict(value)
            small[name] = {"model_type": value["model_type"], **shrunk(inner)}
        elif isinstance(value, int) and not isinstance(value, bool) and (name in SMALL or name in TOKENS):
            small[name] = (SMALL | TOKENS)[name]
    return small


def build(config: Any) -> nn.Module:
    """The network without a head; zeros, such as those at the end of branches, are replaced by small numbers."""
    mapping = transformers.MODEL_MAPPING
    if type(config) not in mapping:  # UperNet
        mapping = transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    kind = mapping[type(config)]
    kind = kind[0] if isinstance(kind, (tuple, list)) else kind
    torch.manual_seed(0)
    network: nn.Module = kind(config).float().eval()
    return noisy(network)


def noisy(network: nn.Module) -> nn.Module:
    """Adds noise to all parameters, since zeros would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return network


@dataclass(frozen=True)
class Call:
    """Runs a network of transformers with all its inputs by name, and takes all tensors that have samples.

    Attributes:
        arguments: Further arguments.
    """

    arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Returns the tensors of the output by name."""
        assert isinstance(value, dict)
        given = dict(value)
        mask = given.pop("mask", None)
        if mask is not None:
            given["attention_mask"] = mask.long()
        samples = len(next(iter(given.values())))
        output = network(**given, **dict(self.arguments))
        return {
            name: leaf
            for name, leaf in output.items()
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1 and len(leaf) == samples
            if not name.startswith(("logits_per", "encoder_last"))
        }


def example(network: nn.Module, kind: str) -> tuple[Value, Call]:
    """A batch for a network of transformers, and how it is run."""
    config: Any = network.config
    taken = inspect.signature(network.forward).parameters
    value: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> Tensor:
        return torch.randint(FIRST_WORD, 40, (2, length), generator=generator)

    if "input_ids" in taken:
        value["input_ids"] = ids(14)
        value["mask"] = torch.ones(2, 14, dtype=torch.bool)
    if "decoder_input_ids" in taken:
        value["decoder_input_ids"] = ids(7)
    # Of what reads texts with pictures or sounds in them, the part that reads texts.
    towers = any(hasattr(network, name) for name in ("logit_scale", "visual_projection", "vision_embed"))
    texts = "input_ids" in taken and kind not in (*IMAGES, *SOUNDS) and not towers
    if "pixel_values" in taken and not (texts and taken["pixel_values"].default is None):
        value["pixel_values"] = pixels(config, kind)
    if "input_features" in taken and not (texts and taken["input_features"].default is None):
        value["input_features"] = features(config, kind)
    if "input_values" in taken and not texts:
        size = (2, config.max_length, config.num_mel_bins) if hasattr(config, "num_mel_bins") else (2, 400)
        value["input_values"] = torch.randn(size, generator=generator)
    if kind.startswith("siglip2"):
        value["pixel_values"] = torch.randn(2, 16, 3 * 8 * 8)
        value["pixel_attention_mask"] = torch.ones(2, 16, dtype=torch.int64)
        value["spatial_shapes"] = torch.tensor([[4, 4], [4, 4]])
    if kind == "videomae":
        value["pixel_values"] = torch.randn(2, 4, 3, 32, 32)
    if kind == "vit_mae":
        value["noise"] = torch.rand(2, 16)
    if kind == "grounding-dino":
        value.pop("mask")
    off = tuple((name, False) for name in ("use_cache",) if name in taken)
    return value, Call(off)


def pixels(config: Any, kind: str) -> Tensor:
    """Images of the size that the config names."""
    inner = getattr(config, "vision_config", config)
    size = getattr(inner, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = getattr(inner, "num_channels", None) or 3
    return torch.randn(2, channels, max(height, 32), max(width, 32), generator=torch.Generator().manual_seed(2))


def features(config: Any, kind: str) -> Tensor:
    """Spectrograms of the size that the config names."""
    shapes = {
        "whisper": (2, 16, 100),
        "speech_to_text": (2, 60, getattr(config, "input_feat_per_channel", 80)),
        "wav2vec2-bert": (2, 40, 16),
        "clap": (2, 1, 64, 16),
    }
    bins = getattr(getattr(config, "audio_config", config), "num_mel_bins", 16)
    return torch.randn(shapes.get(kind, (2, bins, 100)), generator=torch.Generator().manual_seed(3))
