"""Weights files: finding or downloading them, checking their hash, reading them safely, loading what fits."""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlresearch.backbones.base import WeightsRecord
from tlresearch.base.errors import WeightsError, first_line
from tlresearch.base.files import sha256
from tlresearch.base.paths import find_weights

log = logging.getLogger(__name__)

_COUNTER = "num_batches_tracked"


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

    Of a checkpoint that holds several state dicts, such as ``teacher`` and ``student``, the name of a tensor begins
    with that of its state dict. The names that `torch.compile` gives (``_orig_mod.``) are left out.

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
    if not isinstance(content, Mapping):
        raise WeightsError(f"backbone.weights: {path} holds a {type(content).__name__}, not a state dict")
    tensors = dict(_flat(content))
    if not tensors:
        raise WeightsError(f"backbone.weights: {path} holds no tensors by name")
    odd = [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_meta]
    if odd:
        raise WeightsError(f"backbone.weights: {path} holds '{odd[0]}' without its values or as a sparse tensor")
    return tensors


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if not isinstance(key, str):
            continue  # an optimizer's state goes by numbers
        if isinstance(value, Tensor):
            yield f"{prefix}{key.replace('_orig_mod.', '')}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def read_for(path: Path, shapes: Mapping[str, torch.Size], prefix: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Reads the tensors of a network from a file in which they may lie under a prefix, such as ``state_dict.module.``.

    Args:
        path: The file.
        shapes: The network's tensors: their shapes by name.
        prefix: The prefix to take; by default the only one under which at least half of the network lies.

    Returns:
        What lies under the prefix, by name without it, and the prefix.

    Raises:
        WeightsError: If the file cannot be read, nothing in it fits, or the network lies there more than once.
    """
    tensors = read(path)
    if prefix is None:
        prefix = _prefix_of(tensors, shapes, path)
    chosen = under(tensors, prefix)
    if not shapes.keys() & chosen:
        where = f" under '{prefix}'" if prefix else ""
        raise WeightsError(
            f"backbone.weights: nothing in {path}{where} fits the backbone: it holds {_some(tensors)}, "
            f"but the backbone has {_some(shapes)}; set backbone.weights_prefix to what stands in front of these names"
        )
    if prefix:
        log.info("%s: the backbone lies under '%s'", path, prefix)
    return chosen, prefix


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with a prefix, by name without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _prefix_of(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], path: Path) -> str:
    named: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for name, tensor in tensors.items():
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        for start in (start for start in starts if name[start:] in shapes):
            named[name[:start]] += 1
            fitting[name[:start]] += shapes[name[start:]] == tensor.shape
    most = sum(not name.endswith(_COUNTER) for name in shapes) / 2
    whole = [[prefix for prefix, count in counts.items() if count >= most] for counts in (fitting, named)]
    prefixes = whole[0] or whole[1]
    if len(prefixes) > 1 and "" not in prefixes:
        listing = " and ".join(f"'{prefix}'" for prefix in sorted(prefixes))
        raise WeightsError(
            f"backbone.weights: {path} holds the backbone {len(prefixes)} times, under {listing}; choose one, "
            f"such as backbone.weights_prefix={min(prefixes)}"
        )
    return prefixes[0] if prefixes and "" not in prefixes else ""


def _some(names: Iterable[str]) -> str:
    """One name of each beginning, and that there are more."""
    first = {name.partition(".")[0]: name for name in reversed(list(names))}
    return ", ".join([*(f"'{name}'" for name in list(reversed(first.values()))[:4]), "…"])


class Loadable(Protocol):
    """A module, or what loads tensors as one does."""

    def state_dict(self) -> dict[str, Any]:
        """Its tensors by name."""

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> Any:
        """Puts tensors in place."""


def load_tensors(
    module: Loadable,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    required: Collection[str] | None = None,
    other_shapes: Collection[str] = (),
) -> tuple[str, ...]:
    """Puts tensors into a module and accounts for every one; nothing is changed where one is not as it must be.

    Args:
        module: The module.
        tensors: Tensors by their names in the module.
        source: Where they come from, for the error, such as the key and file of a config.
        required: Names that must be among them; by default all of the module's. Say why at the call where some may be
            missing.
        other_shapes: Names of those that may have another shape, and then stay as they are in the module.

    Returns:
        Names of the module's tensors that stay as they are.

    Raises:
        WeightsError: If one is missing, has no place in the module, or has another shape.
    """
    places = module.state_dict()
    reshaped = [name for name in tensors if name in places and tensors[name].shape != places[name].shape]
    wrong = [name for name in reshaped if name not in other_shapes]
    missing = [name for name in (places if required is None else required) if name not in tensors]
    homeless = [name for name in tensors if name not in places]
    faults = []
    if wrong:
        have, need = tuple(tensors[wrong[0]].shape), tuple(places[wrong[0]].shape)
        faults.append(f"'{wrong[0]}' has shape {have} but {need} is needed{_and_more(wrong)}")
    if missing:
        faults.append(f"'{missing[0]}' is missing{_and_more(missing)}")
    if homeless:
        faults.append(f"'{homeless[0]}' has no place{_and_more(homeless)}")
    if faults:
        raise WeightsError(f"{source} does not fit: {'; '.join(faults)}")
    module.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in reshaped}, strict=False)
    return tuple(name for name in places if name not in tensors or name in reshaped)


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more, such as '{names[1]}')" if len(names) > 1 else ""


def load_stages(
    stages: Mapping[str, nn.Module],
    path: Path,
    *,
    head: str | None = None,
    ignore: tuple[str, ...] = (),
    prefix: str | None = None,
) -> WeightsRecord:
    """Loads a weights file into stages; what it lacks keeps its values, and the record names those stages.

    Args:
        stages: Stages by name, whose state dicts have the original names.
        path: The file.
        head: Original name of the head, which may be in the file.
        ignore: Names of further modules that the backbone does without, such as auxiliary heads.
        prefix: Where in the file the backbone lies; by default it is found, see `read_for`.

    Raises:
        WeightsError: If it cannot be read, nothing in it fits, or a tensor has another shape.
    """
    backbone = _Together(stages)
    places = backbone.state_dict()
    tensors, prefix = read_for(path, {name: tensor.shape for name, tensor in places.items()}, prefix)
    apart = tuple(f"{name}." for name in (head, *ignore) if name)
    unused = [name for name in tensors if name not in places and not name.startswith(apart)]
    fitting = {name: tensor for name, tensor in tensors.items() if name in places}
    # A file may hold a part of the backbone: the record says which stages stay random.
    kept = load_tensors(backbone, fitting, f"backbone.weights: {path}", required=())
    if unused:
        log.warning("%s: %d tensors have no place in the backbone, such as '%s'", path, len(unused), unused[0])
    # Files older than this counter lack it; it starts at 0 and only counts.
    lacking = {name for name in kept if not name.endswith(_COUNTER)}
    random = tuple(name for name, stage in stages.items() if lacking & stage.state_dict().keys())
    if random:
        log.warning(
            "%s: %d tensors are missing, such as '%s'; stages that stay random: %s",
            path,
            len(lacking),
            min(lacking),
            ", ".join(random),
        )
    return WeightsRecord(path.name, sha256(path), random, prefix)


class _Together:
    """Several stages as one module whose tensors have their original names."""

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        self._stages = tuple(stages.values())

    def state_dict(self) -> dict[str, Any]:
        return {name: tensor for stage in self._stages for name, tensor in stage.state_dict().items()}

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> None:
        for stage in self._stages:
            own = {name: state_dict[name] for name in stage.state_dict() if name in state_dict}
            stage.load_state_dict(own, strict=strict)
