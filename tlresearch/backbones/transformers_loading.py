"""Loading models of transformers: settings, tokenizer and weights, from the hub or a folder, as safetensors alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tlresearch.backbones.weights import check_hash, locate, read_for
from tlresearch.base.errors import MissingExtraError, UserError, WeightsError, first_line, nearest
from tlresearch.base.paths import find_weights
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.text import LONGEST, PieceTokenizer, TextPreprocessing

FILE = "model.safetensors"


def import_transformers() -> Any:
    """Returns the package, or says with which extra it comes."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtraError("transformers", "text") from None
    return transformers


def find_model(model: str) -> str:
    """The folder of that name, else the name itself, which is then one on the hub."""
    try:
        folder = find_weights(model)
    except UserError:
        return model
    return str(folder) if (folder / "config.json").is_file() else model


def load_config(transformers: Any, model: str, place: str, revision: str | None, settings: dict[str, Any]) -> Any:
    """Loads a model's settings, some of them replaced.

    Raises:
        WeightsError: If there is no such model, or the hub cannot be reached.
        UserError: If it has no such setting.
    """
    try:
        with quiet():
            config, unused = transformers.AutoConfig.from_pretrained(
                place, revision=revision, return_unused_kwargs=True, trust_remote_code=False, **settings
            )
    except Exception as error:  # of the hub client, its HTTP library, and every config class
        raise WeightsError(
            f"backbone.name: hf/{model} is neither a folder with config.json under TLRESEARCH_WEIGHTS nor to be had "
            f"from the hub ({first_line(error)})"
        ) from None
    unknown = [name for name in settings if name in unused]
    if unknown:
        raise UserError(
            f"backbone.options: hf/{model} has no setting '{unknown[0]}'"
            f"{nearest(unknown[0], ['pooling', 'revision', *config.to_dict()])}"
        )
    return config


def load_tokenizer(
    transformers: Any, model: str, place: str, revision: str | None, network: nn.Module
) -> TextPreprocessing:
    """Loads the tokenizer that belongs to a model.

    Args:
        transformers: The package.
        model: Name of the model.
        place: Its folder, or its name on the hub.
        revision: Revision on the hub.
        network: The model, for the most tokens that it takes.

    Raises:
        UserError: If there is none, it does not know words, or does not fit the model.
    """
    try:
        with quiet():
            loaded = transformers.AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"backbone.name: hf/{model} has no tokenizer that can be loaded ({first_line(error)})"
        ) from None
    if not loaded.is_fast:
        raise UserError(f"backbone.name: hf/{model} has no fast tokenizer; save one beside it as tokenizer.json")
    config: Any = network.config
    if len(loaded) > config.vocab_size:
        raise UserError(
            f"backbone.name: the tokenizer of hf/{model} has {len(loaded)} tokens, the model {config.vocab_size}"
        )
    limit = getattr(config, "max_position_embeddings", None)
    for path, table in network.named_modules():
        if "position" in path and isinstance(table, nn.Embedding) and limit == table.num_embeddings:
            # Some tables count positions from behind the number of the padding.
            limit -= 0 if table.padding_idx is None else table.padding_idx + 1
            break
    tokenizer = PieceTokenizer(loaded)
    longest = min(LONGEST, loaded.model_max_length, limit or LONGEST)
    return TextPreprocessing(f"hf/{model}", tokenizer.sha256, longest, limit, tokenizer)


def image_preprocessing(place: str, revision: str | None, config: Any) -> Preprocessing:
    """What images must look like, as the model's image processor says; its config where there is none.

    Args:
        place: Folder, or name on the hub.
        revision: Revision on the hub.
        config: The model's config.
    """
    import transformers

    try:
        with quiet():
            kind: Any = transformers.AutoImageProcessor
            processor = kind.from_pretrained(place, revision=revision).to_dict()
    except (OSError, ValueError):  # a folder with nothing but config.json
        processor = {}
    sizes = [processor.get("crop_size"), processor.get("size"), getattr(config, "image_size", None)]
    sides = [side for side in map(_side, sizes) if side is not None]
    crop = sides[0] if sides else 224
    resize = _side(processor.get("size")) or crop
    mean, spread = (processor.get(name) for name in ("image_mean", "image_std"))
    modes = {0: "nearest", 2: "bilinear", 3: "bicubic"}
    return Preprocessing(
        crop=crop,
        resize=max(crop, resize),
        mean=tuple(mean) if mean else (0.5,) * getattr(config, "num_channels", 3),
        std=tuple(spread) if spread else (0.5,) * getattr(config, "num_channels", 3),
        interpolation=modes.get(int(processor.get("resample") or 2), "bilinear"),
    )


def _side(size: Any) -> int | None:
    """The side of a square that a processor or config names in one of several ways."""
    if isinstance(size, Mapping):
        size = next((size[name] for name in ("height", "shortest_edge") if size.get(name)), None)
    if isinstance(size, (list, tuple)):
        size = min(size, default=None)
    return None if size is None else int(size)


def load_model(
    kind: Any,
    config: Any,
    given: Mapping[str, Any],
    place: str,
    revision: str | None,
    weights: str,
    expected: str | None,
    prefix: str | None,
    model: str,
) -> tuple[nn.Module, set[str], Path | None]:
    """Loads weights; returns the model, the names of what was missing, and the file where there is one."""
    arguments: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    file = Path(place, FILE)
    if weights != "default":
        found = find_weights(weights)
        file = found / FILE if found.is_dir() else locate(weights, expected)
        place, revision = (str(found), None) if found.is_dir() else ("", None)
    if file.is_file():
        check_hash(file, expected)
    if not place:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in kind(config, **given).state_dict().items()}
        arguments["state_dict"], _ = read_for(file, shapes, prefix)
    try:
        network, info = kind.from_pretrained(
            place or None, revision=revision, use_safetensors=True, **given, **arguments
        )
    except Exception as error:  # of the hub client, its HTTP library, and damaged files
        raise WeightsError(
            f"backbone.weights: those of hf/{model} cannot be loaded ({first_line(error)}); they must be safetensors, "
            "from the hub or in a folder"
        ) from None
    mismatched = [str(name) for name in info["mismatched_keys"]]
    if mismatched:
        raise WeightsError(f"backbone.weights: {mismatched[0]} of hf/{model} has another shape (of {len(mismatched)})")
    missing = set(info["missing_keys"])
    if missing >= set(network.state_dict()):
        raise WeightsError(f"backbone.weights: nothing in {weights} fits hf/{model}")
    return network, missing, file if file.is_file() else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bar and the report of transformers: what was not loaded is said by ourselves."""
    from transformers.utils import logging as theirs

    hub = logging.getLogger("huggingface_hub")  # says each attempt to connect
    level, bar, hub_level = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), hub.level
    hub.setLevel(logging.ERROR)
    theirs.set_verbosity_error()  # type: ignore[no-untyped-call]
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        hub.setLevel(hub_level)
        if bar:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]
