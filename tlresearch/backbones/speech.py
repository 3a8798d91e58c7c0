"""Encoders of waveforms in transformers: wav2vec 2.0 and all that is built like it.

Their convolutions are a stage of ours, `FeatureEncoder`; what lies behind them is cut by its structure.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from tlresearch.backbones.base import evaluating
from tlresearch.backbones.log_mel import waveform
from tlresearch.backbones.sequences import mask_of, mean_of
from tlresearch.modality.sound import AudioPreprocessing
from tlresearch.modality.values import Value


def reads_waveforms(network: nn.Module) -> bool:
    """Whether a model takes waveforms and knows how many frames its convolutions make of them."""
    return hasattr(network, "feature_extractor") and hasattr(network, "_get_feat_extract_output_lengths")


class FeatureEncoder(nn.Module):
    """The convolutions over the waveform: one vector for 20 ms in all published models.

    A stage of ours, for two reasons. Behind it, positions are frames and no longer samples, and so is the mask. And the
    network's own forward is wrong for padding where a group norm lies behind the first convolution: it takes the norm's
    statistics over the whole clip, padding included, though it was trained without padding. Here each clip then runs by
    itself, so that what comes out depends on the clip alone and not on the batch it is in.

    Args:
        network: The whole model; its convolutions move here, and the model then takes frames.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.feature_extractor: nn.Module = network.feature_extractor
        self.by_clip = network.config.feat_extract_norm == "group"
        self.layers = tuple(zip(network.config.conv_kernel, network.config.conv_stride, strict=True))
        network.feature_extractor = _Frames()
        network._get_feature_vector_attention_mask = _as_it_is

    def forward(self, value: Value) -> dict[str, Tensor]:
        """Turns waveforms into ``frames`` ``(batch, frames, channels)`` and their mask."""
        audio, lengths = waveform(value)
        encoder = self.feature_extractor
        if self.by_clip and isinstance(value, dict) and bool((lengths < audio.shape[1]).any()):
            alone = [encoder(clip[None, :length])[0].T for clip, length in zip(audio, lengths.tolist(), strict=True)]
            hidden = pad_sequence(alone, batch_first=True)
        else:
            hidden = encoder(audio).transpose(1, 2)
        for kernel, stride in self.layers:
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return {"frames": hidden, "mask": mask_of(lengths, hidden.shape[1])}

    def extra_repr(self) -> str:
        """What its results depend on beside its layers."""
        return f"kernels and strides {self.layers}, by clip {self.by_clip}"


class _Frames(nn.Module):
    """Stands in for the convolutions of a model that takes frames."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.transpose(1, 2)


def _as_it_is(length: int, mask: Tensor, **_: Any) -> Tensor:
    """Stands in for what makes a mask over frames of one over samples."""
    return mask


@dataclass(frozen=True)
class FrameReader:
    """Runs a model behind its convolutions.

    Attributes:
        pooled: Whether the mean over the real frames is taken.
        version: What else the results depend on; stored activations are kept apart by it.
    """

    pooled: bool
    version: str = ""

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Returns one vector of each clip ``(batch, width)``, or ``hidden`` states with their ``mask``."""
        assert isinstance(value, dict)
        mask = value["mask"]
        hidden: Tensor = network(value["frames"], attention_mask=mask).last_hidden_state
        return mean_of(hidden, mask) if self.pooled else {"hidden": hidden, "mask": mask}


class LayerDrop:
    """Leaves a layer out in training with a probability (Fan et al. 2020, arXiv:1909.11556).

    The network's own would leave out the call that hands a stored value over. A layer that makes anything beside its
    hidden states, such as a table that all layers read, is never left out.

    Args:
        forward: The layer's forward.
        rate: The probability.
    """

    def __init__(self, forward: Callable[..., Any], rate: float) -> None:
        self.forward, self.rate = forward, rate
        self.__self__: nn.Module = forward.__self__  # type: ignore[attr-defined]  # a bound method

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs the layer, or hands its hidden states on."""
        layer = self.__self__
        if not layer.training or float(torch.rand(())) >= self.rate:
            return self.forward(hidden, *args, **kwargs)
        with torch.no_grad(), evaluating(layer):  # for what it returns beside the hidden states
            made, spec = tree_flatten(self.forward(hidden, *args, **kwargs))
        given = [id(leaf) for leaf in tree_leaves((args, kwargs))]
        if any(isinstance(leaf, Tensor) and id(leaf) not in given for leaf in made[1:]):
            return self.forward(hidden, *args, **kwargs)
        return tree_unflatten([hidden, *made[1:]], spec)


def some_frames(network: Any) -> dict[str, Tensor]:
    """A batch of frames to cut a model with."""
    # torch's advice to transformers.
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask", category=UserWarning)
    channels = int(network.config.conv_dim[-1])
    return {"frames": torch.zeros(2, 12, channels), "mask": torch.ones(2, 12, dtype=torch.bool)}


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
