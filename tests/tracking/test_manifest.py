"""Every artifact's hash is recorded, whichever process stored it, and damage is named."""

from __future__ import annotations

from pathlib import Path

from tests.tracking.outages import kill
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.items import Item, Items
from tlresearch.tracking.manifest import add_to_ended_run, damaged, read_manifest
from tlresearch.tracking.records import Runs
from tlresearch.tracking.run import JournalRun, open_run
from tlresearch.tracking.store import Store


def start(run_id: str | None = None) -> JournalRun:
    return open_run(TrackingConfig(system_metrics=False), experiment="e", name="r", params={}, tags={}, run_id=run_id)


def problems(store: Store, run_id: str) -> list[str]:
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    return damaged(store, store.client.get_run(run_id), manifest)


def test_hashes_cover_files_folders_and_what_a_killed_process_stored(tmp_path: Path) -> None:
    first = start()
    first.log_text("one", "a.txt")
    first.log_dict({"b": 1}, "folder/b.json")
    kill(first)
    (tmp_path / "many" / "deep").mkdir(parents=True)
    (tmp_path / "many" / "deep" / "c.bin").write_bytes(b"c")
    with start(first.run_id) as second:
        second.log_file(tmp_path / "many")
    manifest = read_manifest(second.store, second.run_id)
    assert manifest is not None
    assert set(manifest.files) == {"a.txt", "folder/b.json", "many/deep/c.bin"}
    assert problems(second.store, second.run_id) == []

    place = Path(second.store.client.get_run(second.run_id).info.artifact_uri)
    (place / "a.txt").write_text("another")
    (place / "many/deep/c.bin").unlink()
    assert sorted(problems(second.store, second.run_id)) == ["a.txt has changed", "many/deep/c.bin is missing"]
    # A run that goes on keeps the hashes it had: it must not take what is damaged for right.
    with start(first.run_id) as third:
        third.log_text("more", "d.txt")
    assert len(problems(third.store, third.run_id)) == 2


def test_what_is_added_later_leaves_the_run_ended_and_is_covered_too() -> None:
    with start() as run:
        run.log_text("one", "a.txt")
    before = run.store.client.get_run(run.run_id).info
    add_to_ended_run(run.store, run.run_id, tags={"t": "see http://me:secret@host"}, texts={"later/b.md": "two"})
    after = run.store.client.get_run(run.run_id)
    assert (after.info.status, after.info.end_time) == (before.status, before.end_time)
    assert after.data.tags["t"] == "see http://***@host"
    manifest = read_manifest(run.store, run.run_id)
    assert manifest is not None
    assert set(manifest.files) == {"a.txt", "later/b.md"}
    assert problems(run.store, run.run_id) == []


def test_predictions_are_read_as_they_were_written() -> None:
    items = Items("val", (Item("a,b.png", 'x "y"', "z", 0.25), Item("c.png", "x;z", "", 1.0)))
    with start() as run:
        assert Runs(run.store).get(run.run_id).items is None
        run.log_text(items.text(), items.path)
    assert Runs(run.store).get(run.run_id).items == items
    assert [item.right for item in items.items] == [0.0, 0.0]
