"""What is recorded of a run: params, metrics, tags, artifacts, data; each becomes a call, or points on their way."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tlresearch.base.redact import redact
from tlresearch.tracking import values
from tlresearch.tracking.calls import Call
from tlresearch.tracking.manifest import Manifest
from tlresearch.tracking.outbox import Outbox
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Recording:
    """A run that things are recorded of; secrets are taken out here.

    Args:
        outbox: What writes it.
        store: Where it is written.

    Attributes:
        manifest: Hashes of its artifacts.
        last: What is stored when it ends.
    """

    def __init__(self, outbox: Outbox, store: Store) -> None:
        self.outbox, self.store = outbox, store
        self.manifest = Manifest()
        self.last: list[Call] = []
        self._long_params: dict[str, str] = {}

    @property
    def run_id(self) -> str:
        """Its id; one of our own as long as MLflow has not made the run."""
        return self.outbox.target.id

    @property
    def reference(self) -> str:
        """What `open_run` continues it by: an id, or one of our own, known before the run has been opened."""
        return self.run_id

    @property
    def experiment_id(self) -> str:
        """The experiment it belongs to; empty as long as MLflow has not made the run."""
        return self.outbox.target.experiment_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Stores params. One that is stored already keeps its value: MLflow does not let it change."""
        short, whole = values.params(params)
        self.outbox.do(Call("batch", {"params": short}))
        if whole:
            self._long_params.update(whole)
            self.log_dict(self._long_params, "config/long_params.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes metrics (NaN and infinity too) and returns at once; a thread writes them in batches."""
        self.outbox.add(metrics, step)

    def last_step(self, metric: str) -> int:
        """The largest step recorded for a metric; -1 if there is none."""
        return self.outbox.last_step(metric)

    def flush(self) -> bool:
        """Writes waiting metrics now, such as next to a checkpoint: to the store, or to disk if it is away.

        Returns:
            Whether they are kept; ``False`` if the store refuses them.
        """
        return self.outbox.flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value replaces an earlier one."""
        self.outbox.do(Call("batch", {"tags": values.tags(tags)}))

    def count(self, tag: str) -> None:
        """Adds one to a tag that is a number; a missing one is 0."""
        self.outbox.do(Call("count", {"tag": tag}))

    def log_text(self, text: str, path: str) -> None:
        """Stores text as an artifact."""
        self.outbox.do(self._text(text, path))

    def log_at_end(self, text: str, path: str) -> None:
        """Stores text as an artifact when the run ends; whoever waits for its end need not wait for this."""
        self.last.append(self._text(text, path))

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Stores a mapping as an artifact, as JSON or YAML after the path's suffix."""
        clean = values.clean("", content)
        as_json = path.endswith(".json")
        self.outbox.do(
            self._clean_text(json.dumps(clean, indent=2, default=str) if as_json else yaml.safe_dump(clean), path)
        )

    def _text(self, text: str, path: str) -> Call:
        return self._clean_text(values.clean_yaml(text) if path.endswith(".yaml") else redact(text), path)

    def _clean_text(self, text: str, path: str) -> Call:
        self.manifest.add_text(text, path)
        return Call("texts", {"texts": {path: text}})

    def log_file(self, file: Path, folder: str = "") -> None:
        """Stores a file, or a folder with all it holds, as artifacts under `folder`."""
        place = Path(folder or (file.name if file.is_dir() else "")).as_posix().removeprefix(".")
        self.manifest.add(file, place if file.is_dir() else f"{place}/{file.name}".removeprefix("/"))
        self.outbox.do(Call("file", {"place": place}, file))

    def store_model(self, about: Mapping[str, Any], folder: Path) -> str:
        """Stores a model, see `tracking.model.log_model`; returns its id, or nothing if it waits."""
        self.outbox.do(Call("model", about, folder))
        return next(reversed(self.outbox.target.models), "")

    def log_figure(self, figure: Figure, path: str) -> None:
        """Stores a figure as an artifact such as ``figures/curves.png``."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            figure.savefig(file, dpi=150)
            self.log_file(file, str(Path(path).parent))

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
        """Records a split of the data the run used; no data is copied.

        Args:
            name: Name of the data set.
            digest: Its content hash; MLflow keeps 36 characters, the profile all of it.
            source: Where it came from, such as a path or an address.
            context: ``train``, ``val`` or ``test``.
            schema: Type by column, such as ``{"image": "binary", "label": "string"}``.
            profile: Numbers such as samples per class.
        """
        about = {"name": name, "digest": digest, "source": redact(source), "context": context}
        whole = {**about, "schema": dict(schema or {}), "profile": dict(profile or {})}
        self.outbox.do(Call("datasets", {"datasets": [whole]}))

    def download(self, path: str) -> Path:
        """Returns a local copy of an artifact, a file or a folder."""
        with self.store.errors():
            return Path(self.store.client.download_artifacts(self.run_id, path))
