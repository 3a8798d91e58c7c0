"""A hub on this machine: serves folders as repositories of models and data sets, as the client asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_hub(models: dict[str, Path], datasets: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves repositories by name; gives the address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            api = path.startswith("/api/")
            path = path.removeprefix("/api")
            kind, repositories = ("datasets", datasets) if path.startswith("/datasets/") else ("models", models)
            parts = path.removeprefix(f"/{kind}/").lstrip("/").split("/")
            full, rest = "/".join(parts[:2]), parts[2:]
            folder = repositories.get(full)
            if folder is None:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif api:
                self.tell(folder, full, rest)
            elif rest[:1] == ["resolve"]:
                self.give(folder.joinpath(*rest[2:]))
            else:
                self.answer(404, b"{}", {})

        def tell(self, folder: Path, name: str, rest: list[str]) -> None:
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            entries = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": tag(path)}
                for path in files
            ]
            found: Any
            if rest[:1] == ["tree"]:
                if len(rest) > 2:
                    return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                found = entries
            else:
                found = {
                    "id": name,
                    "sha": COMMIT,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": entry["path"]} for entry in entries],
                }
            return self.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

        def give(self, file: Path) -> None:
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.answer(200, file.read_bytes(), {"ETag": f'"{tag(file)}"', "X-Repo-Commit": COMMIT})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
