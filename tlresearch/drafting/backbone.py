"""A small backbone for a folder of data, with weights that can be had: by download, or at hand without a network."""

from __future__ import annotations

import glob
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.transformers_loading import find_model
from tlresearch.backbones.vision import find_published
from tlresearch.backbones.weights import cache_folder
from tlresearch.base.errors import MissingExtraError, UserError, WeightsError
from tlresearch.base.paths import weights_folder
from tlresearch.config.schema import BackboneConfig
from tlresearch.drafting.survey import Kind, Task

MINILM = "hf/sentence-transformers/all-MiniLM-L6-v2"
_MANY = 5000  # samples from which a larger backbone pays, where a GPU is there to train it
_FILES = (".pth", ".pt", ".safetensors")
_PATIENCE = 5.0  # seconds until a server that does not answer counts as away


@dataclass(frozen=True)
class Choice:
    """A backbone with weights that can be had here.

    Attributes:
        name: As in `backbone.name`.
        weights: As in `backbone.weights`.
        why: Why this one, in one line.
        whence: Where its weights come from, in one line.
    """

    name: str
    weights: str
    why: str
    whence: str


def choose(kind: Kind, task: Task, samples: int) -> Choice:
    """Chooses the first backbone for this kind of samples whose weights can be had.

    Published weights are what is wanted: those that were downloaded before, else those that the network gives now. When
    the network is away, weights under ``TLRESEARCH_WEIGHTS`` are taken: of the first candidate that has some.

    Args:
        kind: What the samples are.
        task: What is learnt from them.
        samples: How many there are to learn from.

    Raises:
        MissingExtraError: If a package that reads such samples is not installed.
        WeightsError: If there are no weights; the text says where they are looked for.
    """
    _check_extra(kind, task)
    candidates = [*_candidates(kind, samples)]
    here = "TLRESEARCH_WEIGHTS" if os.environ.get("TLRESEARCH_WEIGHTS") else str(weights_folder())
    away = ""
    for name, why in candidates:
        address = _address(name)
        if address is None and (file := _file(name)) is not None:  # nobody publishes them: a file is all there can be
            return Choice(name, file, why, f"at hand in {here}")
        if address is not None and _is_downloaded(name):
            return Choice(name, "default", why, "downloaded before")
        if address is not None and not away:
            host = address.split("/")[2]
            if _answers(address):
                return Choice(name, "default", why, f"downloaded from {host}")
            away = f"{host} does not answer"
    for name, why in candidates:
        if (file := _file(name)) is not None:
            return Choice(name, file, why, f"at hand in {here}; {away}" if away else f"at hand in {here}")
    names = ", ".join(name for name, _ in candidates)
    raise WeightsError(
        f"backbone.weights: {away or 'nobody publishes any'}, and {here} holds none of {names}; connect "
        "once, put a file there, or name a backbone with backbone.name=… backbone.weights=…"
    )


def _check_extra(kind: Kind, task: Task) -> None:
    """Says now which extra is needed, rather than when a run has begun."""
    needs = {"text": ("transformers", "text"), "sound": ("soundfile", "speech")}
    needs |= dict.fromkeys(("detection", "instances"), ("pycocotools", "detection"))
    for package, extra in (needs[word] for word in (kind, task) if word in needs):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)


def _candidates(kind: Kind, samples: int) -> Iterator[tuple[str, str]]:
    """Backbones by name, best first, with the reason."""
    if kind == "text":
        yield MINILM, "a sentence encoder of 22 million parameters: small enough for a processor"
        for folder in sorted(path.parent for path in weights_folder().glob("*/tokenizer.json")):
            yield f"hf/{folder.name}", "the model that is here"
        return
    if kind == "sound":
        yield "speech_embedding", "a speech embedding of 0.3 million parameters: small enough for a processor"
    front = "log_mel/" if kind == "sound" else ""
    heard = "the spectrogram of a sound as its image; " if kind == "sound" else ""
    if samples > _MANY and torch.cuda.is_available():
        yield f"{front}torchvision/resnet50", f"{heard}24 million parameters: {samples} samples and a GPU"
    yield f"{front}torchvision/mobilenet_v2", f"{heard}2.2 million parameters: small enough for a processor"
    yield f"{front}torchvision/resnet18", f"{heard}11 million parameters"
    yield f"{front}torchvision/squeezenet1_1", f"{heard}0.7 million parameters"


def _address(name: str) -> str | None:
    """Where its published weights are downloaded from; ``None`` if nobody publishes them."""
    family, _, model = name.removeprefix("log_mel/").partition("/")
    if family == "torchvision":
        published = find_published(model, "default")
        return None if published is None else str(published.url)
    if name == MINILM and find_model(model) == model:  # a folder of that name needs no hub
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{hub}/{model}/resolve/main/config.json"
    return None


def _is_downloaded(name: str) -> bool:
    family, _, model = name.removeprefix("log_mel/").partition("/")
    address = _address(name)
    if family == "hf" and address is not None:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(model, "model.safetensors"), str)
    return address is not None and (cache_folder() / address.rpartition("/")[2]).is_file()


def _answers(address: str) -> bool:
    """Whether a server gives what is at an address now."""
    if os.environ.get("HF_HUB_OFFLINE") == "1" and "/resolve/" in address:
        return False
    try:
        # An opener made now sees the proxies that are set now.
        with urllib.request.build_opener().open(urllib.request.Request(address, method="HEAD"), timeout=_PATIENCE):
            return True
    except OSError:
        return False


def _file(name: str) -> str | None:
    """The file or folder under ``TLRESEARCH_WEIGHTS`` that holds the whole backbone, relative to it."""
    family, _, model = name.removeprefix("log_mel/").rpartition("/")
    if name == "speech_embedding":
        return "speech-embedding" if (weights_folder() / "speech-embedding").is_dir() else None
    if family.startswith("hf"):  # found by its name: `find_model`
        return "default" if find_model(name.removeprefix("hf/")) != name.removeprefix("hf/") else None
    # Through links to folders too, which `rglob` passes over.
    named = glob.glob(f"{glob.escape(str(weights_folder()))}/**/{glob.escape(model)}[-_.]*", recursive=True)
    files = [path for path in map(Path, sorted(named)) if path.suffix in _FILES]
    files.sort(key=lambda path: path.parent.name != family)  # those in a folder of the library's name first
    return next((file for path in files if _fits(name, file := str(path.relative_to(weights_folder())))), None)


def _fits(name: str, file: str) -> bool:
    """Whether the file has every tensor of the backbone."""
    try:
        return not build_backbone(BackboneConfig(name=name, weights=file)).weights.random_stages
    except UserError:
        return False


def describe_choice(choice: Choice) -> Sequence[tuple[str, str]]:
    """Names and values for the terminal: which backbone and which weights, each with its reason."""
    name = Path(choice.weights).name if "/" in choice.weights else choice.weights
    return (("backbone", f"{choice.name}: {choice.why}"), ("weights", f"{name}: {choice.whence}"))
