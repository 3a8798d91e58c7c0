"""The MLflow store: its address, opening it, its experiments, and what its errors mean."""

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
    # MLflow's own retries would make a run twice if the first answer was lost. `tracking.courier` tries again safely.
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
        experiments: Experiment ids by name, as far as this process has used them.
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
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                location = str(self.artifacts / folder_of(name)) if self.artifacts else None
                # Without it MLflow 3 may show the experiment as traces of language models.
                tags = {"mlflow.experimentKind": "custom_model_development"}
                try:
                    return str(self.client.create_experiment(name, artifact_location=location, tags=tags))
                except MlflowException as error:
                    experiment = self.client.get_experiment_by_name(name)
                    if experiment is None:  # no other process created it meanwhile: the error is a real one
                        raise error
            if experiment.lifecycle_stage == "deleted":
                _log.warning("experiment '%s' was deleted in MLflow; it is restored with its runs", name)
                self.client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)

    def create_run(self, experiment: str, **fields: Any) -> Run:
        """Creates a run in an experiment.

        Args:
            experiment: Name of the experiment. A missing experiment is created, a deleted one is restored. One that
                was renamed since this process used it is still the same.
            fields: Arguments of `MlflowClient.create_run`.
        """
        from mlflow.exceptions import MlflowException

        if experiment in self.experiments:
            try:
                return self.client.create_run(self.experiments[experiment], **fields)
            except MlflowException as error:
                if is_outage(error):
                    raise
        # The first run, or the experiment was deleted after the last one.
        self.experiments[experiment] = self.experiment_id(experiment)
        return self.client.create_run(self.experiments[experiment], **fields)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turns MLflow's errors into one that names the store and no credentials.

        Raises:
            StoreAwayError: If the store cannot be used now.
            TrackingError: If it refuses the request.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except TrackingError:
            raise
        except Exception as error:
            away = is_outage(error)
            if not away and not isinstance(error, (MlflowException, OSError)):
                raise
            kind = StoreAwayError if away else TrackingError
            raise kind(f"MLflow store {self.label}: {_reason(error, away=away)}{_proxy_hint(self.uri)}") from None


class StoreAwayError(TrackingError):
    """The store cannot be used now: it does not answer, or answers that it is overloaded or broken."""


_OUTAGES = (
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
)


def is_outage(error: BaseException) -> bool:
    """Whether an error means that the store cannot be used now; any other error means that it refuses the request."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _OUTAGES
    # Storing an artifact raises errors of requests and urllib3 as they are; a database raises those of SQLAlchemy.
    response = getattr(error, "response", None)
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
"""Plain words for an outage, by what the library's error text contains."""


def _reason(error: BaseException, *, away: bool) -> str:
    reasons = [plain for part, plain in _PLAIN_REASONS.items() if part in str(error)] if away else []
    return reasons[0] if reasons else first_line(error)


def resolve_uri(configured: str | None = None) -> str:
    """Returns the tracking URI: the configured one, else ``MLFLOW_TRACKING_URI``, else SQLite in our home.

    Raises:
        TrackingError: If it names a folder: MLflow 3 no longer supports file stores.
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
    """Opens the store once per process; creates a local database that does not exist.

    Args:
        configured: Its address, if the config names one.
        check: Whether to make a request now, so that a server that does not answer is an error.

    Raises:
        TrackingError: Within seconds, if the store cannot be reached or used.
    """
    for variable, value in _DEFAULTS.items():
        os.environ.setdefault(variable, value)
    uri = resolve_uri(configured)
    with _opening:
        # By process id: a forked process must not share the connections of its parent.
        key = (os.getpid(), uri)
        if key not in _open:
            _open[key] = _connect(uri, check=check)
        return _open[key]


def _connect(uri: str, *, check: bool) -> Store:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])
    # A database that cannot be used fills a hundred lines with tracebacks; our error says it in one.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    database = uri.split("://")[0].split("+")[0] in _DATABASES
    artifacts = home() / "artifacts" if database else None
    try:
        if uri.startswith("sqlite"):
            path = Path(uri.removeprefix("sqlite:///"))
            artifacts = path.parent / "artifacts"
            with locked(path.parent / f".{path.name}.lock"):
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    # WAL allows readers beside a writer and needs fewer syncs. The setting stays in the file.
                    connection.execute("PRAGMA journal_mode=WAL")
                client = MlflowClient(uri, registry_uri=uri)
                client.search_experiments(max_results=1)
                with contextlib.closing(sqlite3.connect(path)) as connection:
                    follow(connection, artifacts)
        elif database:
            # MLflow itself would try for 100 s to reach a database that is down.
            check_reachable(uri)
            # Two processes that create the tables at the same time fail, even on different machines: a lock in the
            # database itself keeps them apart.
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
    except Warning:  # a warning that was made an error, as in tests
        raise
    except Exception as error:
        # SQLAlchemy's and requests' own errors: a missing driver, a bad address, a database that is down.
        raise TrackingError(f"cannot open the MLflow store {redact(uri)}: {first_line(error)}") from None
    return Store(uri, client, artifacts)


def _cure(uri: str, error: MlflowException) -> str:
    from requests import ConnectionError, Timeout

    text = first_line(error)
    if "out-of-date database schema" in str(error).lower() or "detected out-of-date" in str(error).lower():
        return f"it was written by an older MLflow; run: mlflow db upgrade {redact(uri)}"
    if error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return f"it refuses us; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD{_proxy_hint(uri)}"
    # MLflow raises its own error while it handles the error of requests, which is therefore the context.
    if isinstance(error.__context__, (ConnectionError, Timeout)):
        return f"it does not answer; is the server running (mlflow server), and is the address right?{_proxy_hint(uri)}"
    return f"{text}{_proxy_hint(uri)}"


def _proxy_hint(uri: str) -> str:
    """Returns a sentence on the proxy of the environment, if one is used: its errors look like those of the server."""
    from requests.utils import get_environ_proxies, select_proxy

    proxy = select_proxy(uri, get_environ_proxies(uri)) if uri.startswith("http") else None
    if proxy is None:
        return ""
    host = urlsplit(uri).hostname
    return f" The request went through the proxy {redact(proxy)} of the environment; to avoid it, set NO_PROXY={host}"


@contextlib.contextmanager
def _quick_requests() -> Iterator[None]:
    """Limits MLflow's requests to one try of a few seconds while the context lasts."""
    settings = {key: os.environ[key] for key in _CHECK}  # set by `connect` at the latest
    os.environ.update(_CHECK)
    try:
        yield
    finally:
        os.environ.update(settings)
