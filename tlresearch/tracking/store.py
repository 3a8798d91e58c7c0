"""The MLflow store: where it is, that it can be used, its experiments."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tlresearch.base.errors import TrackingError, first_line
from tlresearch.base.exclusive import exclusive
from tlresearch.base.files import locked
from tlresearch.base.paths import check_addressable, home
from tlresearch.base.redact import redact
from tlresearch.tracking.database import check_reachable
from tlresearch.tracking.moved import folder_of, follow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

_log = logging.getLogger(__name__)

LOCAL_UI = "http://127.0.0.1:5000"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
# MLflow's own defaults (7 retries, 120 s) block for four minutes on a server that is down.
_CHECK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "8"}
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # None of MLflow's own: it would make a run twice if the answer was lost. `tracking.courier` tries again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_open: dict[tuple[int, str], Store] = {}
_opening = threading.Lock()


@dataclass(frozen=True)
class Store:
    """A reachable MLflow store.

    Attributes:
        uri: Its address, credentials included: never print it, print `label`.
        client: The one client of this process for it.
        artifacts: Folder of the artifacts; `None` where a server decides.
        experiments: Ids of the experiments by the name under which they were found.
    """

    uri: str
    client: MlflowClient
    artifacts: Path | None
    experiments: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def label(self) -> str:
        """The address without credentials."""
        return redact(self.uri)

    @property
    def ui(self) -> str:
        """Base address of the UI: the server itself, or where ``tlresearch ui`` shows a local store."""
        return self.label.replace("***@", "").rstrip("/") if self.uri.startswith("http") else LOCAL_UI

    def experiment_id(self, name: str) -> str:
        """Finds the experiment called `name`, or creates it; several processes may ask at once."""
        from mlflow.exceptions import MlflowException

        with self.errors():
            found = self.client.get_experiment_by_name(name)
            if found is None:
                location = str(self.artifacts / folder_of(name)) if self.artifacts else None
                # Says that these are trained models, not traces of language models.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                try:
                    return str(self.client.create_experiment(name, artifact_location=location, tags=tags))
                except MlflowException as error:
                    found = self.client.get_experiment_by_name(name)
                    if found is None:
                        raise error
            if found.lifecycle_stage == "deleted":
                _log.warning("experiment '%s' was deleted in MLflow; it is restored with its runs", name)
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)

    def create_run(self, experiment: str, **about: Any) -> Run:
        """Creates a run in the experiment that is, or was in this process, called `experiment`.

        Args:
            experiment: Its name. One that does not exist is made, one that was deleted is restored.
            about: What MLflow's client takes.
        """
        from mlflow.exceptions import MlflowException

        if experiment in self.experiments:
            try:
                return self.client.create_run(self.experiments[experiment], **about)
            except MlflowException as error:
                if away(error):
                    raise
        self.experiments[experiment] = self.experiment_id(experiment)
        return self.client.create_run(self.experiments[experiment], **about)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns MLflow's errors into one that names the store and no credentials.

        Raises:
            StoreAwayError: If the store cannot be used now.
            TrackingError: If it refuses what it was asked for.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            gone = away(error)
            if not gone and not isinstance(error, (MlflowException, OSError)):
                raise
            kind = StoreAwayError if gone else TrackingError
            raise kind(f"MLflow store {self.label}: {_reason(error, gone=gone)}{_through(self.uri)}") from None


class StoreAwayError(TrackingError):
    """The store cannot be used now: it does not answer, or answers that it cannot."""


_OUTAGES = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
)


def away(error: BaseException) -> bool:
    """Whether an error means that the store cannot be used now, rather than that it refuses what it was given."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _OUTAGES
    response = getattr(error, "response", None)  # of requests, when an artifact is stored
    if response is not None:
        return response.status_code >= 500 or response.status_code in (408, 429)
    return type(error).__module__.partition(".")[0] in ("requests", "urllib3", "sqlalchemy")


_PLAIN_REASONS = {
    "Connection refused": "it does not answer",
    "Connection reset": "it cut the connection",
    "RemoteDisconnected": "it cut the connection",
    "timed out": "it does not answer in time",
    "NameResolutionError": "its name is not known",
    "too many 500": "it answers with error 500",
    "error code 500": "it answers with error 500",
    "error code 502": "it answers with error 502",
    "error code 503": "it answers with error 503",
    "error code 504": "it answers with error 504",
}
"""What an outage is called, by what its long text contains."""


def _reason(error: BaseException, *, gone: bool) -> str:
    found = [plain for part, plain in _PLAIN_REASONS.items() if part in str(error)] if gone else []
    return found[0] if found else first_line(error)


def resolve_uri(configured: str | None = None) -> str:
    """The tracking URI: the configured one, else ``MLFLOW_TRACKING_URI``, else SQLite in our home.

    Raises:
        TrackingError: If it names a folder: MLflow no longer supports stores made of files.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    scheme = uri.split("://")[0] if "://" in uri else ""
    if scheme in ("", "file"):
        raise TrackingError(
            f"tracking.uri: '{redact(uri)}' is a folder, and MLflow 3 keeps no stores in folders; "
            "use sqlite:///path/mlflow.db, a database or a server (http://...)"
        )
    if scheme == "sqlite":
        path = uri.removeprefix("sqlite://").removeprefix("/")
        if not path or path == ":memory:":
            raise TrackingError("tracking.uri: an SQLite store needs a file, such as sqlite:///path/mlflow.db")
        check_addressable(Path(path).expanduser().absolute(), "tracking.uri")
        return f"sqlite:///{Path(path).expanduser().absolute()}"
    return uri.rstrip("/")


def connect(configured: str | None = None, *, check: bool = True) -> Store:
    """Opens the store once per process; creates a local database that is not there yet.

    Args:
        configured: Its address, if the config names one.
        check: Whether a server has to answer now.

    Raises:
        TrackingError: Within seconds, if the store cannot be reached or used.
    """
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    uri = resolve_uri(configured)
    with _opening:
        key = (os.getpid(), uri)
        if key not in _open:
            _open[key] = _connect(uri, check=check)
        return _open[key]


def _connect(uri: str, *, check: bool) -> Store:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a hundred lines for what we say in one
    database = uri.split("://")[0].split("+")[0] in _DATABASES
    artifacts = home() / "artifacts" if database else None
    try:
        if uri.startswith("sqlite"):
            path = Path(uri.removeprefix("sqlite:///"))
            artifacts = path.parent / "artifacts"
            with locked(path.parent / f".{path.name}.lock"):
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    # Readers and several writers at once, and fewer syncs; the setting stays in the file.
                    connection.execute("PRAGMA journal_mode=WAL")
                client = MlflowClient(uri, registry_uri=uri)
                client.search_experiments(max_results=1)
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    follow(connection, artifacts)
        elif database:
            # MLflow would try for 100 s to reach one that is down.
            check_reachable(uri)
            # Two processes that create the tables at once fail, also those of two machines.
            with exclusive(uri, "mlflow tables"):
                client = MlflowClient(uri, registry_uri=uri)
                client.search_experiments(max_results=1)
        else:
            with _quick_requests():
                client = MlflowClient(uri, registry_uri=uri)
                if check:
                    client.search_experiments(max_results=1)
    except MlflowException as error:
        raise TrackingError(f"cannot use the MLflow store {redact(uri)}: {_cure(uri, error)}") from None
    except Warning:
        raise
    except Exception as error:
        # SQLAlchemy and requests raise errors of their own: a missing driver, a bad address, a database that is down.
        raise TrackingError(f"cannot open the MLflow store {redact(uri)}: {first_line(error)}") from None
    return Store(uri, client, artifacts)


def _cure(uri: str, error: MlflowException) -> str:
    from requests import ConnectionError, Timeout

    text = first_line(error)
    if "out-of-date database schema" in str(error).lower() or "detected out-of-date" in str(error).lower():
        return f"it was written by an older MLflow; run: mlflow db upgrade {redact(uri)}"
    if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return f"it refuses us; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD{_through(uri)}"
    # MLflow raises its own error while it handles that of requests.
    if isinstance(error.__context__, (ConnectionError, Timeout)):
        return f"it does not answer; is the server running (mlflow server), and is the address right?{_through(uri)}"
    return f"{text}{_through(uri)}"


def _through(uri: str) -> str:
    """Says so if requests to a server go through a proxy that the environment names: its answers look like ours."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(uri, get_environ_proxies(uri)) if uri.startswith("http") else None
    if proxy is None:
        return ""
    host = urlsplit(uri).hostname
    return f" It was asked through the proxy {redact(proxy)} of the environment; to ask it directly set NO_PROXY={host}"


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Keeps the warnings of one logger of MLflow back."""
    target = logging.getLogger(logger)
    before = target.level
    target.setLevel(logging.ERROR)
    try:
        yield
    finally:
        target.setLevel(before)


@contextlib.contextmanager
def _quick_requests() -> Iterator[None]:
    before = {key: os.environ[key] for key in _CHECK}
    os.environ.update(_CHECK)
    try:
        yield
    finally:
        os.environ.update(before)
