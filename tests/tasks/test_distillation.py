"""A finished run teaches a smaller network: the student's loss follows the teacher's answers, not its labels alone."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.tasks.test_classification import make
from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.load import load_text
from tlresearch.data.base import Batch
from tlresearch.data.loading import make_loader
from tlresearch.run.fit import RunResult, fit
from tlresearch.tasks import distillation
from tlresearch.tasks.distillation import Teacher, distillation_loss
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
SMALL = "{name: small_cnn, weights: null, options: {in_channels: 1, width: 2}}"
DIGITS = "{name: digits, classes: ['0', '1'], labels_per_class: 12, batch_size: 8"


@pytest.fixture(scope="module")
def one_home(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("distillation")
    shutil.copy(empty_database, home / "mlflow.db")
    return home


@pytest.fixture(scope="module")
def taught_by(one_home: Path) -> RunResult:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("TLRESEARCH_HOME", str(one_home))
        return fit(load_text(toy_text(name="teacher", data=f"{DIGITS}}}", freeze="{schedule: full, epochs: 4}")))


def student(teacher: str, *, data: str = f"{DIGITS}}}", schedule: str = "full", alpha: float = 1.0) -> RunResult:
    task = f"{{teacher: '{teacher}', distill_alpha: {alpha}, temperature: 1.0}}"
    freeze = f"{{schedule: {schedule}, epochs: 2}}"
    return fit(load_text(toy_text(name="student", task=task, data=data, backbone=SMALL, freeze=freeze)))


def test_the_loss_by_hand() -> None:
    given, wanted = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 3.0, 1.0]])
    for temperature in (1.0, 4.0):
        p, q = (wanted / temperature).softmax(1), (given / temperature).softmax(1)
        by_hand = float((p * (p / q).log()).sum()) * temperature**2
        assert float(distillation_loss(given, wanted, temperature, "multiclass")) == pytest.approx(by_hand, rel=1e-5)
    p, q = (wanted / 2).sigmoid(), (given / 2).sigmoid()
    by_hand = float((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()) * 4
    assert float(distillation_loss(given, wanted, 2.0, "multilabel")) == pytest.approx(by_hand, rel=1e-5)
    assert float(distillation_loss(given, given + 5, 3.0, "multiclass")) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_training_step_learns_from_labels_and_teacher(alpha: float) -> None:
    task = make().eval()  # without dropout, so that a second pass gives the same
    inputs, targets = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    told = torch.randn(4, 3)
    task.teacher = Teacher(lambda batch: told[batch.indices], alpha, 2.0, "multiclass")
    logits: Tensor = task(inputs)
    hard = functional.cross_entropy(logits, targets)
    soft = distillation_loss(logits, told, 2.0, "multiclass")
    loss = task.training_step(Batch(inputs, targets, torch.arange(4)), 0)
    torch.testing.assert_close(loss, (1 - alpha) * hard + alpha * soft)
    assert task.compute_metrics("train")["loss"] == pytest.approx(hard.item(), rel=1e-5)  # comparable between runs
    loss.backward()
    assert dict(task.named_parameters())["head.1.weight"].grad is not None


@pytest.mark.parametrize("schedule", ["full", "linear_probe"])  # raw inputs, and cached activations
def test_a_student_learns_what_its_teacher_says(
    taught_by: RunResult, one_home: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    result = student(taught_by.run_id[:8], schedule=schedule)
    run = connect().client.get_run(result.run_id)
    assert run.data.tags["tlresearch.teacher"] == run.data.params["task.teacher"] == taught_by.run_id
    split = load_data(result)
    batch = next(iter(make_loader(split, batch_size=24, shuffle=True, seed=0)))
    assert isinstance(result.task.teacher, Teacher)
    with torch.no_grad():
        wanted = taught_by.task.eval()(batch.inputs)
    torch.testing.assert_close(result.task.teacher.answers(batch), wanted, atol=1e-4, rtol=1e-4)
    alone = fit(load_text(result.config), {"task.teacher": None, "task.distill_alpha": 0.5, "task.temperature": 4.0})
    ours, theirs = (dict(one.task.named_parameters())["head.1.weight"] for one in (result, alone))
    assert not torch.allclose(ours, theirs, atol=1e-4)  # the teacher made a difference


def test_a_process_asks_a_teacher_once_for_each_sample(
    taught_by: RunResult, one_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    distillation._last.clear()
    fewer = f"{DIGITS.replace('12', '9')}}}"  # other samples need other answers
    found = []
    with caplog.at_level("INFO", logger="tlresearch"):
        for data in (f"{DIGITS}}}", f"{DIGITS}}}", fewer):
            result = student(taught_by.run_id, data=data, alpha=0.5)
            assert isinstance(result.task.teacher, Teacher)
            found.append(result.task.teacher.answers(Batch(torch.zeros(0), None, torch.arange(18))))
    assert [r.getMessage() for r in caplog.records if "the teacher answers" in r.getMessage()] == [
        "the teacher answers 24 training samples",
        "the teacher answers 18 training samples",
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_under_augmentation_the_teacher_sees_what_the_student_sees(
    taught_by: RunResult, one_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    result = student("latest:teacher", data=f"{DIGITS}, augment: flip}}")
    assert isinstance(result.task.teacher, Teacher)
    batch = Batch(torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 0]), torch.arange(3))
    with torch.no_grad():
        wanted = taught_by.task.eval()(batch.inputs)
    torch.testing.assert_close(result.task.teacher.answers(batch), wanted, atol=1e-4, rtol=1e-4)
    moved = batch._replace(inputs=batch.inputs + 1)
    assert not torch.allclose(result.task.teacher.answers(moved), wanted)


def test_a_teacher_that_does_not_fit_is_refused(
    taught_by: RunResult, one_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLRESEARCH_HOME", str(one_home))
    with pytest.raises(ConfigError, match=r"2 classes apart \(0, 1\), but the data has 2 \(1, 0\)"):
        student(taught_by.run_id, data=DIGITS.replace("['0', '1']", "['1', '0']") + "}")
    with pytest.raises(UserError, match="no finished run is named 'nobody'"):
        student("latest:nobody")
    with pytest.raises(ConfigError, match=r"task.temperature: is only read together with task.teacher"):
        load_text(toy_text(task="{temperature: 2.0}"))
    with pytest.raises(ConfigError, match=r"task.teacher: is only read by classification"):
        load_text(toy_text(task="{name: segmentation, teacher: x}"))
    with pytest.raises(ConfigError, match=r"cache.views"):
        load_text(toy_text(task="{teacher: x}", cache="{views: 2}"))


def load_data(result: RunResult) -> object:
    from tlresearch.backbones.build import build_backbone
    from tlresearch.data.build import build_data

    config = load_text(result.config).config
    preprocessing = build_backbone(replace(config.backbone)).preprocessing
    return build_data(config.data, preprocessing=preprocessing, seed=config.seed).splits["train"]
