"""What `tlresearch cache` shows, removes and checks."""

from __future__ import annotations

import pytest

from tests.toy import toy_text
from tlresearch import fit
from tlresearch.activations.store import default_store
from tlresearch.cli import main
from tlresearch.config.load import load_text


def test_entries_are_listed_removed_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    fit(load_text(toy_text(freeze="{schedule: linear_probe, epochs: 1}")))
    entries = default_store().entries()
    assert [entry.key["boundary"] for entry in entries] == [4, 4]  # digits lie in memory: no inputs are kept
    assert main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert all(entry.name[:8] in shown for entry in entries)
    assert main(["cache", "rm", entries[0].name[:8]]) == 0
    assert len(default_store().entries()) == len(entries) - 1
    assert main(["cache", "rm", "no-such-entry"]) == 2
    assert "no entry begins with no-such-entry" in capsys.readouterr().err
    file = next(default_store().entries()[0].path.glob("data.bin"))
    file.write_bytes(b"\x00" * file.stat().st_size)
    assert main(["cache", "verify"]) == 1
    assert "1 were damaged and removed" in capsys.readouterr().out
    assert main(["cache", "rm"]) == 0
    assert default_store().entries() == []


def test_a_second_seed_runs_no_frozen_stage_again() -> None:
    from tlresearch.tracking.store import connect

    source = fit(load_text(toy_text(freeze="{schedule: full, epochs: 1}")))
    probe = toy_text(
        freeze="{schedule: depth, unfreeze_depth: 1, epochs: 1}",
        backbone=f"{{name: small_cnn, checkpoint: {source.run_id}, options: {{in_channels: 1, width: 4}}}}",
    )
    passes = []
    for seed in (0, 1):
        result = fit(load_text(f"{probe}\nseed: {seed}"))
        passes.append(connect().client.get_run(result.run_id).data.tags["tlresearch.prefix_passes"])
    assert passes == ["2", "0"]
