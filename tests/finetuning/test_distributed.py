"""Two ranks (gloo, CPU): what is unfrozen in mid-training is synchronised, batch-norm statistics included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import json, os, sys, warnings
warnings.simplefilter("ignore")
import lightning as L, torch, torch.distributed as dist
from tests.finetuning.test_callback import make_phase, make_schedule, make_task
from tests.toy import toy_data
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.callback import FreezeScheduleCallback

depths, out = json.loads(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)

class Differences(L.Callback):
    """The largest difference between the ranks' tensors after each phase, and whether each stage moved."""
    def __init__(self):
        self.rows, self.before = [], None
    def on_train_epoch_end(self, trainer, module):
        flat = {k: v.float().flatten() for k, v in module.state_dict().items() if k.startswith(("backbone", "head"))}
        worst = {}
        for key, tensor in flat.items():
            both = [torch.zeros_like(tensor) for _ in range(2)]
            dist.all_gather(both, tensor)
            worst[key] = float((both[0] - both[1]).abs().max())
        self.rows.append(max(worst.values()))

task = make_task("adamw")
plan = FreezeScheduleCallback(make_schedule(*(make_phase(d) for d in depths)), seed=0)
differences = Differences()
trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=len(depths), callbacks=[plan, differences],
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    num_sanity_val_steps=0, use_distributed_sampler=False)
data = toy_data(noisy=True)
before = {k: v.clone() for k, v in task.backbone.state_dict().items()}
# Validation would hide it if nobody brought the ranks' norm statistics together: DDP does before each forward pass.
val = [make_loader(data.splits["val"], batch_size=8, shuffle=False, seed=0)] if sys.argv[3] == "val" else []
trainer.fit(task, make_loader(data.splits["train"], batch_size=8, shuffle=True, seed=0), *val)
if trainer.is_global_zero:
    moved = sorted({k.split(".")[1] for k, v in task.backbone.state_dict().items() if not torch.equal(v, before[k])})
    json.dump({"differences": differences.rows, "moved": moved}, open(out, "w"))
'''


@pytest.mark.parametrize(
    ("depths", "val"),
    [([0, 3], "val"), ([0, 1, 2, 3], "val"), ([3, 1], "none")],
    ids=["lp_ft", "gradual", "refreeze without validation"],
)
def test_ranks_hold_the_same_weights_after_every_phase(depths: list[int], val: str, tmp_path: Path) -> None:
    script, out = tmp_path / "ranks.py", tmp_path / "out.json"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(depths), str(out), val],
        env={**__import__("os").environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["differences"] == [0.0] * len(depths)
    assert found["moved"] == ["0", "1", "2"]
