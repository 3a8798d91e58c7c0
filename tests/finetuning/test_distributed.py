"""Two ranks (gloo, CPU): what is unfrozen in mid-training is synchronised, batch-norm statistics included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = '''
import json, sys, warnings
warnings.simplefilter("ignore")
import lightning as L, torch, torch.distributed as dist
from tests.finetuning.test_callback import make_phase, make_schedule, make_task
from tests.toy import ToySplit, toy_data
from tlresearch.data.loading import make_loader
from tlresearch.config.schema import TrainerConfig
from tlresearch.finetuning.callback import FreezeScheduleCallback
from tlresearch.finetuning.sharding import whole
from tlresearch.run.devices.strategies import build_strategy

torch.set_num_threads(1)

class Differences(L.Callback):
    """The largest difference between the ranks' tensors when each epoch is validated, and when it ends."""
    def __init__(self):
        self.rows = []
    def on_validation_epoch_end(self, trainer, module):
        self.measure(module)
    def on_train_epoch_end(self, trainer, module):
        self.measure(module)
    def measure(self, module):
        flat = {k: v for k, v in module.state_dict().items() if k.startswith(("backbone", "head"))}
        flat = {k: whole(v).float().flatten() for k, v in flat.items()}
        worst = {}
        for key, tensor in flat.items():
            both = [torch.zeros_like(tensor) for _ in range(2)]
            dist.all_gather(both, tensor)
            worst[key] = float((both[0] - both[1]).abs().max())
        self.rows.append(max(worst.values()))

def train(depths, with_val, kind):
    task = make_task("adamw")
    plan = FreezeScheduleCallback(make_schedule(*(make_phase(d) for d in depths)), seed=0)
    differences = Differences()
    strategy = build_strategy(TrainerConfig(devices=2, strategy=kind))
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs=len(depths),
        callbacks=[plan, differences], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False)
    data = toy_data(noisy=True)
    before = {k: v.clone() for k, v in task.backbone.state_dict().items()}
    # Of the 32 batches of one sample and the 33rd, one rank has 17 and the other 16: none may wait for the other there.
    val = [make_loader(ToySplit(33, 2, noisy=False), batch_size=1, shuffle=False, seed=0)] if with_val else []
    trainer.fit(task, make_loader(data.splits["train"], batch_size=8, shuffle=True, seed=0), *val)
    now = getattr(trainer.strategy, "result", {k: v for k, v in task.state_dict().items()})
    moved = sorted({k.split(".")[1] for k in before if not torch.equal(now[f"backbone.{k}"], before[k])})
    return trainer.is_global_zero, {"differences": differences.rows, "moved": moved}

found = {}
for name, (depths, with_val, kind) in json.loads(sys.argv[1]).items():
    first, found[name] = train(depths, with_val, kind)
if first:
    json.dump(found, open(sys.argv[2], "w"))
'''


CASES = {
    "lp_ft": ([0, 3], True, "ddp"),
    "gradual": ([0, 1, 2, 3], True, "ddp"),
    "refreeze without validation": ([3, 1], False, "ddp"),
    "gradual, sharded": ([0, 1, 2, 3], True, "fsdp"),
    "refreeze without validation, sharded": ([3, 1], False, "fsdp"),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two ranks found; one pair of processes trains all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    script, out = folder / "ranks.py", folder / "out.json"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(CASES), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("case", CASES)
def test_ranks_hold_the_same_weights_after_every_phase(case: str, ranks: dict[str, Any]) -> None:
    phases, with_val, _ = CASES[case]
    assert ranks[case]["differences"] == [0.0] * len(phases) * (2 if with_val else 1)
    assert ranks[case]["moved"] == ["0", "1", "2"]
