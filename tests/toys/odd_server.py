"""A web server on this machine that cuts, lies, redirects and dawdles, turn by turn."""

import http.server
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BODY = random.Random(0).randbytes(3 << 20)


class Server:
    """Answers each GET by the next of its `turns`, the last one for ever; `asked` keeps the headers."""

    def __init__(self, turns: list[Callable]):
        self.turns, self.asked, self.paths = turns, [], []
        outer = self

        class Answering(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                turn = outer.turns[min(len(outer.asked), len(outer.turns) - 1)]
                outer.asked.append(dict(self.headers))
                outer.paths.append(self.path)
                turn(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}/weights/x.pth"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def serving() -> Iterator[Callable[..., Server]]:
    """Starts servers with their turns, and ends them all."""
    servers: list[Server] = []

    def start(*turns: Callable) -> Server:
        servers.append(Server(list(turns)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answer(status: int = 200, body: bytes = BODY, length: int | None = None, **headers: str) -> Callable:
    """A turn that sends a body, which may be shorter or longer than it says; or does not say, if `length` is -1."""

    def turn(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length != -1:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = length is not None

    return turn


def redirect(to: str) -> Callable:
    return answer(302, b"", Location=to)


def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(8)
    handler.close_connection = True
