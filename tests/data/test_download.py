"""Data from an address: fetched once, checked, and unpacked within their folder. A real server, on this machine."""

from __future__ import annotations

import functools
import hashlib
import io
import socketserver
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from tlresearch.base.errors import ConfigError, DataError
from tlresearch.config.load import load_text
from tlresearch.config.schema import DataConfig
from tlresearch.data import download
from tlresearch.data.download import ensure_here

Serve = Callable[[str, bytes], DataConfig]


class Handler(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TLRESEARCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def serve(tmp_path: Path, folder: Path) -> Iterator[Serve]:
    """Puts a file on the server and returns the config that asks for it as `things`."""
    site = tmp_path / "site"
    site.mkdir()
    with socketserver.TCPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def put(name: str, content: bytes) -> DataConfig:
            (site / name).write_bytes(content)
            address = f"http://127.0.0.1:{server.server_address[1]}/{name}"
            return DataConfig(root="things", url=address, sha256=hashlib.sha256(content).hexdigest())

        yield put
        server.shutdown()


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def tarred(members: dict[str, str], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_archive_becomes_the_folder(serve: Serve, folder: Path, wrapped: bool) -> None:
    top = "things-1.0/" if wrapped else ""
    content = {f"{top}train/a/1.txt": "one", f"{top}train/b/2.txt": "two", f"{top}val/a/3.txt": "three"}
    for name, archive in (("t.zip", zipped({**content, "__MACOSX/x": ""})), ("t.tar.gz", tarred(content))):
        config = serve(name, archive)
        config.root = f"things_{name}"
        ensure_here(config)
        assert (folder / config.root / "train" / "a" / "1.txt").read_text() == "one"
        assert (folder / config.root / "val" / "a" / "3.txt").read_text() == "three"
    assert sorted(path.name for path in folder.iterdir()) == [".downloads", "things_t.tar.gz", "things_t.zip"]
    assert not [path for path in (folder / ".downloads").iterdir() if path.suffix != ".lock"]


def test_a_file_is_kept_as_it_is_and_fetched_once(serve: Serve, folder: Path) -> None:
    config = serve("arrays.npz", zipped({"train_images.npy": "x"}))  # a zip file too, but data as it is
    ensure_here(config)
    assert zipfile.is_zipfile(folder / "things")
    config.url = "http://127.0.0.1:1/gone"
    ensure_here(config)


def test_another_hash_is_refused_and_not_kept(serve: Serve, folder: Path) -> None:
    config = serve("t.zip", zipped({"a": "b"}))
    config.sha256 = "0" * 64
    with pytest.raises(DataError, match=r"has SHA-256 [0-9a-f]{64}, but data\.sha256 is 0{64}"):
        ensure_here(config)
    assert not (folder / "things").exists()
    assert not list((folder / ".downloads").glob("*.zip"))


OUTSIDE = {
    "up.zip": zipped({"../evil": "x", "a/b": "y"}),
    "absolute.zip": zipped({"/tmp/evil": "x"}),
    "backslash.zip": zipped({"..\\evil": "x"}),
    "up.tar.gz": tarred({"../evil": "x"}),
    "link.tar.gz": tarred({"a": "x"}, link=("out", "../../evil")),
    "absolute_link.tar.gz": tarred({"a": "x"}, link=("out", "/etc")),
}


# By name: the time is in a packed archive, and would be in the test's name.
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_leaves_the_folder(serve: Serve, folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is refused"):
        ensure_here(serve(name, OUTSIDE[name]))
    assert not (folder / "things").exists()
    assert not list(tmp_path.rglob("evil"))
    assert not list(folder.glob("*.unpacking"))


def test_what_unpacks_to_too_much_is_refused(serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FREE", 10_000)
    for name, content in (("b.zip", zipped({"a": "0" * 10**6})), ("b.tar.gz", tarred({"a": "0" * 10**6}))):
        with pytest.raises(DataError, match=r"would unpack to 0\.0 GB"):
            ensure_here(serve(name, content))


def test_what_cannot_be_fetched_or_unpacked_says_so(serve: Serve, folder: Path) -> None:
    broken = serve("t.zip", b"no archive")
    with pytest.raises(DataError, match="cannot be unpacked"):
        ensure_here(broken)
    broken = DataConfig(root="things", url="http://127.0.0.1:1/t.zip", sha256="1" * 64)
    with pytest.raises(DataError, match=r"cannot be downloaded .* unpack it as data\.root"):
        ensure_here(broken)
    broken.download = False
    with pytest.raises(DataError, match=r"data\.download is off"):
        ensure_here(broken)


def test_the_config_needs_a_hash_and_a_name_in_the_data_directory() -> None:
    with pytest.raises(ConfigError) as error:
        load_text("data: {root: /abs, url: ftp://x/y}\nbackbone: {weights: null}\nfreeze: {schedule: scratch}")
    assert [line.split(":")[0] for line in error.value.problems] == ["data.url", "data.sha256", "data.root"]
    text = f"data: {{root: a/b, url: http://x/y.zip, sha256: {'a' * 64}}}"
    load_text(f"{text}\nbackbone: {{weights: null}}\nfreeze: {{schedule: scratch}}")  # not here, but it will be
