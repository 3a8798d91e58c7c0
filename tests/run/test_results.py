"""What a run leaves of its data: the samples, and what was passed over beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.config.load import load_text
from tlresearch.run.fit import fit
from tlresearch.tracking.store import connect

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]


def test_what_is_no_sample_stands_in_the_record(tmp_path: Path, tables: None) -> None:
    for number in range(12):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    for name in ("cat/a.heic", "cat/.b.png", "dog/c.txt"):
        (tmp_path / "pets" / name).write_bytes(b"")
    data = f"{{name: image_folder, root: '{tmp_path / 'pets'}', image_size: 8, batch_size: 4}}"
    result = fit(load_text(toy_text(data=data, freeze="{schedule: full, epochs: 1}")))
    client = connect().client
    passed = json.loads(Path(client.download_artifacts(result.run_id, "data/passed_over.json")).read_text())
    assert passed == {".heic": 1, ".txt": 1, "hidden": 1}
    used = client.get_run(result.run_id).inputs.dataset_inputs
    assert sum(json.loads(entry.dataset.profile)["samples"] for entry in used) == 12
