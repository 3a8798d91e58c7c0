"""wav2vec 2.0, HuBERT and WavLM of transformers in stages: feature encoder, projection, each layer."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tlresearch.backbones.base import End
from tlresearch.backbones.log_mel import waveform
from tlresearch.backbones.sequences import mask_of, mean_of
from tlresearch.backbones.transformers_stage import ModelStage
from tlresearch.base.errors import UserError
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import Value

SPEECH_MODELS = ("wav2vec2", "hubert", "wavlm")
"""Families by `model_type` of their ``config.json``."""


class FeatureEncoder(ModelStage):
    """The convolutions over the waveform: one vector for 20 ms in all published models.

    Models with a group norm behind the first convolution take its statistics over the whole clip, padding included,
    and were trained without padding. Here each clip then runs by itself, without padding, so that what comes out
    depends on the clip alone and not on the batch it is in.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, "feature_extractor")

    def forward(self, value: Value) -> dict[str, Tensor]:
        """Turns waveforms into ``hidden`` ``(batch, frames, channels)`` and their mask."""
        audio, lengths = waveform(value)
        encoder = self.get_submodule("feature_extractor")
        padded = isinstance(value, dict) and bool((lengths < audio.shape[1]).any())
        if padded and self.config.feat_extract_norm == "group":
            alone = [encoder(clip[None, :length])[0].T for clip, length in zip(audio, lengths.tolist(), strict=True)]
            hidden = pad_sequence(alone, batch_first=True)
        else:
            hidden = encoder(audio).transpose(1, 2)
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return {"hidden": hidden, "mask": mask_of(lengths, hidden.shape[1])}


class Projection(ModelStage):
    """From the width of the convolutions to that of the layers, with convolutional positions added."""

    def __init__(self, model: nn.Module) -> None:
        before = [] if model.config.do_stable_layer_norm else ["encoder.layer_norm"]  # type: ignore[union-attr]
        super().__init__(model, "feature_projection", "encoder.pos_conv_embed", *before, "encoder.dropout")

    def forward(self, value: dict[str, Tensor]) -> dict[str, Tensor]:
        """Projects; padding becomes 0, so that the positions of real frames do not depend on it."""
        hidden = self.get_submodule("feature_projection")(value["hidden"])
        if isinstance(hidden, tuple):  # HuBERT gives one value, the others two
            hidden = hidden[0]
        hidden = hidden.masked_fill(~value["mask"][..., None], 0)
        encoder: Any = self.get_submodule("encoder")
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not self.config.do_stable_layer_norm:
            hidden = encoder.layer_norm(hidden)
        return {"hidden": encoder.dropout(hidden), "mask": value["mask"]}


class Layer(ModelStage):
    """One layer of attention, and what follows the last one.

    In training, the whole layer is skipped with the probability ``layerdrop`` of the model's config, as transformers
    does it. Its masking of spans (SpecAugment) is left out.

    Args:
        model: The whole model.
        number: Number of the layer.
        end: What comes out of the last layer; ``None`` in front of it.
    """

    def __init__(self, model: nn.Module, number: int, end: End | None) -> None:
        self.final = end is not None and bool(model.config.do_stable_layer_norm)  # type: ignore[union-attr]
        path = f"encoder.layers.{number}"
        super().__init__(model, path, *(["encoder.layer_norm"] if self.final else []))
        self.path, self.number, self.end = path, number, end
        self.relative = self.config.model_type == "wavlm"
        if self.relative:
            attention: Any = self.get_submodule(path).attention
            # Its projections are read, not called: an adapter around them would be without effect.
            attention.weights_are_read = True
            # Past the registry: the table of relative positions belongs to the first layer and is read by all.
            object.__setattr__(self, "_positions", model.get_submodule("encoder.layers.0").attention)

    def forward(self, value: dict[str, Tensor]) -> Value:
        """Runs the layer over hidden states and mask."""
        hidden, mask = value["hidden"], value["mask"]
        if not self._dropped():
            hidden = self.get_submodule(self.path)(hidden, **self._context(hidden, mask))
            if isinstance(hidden, tuple):
                hidden = hidden[0]
        if self.final:
            hidden = self.get_submodule("encoder.layer_norm")(hidden)
        return mean_of(hidden, mask) if self.end == "pooled" else {"hidden": hidden, "mask": mask}

    def _dropped(self) -> bool:
        if not self.training or self.config.layerdrop == 0 or (self.relative and self.number == 0):
            return False
        return float(torch.rand(())) < float(self.config.layerdrop)

    def _context(self, hidden: Tensor, mask: Tensor) -> dict[str, Any]:
        """What a layer is given beside the hidden states."""
        if not self.relative:
            from transformers.masking_utils import create_bidirectional_mask

            allowed = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=mask)
            return {"attention_mask": allowed}
        length = hidden.shape[1]
        bias = cast(Any, self)._positions.compute_bias(length, length)
        return {"attention_mask": mask, "position_bias": bias.repeat(len(hidden), 1, 1)}


def cut_speech(model: nn.Module, end: End) -> dict[str, nn.Module]:
    """Cuts a speech encoder into stages by name: ``feature_encoder``, ``projection``, ``layer_0`` and so on.

    Args:
        model: The model without a head.
        end: ``pooled``, the mean of the last layer's real frames, or ``sequence``.

    Raises:
        UserError: If the model has an adapter behind its layers.
    """
    config: Any = model.config
    if getattr(config, "add_adapter", False):
        raise UserError("backbone.name: speech encoders with an adapter behind the layers have no stages here")
    if config.model_type == "wavlm":
        # torch's advice to transformers.
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask", category=UserWarning)
    last = config.num_hidden_layers - 1
    layers = {f"layer_{n}": Layer(model, n, end if n == last else None) for n in range(config.num_hidden_layers)}
    return {"feature_encoder": FeatureEncoder(model), "projection": Projection(model), **layers}


def speech_preprocessing(place: str, revision: str | None, config: Any) -> AudioPreprocessing:
    """Reads what a speech encoder takes: rate and normalisation, as its ``preprocessor_config.json`` says.

    Args:
        place: Folder, or name on the hub.
        revision: Revision on the hub.
        config: The model's config.
    """
    import transformers

    kind: Any = transformers.Wav2Vec2FeatureExtractor
    try:
        extractor = kind.from_pretrained(place, revision=revision)
    except (OSError, ValueError):  # a folder with nothing but config.json
        extractor = kind()
    shortest = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        shortest = (shortest - 1) * stride + kernel
    return AudioPreprocessing(extractor.sampling_rate, shortest=shortest, normalise=extractor.do_normalize)
