"""Recorded runs: found by id, beginning of an id, name or tag, and all that the store holds of each. No torch."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tlresearch.base.errors import TrackingError, nearest
from tlresearch.config.load import Loaded, load_recorded, regardless, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.tracking.addresses import run_url
from tlresearch.tracking.calls import STATE, resolve
from tlresearch.tracking.dataset import SAMPLES_OF
from tlresearch.tracking.items import PREDICTIONS, SPLITS, Items, parse_items
from tlresearch.tracking.manifest import add_to_ended_run, local, model_address, read_json, read_text
from tlresearch.tracking.run import PRUNED_MARK
from tlresearch.tracking.store import Store, connect

if TYPE_CHECKING:
    from mlflow.entities import Run

STUDY_TAG = "tlresearch.study"
TRIAL = "tlresearch.trial"
GROUP = "tlresearch.group"
"""Tag of a group's parent run and of its children: what identifies the group."""
SEED = "tlresearch.seed"
"""Tag of a group's children: their seed."""
DIRECTIONS = "tlresearch.directions"
"""Tag of a run: what its task says of its metrics, as JSON; see `tlresearch.base.direction`."""
MONITOR = "tlresearch.monitor"
"""Tag of a run: the metric it was watched by."""
RESOLVED = "resolved."  # begins the tags that say what `auto` became, followed by the option's full key
SELECTED = "selected/"  # begins the metrics of the epoch whose weights were kept
CONFIG = "config.yaml"
TRAINED = "weights/trained.safetensors"
DATA_FILES = "data/files.json"
ENVIRONMENT = "provenance/environment.json"
DIFF = "provenance/diff.patch"
PARTS = "provenance/parts.json"
COMPUTATION = "provenance/computation.json"
TIMES = "provenance/autotune.json"
CLASS_NAMES = "metrics/class_names.json"
"""Artifacts of a run: how it is started again, the tensors that training could change, what it came from."""
_PARENT = "mlflow.parentRunId"
_PAGE = 1000
_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code for a run that is not in the store
_log = logging.getLogger(__name__)
_RUN_ID = re.compile(r"^[0-9a-f]{32}$")
_PREFIX = re.compile(r"^[0-9a-f]{4,31}$")

State = Literal["finished", "pruned", "failed", "killed", "running"]


@dataclass(frozen=True)
class Inputs:
    """What a run was computed from.

    Attributes:
        data: Fingerprint of the data.
        files: Content hash of each sample by name.
        weights: Where the weights came from, such as a file's name; ``"random"`` if nothing was loaded.
        sha256: Their hash; empty for random weights.
    """

    data: str
    files: Mapping[str, str]
    weights: str
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What a run recorded of its origin; a part it did not record is `None`.

    Attributes:
        inputs: Data and weights.
        environment: Code, packages and hardware as in ``provenance/environment.json``.
        diff: What differed from the commit, by file.
        computation: Threads, precision and the like.
        parts: What the config named by dotted path, by key, as in ``provenance/parts.json``.
    """

    inputs: Inputs | None
    environment: Mapping[str, Any] | None
    diff: Mapping[str, str]
    computation: Mapping[str, Any] | None
    parts: Mapping[str, Any]

    @property
    def not_recorded(self) -> list[str]:
        """Names of the parts that are missing: nothing can be said about them."""
        parts = {
            "data and weights": self.inputs,
            "code, packages and hardware": self.environment,
            "threads and precision": self.computation,
        }
        return [name for name, part in parts.items() if part is None]


class Runs:
    """The recorded runs of a store, which is opened when it is first asked for one.

    Args:
        store: The store or its address; `None` is ``MLFLOW_TRACKING_URI``, else SQLite in our home.
    """

    def __init__(self, store: Store | str | None = None) -> None:
        self._given = store

    @cached_property
    def store(self) -> Store:
        """The store.

        Raises:
            TrackingError: If it cannot be reached or used.
        """
        return self._given if isinstance(self._given, Store) else connect(self._given)

    def get(self, run_id: str) -> Record:
        """The run of an id.

        Raises:
            TrackingError: If there is none.
        """
        from mlflow.exceptions import MlflowException

        with self.store.errors():
            run_id = resolve(self.store, run_id) or run_id
            try:
                return Record(self, self.store.client.get_run(run_id))
            except MlflowException as error:
                if error.error_code != _NOT_THERE:
                    raise
                raise self._none(f"run {run_id}") from None

    def find(self, text: str | Record) -> Record:
        """Finds one run by its id, the beginning of its id (4 characters or more), its name, or ``experiment/name``.

        A run that was found before is itself. Of several that share a name the only one that has finished is meant;
        that is said.

        Raises:
            TrackingError: If there is none, or several; the text lists them.
        """
        if isinstance(text, Record):
            return text
        with self.store.errors():
            text = resolve(self.store, text) or text
        if _RUN_ID.match(text):
            return self.get(text)
        matches = self._named(text)
        if not matches and _PREFIX.match(text):
            matches = self.search(f"attributes.run_id LIKE '{text}%'")
        if not matches and "/" in text:
            experiment, _, name = text.rpartition("/")
            matches = self._named(name, experiment)
        if not matches:
            names = [run.stored.info.run_name or "" for run in self.search("", limit=_PAGE)]
            raise self._none(f"run '{text}'", nearest(text, names))
        if len(matches) == 1:
            return matches[0]
        listing = ", ".join(
            f"{run.short} ({run.stored.info.run_name}, {run.stored.info.status.lower()})" for run in matches[:10]
        )
        finished = [run for run in matches if run.stored.info.status == "FINISHED"]
        if len(finished) > 1 or not finished:
            raise TrackingError(
                f"'{text}' is {len(matches)} runs: {listing}; give the beginning of one id, or experiment/name"
            )
        _log.warning("'%s' is %d runs: %s; the one that has finished is meant", text, len(matches), listing)
        return finished[0]

    def finished(self, name: str, limit: int) -> list[Record]:
        """The newest finished runs of a name."""
        return self.search(f"attributes.run_name = '{_quoted(name)}' and attributes.status = 'FINISHED'", limit)

    def latest(self, name: str) -> Record | None:
        """The newest finished run of a name, if there is one."""
        return next(iter(self.finished(name, 1)), None)

    def tagged(self, tag: str, value: str, limit: int | None = None) -> list[Record]:
        """The runs with a tag of this value, newest first."""
        return self.search(f"tags.`{tag}` = '{_quoted(value)}'", limit)

    def study(self, name: str) -> list[Record]:
        """The parent runs of a study: those with its tag, else those with its name.

        Raises:
            TrackingError: If there is none.
        """
        parents = [run for run in self.tagged(STUDY_TAG, name) if run.parent is None]
        parents = parents or self._named(name)
        if not parents:
            raise self._none(f"sweep '{name}'")
        return parents

    def search(self, query: str, limit: int | None = None, experiment: str | None = None) -> list[Record]:
        """All runs that match a query of MLflow, newest first, in every experiment or in the one of this name."""
        with self.store.errors():
            experiments = self.store.client.search_experiments()
            ids = [each.experiment_id for each in experiments if experiment in (None, each.name)]
            if not ids:
                return []
            runs: list[Record] = []
            token: str | None = None
            while True:
                page = self.store.client.search_runs(
                    ids, query, max_results=min(limit or _PAGE, _PAGE), page_token=token
                )
                runs += [Record(self, stored) for stored in page]
                token = page.token
                if not token or (limit is not None and len(runs) >= limit):
                    return runs[:limit]

    def _named(self, name: str, experiment: str | None = None) -> list[Record]:
        return self.search(f"attributes.run_name = '{_quoted(name)}'", experiment=experiment)

    def _none(self, what: str, guess: str = "") -> TrackingError:
        return TrackingError(
            f"there is no {what} in the MLflow store {self.store.label}{guess}; if it was recorded in another, name "
            "that by MLFLOW_TRACKING_URI (of a command by --tracking-uri, as tracking.uri of its config)"
        )


class Record:
    """A run as the store holds it. Artifacts, histories and nested runs are read when they are asked for.

    Args:
        runs: The runs of its store.
        stored: MLflow's own record of it.

    Attributes:
        run_id: Its id.
        short: The beginning of it, as tables show it.
        name: Its name, without the mark of pruned runs.
        title: What errors call it.
        tags: Its tags.
        params: Its params, as text.
        values: The last value of every metric.
    """

    def __init__(self, runs: Runs, stored: Run) -> None:
        self.runs, self.store, self.stored = runs, runs.store, stored
        self.run_id: str = stored.info.run_id
        self.short = self.run_id[:8]
        self.name: str = (stored.info.run_name or self.short).removeprefix(PRUNED_MARK)
        self.title = f"run {self.short} ({self.name})"
        self.tags: dict[str, str] = stored.data.tags
        self.params: dict[str, str] = stored.data.params
        self.values: dict[str, float] = stored.data.metrics

    @property
    def state(self) -> State:
        """How it ended."""
        if self.tags.get(STATE) == "pruned":
            return "pruned"
        states: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
        return states.get(self.stored.info.status, "running")

    @property
    def seconds(self) -> float:
        """How long it took by the clock; 0 of one that has not ended."""
        info = self.stored.info
        return max(0.0, float((info.end_time or info.start_time) - info.start_time) / 1000)

    @property
    def url(self) -> str:
        """Its page in MLflow's UI."""
        return run_url(self.store.ui, self.stored.info.experiment_id, self.run_id)

    @property
    def parent(self) -> str | None:
        """Id of the run it is nested in."""
        return self.tags.get(_PARENT)

    @cached_property
    def members(self) -> list[Record]:
        """The runs nested in it, newest first."""
        return self.runs.tagged(_PARENT, self.run_id)

    @property
    def is_group(self) -> bool:
        """Whether it is the parent of a group of seeds."""
        return GROUP in self.tags and SEED not in self.tags

    @property
    def seeds(self) -> dict[int, Record]:
        """The finished run of each seed of a group."""
        finished = [run for run in reversed(self.members) if SEED in run.tags and run.state == "finished"]
        return {int(run.tags[SEED]): run for run in sorted(finished, key=lambda run: int(run.tags[SEED]))}

    @property
    def selected(self) -> dict[str, float]:
        """The metrics of the epoch whose weights were kept, as ``split/name``."""
        names = sorted((name for name in self.values if name.startswith(SELECTED)), key=_by_split)
        return {name.removeprefix(SELECTED): self.values[name] for name in names if name.count("/") > 1}

    @property
    def metrics(self) -> dict[str, float]:
        """What the run came to: `selected`, gaps between training and validation, and further test sets."""
        further = sorted(name for name in self.values if name.startswith(("gap/", "shift/")))
        return self.selected | {name: self.values[name] for name in further}

    def series(self, metric: str) -> dict[int, float]:
        """Every value of a metric by its step."""
        with self.store.errors():
            points = self.store.client.get_metric_history(self.run_id, metric)
        return {point.step: point.value for point in points}

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """Metrics of every epoch."""
        epochs: dict[int, dict[str, float]] = {}
        for name in self.values:
            if name.startswith(("train/", "val/")):
                for step, value in self.series(name).items():
                    epochs.setdefault(step, {})[name] = value
        return [epochs[step] for step in sorted(epochs)]

    @cached_property
    def loaded(self) -> Loaded[ExperimentConfig]:
        """The config as it was recorded, whether or not the files that it names are here.

        Raises:
            TrackingError: If it recorded none: it is the parent of others, or failed at its start.
            ConfigError: If the config is not valid any more; the text names the keys.
        """
        text = self.text(CONFIG)
        if text is None:
            raise TrackingError(
                f"{self.title} has no {CONFIG}: of a sweep or a group of seeds name one of its runs "
                "(tlresearch ui shows them); a run that failed at its start cannot be repeated"
            )
        # What its repetition records goes to the store that it was found in.
        return regardless(load_recorded, text, {"tracking.uri": None}, source=self.title)

    def as_it_was(self, *, anyway: bool = False) -> Loaded[ExperimentConfig]:
        """The config with what it left to the machine fixed: number format and threads as the run had them.

        Args:
            anyway: Weights with another hash than the config asks for are taken too.
        """
        recorded = self.loaded.config
        fixed: dict[str, Any] = {
            key.removeprefix(RESOLVED): value for key, value in self.tags.items() if key.startswith(RESOLVED)
        }
        if recorded.trainer.threads is None and self.origin.computation:
            fixed["trainer.threads"] = self.origin.computation["threads"]
        # Marks of ours say what that run was part of, which its repetition is not.
        fixed["tracking.tags"] = {k: v for k, v in recorded.tracking.tags.items() if not k.startswith("tlresearch.")}
        if anyway and "://" not in (recorded.backbone.weights or ""):
            fixed["backbone.weights_sha256"] = None
        return regardless(revise, self.loaded, fixed)

    @cached_property
    def origin(self) -> Origin:
        """What it recorded of data, weights, code, packages, hardware and computation."""
        files = self.json(DATA_FILES)
        digest = next((profile.get("digest", "") for _, profile in self.splits), "")
        inputs = None
        if files is not None and digest and "tlresearch.weights" in self.tags:
            weights = self.tags["tlresearch.weights"], self.tags.get("tlresearch.weights_sha256", "")
            inputs = Inputs(digest, files, *weights)
        environment = self.json(ENVIRONMENT)
        code = (environment or {}).get("code") or {}
        diff = _by_file(self.text(DIFF) or "") if code.get("dirty") else {}
        return Origin(inputs, environment, diff, self.json(COMPUTATION), self.json(PARTS) or {})

    @property
    def splits(self) -> list[tuple[str, dict[str, Any]]]:
        """Each split of its data: ``train``, ``val`` or ``test``, and its profile."""
        found = []
        for entry in self.stored.inputs.dataset_inputs if self.stored.inputs else []:
            context = next((tag.value for tag in entry.tags if tag.key == "mlflow.data.context"), "")
            found.append((context, json.loads(entry.dataset.profile or "{}")))
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of its data in the order of their numbers; empty where they were not counted."""
        listings = (tuple(k.removeprefix(SAMPLES_OF) for k in profile if SAMPLES_OF in k) for _, profile in self.splits)
        return next(filter(None, listings), ())

    @cached_property
    def items(self) -> Items | None:
        """Its predictions sample by sample: of the test split, else of validation; `None` if it kept none."""
        recorded = self.artifacts(PREDICTIONS)
        path = next((path for split in SPLITS if (path := Items(split, ()).path) in recorded), None)
        text = self.text(path) if path else None
        return parse_items(Path(path).stem, text) if path and text else None

    def artifacts(self, folder: str | None = None) -> list[str]:
        """Paths of the artifacts in a folder."""
        with self.store.errors():
            return [item.path for item in self.store.client.list_artifacts(self.run_id, folder)]

    @contextlib.contextmanager
    def file(self, path: str) -> Iterator[Path]:
        """An artifact on this machine: itself where the store is here, else a copy for a while."""
        with local(self.store, f"{self.stored.info.artifact_uri}/{path}") as file:
            yield file

    def text(self, path: str) -> str | None:
        """A text artifact; `None` if it is not there or cannot be read."""
        return read_text(self.store, self.run_id, path)

    def json(self, path: str) -> dict[str, Any] | None:
        """A JSON artifact; `None` if it is not there or cannot be read."""
        return read_json(self.store, self.run_id, path)

    @property
    def model_ids(self) -> list[str]:
        """Ids of the models that it logged."""
        return [output.model_id for output in self.stored.outputs.model_outputs] if self.stored.outputs else []

    @property
    def model_id(self) -> str:
        """Id of the model that it logged.

        Raises:
            TrackingError: If it logged none.
        """
        if not self.model_ids:
            if self.state == "running":
                raise TrackingError(f"{self.title} has no model yet: it is still running")
            raise TrackingError(
                f"{self.title} has no model: trials of a sweep, runs with tracking.model=false and tasks "
                "of one's own log none; of a sweep or a group of seeds name one of its runs"
            )
        return self.model_ids[-1]

    @contextlib.contextmanager
    def model(self) -> Iterator[Path]:
        """The folder of its model, from which `tracking.loaders.rebuild` makes the predictor.

        Raises:
            TrackingError: If it has none.
        """
        with local(self.store, f"{model_address(self.store, self.model_id)}/artifacts/model") as folder:
            yield folder

    def add(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        texts: Mapping[str, str] | None = None,
        files: Mapping[str, Path] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Adds to a run that has ended; see `add_to_ended_run`."""
        add_to_ended_run(self.store, self.run_id, tags=tags or {}, texts=texts, files=files, metrics=metrics)


def close_lost(runs: Runs, parent: str, trials: Collection[int]) -> int:
    """Ends runs of a study that were given up and do not say so; returns how many.

    A trial that another worker went on with from its checkpoint is the same run, and has ended with it. One that had
    to begin anew elsewhere left its first run behind: as if it still ran, or finished without the study knowing.

    Args:
        runs: The runs of the store.
        parent: Id of the study's run.
        trials: Numbers of the trials that were given back.
    """
    if not trials:
        return 0
    given_up = {str(number) for number in trials}
    members = [run for run in runs.tagged(_PARENT, parent) if run.tags.get(TRIAL, "") in given_up]
    lost = [run for run in members if run.stored.info.status in ("RUNNING", "FINISHED")]
    for run in lost:
        with run.store.errors():
            run.store.client.set_terminated(run.run_id, "KILLED")
    return len(lost)


def _by_split(metric: str) -> tuple[int, str]:
    """Sorts metrics by split, as a run comes to them, then by name."""
    splits = ("train", "val", "test")
    split = metric.removeprefix(SELECTED).partition("/")[0]
    return splits.index(split) if split in splits else len(splits), metric


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _by_file(diff: str) -> dict[str, str]:
    parts = re.split(r"^diff --git a/(.+) b/.+$", diff, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
