"""Models and data sets from the Hugging Face hub: the real client downloads from a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backbones.text_models import save_model
from tests.hub import serve_hub

pytest.importorskip("datasets", reason="the extra text is not installed")

EXPERIMENT = """
data: {name: hf_dataset, dataset: acme/reviews, text_column: text, label_column: label, batch_size: 8}
backbone: {name: hf/acme/tiny}
freeze: {schedule: full, epochs: 1}
optimizer: {name: adamw, lr: 1.0e-3}
trainer: {precision: 32-true, memory_format: contiguous}
tracking: {system_metrics: false, figures: false, model: false}
"""
TWICE = """
import sys
from tlresearch.cli import main
codes = [main(["run", "e.yaml"]), main(["run", "e.yaml", "backbone.name=hf/acme/none"])]
sys.exit(codes != [0, 2])
"""


@pytest.mark.slow
def test_a_model_and_a_data_set_are_downloaded_by_name(tmp_path: Path, home: Path) -> None:
    save_model(tmp_path / "model", "bert", weights=True)
    reviews = tmp_path / "reviews"
    reviews.mkdir()
    for split, count in (("train", 8), ("test", 2)):
        rows = [f'{{"text": "{word} film {n}", "label": "{word}"}}' for n in range(count) for word in ("good", "bad")]
        (reviews / f"{split}.jsonl").write_text("\n".join(rows))
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    with serve_hub({"acme/tiny": tmp_path / "model"}, {"acme/reviews": reviews}) as (address, asked):
        surroundings = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": os.getcwd(),
        }
        command = [sys.executable, "-c", TWICE]
        done = subprocess.run(command, env=surroundings, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    got = {line.rpartition("/")[2] for line in asked if line.startswith("GET ")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "train.jsonl", "test.jsonl"} <= got
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "hf/acme/none is neither a folder with config.json under TLRESEARCH_WEIGHTS nor to be had" in said[0]
    assert "Traceback" not in done.stderr
