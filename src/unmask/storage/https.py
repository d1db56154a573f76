"""Send one request to a public server over https.

Redirects are followed only to other public servers over https, never into the private network of this machine. A server
that is too slow is given up.
"""

import base64
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from unmask.errors import describe_os_error

READ_SIZE = 1 << 18
REDIRECTS = 5
TIMEOUT = 30.0
"""Seconds without a byte, or without the start of an answer, after which a server is given up."""
WINDOW, LEAST = 60.0, 1 << 16
"""A server that sends fewer than LEAST bytes in WINDOW seconds is given up."""


class Unavailable(Exception):
    """The network or a server failed; the message says how."""


class Cut(Unavailable):
    """A connection ended too early, or the server is busy: another attempt may succeed."""


@dataclass(frozen=True)
class Answer:
    """The answer of a server."""

    status: int
    length: int | None
    """Bytes of the body, or None if the server does not say."""
    tag: str
    """Version of the file, or "" if the server does not say."""
    first: int | None
    """Offset of the first byte, if the answer is a part of the file."""
    response: http.client.HTTPResponse

    def read_blocks(self) -> Iterator[bytes]:
        """Yield the body in blocks; raise Cut if the connection ends early or the server is too slow."""
        since, received = time.monotonic(), 0
        try:
            while block := self.response.read1(READ_SIZE):
                yield block
                received += len(block)
                if time.monotonic() - since < WINDOW:
                    continue
                if received < LEAST:
                    raise Cut(f"the server sent {received} bytes in {WINDOW:.0f} s")
                since, received = time.monotonic(), 0
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"the connection ended: {describe_os_error(error)}") from error


@contextmanager
def get(url: str, headers: Mapping[str, str], *, loopback: bool = False) -> Iterator[Answer]:
    """Send a GET, follow redirects, and yield the answer, which has status 200, 206 or 416.

    Args:
        loopback: For tests: allow plain http to 127.0.0.1.

    Raises:
        Unavailable: There is no such answer.
    """
    for _ in range(REDIRECTS + 1):
        with _request(url, headers, loopback) as response:
            if response.status not in (301, 302, 303, 307, 308):
                yield _read_answer(response)
                return
            url = _join_url(url, response.headers.get("Location", ""))
    raise Unavailable(f"more than {REDIRECTS} redirects, the last to {urlsplit(url).netloc}")


def _read_answer(response: http.client.HTTPResponse) -> Answer:
    status, headers = response.status, response.headers
    if status in (401, 403):
        raise Unavailable(f"the server asks for an account ({status})")
    if status in (429, 500, 502, 503, 504):
        raise Cut(f"the server is busy or out of order ({status})")
    if status not in (200, 206, 416):
        raise Unavailable(f"the server has no such file ({status})")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Unavailable(f"the server sends it encoded as {headers['Content-Encoding'][:40]}")
    tag = headers.get("ETag", "")
    strong = (
        len(tag) < 200 and tag.startswith('"') and tag.isprintable()
    )  # two files of one weak tag may differ in bytes
    span = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    first = int(span) if span.isascii() and span.isdigit() else None
    return Answer(status, response.length, tag if strong else "", first, response)


def _join_url(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Unavailable(f"{location[:200]} is not a valid address") from error


@contextmanager
def _request(url: str, headers: Mapping[str, str], loopback: bool) -> Iterator[http.client.HTTPResponse]:
    """Send one request and yield the response, whose body is not read yet."""
    parts = _check_url(url, loopback)
    try:
        connection = _connect(parts, loopback)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"cannot reach {parts.hostname}: {describe_os_error(error)}") from error
    with closing(connection):
        try:
            response = _start_response(connection, parts, headers)
        except (OSError, http.client.HTTPException, ValueError) as error:
            kind = Unavailable if isinstance(error, ssl.SSLCertVerificationError) else Cut
            raise kind(f"no answer from {parts.hostname}: {describe_os_error(error)}") from error
        with closing(response):
            yield response


def _start_response(
    connection: http.client.HTTPConnection, parts: SplitResult, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection.sock = context.wrap_socket(
            connection.sock, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"Host": parts.netloc, "User-Agent": "unmask", "Accept-Encoding": "identity", "Connection": "close"}
    with _limit_time(connection.sock):
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        connection.request("GET", target, headers={**sent, **headers})
        return connection.getresponse()


@contextmanager
def _limit_time(sock: socket.socket) -> Iterator[None]:
    """Limit the time of the whole start of an answer: single reads that get a byte now and then never time out."""
    limit = threading.Timer(TIMEOUT, lambda: socket.socket.shutdown(sock, socket.SHUT_RDWR))
    limit.daemon = True
    limit.start()
    try:
        yield
    finally:
        limit.cancel()


def _check_url(url: str, loopback: bool) -> SplitResult:
    """Return the parts of a URL; raise Unavailable if it is not plain https."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Unavailable(f"{url[:200]} is not a valid address") from error
    if loopback and (parts.scheme, parts.hostname) == ("http", "127.0.0.1"):
        return parts
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc or port not in (None, 443):
        raise Unavailable(f"{url[:200]} is not plain https")
    if not url.isascii() or any(c <= " " for c in url):
        raise Unavailable(f"{url[:200]} is not a valid address")
    return parts


def _connect(parts: SplitResult, loopback: bool) -> http.client.HTTPConnection:
    """Open a connection, through the proxy of the environment if there is one."""
    host, secure = str(parts.hostname), parts.scheme == "https"
    proxy = urllib.request.getproxies().get("https") if secure and not urllib.request.proxy_bypass(host) else None
    if proxy is not None:
        if (
            host.replace(".", "").isdigit() or ":" in host or host == "localhost"
        ):  # the proxy would resolve it in its own network
            raise Unavailable(f"{host} is not the name of a public server")
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        connection = http.client.HTTPConnection(via.hostname or "", via.port or 80, timeout=TIMEOUT)
        secret = f"{unquote(via.username or '')}:{unquote(via.password or '')}".encode()
        allowed = {"Proxy-Authorization": "Basic " + base64.b64encode(secret).decode()} if via.username else {}
        connection.set_tunnel(host, 443, allowed)
        connection.connect()
        return connection
    port = parts.port or (443 if secure else 80)
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in addresses:
        if secure and not is_public(str(address[0])):
            raise Unavailable(f"{host} is {address[0]}, which is not a public server")
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    connection.sock = _connect_first(addresses)
    return connection


def _connect_first(addresses: Sequence[tuple[Any, ...]]) -> socket.socket:
    """Connect to one of the checked addresses, without a second lookup of the name."""
    failed: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(TIMEOUT)
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed or OSError("no address")


def is_public(address: str) -> bool:
    """Return whether an IP address is public: not private, link-local, reserved or of this machine."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_global and not ip.is_multicast
