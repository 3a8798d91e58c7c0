"""The formats of exported models: writing a model to a file, and running such a file as its user does."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from tlresearch.base.errors import MissingExtraError, UserError, first_line
from tlresearch.base.quiet import quiet
from tlresearch.export.network import Exportable, ExportedModule
from tlresearch.serving.stored import WEIGHTS

_ADVICE = (FutureWarning, DeprecationWarning, UserWarning)  # of the exporters about their own insides
Format = Literal["onnx", "pt2", "safetensors"]
Numbers = Literal["fp32", "fp16", "bf16", "int8-dynamic", "int8-static"]
FORMATS: tuple[Format, ...] = get_args(Format)
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SUFFIXES: Mapping[Format, str] = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ""}

Runner = Callable[[Sequence[Any]], NDArray[Any]]
"""Runs raw samples, alike where a batch must be, to the first output: probabilities ``(N, classes, ...)``, numbers."""


@dataclass(frozen=True)
class Form:
    """A format together with a number format.

    Attributes:
        to: The format.
        numbers: The number format of the weights; of weights and activations for int8-static.
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


def write(model: Exportable, form: Form, source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Writes a model in any form except int8, which is made from a written ONNX file.

    Args:
        model: The model.
        form: Format and number format.
        source: Folder from which the model was read.
        target: The file, or the folder of safetensors.
        metadata: Metadata for the file: ``classes`` as JSON, ``kind``, inputs and outputs, the run.

    Raises:
        MissingExtraError: If onnx or onnxscript is not installed.
        UserError: If the network has operations that the format does not support.
    """
    if form.to == "safetensors":
        _write_safetensors(source, target, DTYPES[form.numbers])
        return
    module = model.module(copy.deepcopy(model.network), DTYPES[form.numbers])
    with torch.no_grad(), quiet(categories=_ADVICE):
        try:
            {"onnx": _write_onnx, "pt2": _write_pt2}[form.to](module, model, target, metadata)
        except (UserError, OSError):
            raise
        except Exception as error:  # each exporter has its own classes of errors for unsupported operations
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"export: this network cannot be written as {form.name}: {lines[0][:300]}") from error


def runner(model: Exportable, form: Form, path: Path, read: Callable[[Path], Exportable]) -> Runner:
    """Opens a file that `write` wrote, with the library that users of the format have.

    Args:
        model: The model that was written.
        form: Its form.
        path: The file or folder.
        read: Reads the folder of a stored model.
    """
    if form.to == "safetensors":
        return original(read(path))
    if form.to == "onnx":
        run = _onnx_runner(path)
    else:
        with quiet(categories=_ADVICE):
            run = _torch_runner(torch.export.load(path).module())
    return lambda samples: run(model.front.arrays(samples))


def original(model: Exportable) -> Runner:
    """Runs the model of a run as it is served, one sample after another."""
    return lambda samples: np.concatenate([model.predictor.first(sample) for sample in samples])


def size(path: Path) -> int:
    """Returns the size in bytes of a file, or of all files in a folder."""
    files: Sequence[Path] = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def open_onnx(path: Path) -> Any:
    """Opens a session of ONNX Runtime on the CPU, with as many threads as torch has.

    Raises:
        MissingExtraError: If onnxruntime is not installed.
        UserError: If it has no kernel for an operation of the model.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingExtraError("onnxruntime", "export") from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3  # errors only: its advice on the graph does not help our users
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UserError(f"export: ONNX Runtime cannot run {path.name}: {first_line(error)}") from error


def _onnx_runner(path: Path) -> Callable[[tuple[NDArray[Any], ...]], NDArray[Any]]:
    session = open_onnx(path)
    names = [part.name for part in session.get_inputs()]

    def run(arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        first: NDArray[Any] = session.run([session.get_outputs()[0].name], dict(zip(names, arrays, strict=True)))[0]
        return first

    return run


def _torch_runner(module: nn.Module) -> Callable[[tuple[NDArray[Any], ...]], NDArray[Any]]:
    @torch.inference_mode()
    def run(arrays: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        first: NDArray[Any] = module(*map(torch.from_numpy, arrays))[0].numpy()
        return first

    return run


def _write_onnx(module: ExportedModule, model: Exportable, target: Path, metadata: Mapping[str, str]) -> None:
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ModuleNotFoundError:
            raise MissingExtraError(package, "export") from None
    import onnx

    program = torch.onnx.export(
        _exported(module, model),
        model.front.example(),
        dynamo=True,
        input_names=list(model.front.inputs),
        output_names=list(model.predictor.outputs),
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    # torch notes for each operation the line of code that it came from, with paths of this machine.
    for element in (proto.graph, *proto.graph.node, *proto.graph.input, *proto.graph.output):
        del element.metadata_props[:]
        element.doc_string = ""
    # ONNX Runtime's quantiser would keep the shapes of intermediate values when they no longer hold. They are inferred
    # where they are needed.
    del proto.graph.value_info[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(target))


def _write_pt2(module: ExportedModule, model: Exportable, target: Path, metadata: Mapping[str, str]) -> None:
    torch.export.save(_exported(module, model), target, extra_files={"about.json": json.dumps(dict(metadata))})


def _exported(module: ExportedModule, model: Exportable) -> torch.export.ExportedProgram:
    arrays = model.front.example()
    free: tuple[Any, ...] = tuple(dict.fromkeys(model.front.sides, torch.export.Dim.DYNAMIC) for _ in arrays)
    return torch.export.export(module, arrays, dynamic_shapes=(free,))


def _write_safetensors(source: Path, target: Path, dtype: torch.dtype) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(WEIGHTS))
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(source / WEIGHTS).items()}
    save_file(tensors, target / WEIGHTS)
