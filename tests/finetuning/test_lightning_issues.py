"""What people report of Lightning's finetuning callbacks, by number; `benchmarks/freezing.py` measures all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.finetuning.foreign import QUIET, STAGES, Photos, StopAt, StoppedError, copy, loaders, make_trainer, moved
from tlresearch import FreezeSchedule

pytestmark = [pytest.mark.filterwarnings(rule) for rule in QUIET]


def probe_then_all(**options: Any) -> FreezeSchedule:
    return FreezeSchedule("lp_ft", stages=STAGES, head="classifier", **options)


def test_lightning_21901_a_run_resumed_after_the_unfreezing_goes_on_training_what_was_unfrozen(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        make_trainer(tmp_path, [probe_then_all(), StopAt(20)], max_epochs=4).fit(Photos(), *loaders())
    module, starts = Photos(), []

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            starts.append(copy(pl_module))

    trainer = make_trainer(tmp_path, [probe_then_all(), Start()], max_epochs=4)
    trainer.fit(module, *loaders(), ckpt_path=tmp_path / "last.ckpt")
    trained = {name for name, _ in module.named_parameters()}
    assert moved(starts[0], copy(module)) >= trained


def frozen_epoch(**options: Any) -> set[str]:
    """What moves in an epoch in which only the head is trained."""
    module = Photos()
    before = copy(module)
    plan = FreezeSchedule("linear_probe", stages=STAGES, head="classifier", **options)
    make_trainer(None, [plan], max_epochs=1).fit(module, *loaders())
    return moved(before, copy(module))


def test_lightning_13902_weights_and_biases_of_frozen_batch_norm_do_not_learn() -> None:
    assert frozen_epoch() == {"classifier.1.weight", "classifier.1.bias"}


def test_lightning_15062_running_statistics_of_a_frozen_stage_stand_still() -> None:
    assert not any("running" in name or "tracked" in name for name in frozen_epoch())


@pytest.mark.parametrize("epochs", [1, 2])
def test_lightning_21531_and_20629_what_norm_layers_do_holds_before_the_unfreezing_as_after(epochs: int) -> None:
    seen: list[tuple[bool, bool]] = []

    class Norms(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            norm = pl_module.encoder.stem[1]
            seen.append((norm.training, norm.weight.requires_grad))

    phases = [{"unfreeze_depth": depth, "epochs": epochs} for depth in (0, 2, 3)]
    for frozen_norm, frozen in ("eval", (False, False)), ("train", (True, False)):
        seen.clear()
        plan = FreezeSchedule(phases, stages=STAGES, head="classifier", frozen_norm=frozen_norm)  # type: ignore[arg-type]
        make_trainer(None, [plan, Norms()], max_epochs=3 * epochs).fit(Photos(), *loaders())
        steps = 6 * epochs
        assert set(seen[: 2 * steps]) == {frozen}
        assert set(seen[2 * steps :]) == {(True, True)}


def test_lightning_17283_the_optimizers_groups_do_not_grow(tmp_path: Path) -> None:
    sizes: list[list[int]] = []

    class Groups(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            sizes.append([len(group["params"]) for group in trainer.optimizers[0].param_groups])

    for stop in 3, 9, 15, 10**9:
        path = tmp_path / "last.ckpt"
        callbacks = [FreezeSchedule("gradual", stages=STAGES, head="classifier"), Groups(), StopAt(stop)]
        trainer = make_trainer(tmp_path, callbacks, max_epochs=4)
        if stop < 10**9:
            with pytest.raises(StoppedError):
                trainer.fit(Photos(), *loaders(), ckpt_path=path if path.exists() else None)
        else:
            trainer.fit(Photos(), *loaders(), ckpt_path=path)
    assert all(row == [4, 4, 4, 2] for row in sizes)


RANKS = '''
import json, sys, warnings
warnings.simplefilter("ignore")
import lightning as L, torch, torch.distributed as dist
from tests.finetuning.foreign import STAGES, Photos, copy, loaders, make_trainer, moved, photos
from tlresearch import FreezeSchedule

torch.set_num_threads(1)
rows = []

class Differences(L.Callback):
    """The largest difference between the ranks at the end of each epoch, and what has moved."""
    def on_train_epoch_start(self, trainer, module):
        self.before = copy(module)
    def on_train_epoch_end(self, trainer, module):
        worst = 0.0
        for tensor in module.state_dict().values():
            both = [torch.zeros_like(tensor) for _ in range(2)]
            dist.all_gather(both, tensor.contiguous())
            worst = max(worst, float((both[0].double() - both[1].double()).abs().max()))
        rows.append([worst, sorted({name.rsplit(".", 2)[0] for name in moved(self.before, copy(module))})])

plan = FreezeSchedule("gradual", stages=STAGES, head="classifier")
trainer = make_trainer(None, [plan, Differences()], max_epochs=4, devices=2, strategy="ddp")
trainer.fit(Photos(), *loaders(photos(52)))
if trainer.is_global_zero:
    json.dump(rows, open(sys.argv[1], "w"))
'''


@pytest.mark.slow
def test_lightning_20340_two_ranks_agree_after_every_phase_under_plain_ddp(tmp_path: Path) -> None:
    script, out = tmp_path / "ranks.py", tmp_path / "out.json"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, str(script), str(out)], env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())
    assert [row[0] for row in rows] == [0.0] * 4
    trained = ["classifier", *reversed(STAGES)]
    assert [row[1] for row in rows] == [sorted(trained[: depth + 1]) for depth in range(4)]


KILLED = """
import json, os, signal, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.finetuning.foreign import STAGES, Photos, digest, loaders, make_trainer
from tlresearch import FreezeSchedule

folder, kills = Path(sys.argv[1]), json.loads(sys.argv[2])

class Kill(L.Callback):
    def __init__(self, step):
        self.step = step
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

def child(name, kill):
    process = os.fork()
    if process == 0:
        path, module = folder / name / "last.ckpt", Photos()
        plan = FreezeSchedule("gradual", stages=STAGES, head="classifier")
        trainer = make_trainer(None, [plan, ModelCheckpoint(folder / name, save_last=True), Kill(kill)], max_epochs=4)
        trainer.fit(module, *loaders(), ckpt_path=path if path.exists() else None, weights_only=True)
        (folder / f"{name}.json").write_text(json.dumps([digest(module), plan.history]))
        os._exit(0)
    return os.waitpid(process, 0)[1]

assert child("unbroken", -1) == 0
for kill in kills:
    assert child(f"killed-{kill}", kill) == signal.SIGKILL
    assert child(f"killed-{kill}", -1) == 0
"""


def test_a_run_killed_in_any_phase_and_resumed_from_lightnings_checkpoint_equals_the_unbroken_one(
    tmp_path: Path,
) -> None:
    kills = [2, 8, 12, 17, 23]  # of 6 steps an epoch, each of which is a phase
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", KILLED, str(tmp_path), json.dumps(kills)]
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
    unbroken = json.loads((tmp_path / "unbroken.json").read_text())
    for kill in kills:
        assert json.loads((tmp_path / f"killed-{kill}.json").read_text()) == unbroken, kill
