"""A Hugging Face Hub on this machine, as huggingface_hub asks it: files, a commit, gates, and faults turn by turn.

Large files lie at another host (localhost): huggingface_hub follows a redirect within the Hub, and no other.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
LARGE = 1_000
"""Files of at least so many bytes are large: the Hub knows their SHA-256, and redirects to where they lie."""


class Hub:
    """`files` maps "OWNER/NAME/PATH" to bytes; `faults` maps a path to what answers its next GET instead.

    `asked` keeps "METHOD PATH", with the range if one is asked for; `tokens` keeps the tokens.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files, self.commit = dict(files), COMMIT
        self.faults: dict[str, list[Callable]] = {}
        self.refused: dict[str, tuple[int, str]] = {}
        """Repository to the status and the X-Error-Code of each answer."""
        self.sizes: dict[str, int] = {}
        """Path to the size that a HEAD claims."""
        self.asked, self.tokens = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                outer._answer(self)

            def do_GET(self):
                outer._answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, what: str) -> int:
        """Return how many requests begin so."""
        return sum(entry.startswith(what) for entry in self.asked)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        span = handler.headers.get("Range", "")
        self.asked.append(" ".join(filter(None, [handler.command, path, span])))
        self.tokens.append(handler.headers.get("Authorization"))
        repo = re.match(r"/(?:api/models/|cdn/)?([^/]+/[^/]+)", path)
        if repo and repo[1] in self.refused:
            status, code = self.refused[repo[1]]
            return send(handler, status, b"", **{"X-Error-Code": code})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            names = [{"rfilename": name} for name in self._list(found[1])]
            body = json.dumps({"id": found[1], "sha": self.commit, "siblings": names}).encode()
            return send(handler, 200 if names else 404, body, **{} if names else {"X-Error-Code": "RepoNotFound"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            rows = [
                {"type": "file", "path": name, "size": len(self.files[f"{found[1]}/{name}"]), "oid": ""}
                for name in self._list(found[1])
            ]
            return send(handler, 200, json.dumps(rows).encode())
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._resolve(handler, f"{found[1]}/{found[2]}")
        if path.startswith("/cdn/"):
            return self._send_file(handler, path.removeprefix("/cdn/"))
        return send(handler, 404, b"")

    def _list(self, repo: str) -> list[str]:
        return [name.removeprefix(f"{repo}/") for name in self.files if name.startswith(f"{repo}/")]

    def _resolve(self, handler: BaseHTTPRequestHandler, key: str) -> None:
        body = self.files.get(key)
        if body is None:
            is_repo = bool(self._list("/".join(key.split("/")[:2])))
            return send(handler, 404, b"", **{"X-Error-Code": "EntryNotFound" if is_repo else "RepoNotFound"})
        facts = {"X-Repo-Commit": self.commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
        if len(body) < LARGE:
            return send(handler, 200, body, **facts)
        facts["X-Linked-Etag"] = f'"{hashlib.sha256(body).hexdigest()}"'
        facts["X-Linked-Size"] = str(self.sizes.get(key, len(body)))
        return send(handler, 302, b"", **facts, Location=f"http://localhost:{self.server.server_port}/cdn/{key}")

    def _send_file(self, handler: BaseHTTPRequestHandler, key: str) -> None:
        body = self.files[key]
        if handler.command == "GET" and self.faults.get(key):
            return self.faults[key].pop(0)(handler, body)
        if span := re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")):
            start = int(span[1])
            return send(handler, 206, body[start:], **{"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
        return send(handler, 200, body)


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    """Send an answer; a HEAD without its body."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


def cut(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Send the first half and end the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def change(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Send as many other bytes."""
    send(handler, 200, bytes(len(body)))


def shorten(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    """Send fewer bytes, and say so."""
    send(handler, 200, body[:-5])


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve files as the Hub does."""
    hub = Hub(files)
    try:
        yield hub
    finally:
        hub.close()


def use(patch, hub: Hub, cache) -> None:
    """Let huggingface_hub ask this Hub in this process, and keep its files in a cache of the test."""
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(cache / "no-token"),
    }.items():
        patch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "https_proxy", "all_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "127.0.0.1,localhost")
