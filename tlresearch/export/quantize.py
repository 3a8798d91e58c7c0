"""Quantisation to int8 by ONNX Runtime: scales of activations at run time (dynamic) or from samples (static)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tlresearch.base.errors import MissingExtraError
from tlresearch.base.quiet import quiet

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_BETWEEN = ["Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"]
"""Operations with int8 kernels that stand between weighted ones: activations stay int8 from one to the next."""


def quantize_dynamic(source: Path, target: Path) -> None:
    """Writes an ONNX model with int8 weights; the scale of activations is computed for each input.

    It suits networks of matrix products, whose weights have a scale per column. A convolution has one scale for all its
    weights here, which is too coarse for depthwise convolutions, and runs slower than in float32.

    Args:
        source: The float32 model.
        target: The file to write.
    """
    import onnx

    quantization = _library()
    convolves = any(node.op_type == "Conv" for node in onnx.load(source).graph.node)
    with quiet("root"):  # its advice
        quantization.quantize_dynamic(
            source,
            target,
            # `Gather` reads tables of token embeddings, the larger part of many text models.
            op_types_to_quantize=[*sorted(WEIGHTED), "Gather"],
            nodes_to_exclude=kept_exact(source),
            per_channel=not convolves,
            # Dynamic convolutions have no kernel for signed weights.
            weight_type=quantization.QuantType.QUInt8,
        )


def quantize_static(source: Path, target: Path, samples: Iterable[tuple[NDArray[Any], ...]]) -> None:
    """Writes an ONNX model with int8 weights and activations; samples determine the scales of activations.

    Weights have a scale per output channel, without which depthwise convolutions, with few weights each, lose much.

    Args:
        source: The float32 model.
        target: The file to write.
        samples: The arrays of training samples, one sample each.
    """
    quantization = _library()
    names = _inputs(source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.remaining = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            arrays = next(self.remaining, None)
            return None if arrays is None else dict(zip(names, arrays, strict=True))

    with quiet("root"):  # its advice
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=[*sorted(WEIGHTED), *_BETWEEN],
            nodes_to_exclude=kept_exact(source),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def kept_exact(path: Path) -> list[str]:
    """Returns the names of the operations that stay in float32: the preprocessing.

    These are the operations in front of the first weighted one, except tables of embeddings, and those that lead to a
    logarithm, as in a spectrogram, whose values span more orders of magnitude than eight bits hold.
    """
    import onnx

    nodes = list(onnx.load(path).graph.node)  # in the order of computation
    needed: set[str] = set()  # tensors from which a logarithm is computed
    ahead_of_logarithm: set[int] = set()
    for number in reversed(range(len(nodes))):
        if nodes[number].op_type == "Log" or needed.intersection(nodes[number].output):
            needed.update(nodes[number].input)
            ahead_of_logarithm.add(number)
    behind: set[str] = set()  # tensors behind a weighted operation
    exact = []
    for number, node in enumerate(nodes):
        if number not in ahead_of_logarithm and (node.op_type in WEIGHTED or behind.intersection(node.input)):
            behind.update(node.output)
        elif node.op_type != "Gather":
            exact.append(node.name)
    return exact


def _inputs(path: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(path, load_external_data=False).graph.input]


def _library() -> Any:
    try:
        import onnxruntime.quantization as quantization
    except ModuleNotFoundError:
        raise MissingExtraError("onnxruntime", "export") from None
    return quantization
