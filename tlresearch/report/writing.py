"""Writes a report: one HTML file that needs neither MLflow nor a network, also kept with the run."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from tlresearch.base.errors import TrackingError
from tlresearch.report.gather import gather
from tlresearch.report.sections import Page
from tlresearch.tracking.manifest import add_to_ended_run
from tlresearch.tracking.records import STUDY_TAG, find_run, study_runs
from tlresearch.tracking.store import Store, connect

ARTIFACT = "report.html"


def write_report(what: str, out: Path | None = None) -> Path:
    """Writes the report of a run, a study, a group of seeds or a reproduction.

    Args:
        what: Name of a study, or id, unique beginning of it or name of a run.
        out: The file; `None` is ``reports/<name>.html``.

    Returns:
        The file.

    Raises:
        TrackingError: If there is no such run, or several.
    """
    store = connect()
    run_id = _find(store, what)
    run = store.client.get_run(run_id)
    page = gather(store, run)
    target = out or Path("reports") / f"{page.title.replace('/', '-').replace(' ', '-')}-{run_id[:8]}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(as_html(page), encoding="utf-8")
    if run.info.status != "RUNNING":
        add_to_ended_run(store, run_id, tags={}, files={ARTIFACT: target})
    return target


def as_html(page: Page) -> str:
    """Renders a page; everything in it is text to the browser, whatever names and descriptions hold."""
    template = files("tlresearch.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    surroundings = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return surroundings.from_string(template).render(page=page)


def _find(store: Store, what: str) -> str:
    """The newest run of a study of that name, else the run."""
    try:
        studies = [run for run in study_runs(store, what) if STUDY_TAG in run.data.tags]
    except TrackingError:
        studies = []
    found = studies[0] if studies else find_run(store, what)
    return str(found.info.run_id)
