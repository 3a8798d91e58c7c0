"""A run in progress as the rest of the package sees it: the protocol `Run`, and a run that writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED", "SCHEDULED"]


class Run(Protocol):
    """A run in progress. Secrets are removed from everything that is recorded.

    Attributes:
        name: Its name.
        status: ``RUNNING``, or how it ended.
    """

    name: str
    status: Status | Literal["RUNNING"]

    @property
    def run_id(self) -> str:
        """Its id in MLflow; until that is known, its `reference`, which MLflow's run holds as a tag."""
        ...

    @property
    def reference(self) -> str:
        """Id by which `open_run` continues the run; known before MLflow has the run."""
        ...

    @property
    def url(self) -> str:
        """Address of the run in the UI; empty until MLflow has it."""
        ...

    def log_params(self, params: Mapping[str, object]) -> None:
        """Stores params. A param that is stored keeps its value: MLflow does not let it change."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores metrics, NaN and infinity too. Of two values for the same step, the first is kept."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value replaces an earlier one."""
        ...

    def count(self, tag: str) -> None:
        """Adds one to a tag that is a number; a missing one is 0."""
        ...

    def log_text(self, text: str, path: str) -> None:
        """Stores text as an artifact."""
        ...

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Stores a mapping as an artifact, as JSON or YAML after the path's suffix."""
        ...

    def log_file(self, file: Path, folder: str = "") -> None:
        """Stores a file, or a folder with all it holds, as artifacts under `folder`."""
        ...

    def log_figure(self, figure: Figure, path: str) -> None:
        """Stores a figure as an artifact such as ``figures/curves.png``."""
        ...

    def log_model(self, arguments: Mapping[str, Any], folder: Path) -> None:
        """Stores a model; use `tracking.model.log_model`, which makes the arguments."""
        ...

    def log_dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        context: str,
        schema: Mapping[str, str] | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Records a split of the data that the run used; the data itself is not copied.

        Args:
            name: Name of the data set.
            digest: Its content hash; MLflow keeps 36 characters, the profile all of them.
            source: Its origin, such as a path or an address.
            context: ``train``, ``val`` or ``test``.
            schema: Type by column, such as ``{"image": "binary", "label": "string"}``.
            profile: Numbers such as samples per class.
        """
        ...

    def flush(self) -> bool:
        """Flushes all records to the disk, as before a checkpoint; returns ``False`` if the disk fails."""
        ...

    def mark_pruned(self, reason: str) -> None:
        """Marks a run that a pruner stopped: it ends FINISHED, with a mark in front of its name."""
        ...

    def close(self, status: Status = "FINISHED") -> None:
        """Ends the run; a second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the run: FINISHED, KILLED (interrupted, terminated, exited) or FAILED, and says why."""
        ...


class SilentRun:
    """The run as ranks above 0 and workers on other machines see it: nothing is written.

    Args:
        run_id: Its id; empty if it is not known yet.
        name: Its name.
    """

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = self.reference = run_id
        self.name = name
        self.url = ""
        self.status: Status | Literal["RUNNING"] = "RUNNING"

    def log_params(self, params: Mapping[str, object]) -> None:
        """Does nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Does nothing."""

    def count(self, tag: str) -> None:
        """Does nothing."""

    def log_text(self, text: str, path: str) -> None:
        """Does nothing."""

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Does nothing."""

    def log_file(self, file: Path, folder: str = "") -> None:
        """Does nothing."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Does nothing."""

    def log_model(self, arguments: Mapping[str, Any], folder: Path) -> None:
        """Does nothing."""

    def log_dataset(self, name: str, digest: str, **fields: Any) -> None:
        """Does nothing."""

    def flush(self) -> bool:
        """Nothing waits."""
        return True

    def mark_pruned(self, reason: str) -> None:
        """Does nothing."""

    def close(self, status: Status = "FINISHED") -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing."""
