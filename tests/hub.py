"""A loopback server with as much of the Hugging Face hub as a download needs: a revision, a listing, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "c0ffee" + "0" * 34


class HubHandler(BaseHTTPRequestHandler):
    """Serves the models of `repos`; any other model is the hub's own 404."""

    protocol_version = "HTTP/1.1"
    repos: dict[str, Path]
    requests: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *args: object) -> None:
        """Quiet: `requests` remembers what a test wants to know."""

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append(path)
        repo = next((name for name in self.repos if name in path), None)
        if repo is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif path.startswith(f"/api/models/{repo}/revision/"):
            self._send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode(), {}, with_body)
        elif path.startswith(f"/api/models/{repo}/tree/"):
            self._send(200, json.dumps(self._tree(self.repos[repo])).encode(), {}, with_body)
        else:
            body = (self.repos[repo] / path.split(f"/resolve/{COMMIT}/")[1]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, body, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    @staticmethod
    def _tree(folder: Path) -> list[dict[str, object]]:
        return [
            {
                "type": "file",
                "path": path.name,
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(folder.iterdir())
        ]


@contextmanager
def loopback_hub(repos: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve model id -> folder; yields the endpoint's URL and the growing list of requested paths."""
    requests: list[str] = []
    handler = type("Handler", (HubHandler,), {"repos": repos, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
