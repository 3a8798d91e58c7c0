"""The formats: what writes a classifier into a file, and what runs such a file where it is used."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from tlresearch.errors import MissingExtraError, UserError
from tlresearch.export.network import Shipped
from tlresearch.serving.base import DESCRIPTION, WEIGHTS
from tlresearch.serving.classification import Predictor, load_predictor

Format = Literal["onnx", "torchscript", "pt2", "safetensors"]
Numbers = Literal["fp32", "fp16", "bf16", "int8-dynamic", "int8-static"]
FORMATS: tuple[Format, ...] = get_args(Format)
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "safetensors": ""}

Runner = Callable[[NDArray[Any]], NDArray[Any]]
"""Runs uint8 images ``(N, H, W, C)``, all of one size, to probabilities ``(N, classes)``."""


@dataclass(frozen=True)
class Form:
    """One way of writing a model.

    Attributes:
        to: The format.
        numbers: The number format of its weights, or of weights and activations (int8-static).
    """

    to: Format
    numbers: Numbers = "fp32"

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.to} {self.numbers}"

    @property
    def file(self) -> str:
        """Name of the file, or of the folder of safetensors."""
        numbers = "" if self.numbers == "fp32" else f"-{self.numbers}"
        return f"{'weights' if self.to == 'safetensors' else 'model'}{numbers}{SUFFIXES[self.to]}"


def write(predictor: Predictor, form: Form, source: Path, target: Path, about: Mapping[str, str]) -> None:
    """Writes a classifier in one of the formats, with everything but int8, which starts from a written ONNX file.

    Args:
        predictor: The classifier.
        form: Format and number format.
        source: Folder the predictor was read from.
        target: The file, or the folder of safetensors.
        about: Stored in the file: ``classes`` and ``preprocessing`` as JSON, ``kind``, the run.

    Raises:
        MissingExtraError: If onnx or onnxscript is not installed.
        UserError: If the network has operations that the format does not know.
    """
    if form.to == "safetensors":
        _write_safetensors(source, target, DTYPES[form.numbers])
        return
    network = copy.deepcopy(predictor.network)
    shipped = Shipped(network, predictor.preprocessing, predictor.kind, DTYPES[form.numbers])
    example = torch.zeros(2, 48, 64, predictor.preprocessing.channels, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        try:
            {"onnx": _write_onnx, "torchscript": _write_torchscript, "pt2": _write_pt2}[form.to](
                shipped, example, target, about
            )
        except (UserError, OSError):
            raise
        except Exception as error:  # each exporter has errors of its own for what it does not know
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"export: this network cannot be written as {form.name}: {lines[0][:300]}") from error


def runner(form: Form, path: Path) -> Runner:
    """Opens what `write` wrote, with the library that a user of the format has."""
    if form.to == "onnx":
        return _onnx_runner(path)
    if form.to == "safetensors":
        return original(load_predictor(path))
    if form.to == "pt2":
        module = torch.export.load(path).module()
    else:
        with _quiet():
            module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return _torch_runner(module)


def original(predictor: Predictor) -> Runner:
    """Runs the model of a run as the project serves it, preprocessing image by image."""

    def run(images: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = predictor.predict(list(torch.from_numpy(images).permute(0, 3, 1, 2)))[1].numpy()
        return found

    return run


def size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    files: Sequence[Path] = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def open_onnx(path: Path) -> Any:
    """Opens a session of ONNX Runtime on the CPU, with as many threads as torch has.

    Raises:
        MissingExtraError: If onnxruntime is not installed.
        UserError: If it has no kernel for something in the model.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingExtraError("onnxruntime", "export") from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # its advice on the graph is not for whoever reads the table
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise UserError(f"export: ONNX Runtime cannot run {path.name}: {str(error).splitlines()[0][:300]}") from error


def _onnx_runner(path: Path) -> Runner:
    session = open_onnx(path)
    name = session.get_inputs()[0].name

    def run(images: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = session.run(None, {name: images})[0]
        return found

    return run


def _torch_runner(module: nn.Module) -> Runner:
    @torch.inference_mode()
    def run(images: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = module(torch.from_numpy(images)).numpy()
        return found

    return run


def _write_onnx(shipped: Shipped, example: torch.Tensor, target: Path, about: Mapping[str, str]) -> None:
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ModuleNotFoundError:
            raise MissingExtraError(package, "export") from None
    import onnx

    program = torch.onnx.export(
        _exported(shipped, example),
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    # Each operation carries the line of code it came from, with the folders of this machine.
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    # Shapes in between are inferred where they are needed; ONNX Runtime's quantiser would keep outdated ones.
    del model.graph.value_info[:]
    for key, value in about.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def _write_torchscript(shipped: Shipped, example: torch.Tensor, target: Path, about: Mapping[str, str]) -> None:
    # The network is traced, since many backbones cannot be scripted; the frame depends on sizes and is scripted.
    shipped.network = torch.jit.trace(  # type: ignore[no-untyped-call]
        shipped.network, shipped.frame(example).to(shipped.dtype)
    )
    script = torch.jit.script(shipped)
    torch.jit.save(script, str(target), _extra_files={"about.json": json.dumps(dict(about))})


def _write_pt2(shipped: Shipped, example: torch.Tensor, target: Path, about: Mapping[str, str]) -> None:
    torch.export.save(_exported(shipped, example), target, extra_files={"about.json": json.dumps(dict(about))})


def _exported(shipped: Shipped, example: torch.Tensor) -> torch.export.ExportedProgram:
    free = torch.export.Dim.DYNAMIC
    return torch.export.export(shipped, (example,), dynamic_shapes=({0: free, 1: free, 2: free},))


def _write_safetensors(source: Path, target: Path, dtype: torch.dtype) -> None:
    target.mkdir()
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(source / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS)
    (target / DESCRIPTION).write_text((source / DESCRIPTION).read_text())


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what the exporters say about themselves: TorchScript's end is announced at every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
