"""Kinds of fault that single cases showed: what holds for any names, places, schedules, shapes and marks."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.fuzz.conftest import cases
from tests.fuzz.mutations import readable
from tests.toy import toy_text
from tlresearch.base.errors import UserError
from tlresearch.config.courses import Constant, Cosine, Course, Exponential, Linear, Step
from tlresearch.config.load import load_text
from tlresearch.data.annotations import Object, to_boxes
from tlresearch.data.folders import composed, find_listed
from tlresearch.data.plane import CROWD, DIFFICULT
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau
from tlresearch.modality.image import Evaluation, Frame, Preprocessing
from tlresearch.tasks.metric_names import metric_names
from tlresearch.tasks.watched import directed
from tlresearch.tracking.moved import folder_of, follow

NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(
    [
        "50",
        "C",
        "C++",
        "C#",
        "Ham",
        "ham",
        "HAM",
        "caf\u00e9",
        "cafe\u0301",
        "cafe",
        "a b",
        "a_b",
        "a-b",
        "x" * 300,
        "\ud800",
    ]
)


@given(classes=st.lists(NAMES, max_size=8, unique=True))
def test_names_of_metrics_are_distinct_for_any_database(classes: list[str]) -> None:
    names = metric_names(classes, reserved=("50", "75"))
    assert list(names) == classes
    assert metric_names(reversed(classes), reserved=("50", "75")) == names
    folded = {unicodedata.normalize("NFKD", name).casefold() for name in names.values()}
    assert len(folded) == len(classes)
    assert not folded & {"50", "75"}
    for name in names.values():
        assert re.fullmatch(r"\w{1,170}", name)


PARTS = st.sampled_from(["a", "artifacts", "b c", "%20", "#", "caf\u00e9", "..", "models", "mlflow.db"])


@given(
    before=st.lists(PARTS, min_size=1, max_size=4),
    now=st.lists(PARTS.filter(lambda part: part != ".."), min_size=1, max_size=4),
    experiment=st.text(min_size=1, max_size=10) | st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    elsewhere=st.sampled_from(["s3://bucket/artifacts/x", "mlflow-artifacts:/1", "./mlruns/0", "", "/data/photos"]),
)
def test_a_store_that_was_moved_anywhere_finds_its_artifacts(
    before: list[str], now: list[str], experiment: str, elsewhere: str, tmp_path: Path
) -> None:
    assume(folder_of(experiment))
    former, artifacts = f"/nowhere/{'/'.join(before)}/artifacts", tmp_path.joinpath(*now) / "artifacts"
    place = f"{former}/{folder_of(experiment)}"
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE experiments (name, artifact_location)")
        connection.execute("CREATE TABLE runs (artifact_uri)")
        connection.execute("CREATE TABLE logged_models (artifact_location)")
        connection.execute("CREATE TABLE model_versions (source, storage_location)")
        connection.executemany("INSERT INTO experiments VALUES (?, ?)", [(experiment, place), ("other", elsewhere)])
        connection.execute("INSERT INTO runs VALUES (?)", (f"{place}/0/artifacts",))
        for _ in range(2):  # the second time there is nothing left to do
            follow(connection, artifacts)
            found = connection.execute("SELECT artifact_location FROM experiments").fetchall()
            assert found == [(f"{artifacts}/{folder_of(experiment)}",), (elsewhere,)]
            assert connection.execute("SELECT artifact_uri FROM runs").fetchone()[0] == f"{found[0][0]}/0/artifacts"


@st.composite
def phases(draw: st.DrawFn) -> Phase:
    until = draw(st.sampled_from([None, Plateau("val/loss", 1), Plateau("val/loss", 3)]))
    return Phase(
        "p",
        stages=draw(st.sampled_from([(), (0,)])),
        rates=(0.1, draw(st.sampled_from([0.1, 0.2]))),
        epochs=draw(st.integers(1, 4)),
        until=until,
        at_end=draw(st.sampled_from(["keep", "restore_best"])) if until else "keep",
        warmup_epochs=draw(st.sampled_from([0.0, 1.5])),
        rate=draw(st.sampled_from(["restart", "continue"])),
    )


@given(
    one=st.lists(phases(), min_size=1, max_size=3),
    further=st.lists(phases(), max_size=2),
    longer=st.integers(0, 4),
    course=st.sampled_from([Constant(), Cosine(), Linear(), Step(), Exponential()]),
    losses=st.lists(st.sampled_from([0.1, 0.2, 0.3]), max_size=8),
)
@cases(200)
def test_schedules_that_agree_train_alike(
    one: list[Phase], further: list[Phase], longer: int, course: Course, losses: list[float]
) -> None:
    """Where they are said to agree, every rate at any moment of the history is the same, and so are the phases."""
    last = replace(one[-1], epochs=one[-1].epochs + longer)
    schedules = [FreezeSchedule(tuple(all_of), ("a",), course) for all_of in (one, [*one[:-1], last, *further])]
    history: list[dict[str, float]] = []
    for loss in losses:  # no further than the shorter one goes
        if schedules[0].position(history).phase == len(one):
            break
        history.append({"val/loss": loss})
    parts = schedules[0].parts_with(schedules[1], history)
    assert parts is None or 0 <= parts < len(history)
    for epoch in range(len(history) if parts is None else parts):
        here, there = (schedule.position(history[:epoch]) for schedule in schedules)
        assert (here.phase, here.starts) == (there.phase, there.starts)
        for moment in (0.1, 0.3, 0.6, 0.9):
            rates = [schedule.rates(here.phase, here.starts, epoch + moment) for schedule in schedules]
            assert rates[0] == rates[1]


@given(height=st.integers(1, 700), width=st.integers(1, 700), crop=st.sampled_from([8, 15]), letterbox=st.booleans())
def test_pictures_of_any_shape_have_a_bounded_cost_and_are_exported_as_they_are_trained_on(
    height: int, width: int, crop: int, letterbox: bool
) -> None:
    wanted = Preprocessing(crop, None, fit="letterbox") if letterbox else Preprocessing(crop, crop + 1)
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = Evaluation(wanted)(image)
    assert seen.shape[-2:] == (crop, crop)
    torch.testing.assert_close(Frame(wanted)(image.permute(0, 2, 3, 1)), seen, atol=0.02, rtol=0)


@given(
    marks=st.lists(st.sampled_from([0, DIFFICULT, CROWD]), min_size=1, max_size=5),
    found=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6),
)
def test_marked_objects_never_make_a_detector_worse(marks: list[int], found: list[tuple[int, int]]) -> None:
    """Of objects in a row, each with its own class: marking one leaves the precision of all other classes as it is."""
    pytest.importorskip("pycocotools", reason="the extra detection is not installed")
    from tlresearch.tasks.detection import BoxMeters
    from tlresearch.tasks.detectors import DetectionHead

    classes = tuple(f"c{number}" for number in range(5))
    box = [(20.0 * number, 0.0, 20.0 * number + 10, 10.0) for number in range(5)]
    detections = {
        "boxes": torch.tensor([box[place] for place, _ in found]).reshape(-1, 4),
        "labels": torch.tensor([label for _, label in found], dtype=torch.int64),
        "scores": torch.linspace(0.9, 0.1, len(found)),
    }

    def values(with_marks: list[int]) -> dict[str, float]:
        objects = [Object(classes[n], box[n], mark) for n, mark in enumerate(with_marks)]
        target = DetectionHead.as_given(None, to_boxes(objects, classes, marked=True)[0])  # type: ignore[arg-type]
        meters = BoxMeters(classes)
        meters.update([detections], [target], torch.tensor(0.0))
        return meters.finish()

    plain, marked = values([0] * len(marks)), values(marks)
    for number, name in enumerate(classes):
        if number >= len(marks) or not marks[number]:
            assert marked[f"map_{name}"] == pytest.approx(plain[f"map_{name}"], nan_ok=True)
        else:
            assert marked[f"map_{name}"] != marked[f"map_{name}"]  # nothing to find


METRICS = st.text(max_size=12) | st.sampled_from(
    ["val/loss", "val/acuracy", "train/auroc", "test/accuracy", "val/", "/", "val/x/y", "VAL/loss", "val/\ud800"]
)


@given(metric=METRICS, key=st.sampled_from(["monitor", "early_stopping.metric"]), best=st.booleans())
def test_any_metric_to_watch_is_taken_or_refused_in_one_line(metric: str, key: str, best: bool) -> None:
    overrides: dict[str, Any] = {f"trainer.{key}": metric, "trainer.select": "best" if best else "last"}
    try:
        directed(load_text(toy_text(), overrides).config)
    except UserError as error:
        for line in str(error).splitlines():
            readable(line)


@given(names=st.lists(NAMES.filter(lambda name: name not in (".", "..") and "/" not in name), min_size=1, max_size=4))
def test_a_name_in_another_form_is_found(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("named")
    written = []
    for name in {composed(name) for name in names}:
        decomposed = unicodedata.normalize("NFD", name)
        with contextlib.suppress(OSError, ValueError):  # too long, or a sign that no name may hold
            (root / f"{decomposed}.png").touch()
            written.append(name)
    assume(written)
    assume(not any(name.startswith(".") for name in written))
    found = find_listed(root, [f"{name}.png" for name in written], (".png",), "t.csv").names
    assert [composed(name) for name in found] == [composed(f"{name}.png") for name in written]
    assert all((root / name).exists() for name in found)
