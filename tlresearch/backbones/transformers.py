"""Backbones from transformers, with the extras `text` and `speech`: embeddings and each layer are stages."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from tlresearch.backbones.base import End, StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.speech import SPEECH_MODELS, cut_speech, speech_preprocessing
from tlresearch.backbones.text import FOLDER, Recipe, TextBackbone
from tlresearch.backbones.transformers_families import MODEL_FAMILIES, Family, Pooling
from tlresearch.backbones.transformers_loading import (
    find_model,
    import_transformers,
    load_config,
    load_model,
    load_tokenizer,
    quiet,
)
from tlresearch.backbones.transformers_stage import ModelStage
from tlresearch.backbones.weights import digest, sha256
from tlresearch.backbones.yolos import YOLOS, cut_yolos, yolos_backbone
from tlresearch.base.errors import UserError
from tlresearch.modality.text import TextPreprocessing

log = logging.getLogger(__name__)


class TransformerStage(ModelStage):
    """The embeddings or one layer of a model; hidden states ``{"hidden", "mask"}`` go from one to the next.

    The modules it owns are registered under their names in the model. What layers share, such as a table of relative
    positions, belongs to an earlier stage and is only referred to.

    Args:
        model: The whole model.
        family: How it is built.
        owned: Paths of the modules that belong to this stage.
        layer: Number of the layer; ``None`` for the embeddings.
        final: Paths of the modules to run behind the layer.
        pooling: How the last layer's states become one vector; ``None`` leaves them as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        owned: Sequence[str],
        *,
        layer: int | None = None,
        final: Sequence[str] = (),
        pooling: Pooling | None = None,
    ) -> None:
        super().__init__(model, *owned)
        view = _view(model, [*owned, *(path for path in family.shared if _has(model, path))])
        object.__setattr__(self, "_model", view)  # past the registry: what is shared is another stage's
        self._family = family
        self._layer = layer
        self._final = tuple(final)
        self._pooling = pooling

    def forward(self, value: dict[str, Tensor]) -> dict[str, Tensor] | Tensor:
        """Takes ``ids`` or ``hidden`` states with their mask; returns the next states, or the pooled vector."""
        model: Any = self._model
        mask = value["mask"]
        if self._layer is None:
            pad = getattr(model.config, "pad_token_id", None)
            ids = value["ids"] if pad is None else value["ids"].masked_fill(~mask, pad)
            return {"hidden": self._family.embed(model, ids, mask), "mask": mask}
        before = value["hidden"]
        hidden = model.get_submodule(f"{self._family.layers}.{self._layer}")(
            before, **self._family.context(model, before, mask)
        )
        if isinstance(hidden, tuple):
            hidden = hidden[0]
        beside = self._family.beside_first
        if beside and self._layer == 0 and _has(model, beside):
            hidden = model.get_submodule(beside)(before, hidden, mask.long())
        for path in self._final:
            hidden = model.get_submodule(path)(hidden)
        return {"hidden": hidden, "mask": mask} if self._pooling is None else pool(hidden, mask, self._pooling)

    def extra_repr(self) -> str:
        """See `ModelStage`."""
        return f"{super().extra_repr()}, layer {self._layer}, pooling {self._pooling}"


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
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
    end: End = "pooled",
) -> StagedBackbone:
    """Builds a backbone from a model of transformers: a name on the hub, or a folder in its format.

    Args:
        model: Name on the hub, or a folder with ``config.json`` and tokenizer (see `find_weights`).
        weights: ``default`` for the model's own, ``None`` for random weights, a file, or another folder.
        weights_sha256: SHA-256 the weights file must have.
        granularity: Of no effect; a stage is a single layer.
        options: ``pooling`` (cls, mean or last), ``revision`` on the hub, and settings of the model's configuration,
            such as ``hidden_dropout_prob``.
        end: ``pooled`` or ``sequence``.

    Raises:
        MissingExtraError: If transformers is not installed.
        WeightsError: If the weights cannot be had, are no safetensors, or do not fit.
        UserError: If there is no such model, it is of an unknown family, or an option is unknown.
    """
    transformers = import_transformers()
    settings = dict(options or {})
    pooling = settings.pop("pooling", None)
    if pooling not in (None, *get_args(Pooling)):
        raise UserError(f"backbone.options.pooling: must be {', '.join(get_args(Pooling))} but got '{pooling}'")
    revision = settings.pop("revision", None)
    place = find_model(model)
    config = load_config(transformers, model, place, revision, settings)
    family = MODEL_FAMILIES.get(config.model_type)
    if family is None and config.model_type not in (*SPEECH_MODELS, YOLOS):
        raise UserError(
            f"backbone.name: hf/{model} is of the family '{config.model_type}', which has no stages here; known: "
            f"{', '.join([*MODEL_FAMILIES, *SPEECH_MODELS, YOLOS])}"
        )
    arguments = family.arguments if family else {}
    detects = config.model_type == YOLOS
    kind = transformers.YolosForObjectDetection if detects else transformers.MODEL_MAPPING[type(config)]
    if family and family.encoder_of_two:
        kind = getattr(transformers, kind.__name__.removesuffix("Model") + "EncoderModel")
    with quiet():
        if weights is None:
            network, missing, file = kind(config, **arguments).float(), None, None
        else:
            network, missing, file = load_model(
                kind, config, arguments, place, revision, weights, weights_sha256, model
            )
    network.train()  # as all other backbones are; loading leaves it in eval mode
    preprocessing: Any = None
    if detects:
        if pooling is not None:
            raise UserError(f"backbone.options.pooling: hf/{model} finds boxes and pools nothing; leave it out")
        stages = cut_yolos(network)
    elif family is None:
        if pooling not in (None, "mean"):
            raise UserError(f"backbone.options.pooling: hf/{model} pools by mean, not '{pooling}'")
        preprocessing, stages = speech_preprocessing(place, revision, config), cut_speech(network, end)
    else:
        preprocessing = load_tokenizer(transformers, model, place, revision, config)
        stages = cut_layers(network, family, None if end == "sequence" else pooling or family.pooling)
    record = WeightsRecord(random_stages=tuple(stages))
    if weights is not None:
        state = {name: tensor for stage in stages.values() for name, tensor in stage.state_dict().items()}
        random = [name for name, stage in stages.items() if missing and missing & set(stage.state_dict())]
        source = f"hf/{model}" if weights == "default" else weights
        record = WeightsRecord(source, sha256(file) if file else digest(state), tuple(random))
        if random:
            log.warning("hf/%s: weights are missing in the stages %s, which stay random", model, ", ".join(random))
    if detects:
        return yolos_backbone(
            network,
            stages,
            missing=missing if weights is not None else None,
            weights=record,
            place=place,
            revision=revision,
        )
    about = {"out_features": config.hidden_size, "preprocessing": preprocessing, "weights": record}
    if family is None:
        backbone = StagedBackbone(stages, **about)
        backbone.save_files = partial(_save_speech, config)
        return backbone
    return TextBackbone(stages, **about, save_files=partial(_save, config, preprocessing, pooling or family.pooling))


def cut_layers(model: nn.Module, family: Family, pooling: Pooling | None) -> dict[str, nn.Module]:
    """Cuts a model into stages by name: ``embeddings``, ``layer_0`` and so on.

    Modules behind the last layer, and pooling, belong to its stage: a stage of their own would have next to nothing
    to train.

    Args:
        model: The model.
        family: How it is built.
        pooling: How the end becomes one vector; ``None`` ends in hidden states.
    """
    count = len(model.get_submodule(family.layers))  # type: ignore[arg-type]  # a ModuleList
    embeddings = [path for path in family.embeddings if _has(model, path)]
    stages: dict[str, nn.Module] = {"embeddings": TransformerStage(model, family, embeddings)}
    for number in range(count):
        owned = [f"{family.layers}.{number}"]
        if number == 0 and family.beside_first and _has(model, family.beside_first):
            owned.append(family.beside_first)
        last = number == count - 1
        final = family.final if last else ()
        stages[f"layer_{number}"] = TransformerStage(
            model, family, [*owned, *final], layer=number, final=final, pooling=pooling if last else None
        )
    held = {id(parameter) for stage in stages.values() for parameter in stage.parameters()}
    lost = [name for name, parameter in model.named_parameters() if id(parameter) not in held]
    assert not lost, f"in no stage: {lost}"
    return stages


def _save(config: Any, preprocessing: TextPreprocessing, pooling: Pooling, folder: Path) -> Recipe:
    config.save_pretrained(folder)
    preprocessing.tokenizer.save(folder)
    return Recipe(name=f"hf/{FOLDER}", options={"pooling": pooling})


def _save_speech(config: Any, folder: Path) -> Recipe:
    config.to_json_file(folder / "config.json", use_diff=False)
    return Recipe(name=f"hf/{FOLDER}", options={})


def _view(module: nn.Module, paths: Sequence[str]) -> nn.Module:
    """A shallow copy of a model that holds nothing but the modules at some paths, and those around them."""
    if "" in paths:
        return module
    shallow = copy.copy(module)
    inner = {
        name: [path.removeprefix(name).removeprefix(".") for path in paths if f"{path}.".startswith(f"{name}.")]
        for name in module._modules
    }
    shallow._modules = {
        name: _view(child, inner[name]) for name, child in module._modules.items() if child is not None and inner[name]
    }
    return shallow


def _has(model: nn.Module, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False
