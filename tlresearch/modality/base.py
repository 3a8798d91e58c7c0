"""Modalities: reading raw samples, preparing them for a network, drawing them, and doing so in an exported graph."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tlresearch.base.errors import UserError
from tlresearch.modality.values import Value

LONGEST_PATH = 1000  # characters; a longer text cannot be a path, so it is the content of a file


class RawInput(ABC):
    """A kind of raw sample.

    Attributes:
        name: Name of a sample: image, text, sound.
        column: Column of a data frame that holds the samples.
        suffixes: Endings of files that are read from a folder.
        dims: Numbers of dimensions that an array of one sample may have; an array of several has more.
        texts: Number of texts in a sample; 0 if a sample is not made of texts.
    """

    name: ClassVar[str]
    column: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    dims: ClassVar[tuple[int, ...]] = ()
    texts: ClassVar[int] = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table or data frame that hold a sample."""
        return (self.column,)

    @abstractmethod
    def decode(self, content: bytes) -> Any:
        """Turns the bytes of a file into a sample.

        Raises:
            ValueError: If they cannot be decoded; the text says why.
        """

    @abstractmethod
    def value(self, array: Any) -> Any:
        """Turns a value in memory, such as an array, into a sample.

        Raises:
            ValueError: If it is not a sample of this kind.
        """

    def open(self, path: Path) -> Any:
        """Reads a sample from a file.

        Raises:
            ValueError: If it cannot be decoded; the text says why.
            OSError: If the file cannot be read.
        """
        return self.decode(path.read_bytes())

    def read(self, model_input: Any) -> list[Any]:
        """Reads samples in the forms in which MLflow passes them.

        Args:
            model_input: A data frame with the column `column`, a list, or one sample. A sample is a path, the bytes of
                a file (in a request, these bytes as base64 text), or an array.

        Raises:
            ValueError: If it is anything else, or a sample cannot be decoded.
            FileNotFoundError: If a text is neither base64 nor the path of a file.
        """
        if hasattr(model_input, "columns"):
            if self.column not in model_input.columns:
                columns = ", ".join(map(str, model_input.columns))
                raise ValueError(f"the data frame needs a column '{self.column}' but has: {columns}")
            model_input = list(model_input[self.column])
        return [self.sample(source) for source in ([model_input] if self._single(model_input) else model_input)]

    def sample(self, source: Any) -> Any:
        """Reads one sample; see `read`."""
        if isinstance(source, Path):
            return self.open(source)
        if isinstance(source, str):
            return self.text(source)
        return self.decode(bytes(source)) if isinstance(source, (bytes, bytearray)) else self.value(source)

    def text(self, text: str) -> Any:
        """Reads a sample from text: a path, or base64."""
        if len(text) <= LONGEST_PATH and Path(text).is_file():
            return self.open(Path(text))
        try:
            return self.decode(base64.b64decode(text, validate=True))
        except ValueError as error:
            if len(text) > LONGEST_PATH:
                raise ValueError(f"neither base64 text of a file ({self.name}) nor a path: {error}") from None
            raise FileNotFoundError(f"there is no {self.name} file {text[:200]}") from None

    def _single(self, model_input: Any) -> bool:
        if isinstance(model_input, (np.ndarray, Tensor)):
            # An array of objects holds several samples, such as paths.
            return model_input.ndim in self.dims and getattr(model_input.dtype, "kind", "f") != "O"
        return isinstance(model_input, (str, bytes, bytearray, Path))


class Front(nn.Module, ABC):
    """The part of an exported graph in front of the network: it turns simple arrays into the network's input.

    Attributes:
        inputs: Names of the arrays, and their descriptions.
        inside: What the graph does, and what stays outside, in words; ``{network}`` stands for the network.
        sides: Dimensions of each array that are free.
    """

    inputs: Mapping[str, str]
    inside: ClassVar[str]
    sides: ClassVar[Sequence[int]] = (0, 1)

    @abstractmethod
    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns raw samples into arrays, outside of the graph. Samples of a batch must have the same size."""

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Returns arrays of two samples, with which the graph is traced."""

    @abstractmethod
    def metadata(self) -> dict[str, str]:
        """Returns metadata that a user of the exported model needs to make the arrays."""

    def unframed(self, scores: Tensor, *arrays: Tensor) -> Tensor:
        """Brings maps of scores ``(N, classes, H, W)`` back to the size of their samples."""
        return scores


class Modality(ABC):
    """A kind of input with its preprocessing, which belongs to the weights like their tensors.

    A modality is a frozen dataclass; a run records its fields, and a served model stores them. A backbone holds its
    modality as `StagedBackbone.preprocessing`, the data hold it with the changes of the config.
    """

    sample: ClassVar[str]
    """Name of a sample: image, text, sound."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Additional packages that a served model needs to read a sample."""

    @property
    @abstractmethod
    def raw(self) -> RawInput:
        """Reader of raw samples."""

    @abstractmethod
    def prepare(self, sample: Any) -> Value:
        """Turns a raw sample into an input of the network, without a batch dimension. Nothing in it is random."""

    @abstractmethod
    def example(self) -> Value:
        """Returns the input of one sample, without a batch dimension."""

    def prepare_all(self, samples: Sequence[Any]) -> list[Value]:
        """Prepares several samples, which may be faster together; a network may take several inputs of each."""
        return [self.prepare(sample) for sample in samples]

    def handed(self, sample: Any) -> Any:
        """Returns a raw sample in the form in which a user of the served model passes it."""
        return sample

    def drawn(self, sample: Any) -> Any:
        """Returns a raw sample in the form in which figures show it: ``(C, H, W)``, ``(samples,)``, or text.

        For ``None`` a figure shows the sample's name.
        """
        return None

    def sized(self, image_size: int | None, resize: int | None = None) -> Self:
        """Returns the modality for another input size in pixels; itself, if inputs have no size in pixels."""
        return self

    def front(self) -> Front:
        """Returns the part of an exported graph in front of the network.

        Raises:
            UserError: If the preprocessing cannot be part of a graph.
        """
        raise UserError(f"export: the preprocessing of a {self.sample} cannot be part of a graph")

    def description(self) -> dict[str, Any]:
        """Returns the fields as plain values, for `restored`."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def restored(self, description: Mapping[str, Any]) -> Self:
        """Returns the modality with the fields of a description, which may come from JSON."""
        names = {field.name for field in fields(self)}  # type: ignore[arg-type]
        values = {key: _tuples(value) for key, value in description.items() if key in names}
        return replace(self, **values)  # type: ignore[type-var]


def _tuples(value: Any) -> Any:
    """Replaces lists by tuples at every level: JSON has no tuples, and the fields of a frozen dataclass need them."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


Kind = TypeVar("Kind", bound=Modality)


def expect(modality: Modality | None, kind: type[Kind], otherwise: UserError) -> Kind:
    """Returns the modality if it is of the expected kind.

    Args:
        modality: The modality.
        kind: The class that it must have.
        otherwise: Raised if it has another class.
    """
    if not isinstance(modality, kind):
        raise otherwise
    return modality
