"""int8 by ONNX Runtime: weights ahead of time, activations as they come (dynamic) or by calibration (static)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tlresearch.errors import MissingExtraError

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_BESIDE = ["Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"]
"""Operations between weighted ones that have int8 kernels, so that activations stay int8 from one to the next."""


def quantize_dynamic(source: Path, target: Path) -> None:
    """Writes an ONNX model with int8 weights; the scale of activations is found anew for each input.

    It suits networks of matrix products. A convolution has one scale for all of its weights here, which is too coarse
    for depthwise ones, and runs slower than in float32.

    Args:
        source: The float32 model.
        target: The file to write.
    """
    quantization = _library()
    with _quiet():
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=sorted(WEIGHTED),
            # Convolutions have no kernel for signed weights here.
            weight_type=quantization.QuantType.QUInt8,
        )


def quantize_static(source: Path, target: Path, samples: Sequence[NDArray[Any]]) -> None:
    """Writes an ONNX model with int8 weights and activations, whose scales are those of the samples.

    Weights have a scale per output channel: depthwise convolutions, with few weights each, lose much without.

    Args:
        source: The float32 model.
        target: The file to write.
        samples: Training images uint8 ``(H, W, C)`` of any sizes.
    """
    quantization = _library()

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {"images": image[None]}

    with _quiet():
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*sorted(WEIGHTED), *_BESIDE],
            nodes_to_exclude=ahead_of_weights(source),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def ahead_of_weights(path: Path) -> list[str]:
    """Names of the operations in front of the first weighted one: the preprocessing, which stays exact."""
    import onnx

    graph = onnx.load(path).graph
    behind: set[str] = set()
    ahead = []
    for node in graph.node:  # in the order of computation
        if node.op_type in WEIGHTED or behind.intersection(node.input):
            behind.update(node.output)
        else:
            ahead.append(node.name)
    return ahead


def _library() -> Any:
    try:
        import onnxruntime.quantization as quantization
    except ModuleNotFoundError:
        raise MissingExtraError("onnxruntime", "export") from None
    return quantization


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out advice of the quantiser, which writes to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
