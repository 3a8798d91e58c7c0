"""What an unfinished run leaves on disk: read only as it was written, and never in the way of training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.toy import toy_text
from tlresearch import fit
from tlresearch.base.errors import UserError
from tlresearch.config.load import load_text
from tlresearch.finetuning.callback import EpochReport
from tlresearch.finetuning.resume import RunFolder, SealedCheckpoints, read_checkpoint
from tlresearch.run.fit import Role

CONTENT = {"state_dict": {"head.weight": torch.arange(4.0)}, "epoch": 3}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    SealedCheckpoints().save_checkpoint(CONTENT, path)
    return path


def test_a_checkpoint_is_a_file_of_torch_with_its_hash(checkpoint: Path) -> None:
    read = read_checkpoint(checkpoint)
    assert read is not None
    assert read["epoch"] == torch.load(checkpoint, weights_only=True)["epoch"] == 3
    assert read["state_dict"]["head.weight"].tolist() == [0, 1, 2, 3]
    assert [file.name for file in checkpoint.parent.iterdir()] == ["last.ckpt"]


def test_any_changed_byte_is_noticed(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = checkpoint.read_bytes()
    for place in range(0, len(sound), 7):
        checkpoint.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        assert read_checkpoint(checkpoint) is None, place
    for length in (0, 10, len(sound) - 1):
        checkpoint.write_bytes(sound[:length])
        assert read_checkpoint(checkpoint) is None
    assert "is damaged" in caplog.text
    assert "the run starts from the beginning" in caplog.text


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "touched"), "w"))  # type: ignore[return-value]

    SealedCheckpoints().save_checkpoint({"state_dict": Evil()}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt") is None
    assert not (tmp_path / "touched").exists()


def test_a_run_whose_checkpoint_is_damaged_starts_from_the_beginning(
    tables: None, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_text(toy_text(freeze="{schedule: full, epochs: 2}"))
    expected = fit(loaded).history
    with RunFolder(f"{loaded.recorded}\n") as folder:  # as a kill would leave it
        SealedCheckpoints().save_checkpoint(CONTENT, folder.checkpoint)
        content = bytearray(folder.checkpoint.read_bytes())
        content[len(content) // 2] ^= 1
        folder.checkpoint.write_bytes(content)
        (home / "kept").mkdir()
        (home / "kept" / "last.ckpt").write_bytes(content)
    (home / "kept").rename(folder.path)
    assert fit(loaded).history == expected
    assert "the run starts from the beginning" in caplog.text


def test_a_run_whose_checkpoint_is_of_another_version_starts_from_the_beginning(
    tables: None, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_text(toy_text(freeze="{schedule: full, epochs: 2}"), {"trainer.checkpoint_seconds": 0})
    expected = fit(loaded).history

    def fail(report: EpochReport) -> None:
        if report.epoch == 1:
            raise RuntimeError("as a kill would leave it")

    with pytest.raises(RuntimeError):
        fit(loaded, role=Role("toy", test=True, listener=fail))
    (path,) = (home / "unfinished").glob("*/last.ckpt")
    checkpoint = read_checkpoint(path)
    assert checkpoint is not None
    del checkpoint["callbacks"]["FreezeScheduleCallback"]["entered"]
    SealedCheckpoints().save_checkpoint(checkpoint, path)
    assert fit(loaded).history == expected
    assert "is of another version: the run starts from the beginning" in caplog.text


FULL = """
import sys, warnings
from pathlib import Path
import torch
from tlresearch.finetuning.callback import EpochReport
from tlresearch.finetuning.resume import SealedCheckpoints, read_checkpoint
folder, writer = Path(sys.argv[1]), SealedCheckpoints()
writer.save_checkpoint({"epoch": 1}, folder / "last.ckpt")
for epoch in (2, 3):
    writer.save_checkpoint({"epoch": epoch, "weights": torch.zeros(1 << 20)}, folder / "last.ckpt")
print(read_checkpoint(folder / "last.ckpt"), sorted(file.name for file in folder.iterdir()))
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_checkpoint_before_and_says_so_once(tmp_path: Path) -> None:
    inside = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c '{FULL}' {tmp_path}"
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", inside], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'epoch': 1} ['last.ckpt']"
    assert done.stderr.count("No space left on device") == 1
    assert "a kill would send it back to its last checkpoint" in done.stderr


def test_a_home_that_cannot_be_written_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file")
    with pytest.raises(UserError, match=r"TLRESEARCH_HOME: .*unfinished.* cannot be written \(Not a directory\); free"):
        RunFolder("any")
