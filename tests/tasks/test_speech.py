"""Speech recognition: loss, greedy decoding and error rates; and training under every kind of schedule."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backbones.speech_models import save_speech
from tests.data.sounds import save_classes
from tests.finetuning.test_callback import copy, make_trainer, moved
from tests.toy import TRAINER, toy_text
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Batch, Data
from tlresearch.data.build import build_data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning import lora
from tlresearch.finetuning.callback import FreezeScheduleCallback
from tlresearch.finetuning.presets import build_schedule
from tlresearch.run.fit import RunResult, fit
from tlresearch.tasks.build import build_task, needed_end
from tlresearch.tasks.speech import Frames, SpeechRecognitionTask, needed_frames

SAID = "{low: 'bo o', high: tee}"


def text(root: Path, model: Path, *, task: str = "speech_recognition", **sections: str) -> str:
    options = f", options: {{transcripts: {SAID}}}" if task == "speech_recognition" else ""
    return toy_text(
        data=f"{{name: audio_folder, root: '{root}', batch_size: 4{options}}}",
        backbone=f"{{name: 'hf/{model}', options: {{layerdrop: 0.5}}}}",
        task=f"{{name: {task}}}",
        **{"optimizer": "{name: adamw, lr: 0.01}", **sections},
    )


def make(tmp_path: Path, **sections: str) -> tuple[ExperimentConfig, Any, Data, Any]:
    """Config, backbone, data and schedule of an experiment over tones and a tiny random wav2vec 2.0."""
    root = save_classes(tmp_path / "tones", count=6)
    save_speech(tmp_path / "model", "wav2vec2")
    config = load_text(text(root, tmp_path / "model", **sections)).config
    backbone = build_backbone(config.backbone, needed_end(config.task))
    data = build_data(config.data, preprocessing=backbone.preprocessing, seed=0)
    schedule = build_schedule(config, backbone.stage_names)
    if schedule.adapters:
        lora.inject(backbone, rank=2, alpha=4.0)
    return config, backbone, data, schedule


@pytest.fixture
def task(tmp_path: Path) -> SpeechRecognitionTask:
    config, backbone, data, schedule = make(tmp_path)
    found = build_task(config, backbone, data, schedule)
    assert isinstance(found, SpeechRecognitionTask)
    return found


def frames(task: SpeechRecognitionTask, *rows: str) -> Frames:
    """Scores that say these symbols, ``-`` for the blank; padded with the last character, which must not count."""
    longest = max(map(len, rows))
    numbers = [[0 if c == "-" else task.characters.index(c) + 1 for c in row] for row in rows]
    padded = torch.tensor([row + [len(task.characters)] * (longest - len(row)) for row in numbers])
    scores = torch.nn.functional.one_hot(padded, len(task.characters) + 1) * 20.0
    return Frames(scores, torch.tensor([len(row) for row in rows]))


def targets(task: SpeechRecognitionTask, *rows: str) -> list[torch.Tensor]:
    return [torch.tensor([task.characters.index(c) for c in row]) for row in rows]


def test_greedy_decoding_merges_repetitions_and_drops_blanks(task: SpeechRecognitionTask) -> None:
    texts, sure = task.decode(frames(task, "bb-oo--o", "tte-e", "-", " b  o"))
    assert texts == ["boo", "tee", "", "b o"]
    assert all(value > 0.99 for value in sure)


def test_error_rates_are_of_the_whole_split(task: SpeechRecognitionTask) -> None:
    outputs = frames(task, "bo o", "te-e", "b-o")
    batch = Batch(torch.zeros(3), targets(task, "bo o", "tee", "bo o"), torch.arange(3))
    task.update_metrics("val", outputs, batch, torch.tensor(0.5))
    found = task.compute_metrics("val")
    # "bo" for "bo o": one word of five is missing, two characters of eleven.
    assert found == pytest.approx(
        {"loss": 0.5, "accuracy": 2 / 3, "word_error_rate": 1 / 5, "character_error_rate": 2 / 11}
    )


def test_the_loss_is_that_of_ctc_and_leaves_out_padding(task: SpeechRecognitionTask) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 6, len(task.characters) + 1, requires_grad=True)
    wanted = targets(task, "tee", "bo")
    loss = task.loss(Frames(scores, torch.tensor([6, 3])), wanted)
    alone = [
        torch.nn.functional.ctc_loss(row[:n].log_softmax(1)[:, None], t[None] + 1, (n,), (len(t),), reduction="sum")
        / len(t)
        for row, n, t in zip(scores, (6, 3), wanted, strict=True)
    ]
    torch.testing.assert_close(loss, (alone[0] + alone[1]) / 2)
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[1, 3:].any()
    assert scores.grad[1, :3].any()


def test_too_few_frames_teach_nothing_and_are_mentioned_once(
    task: SpeechRecognitionTask, caplog: pytest.LogCaptureFixture
) -> None:
    assert [needed_frames(t) for t in targets(task, "tee", "bo o", "b")] == [4, 4, 1]
    outputs, wanted = frames(task, "tee", "bo o"), targets(task, "tee", "bo o")
    outputs = Frames(torch.randn_like(outputs.scores).requires_grad_(), outputs.lengths)
    loss = task.loss(outputs, wanted)
    loss.backward()
    assert bool(loss.isfinite())
    assert outputs.scores.grad is not None
    assert not outputs.scores.grad[0].any()
    for _ in range(2):
        task.update_metrics("train", outputs.detach(), Batch(torch.zeros(2), wanted, torch.arange(2)), loss.detach())
        task.compute_metrics("train")
    assert caplog.text.count("1 utterances have fewer frames") == 1


def test_labels_cannot_be_spelt_and_transcripts_not_classified(tmp_path: Path) -> None:
    for name, kind in (("speech_recognition", "binary"), ("classification", "transcript")):
        config, backbone, data, schedule = make(tmp_path, task=name)
        assert data.kind != kind
        config.data.options = {"transcripts": {"low": "a", "high": "b"}} if kind == "transcript" else {}
        data = build_data(config.data, preprocessing=backbone.preprocessing, seed=0)
        with pytest.raises(ConfigError, match=f"task.name: {name} learns .* targets, but those of tones are {kind}"):
            build_task(config, backbone, data, schedule)


SCHEDULES = {
    "{schedule: linear_probe, epochs: 1}": "head.",
    "{schedule: depth, unfreeze_depth: 2, epochs: 1}": "head. backbone.stages.3. backbone.stages.4.",
    "{schedule: bias_only, epochs: 1}": "bias",
    "{schedule: lora, epochs: 1, lora: {rank: 2, alpha: 4.0}}": "lora_",
}


@pytest.mark.parametrize("freeze", SCHEDULES)
@pytest.mark.parametrize("name", ["classification", "speech_recognition"])
def test_a_schedule_moves_what_it_trains_and_a_checkpoint_holds_that(name: str, freeze: str, tmp_path: Path) -> None:
    config, backbone, data, schedule = make(tmp_path, task=name, freeze=freeze)
    task = build_task(config, backbone, data, schedule)
    before = copy(task)
    loaders = [
        make_loader(data.splits[split], batch_size=4, shuffle=split == "train", seed=0) for split in ("train", "val")
    ]
    plan = FreezeScheduleCallback(schedule, seed=0)
    make_trainer(plan).fit(task, *loaders)
    changed = {key for key in moved(before, copy(task)) if not key.startswith("meters.")}
    allowed = SCHEDULES[freeze].split()
    assert changed
    assert all(any(part in key for part in (*allowed, "head.")) for key in changed)
    assert any("backbone" in key for key in changed) is ("linear_probe" not in freeze)
    assert changed <= set(task.changing_state())
    if "depth" in freeze:
        assert all(key.startswith(tuple(allowed)) for key in task.changing_state())


def test_interrupted_and_resumed_equals_unbroken(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = save_classes(tmp_path / "tones", count=6)
    save_speech(tmp_path / "model", "wav2vec2")
    experiment = load_text(
        text(
            root,
            tmp_path / "model",
            freeze="{schedule: lp_ft, probe_epochs: 1, epochs: 3}",
            optimizer="{name: adamw, lr: 0.01, layer_lr_decay: 0.5}",
            trainer=TRAINER.replace("}", ", threads: 1, monitor: val/word_error_rate, mode: min}"),
        )
    )
    steps: list[int] = []
    plain = SpeechRecognitionTask.training_step

    def counted(self: SpeechRecognitionTask, batch: Batch, batch_idx: int) -> torch.Tensor:
        steps[-1] += 1
        if stop and steps[-1] == stop:
            raise KeyboardInterrupt
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(SpeechRecognitionTask, "training_step", counted)

    def run(home: str) -> RunResult:
        monkeypatch.setenv("TLRESEARCH_HOME", str(tmp_path / home))
        (tmp_path / home).mkdir(exist_ok=True)
        if not (tmp_path / home / "mlflow.db").exists():
            shutil.copy(empty_database, tmp_path / home / "mlflow.db")
        steps.append(0)
        return fit(experiment)

    stop = 7  # of 3 steps an epoch: in the last one
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    stop = 0
    resumed, unbroken = run("broken"), run("unbroken")
    assert steps == [7, 3, 9]
    assert resumed.history == unbroken.history
    assert {"val/word_error_rate", "val/character_error_rate"} <= set(unbroken.metrics)
    state = unbroken.task.changing_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.task.changing_state().items())
