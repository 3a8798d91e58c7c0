"""The run as ranks above 0 see it: the same methods, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.run import Status, TrackedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SilentRun(TrackedRun):
    """Stands in for the run that rank 0 records.

    Args:
        run_id: Its id; empty if it is not known yet.
        name: Its name.
    """

    def __init__(self, run_id: str, name: str) -> None:
        # Not `super().__init__`: it would open a store and start the thread that writes.
        self._run_id, self.name = run_id, name
        self.description = ""
        self.status = "RUNNING"

    @property
    def run_id(self) -> str:
        """Its id, as far as it was known."""
        return self._run_id

    @property
    def experiment_id(self) -> str:
        """Rank 0 knows it."""
        return ""

    @property
    def url(self) -> str:
        """Rank 0 knows it."""
        return ""

    def hold(self, owner: Ownership | None = None) -> None:
        """It is rank 0's."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Does nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def last_step(self, metric: str) -> int:
        """Nothing was recorded here."""
        return -1

    def flush(self) -> bool:
        """Nothing waits."""
        return True

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Does nothing."""

    def count(self, tag: str) -> None:
        """Does nothing."""

    def log_text(self, text: str, path: str) -> None:
        """Does nothing."""

    def log_at_end(self, text: str, path: str) -> None:
        """Does nothing."""

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Does nothing."""

    def log_file(self, file: Path, folder: str = "") -> None:
        """Does nothing."""

    def store_model(self, about: Mapping[str, Any], folder: Path) -> str:
        """Does nothing."""
        return ""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Does nothing."""

    def log_dataset(self, name: str, digest: str, **about: Any) -> None:
        """Does nothing."""

    def download(self, path: str) -> Path:
        """Artifacts are rank 0's."""
        raise RuntimeError("only rank 0 reads the run's artifacts")

    def start_system_metrics(self) -> None:
        """Does nothing."""

    def mark_pruned(self, reason: str) -> None:
        """Does nothing."""

    def begin_close(self, status: Status = "FINISHED") -> None:
        """Does nothing."""

    def close(self, status: Status = "FINISHED") -> None:
        """Does nothing."""

    def close_by_disk(self, status: Status, tags: Mapping[str, str]) -> Callable[[], None]:
        """Has nothing to keep."""
        return lambda: None

    def abandon(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Does nothing."""
