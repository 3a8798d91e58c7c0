"""Backbones from transformers, with the extras `text` and `speech`: any model that reads texts or images, and speech
encoders.

No family is named: the network is cut by `stages.py`, tokenizer and image processor are the model's own.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import End, StagedBackbone, WeightsRecord, evaluating
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.own_detectors import (
    SIDE,
    DetectorBackbone,
    TokenReader,
    detector_class,
    detector_preprocessing,
    head_state,
    names_read,
    native_head,
    split,
)
from tlresearch.backbones.parts import CutError
from tlresearch.backbones.recording import Drive
from tlresearch.backbones.speech import (
    FeatureEncoder,
    FrameReader,
    LayerDrop,
    reads_waveforms,
    some_frames,
    speech_preprocessing,
)
from tlresearch.backbones.stages import Division, divide, report
from tlresearch.backbones.text import FOLDER, Recipe, TextBackbone
from tlresearch.backbones.transformers_loading import (
    find_model,
    image_preprocessing,
    import_transformers,
    load_config,
    load_model,
    load_tokenizer,
    quiet,
)
from tlresearch.backbones.weights import digest
from tlresearch.base.errors import UserError
from tlresearch.base.files import sha256
from tlresearch.modality.pair import JointPairs
from tlresearch.modality.text import TextPreprocessing
from tlresearch.modality.values import Value

log = logging.getLogger(__name__)

Pooling = Literal["pooler", "cls", "mean", "last"]
Tower = Literal["image", "text"]
LAYERDROP = {"layerdrop": "", "encoder_layerdrop": "encoder", "decoder_layerdrop": "decoder"}
"""Settings that leave layers out in training, and what stands in the path of those layers."""
LENGTH = 12
"""Tokens of the texts that a network is cut with."""


@dataclass(frozen=True)
class Reader:
    """Runs a model of transformers on texts or images.

    Attributes:
        part: Path of the part of the model that is the backbone: an encoder, a tower; empty for the whole.
        pooling: What makes one vector of the hidden states; ``None`` leaves them as they are.
        pad: The token that stands where there is none; ``None`` if the model names none.
        arguments: Further arguments, such as that it keeps no cache.
        version: What else the results depend on; stored activations are kept apart by it.
    """

    part: str
    pooling: Pooling | None
    pad: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def __call__(self, network: nn.Module, value: Value) -> Value:
        """Returns one vector of each sample ``(batch, width)``, or ``hidden`` states with their ``mask``."""
        model = network.get_submodule(self.part)
        if isinstance(value, Tensor):
            output = model(pixel_values=value, **self.arguments)
            hidden = output.last_hidden_state
            if hidden.ndim == 4:
                hidden = hidden.flatten(2).transpose(1, 2)
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        else:
            mask = value["mask"]
            ids = value["ids"] if self.pad is None else value["ids"].masked_fill(~mask, self.pad)
            types = {"token_type_ids": value["types"]} if "types" in value else {}
            output = model(input_ids=ids, attention_mask=mask.long(), **types, **self.arguments)
            hidden = output.last_hidden_state
            if hidden.shape[:2] != mask.shape:
                raise CutError(f"it gives {hidden.shape[1]} hidden states for {mask.shape[1]} tokens")
        if self.pooling is None:
            return {"hidden": hidden, "mask": mask}
        if self.pooling == "pooler":
            pooled: Tensor | None = getattr(output, "pooler_output", None)
            if pooled is None:
                raise CutError("it has no pooler")
            return pooled.flatten(1)
        return pool(hidden, mask, self.pooling)


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """Makes one vector of each text.

    Args:
        hidden: Hidden states ``(batch, length, width)``.
        mask: Which positions are real, bool ``(batch, length)``; at least one of each text.
        how: ``cls`` is the first position, ``last`` the last real one, ``mean`` the mean of all real ones.

    Returns:
        ``(batch, width)``.
    """
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        return hidden[torch.arange(len(hidden), device=mask.device), (mask * positions).argmax(dim=1)]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def build_transformer(
    model: str,
    *,
    weights: str | None = "default",
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
    end: End = "pooled",
    pairs: bool = False,
) -> StagedBackbone:
    """Builds a backbone from a model of transformers: a name on the hub, or a folder in its format.

    Args:
        model: Name on the hub, or a folder with ``config.json`` and tokenizer or image processor (see `find_weights`).
        weights: ``default`` for the model's own, ``None`` for random weights, a file, or another folder.
        weights_sha256: SHA-256 the weights file must have.
        weights_prefix: What stands in front of the tensors' names in a weights file; by default it is found.
        granularity: Layers, or also the lists inside of them.
        options: ``pooling`` (pooler, cls, mean or last), ``tower`` (image or text) of a model that has both,
            ``revision`` on the hub, and settings of the model's configuration, such as ``hidden_dropout_prob``.
        end: ``pooled`` or ``sequence``.
        pairs: Whether it reads pairs of texts as one input: with token types where it takes them.

    Raises:
        MissingExtraError: If transformers is not installed.
        WeightsError: If the weights cannot be had, are no safetensors, or do not fit.
        UserError: If there is no such model, it reads neither texts nor images nor sounds, or an option is unknown.
    """
    settings = dict(options or {})
    pooling, tower = settings.pop("pooling", None), settings.pop("tower", "image")
    for name, value, known in (("pooling", pooling, Pooling), ("tower", tower, Tower)):
        if value not in (None, *get_args(known)):
            raise UserError(f"backbone.options.{name}: must be {', '.join(get_args(known))} but got '{value}'")
    loaded = _load(model, settings, pooling, weights, weights_sha256, weights_prefix)
    family = loaded.config.model_type
    if detector_class(loaded.config) is not None:
        return _detector(loaded, pooling, granularity)
    if reads_waveforms(loaded.network):
        return _sounds(loaded, pooling, granularity, end)
    part = _only(loaded.network, _part(loaded.network, tower))
    reads = getattr(loaded.network.get_submodule(part), "main_input_name", None)
    if reads == "pixel_values":
        if end == "sequence":
            raise UserError(f"backbone.name: hf/{model} reads images and gives no sequence, which the task needs")
        return _images(loaded, part, pooling, granularity)
    if reads == "input_ids":
        return _texts(loaded, part, pooling, granularity, end, pairs)
    raise UserError(f"backbone.name: hf/{model} ({family}) reads {reads}; texts, images and waveforms are known")


@dataclass(frozen=True)
class _Loaded:
    """A model of transformers.

    Attributes:
        name: Its name on the hub, or its folder, as the user gave it.
        place: Where it lies.
        revision: Revision on the hub.
        config: Its settings.
        network: The model.
        source: What its weights are called; ``None`` for random ones.
        missing: Names of the tensors that were not loaded.
        file: The weights file, where there is a single one.
    """

    name: str
    place: str
    revision: str | None
    config: Any
    network: nn.Module
    source: str | None
    missing: frozenset[str]
    file: Path | None

    def record(self, stages: Mapping[str, nn.Module]) -> WeightsRecord:
        """Where the weights of these stages came from."""
        if self.source is None:
            return WeightsRecord(random_stages=tuple(stages))
        state = {name: tensor for stage in stages.values() for name, tensor in stage.state_dict().items()}
        random = [name for name, stage in stages.items() if self.missing & set(stage.state_dict())]
        if random:
            log.warning("hf/%s: weights are missing in the stages %s, which stay random", self.name, ", ".join(random))
        return WeightsRecord(self.source, sha256(self.file) if self.file else digest(state), tuple(random))


def _load(
    model: str,
    settings: dict[str, Any],
    pooling: Pooling | None,
    weights: str | None,
    weights_sha256: str | None,
    weights_prefix: str | None,
) -> _Loaded:
    transformers = import_transformers()
    revision = settings.pop("revision", None)
    place = find_model(model)
    config = load_config(transformers, model, place, revision, settings)
    kind = detector_class(config) or transformers.MODEL_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(f"backbone.name: transformers has no model without a head for hf/{model} ({config.model_type})")
    kind = kind[0] if isinstance(kind, (tuple, list)) else kind
    rates = {drop: getattr(config, drop, None) for drop in LAYERDROP}
    for drop in (drop for drop, rate in rates.items() if rate):
        setattr(config, drop, 0.0)  # a layer that is left out could not hand its value on
    for masking in ("mask_time_prob", "mask_feature_prob"):
        if hasattr(config, masking):
            setattr(config, masking, 0.0)  # SpecAugment, which every stage would draw anew
    given = {}
    if pooling != "pooler" and "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        given = {"add_pooling_layer": False}
    missing: set[str] = set()
    file: Path | None = None
    with quiet():
        if weights is None:
            network = kind(config, **given).float()
        else:
            network, missing, file = load_model(
                kind, config, given, place, revision, weights, weights_sha256, weights_prefix, model
            )
    for drop, rate in rates.items():
        if rate:
            _leave_out_layers(network, LAYERDROP[drop], float(rate))
            setattr(config, drop, rate)
    network.train()  # as all other backbones are; loading leaves it in eval mode
    source = f"hf/{model}" if weights == "default" else weights
    return _Loaded(model, place, revision, config, network, source, frozenset(missing), file)


def _detector(loaded: _Loaded, pooling: Pooling | None, granularity: Granularity) -> StagedBackbone:
    if pooling is not None:
        raise UserError(f"backbone.options.pooling: hf/{loaded.name} finds boxes and pools nothing; leave it out")
    network, config = loaded.network, loaded.config
    base, heads = split(network)
    preprocessing = detector_preprocessing(loaded.place, loaded.revision, config)
    state = head_state(network, heads, loaded.missing if loaded.source is not None else None)
    side = min(preprocessing.crop or SIDE, SIDE)
    example = torch.zeros(2, preprocessing.channels, side, side)
    reader = TokenReader(base, None, getattr(config, "num_detection_tokens", 0), _version(network))
    with evaluating(network):
        reader = replace(reader, names=names_read(network, reader, example))
    kind = type(network)
    _only(network, base)
    division = _divided(loaded, reader, example, granularity)
    return DetectorBackbone(
        division,
        preprocessing=preprocessing,
        weights=loaded.record(division.stages),
        native_head=partial(native_head, kind, config, state),
        save_files=partial(_save_config, config),
    )


def _leave_out_layers(network: nn.Module, within: str, rate: float) -> None:
    for path, layers in network.named_modules():
        if isinstance(layers, nn.ModuleList) and path.rpartition(".")[2] == "layers" and within in path:
            for layer in layers:
                layer.__dict__["forward"] = LayerDrop(layer.forward, rate)


def _sounds(loaded: _Loaded, pooling: Pooling | None, granularity: Granularity, end: End) -> StagedBackbone:
    if pooling not in (None, "mean"):
        raise UserError(f"backbone.options.pooling: hf/{loaded.name} pools by mean, not '{pooling}'")
    if getattr(loaded.config, "add_adapter", False):
        raise UserError(f"backbone.name: hf/{loaded.name} has an adapter behind the layers, whose frames have no mask")
    network = loaded.network
    front = FeatureEncoder(network)
    reader = FrameReader(end == "pooled", _version(network))
    division = _divided(loaded, reader, some_frames(network), granularity, "projection")
    stages = {"feature_encoder": front, **division.stages}
    backbone = StagedBackbone(
        stages,
        out_features=_width(division),
        preprocessing=speech_preprocessing(loaded.place, loaded.revision, loaded.config),
        weights=loaded.record(stages),
        way=division.way,
        reasons=division.reasons,
    )
    backbone.save_files = partial(_save_config, loaded.config)
    return backbone


def _part(network: nn.Module, tower: Tower) -> str:
    """Path of the part that is the backbone: the encoder of an encoder-decoder, a tower of two, else the whole."""
    if _decodes(network):
        encoder = network.get_encoder()  # type: ignore[operator]
        return next(str(path) for path, module in network.named_modules() if module is encoder)
    towers = {"image": "vision_model", "text": "text_model"}
    return towers[tower] if all(hasattr(network, name) for name in towers.values()) else ""


def _decodes(network: nn.Module) -> bool:
    """Whether it is an encoder-decoder; configs do not always say so."""
    return "decoder_input_ids" in inspect.signature(network.forward).parameters


def _only(network: nn.Module, part: str) -> str:
    """Drops all of a model that lies beside a part; returns the part's path."""
    within = network
    for name in part.split(".") if part else []:
        for beside in [child for child in within._modules if child != name]:
            setattr(within, beside, None)
        within._parameters.clear()
        within = within.get_submodule(name)
    return part


def _reader(network: nn.Module, part: str, pooling: Pooling | None) -> Reader:
    model: Any = network.get_submodule(part)
    taken = inspect.signature(model.forward).parameters
    return Reader(
        part,
        pooling,
        getattr(model.config, "pad_token_id", None),
        {name: False for name in ("use_cache",) if name in taken or hasattr(model.config, name)},
        _version(model),
    )


def _version(model: Any) -> str:
    import transformers

    settings = hashlib.sha256(model.config.to_json_string(use_diff=False).encode()).hexdigest()[:16]
    return f"{settings}, transformers {transformers.__version__}, {model.config._attn_implementation}"


def _texts(
    loaded: _Loaded, part: str, pooling: Pooling | None, granularity: Granularity, end: End, pairs: bool
) -> StagedBackbone:
    import transformers

    inner: Any = loaded.network.get_submodule(part)
    preprocessing = load_tokenizer(transformers, loaded.name, loaded.place, loaded.revision, inner)
    length = min(LENGTH, preprocessing.max_length)
    ids = torch.randint(inner.config.vocab_size, (3, length), generator=torch.Generator().manual_seed(0))
    example = {"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    if pairs:
        preprocessing = JointPairs.of(preprocessing, types=_takes_types(inner))
    if isinstance(preprocessing, JointPairs) and preprocessing.types:
        example["types"] = (torch.arange(length) >= length // 2).long().expand_as(ids).contiguous()
    pooling = pooling or _pooling(loaded.network, _reader(loaded.network, part, None), example)
    reader = _reader(loaded.network, part, None if end == "sequence" else pooling)
    division = _divided(loaded, reader, example, granularity)
    return TextBackbone(
        division.stages,
        out_features=_width(division),
        preprocessing=preprocessing,
        weights=loaded.record(division.stages),
        way=division.way,
        reasons=division.reasons,
        save_files=partial(_save, loaded.config, preprocessing, pooling),
    )


def _images(loaded: _Loaded, part: str, pooling: Pooling | None, granularity: Granularity) -> StagedBackbone:
    inner: Any = loaded.network.get_submodule(part)
    preprocessing = image_preprocessing(loaded.place, loaded.revision, inner.config)
    side = preprocessing.crop or 224
    example = torch.zeros(1, preprocessing.channels, side, side)
    division = _divided(loaded, _reader(loaded.network, part, pooling or "mean"), example, granularity)
    return StagedBackbone(
        division.stages,
        out_features=_width(division),
        preprocessing=preprocessing,
        weights=loaded.record(division.stages),
        way=division.way,
        reasons=division.reasons,
    )


def _takes_types(model: Any) -> bool:
    """Whether a model is told which of two texts a token is of."""
    taken = inspect.signature(model.forward).parameters
    return "token_type_ids" in taken and getattr(model.config, "type_vocab_size", 0) > 1


def _divided(
    loaded: _Loaded, reader: Drive, example: Value, granularity: Granularity, first: str = "embeddings"
) -> Division:
    division = divide(loaded.network, reader, example, granularity=granularity, first=first, traced=False)
    names = list(division.stages)
    lists = {name.rpartition("_")[0] for name in names[1:]}
    if division.way == "structure" and names[0] == first and len(lists) == 1:
        # One list of layers, whatever the model calls it.
        names = [first, *(f"layer_{number}" for number in range(len(names) - 1))]
        division = replace(division, stages=dict(zip(names, division.stages.values(), strict=True)))
    report(f"hf/{loaded.name}", division)
    return division


def _width(division: Division) -> int:
    result = division.result
    return int((result if isinstance(result, Tensor) else result["hidden"]).shape[-1])


def _pooling(network: nn.Module, reader: Reader, example: dict[str, Tensor]) -> Pooling:
    """How texts are pooled unless the user says so: where the first position sees all others, by it; else by the last.

    The encoder of an encoder-decoder was not trained with a token for the whole text: its states are averaged.
    """
    if reader.part and _decodes(network):
        return "mean"
    ids = example["ids"]
    other = {**example, "ids": torch.cat([ids[:, :-1], ids[:, -1:] ^ 1], dim=1)}
    with torch.no_grad(), evaluating(network):
        first, second = (reader(network, value) for value in (example, other))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    return "last" if torch.equal(first["hidden"][:, 0], second["hidden"][:, 0]) else "cls"


def _save(config: Any, preprocessing: TextPreprocessing, pooling: Pooling, folder: Path) -> Recipe:
    config.save_pretrained(folder)
    preprocessing.tokenizer.save(folder)
    return Recipe(name=f"hf/{FOLDER}", options={"pooling": pooling})


def _save_config(config: Any, folder: Path) -> Recipe:
    config.to_json_file(folder / "config.json", use_diff=False)
    return Recipe(name=f"hf/{FOLDER}", options={})
