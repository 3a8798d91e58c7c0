"""What inputs are: how a raw sample is read, prepared for a network, drawn, and put in front of an exported graph."""

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

LONGEST_PATH = 1000  # longer text is a whole file


class RawInput(ABC):
    """One kind of raw sample.

    Attributes:
        name: What a sample is called.
        column: Column of a data frame that holds the samples.
        suffixes: Endings of the files that are taken from a folder.
        dims: Numbers of dimensions of an array that is one sample; of more it is several.
        texts: How many texts are a sample; 0 where a sample is something else.
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
    def value(self, given: Any) -> Any:
        """Turns a value in memory into a sample.

        Raises:
            ValueError: If it is none.
        """

    def open(self, path: Path) -> Any:
        """Reads a sample from a file.

        Raises:
            ValueError: If it cannot be decoded; the text says why.
            OSError: If the file cannot be read.
        """
        return self.decode(path.read_bytes())

    def read(self, model_input: Any) -> list[Any]:
        """Reads samples as MLflow hands them over.

        Args:
            model_input: A data frame with the column `column`, a list, or one sample. A sample is a path, the bytes of
                a file (or these as base64 text, as they stand in a request), or an array.

        Raises:
            ValueError: If it is anything else, or a sample cannot be decoded.
            FileNotFoundError: If text is neither base64 nor the path of a file.
        """
        if hasattr(model_input, "columns"):
            if self.column not in model_input.columns:
                known = ", ".join(map(str, model_input.columns))
                raise ValueError(f"the data frame needs a column '{self.column}' but has: {known}")
            model_input = list(model_input[self.column])
        return [self.sample(given) for given in ([model_input] if self._single(model_input) else model_input)]

    def sample(self, given: Any) -> Any:
        """Reads one sample; see `read`."""
        if isinstance(given, Path):
            return self.open(given)
        if isinstance(given, str):
            return self.text(given)
        return self.decode(bytes(given)) if isinstance(given, (bytes, bytearray)) else self.value(given)

    def text(self, given: str) -> Any:
        """Reads a sample from text: a path, or base64."""
        if len(given) <= LONGEST_PATH and Path(given).is_file():
            return self.open(Path(given))
        try:
            return self.decode(base64.b64decode(given, validate=True))
        except ValueError as error:
            if len(given) > LONGEST_PATH:
                raise ValueError(f"neither base64 text of a file ({self.name}) nor a path: {error}") from None
            raise FileNotFoundError(f"there is no {self.name} file {given[:200]}") from None

    def _single(self, given: Any) -> bool:
        if isinstance(given, (np.ndarray, Tensor)):
            return given.ndim in self.dims and getattr(given.dtype, "kind", "f") != "O"
        return isinstance(given, (str, bytes, bytearray, Path))


class Front(nn.Module, ABC):
    """What stands in front of an exported network: turns arrays that anybody can make into the network's input.

    Attributes:
        inputs: Names of the arrays, and what they are.
        inside: What it does in the graph, and what stays outside, in words; ``{network}`` is where the network comes.
        sides: Which dimensions of each array are free.
    """

    inputs: Mapping[str, str]
    inside: ClassVar[str]
    sides: ClassVar[Sequence[int]] = (0, 1)

    @abstractmethod
    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns raw samples into arrays: what stays outside. They must be alike where a batch has to be."""

    @abstractmethod
    def example(self) -> tuple[Tensor, ...]:
        """Returns arrays of two samples, from which a graph is made."""

    @abstractmethod
    def about(self) -> dict[str, str]:
        """Returns what a reader needs beside the arrays, for the metadata."""

    def unframed(self, scores: Tensor, *arrays: Tensor) -> Tensor:
        """Brings maps of scores ``(N, classes, H, W)`` back to the size of their samples."""
        return scores


class Modality(ABC):
    """One kind of input with what is done to it in front of a network: the part of the weights that is no tensor.

    A modality is a frozen dataclass, whose fields are what a run records and a served model stores. The backbone that
    takes it carries it as `StagedBackbone.preprocessing`; the data carry it with the config's changes.
    """

    sample: ClassVar[str]
    """What a sample is called: image, text, sound."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages beside the usual ones that a served model needs to read a sample."""

    @property
    @abstractmethod
    def raw(self) -> RawInput:
        """How raw samples are read."""

    @abstractmethod
    def prepare(self, sample: Any) -> Value:
        """Turns a raw sample into an input of the network, without a batch dimension and without anything random."""

    @abstractmethod
    def example(self) -> Value:
        """Returns an input of one sample, without a batch dimension."""

    def prepare_all(self, samples: Sequence[Any]) -> list[Value]:
        """Prepares several samples, for what is faster together; a network may take several inputs of each."""
        return [self.prepare(sample) for sample in samples]

    def handed(self, sample: Any) -> Any:
        """Returns a raw sample as a user of the served model hands it over."""
        return sample

    def drawn(self, sample: Any) -> Any:
        """Returns what figures show of a raw sample: an image ``(C, H, W)``, a wave ``(samples,)``, or text.

        ``None`` shows the sample's name.
        """
        return None

    def sized(self, image_size: int | None, resize: int | None = None) -> Self:
        """Returns the same for another input size in pixels, where inputs have one."""
        return self

    def front(self) -> Front:
        """Returns what stands in front of an exported network.

        Raises:
            UserError: If there is nothing of the kind.
        """
        raise UserError(f"export: what is done to a {self.sample} is no graph")

    def description(self) -> dict[str, Any]:
        """Returns the fields as plain values, from which `restored` makes it again."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def restored(self, description: Mapping[str, Any]) -> Self:
        """Returns the same with the fields of a description, which has lists for tuples as JSON has."""
        known = {field.name for field in fields(self)}  # type: ignore[arg-type]
        values = {key: _tuples(value) for key, value in description.items() if key in known}
        return replace(self, **values)  # type: ignore[type-var]


def _tuples(value: Any) -> Any:
    """A value from JSON, with a tuple for each list, however deep."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


Kind = TypeVar("Kind", bound=Modality)


def expect(given: Modality | None, kind: type[Kind], otherwise: UserError) -> Kind:
    """Returns a modality that has to be of a kind.

    Args:
        given: The modality.
        kind: What it has to be.
        otherwise: Raised if it is something else.
    """
    if not isinstance(given, kind):
        raise otherwise
    return given
