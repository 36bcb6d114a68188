"""Serves the files of one repository over HTTP on this host, like as much of a model hub as its client
needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUBLIC, GATED = "someone/public", "someone/gated"


class HubServer(ThreadingHTTPServer):
    """Serves a directory as both PUBLIC and GATED, under revision "main", "v1" or COMMIT.

    GATED refuses its files.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.fetched: list[str] = []
        """Files that were sent as answers to GET, in order."""
        self.tokens: set[str | None] = set()
        """Values of the Authorization header of all requests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(directory: Path) -> Iterator[HubServer]:
    server = HubServer(directory)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 6:
            self._api(repo="/".join(parts[2:4]), kind=parts[4], revision=parts[5])
        elif len(parts) == 5 and parts[2] == "resolve":
            self._resolve(repo="/".join(parts[:2]), revision=parts[3], name=parts[4])
        else:
            self._refuse(404, "EntryNotFound")

    def _api(self, repo: str, kind: str, revision: str) -> None:
        if repo not in (PUBLIC, GATED):
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif kind == "tree":
            files = sorted(self.server.directory.iterdir())
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _etag(file)}
                for file in files
            ]
            self._answer(json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            siblings = [{"rfilename": file.name} for file in self.server.directory.iterdir()]
            info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            self._answer(json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        file = self.server.directory / name
        if repo == GATED:
            self._refuse(403, "GatedRepo")
        elif revision != COMMIT or not file.is_file():
            self._refuse(404, "EntryNotFound")
        else:
            if self.command == "GET":
                self.server.fetched.append(name)
            self._answer(file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT})

    def _refuse(self, status: int, code: str) -> None:
        self._answer(b"", {"X-Error-Code": code}, status)

    def _answer(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, since the tests read `fetched`."""


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
