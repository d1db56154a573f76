"""Let through only what the page itself sends: its own hosts, routes, sizes, and files that were uploaded to it.

gradio's server knows many more routes, opens files and addresses that a client names, reads images of any size, and
lets pages of other sites send any header.
"""

import ipaddress
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anyio import fail_after
from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.data.pixels.decode import FORMATS
from unmask.data.untrusted import decode_untrusted
from unmask.errors import DataError
from unmask.storage.files import is_encodable

READ = re.compile(
    r"/|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/.*|/gradio_api/(theme\.css|"
    r"startup-events|queue/data|upload_progress|heartbeat/[\w-]{1,64}|file=.*)"
)
"""What a page reads."""
SENT = re.compile(r"/gradio_api/(queue/join|run/predict|upload|component_server)/?")
"""Where a page sends events, images, and what was painted."""
FILE_ROUTE = "/gradio_api/file="
"""The route of a file."""
PAGE = re.compile(r"[\w-]{1,64}")
"""The id that a page gives itself."""
MOST_UPLOAD = 20_000_000
"""Bytes of an image."""
MOST_PIXELS = 16_000_000
"""Pixels of an image."""
MOST_EVENT = 1_000_000
"""Bytes of an event."""
MOST_TEXT = 20_000
"""Characters of one text in an event."""
MOST_UNREAD = 200
"""Messages that a page did not fetch: with more, its events are refused."""
MOST_LAYERS = 8
"""Layers of a painting."""
MOST_PAINTINGS = 16
"""Paintings in memory: each is there from the moment it is sent until its event starts."""
MOST_SECONDS = 60.0
"""Seconds in which what a page sends must arrive."""
POLICY = (
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:", "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self' data: blob:", "media-src 'self' blob:",
    "worker-src 'self' blob:", "object-src 'none'", "base-uri 'self'", "form-action 'self'",
)  # fmt: skip
"""What a browser may load for the page: nothing from elsewhere, even if a text got into the page as a program."""
ANSWERED = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "; ".join(POLICY),
}
"""Headers of each answer."""
UNFRAMED = "; frame-ancestors 'self'"
"""No other site shows this page in a frame, where a visitor would press what he does not see."""


class Refusal(Exception):
    """A request that the page never sends, or one that is too large."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Guard:
    """A layer around gradio's server.

    Args:
        app: The server.
        hosts: The names of this machine.
        folder: Where the page's files are.
        page: The page, as gradio has it.
        proxied: Whether only a proxy can reach the server: it then names the site in X-Forwarded-Host, and other sites
            may show the page in a frame, as the Hub does.
    """

    def __init__(self, app: ASGIApp, *, hosts: Sequence[str], folder: Path, page: Any, proxied: bool = False):
        self.app, self.hosts, self.folder, self.page, self.proxied = app, hosts, folder.resolve(), page, proxied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it in a sentence."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        send = self._add_headers(send)
        try:
            check_origin(Headers(scope=scope), self.hosts, proxied=self.proxied)
            route = check_route(scope["method"], scope["path"])
            if route.startswith(FILE_ROUTE):
                check_inside(route.removeprefix(FILE_ROUTE), self.folder)
            read, write = receive, send
            if scope["method"] == "POST":
                read, write = await self._check_sent(route.rstrip("/"), scope, receive, send)
            await self.app(scope, read, write)
        except Refusal as refusal:
            await PlainTextResponse(str(refusal), refusal.status)(scope, receive, send)

    def _add_headers(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ANSWERED)
                if not self.proxied:
                    headers["Content-Security-Policy"] += UNFRAMED
            await send(message)

        return sent

    async def _check_sent(self, route: str, scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """Check what a page sends, and return what the server reads and where it writes."""
        most = MOST_EVENT if route.endswith(("join", "predict")) else MOST_UPLOAD + 10_000
        body = await read_body(Headers(scope=scope), receive, most)
        if route.endswith("upload"):
            send = UploadCheck(send, self.folder).send
        elif route.endswith("component_server"):
            await self._check_painting(scope, body)
        else:
            self._check_event(body)
        return bind_body(body, receive), send

    def _check_event(self, body: bytes) -> None:
        page = check_event(body, self.folder)
        messages = self.page._queue.pending_messages_per_session.get(page)
        if messages is not None and messages.qsize() > MOST_UNREAD:
            raise Refusal(429, f"this page left over {MOST_UNREAD} answers unread: reload it")

    async def _check_painting(self, scope: Scope, body: bytes) -> None:
        """Check what an image editor sends, one layer a request, before it keeps it in memory."""
        try:
            form = await Request(scope, bind_body(body, None)).form(max_files=1, max_fields=16)
            sent = [
                (name, await value.read() if hasattr(value, "read") else value) for name, value in form.multi_items()
            ]
        except (HTTPException, MultiPartException, ValueError) as error:
            raise Refusal(400, "this is no painting") from error
        said = {name: value for name, value in sent if isinstance(value, str)}
        index = said.get("index", "null")
        if said.get("fn_name") != "accept_blobs" or not PAGE.fullmatch(said.get("session_hash", "")):
            raise Refusal(400, "this is no painting")
        if index not in ("", "null") and not (index.isdecimal() and int(index) < MOST_LAYERS):
            raise Refusal(413, f"a painting has at most {MOST_LAYERS} layers")
        for _, data in sent:
            if isinstance(data, bytes):
                await run_sync(check_picture, data)
        self.forget_paintings(said["session_hash"])

    def forget_paintings(self, page: str) -> None:
        """Drop the oldest paintings that no event fetched."""
        state = self.page.app.state_holder.session_data.get(page)
        blocks = {**self.page.blocks, **(state.blocks_config.blocks if state is not None else {})}
        for kept in (getattr(block, "blob_storage", {}) for block in blocks.values()):
            while len(kept) >= MOST_PAINTINGS:
                kept.pop(next(iter(kept)), None)


def check_origin(headers: Headers, hosts: Sequence[str], *, proxied: bool = False) -> None:
    """Refuse a host that is not ours (another name that leads to this machine), and another site's page.

    A browser itself says in Sec-Fetch-Site whose page asks. It says so on this machine and behind https; elsewhere only
    Origin tells. X-Forwarded-Host counts behind a proxy alone, because gradio lets other pages set it.
    """
    host = headers.get("host", "")
    if not proxied and not is_ours(read_name(f"//{host}"), hosts):
        raise Refusal(400, f"this page is not at {host[:100]!r}: open the address that the terminal shows")
    ours = {host.lower(), *([headers.get("x-forwarded-host", host).lower()] if proxied else [])}
    origin = headers.get("origin")
    is_foreign = origin is not None and origin.lower().partition("://")[2] not in ours
    is_link = headers.get("sec-fetch-mode") == "navigate"
    if is_foreign or (not is_link and headers.get("sec-fetch-site") in ("cross-site", "same-site")):
        raise Refusal(403, "another site's page may not use this one")


def is_ours(name: str, hosts: Sequence[str]) -> bool:
    """Return whether a name is one of ours, or an address: no other site can give its name to an address."""
    try:
        return name in hosts or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def read_name(address: str) -> str:
    """Return the name of the machine in an address; "" if there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def check_route(method: str, path: str) -> str:
    """Return the path; refuse one that the page does not use."""
    allowed = {"GET": READ, "HEAD": READ, "POST": SENT}.get(method)
    if allowed is None or not allowed.fullmatch(path):
        raise Refusal(404, "there is no such page")
    return path


def check_inside(path: str, folder: Path) -> None:
    """Refuse a file that lies elsewhere than below a folder, also by way of a link."""
    try:
        inside = Path(path).is_absolute() and folder in Path(path).resolve().parents
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise Refusal(403, "this page reads only files that were uploaded to it")


async def read_body(headers: Headers, receive: Receive, most: int) -> bytes:
    """Return the body of a request; refuse more bytes than `most`."""
    too_long = Refusal(413, f"at most {most:,} bytes: take a smaller image or a shorter text")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise too_long
    try:
        with fail_after(MOST_SECONDS):
            body = await read_parts(receive, most)
    except TimeoutError as error:
        raise Refusal(408, f"this took over {MOST_SECONDS:.0f} seconds: send it again") from error
    if len(body) > most:
        raise too_long
    return body


async def read_parts(receive: Receive, most: int) -> bytes:
    """Return the body of a request, cut soon after `most` bytes."""
    body = bytearray()
    while len(body) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the connection ended early")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


def bind_body(body: bytes, receive: Receive | None) -> Receive:
    """Return a `receive` that gives this body first, and then what follows."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent and receive is not None:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def check_event(body: bytes, folder: Path) -> str:
    """Return the id of the page that an event comes from; refuse long texts, numbers that are not finite, and files
    from elsewhere.
    """
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "this is no event") from error
    page = event.get("session_hash") if isinstance(event, dict) else None
    if not isinstance(page, str) or not PAGE.fullmatch(page):
        raise Refusal(400, "this is no event of a page")
    for value in list_values(event):
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise Refusal(413, f"a text may have {MOST_TEXT:,} characters, and this one has {len(value):,}: shorten it")
        if isinstance(value, str) and not is_encodable(value):
            raise Refusal(400, "a text holds half of a surrogate pair, which is no character")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refusal(400, f"a number must be finite, and this one is {value}")
        if isinstance(value, dict) and value.get("path") is not None:
            check_inside(str(value["path"]), folder)
        if isinstance(value, dict) and str(value.get("url") or "").startswith("data:"):
            raise Refusal(400, "send images by an upload")
    return page


def list_values(value: Any) -> Iterator[Any]:
    """Yield a value of JSON, and all that it holds."""
    left = [value]
    while left:
        value = left.pop()
        yield value
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value


def check_picture(data: bytes) -> None:
    """Refuse what is no still image, or one of too many pixels; a process of its own looks at it."""
    try:
        decode_untrusted(data, "image", most=MOST_PIXELS, alpha=True)
    except DataError as error:
        raise Refusal(415, f"{error}; this page takes {', '.join(FORMATS)}") from error


class UploadCheck:
    """Look at each uploaded file before the page is told that it is there; a refused one is deleted."""

    def __init__(self, send: Send, folder: Path):
        self._send, self.folder = send, folder
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Hold the answer back until the files that it names were looked at."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False) or self._start is None:
            return
        if self._start["status"] == 200:
            await run_sync(self._check_files)
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._body})

    def _check_files(self) -> None:
        paths = [Path(path) for path in json.loads(self._body)]
        try:
            for path in paths:
                check_inside(str(path), self.folder)
                check_picture(path.read_bytes())
        except Refusal:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
