"""Weights files: finding or downloading them, checking their hash, reading them safely, loading what fits."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlresearch.backbones.base import WeightsRecord
from tlresearch.base.errors import WeightsError, first_line
from tlresearch.base.files import sha256
from tlresearch.base.paths import find_weights

log = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns a SHA-256 over names, types, shapes and bits of `tensors`, whatever their order or device."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def locate(weights: str, expected: str | None) -> Path:
    """Finds a local weights file, or downloads it, and checks its hash.

    Args:
        weights: A file (see `find_weights`), or an http(s) URL.
        expected: SHA-256 the file must have; required for a URL.

    Raises:
        UserError: If there is no such file.
        WeightsError: If the hash is missing or another, or the download fails.
    """
    if not is_url(weights):
        path = find_weights(weights)
        if not path.is_file():
            raise WeightsError(f"backbone.weights: {path} is not a file")
        return check_hash(path, expected)
    if expected is None:
        raise WeightsError(f"backbone.weights_sha256 is required for a URL, so that {weights} cannot change unnoticed")
    name = Path(urlparse(weights).path).name or "weights"
    # Other weights may have the same file name; with the hash in front both can be kept.
    return download(weights, cache_folder() / f"{expected[:8].lower()}-{name}", expected)


def is_url(weights: str) -> bool:
    """Tells an http(s) URL from a file name."""
    return weights.startswith(("http://", "https://"))


def cache_folder() -> Path:
    """The folder torch keeps downloaded weights in."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hash_in_name(path: Path) -> str | None:
    """Returns the first digits of the SHA-256 that torch and torchvision put into a file's name."""
    found = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    return found.group(1) if found else None


def download(url: str, path: Path, expected: str | None) -> Path:
    """Downloads a file unless it is there already, and checks its hash in both cases.

    Args:
        url: Address.
        path: File it is kept in.
        expected: SHA-256, or its first digits.

    Raises:
        WeightsError: If the download fails, or the hash is another.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s", url)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=expected, progress=False)
        except RuntimeError as error:
            raise WeightsError(f"backbone.weights: the file at {url} has another hash: {error}") from None
        except OSError as error:
            raise WeightsError(
                f"backbone.weights: {url} cannot be downloaded ({error}); download it elsewhere, "
                f"then give the file as backbone.weights=FILE, or put it at {path}"
            ) from None
    return check_hash(path, expected)


def check_hash(path: Path, expected: str | None) -> Path:
    """Returns `path` if the SHA-256 of the file begins with `expected`.

    Raises:
        WeightsError: If it does not.
    """
    if expected is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{8,64}", expected):
            raise WeightsError(f"backbone.weights_sha256 must be 64 hex digits but got {expected!r}")
        found = sha256(path)
        if not found.startswith(expected.lower()):
            raise WeightsError(
                f"backbone.weights: {path} has SHA-256 {found} but {expected.lower()} is expected; "
                "delete a damaged download, or correct backbone.weights_sha256"
            )
    return path


def read(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a ``.safetensors`` file or of a torch checkpoint, without running any of its code.

    A checkpoint may hold them under ``state_dict`` (or ``model``), and with the prefix ``module.``.

    Raises:
        WeightsError: If it is not a weights file.
    """
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError:
        raise WeightsError(
            f"backbone.weights: {path} is not a torch checkpoint of tensors only; it is refused, "
            "since anything else in it could run code (save its state_dict, or use .safetensors)"
        ) from None
    except Exception as error:  # of a damaged file torch raises whatever its broken part leads to
        reason = first_line(error)
        raise WeightsError(f"backbone.weights: {path} is not a weights file that can be read ({reason})") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(f"backbone.weights: {path} holds a {type(content).__name__}, not a state dict")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"backbone.weights: {path} holds no tensors by name")
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_meta]
    if odd:
        raise WeightsError(f"backbone.weights: {path} holds '{odd[0]}' without its values or as a sparse tensor")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def load_stages(
    stages: Mapping[str, nn.Module], path: Path, *, head: str | None = None, ignore: tuple[str, ...] = ()
) -> WeightsRecord:
    """Loads a weights file into stages; what it lacks keeps its values, and the record names those stages.

    Args:
        stages: Stages by name, whose state dicts have the original names.
        path: The file.
        head: Original name of the head, which may be in the file.
        ignore: Names of further modules that the backbone does without, such as auxiliary heads.

    Raises:
        WeightsError: If it cannot be read, nothing in it fits, or a tensor has another shape.
    """
    tensors = read(path)
    targets = {name: stage.state_dict() for name, stage in stages.items()}
    shapes = {key: tensor.shape for state in targets.values() for key, tensor in state.items()}
    fitting = [key for key in shapes if key in tensors]
    if not fitting:
        raise WeightsError(
            f"backbone.weights: nothing in {path} fits the backbone: it holds '{next(iter(tensors))}', ..., "
            f"but the backbone has '{next(iter(shapes))}', ..."
        )
    wrong = [key for key in fitting if tensors[key].shape != shapes[key]]
    if wrong:
        raise WeightsError(
            f"backbone.weights: {path} does not fit the backbone: '{wrong[0]}' has shape "
            f"{tuple(tensors[wrong[0]].shape)} but {tuple(shapes[wrong[0]])} is needed"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        )
    for name, stage in stages.items():
        stage.load_state_dict({key: tensors[key] for key in targets[name] if key in tensors}, strict=False)
    apart = tuple(f"{name}." for name in (head, *ignore) if name)
    unused = [key for key in tensors if key not in shapes and not key.startswith(apart)]
    if unused:
        log.warning("%s: %d tensors have no place in the backbone, such as '%s'", path, len(unused), unused[0])
    # Files older than this counter lack it; it starts at 0 and only counts.
    lacking = {
        name: [key for key in state if key not in tensors and not key.endswith("num_batches_tracked")]
        for name, state in targets.items()
    }
    random = tuple(name for name, keys in lacking.items() if keys)
    if random:
        count = sum(len(keys) for keys in lacking.values())
        log.warning("%s: %d tensors are missing; stages that stay random: %s", path, count, ", ".join(random))
    return WeightsRecord(path.name, sha256(path), random)
