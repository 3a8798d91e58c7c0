"""Loading models of transformers: settings, tokenizer and weights, from the hub or a folder, as safetensors alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tlresearch.backbones.weights import check_hash, locate, read
from tlresearch.base.errors import MissingExtraError, UserError, WeightsError, nearest
from tlresearch.base.paths import find_weights
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
            f"from the hub ({reason_of(error)})"
        ) from None
    unknown = [name for name in settings if name in unused]
    if unknown:
        raise UserError(
            f"backbone.options: hf/{model} has no setting '{unknown[0]}'"
            f"{nearest(unknown[0], ['pooling', 'revision', *config.to_dict()])}"
        )
    return config


def load_tokenizer(transformers: Any, model: str, place: str, revision: str | None, config: Any) -> TextPreprocessing:
    """Loads the tokenizer that belongs to a model.

    Raises:
        UserError: If there is none, it does not know words, or does not fit the model.
    """
    try:
        with quiet():
            loaded = transformers.AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"backbone.name: hf/{model} has no tokenizer that can be loaded ({reason_of(error)})") from None
    if not loaded.is_fast:
        raise UserError(f"backbone.name: hf/{model} has no fast tokenizer; save one beside it as tokenizer.json")
    if len(loaded) > config.vocab_size:
        raise UserError(
            f"backbone.name: the tokenizer of hf/{model} has {len(loaded)} tokens, the model {config.vocab_size}"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and config.model_type in ("roberta", "xlm-roberta", "camembert"):
        limit -= config.pad_token_id + 1  # their positions begin behind that of padding
    tokenizer = PieceTokenizer(loaded)
    longest = min(LONGEST, loaded.model_max_length, limit or LONGEST)
    return TextPreprocessing(f"hf/{model}", tokenizer.sha256, longest, limit, tokenizer)


def load_model(
    kind: Any,
    config: Any,
    given: Mapping[str, Any],
    place: str,
    revision: str | None,
    weights: str,
    expected: str | None,
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
        arguments["state_dict"] = read(file)
    try:
        network, info = kind.from_pretrained(
            place or None, revision=revision, use_safetensors=True, **given, **arguments
        )
    except Exception as error:  # of the hub client, its HTTP library, and damaged files
        raise WeightsError(
            f"backbone.weights: those of hf/{model} cannot be loaded ({reason_of(error)}); they must be safetensors, "
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


def reason_of(error: Exception) -> str:
    """The first line of an error, which says what went wrong."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
