"""Where downloads may not lead, and how long they may take: against a server on this machine."""

import socket
import time
from collections.abc import Callable

import pytest
from odd_server import Server, answer, dawdling, dawdling_before, redirect, serving, silent

from unmask.storage import https
from unmask.storage.https import Unavailable, is_public


@pytest.fixture
def serve():
    with serving() as start:
        yield start


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(https, "TIMEOUT", 1.0)
    monkeypatch.setattr(https.urllib.request, "getproxies", dict)


def refuse(server: Server | str, said: str, loopback: bool = True) -> None:
    with (
        pytest.raises(Unavailable, match=said),
        https.get(server if isinstance(server, str) else server.url, {}, loopback=loopback) as got,
    ):
        list(got.read_blocks())


PLACES = ("http://169.254.169.254/x", "https://169.254.169.254/x", "https://127.0.0.1/x", "https://[::1]/x")
PLACES += ("https://10.0.0.1/x", "https://[::ffff:10.0.0.1]/x", "https://2130706433/x", "https://localhost/x")
PLACES += (
    "file:///etc/passwd",
    "ftp://example.org/x",
    "https://a@example.org/x",
    "https://example.org:8443/x",
    "https:///x",
)


@pytest.mark.parametrize(
    "place", [*PLACES, "//169.254.169.254/x", "https://exa mple.org/x", "https://example.org/\x7f"]
)
def test_no_redirect_leads_to_a_private_place(serve, place, monkeypatch):
    monkeypatch.setattr(https, "_connect_first", lambda _: pytest.fail("connected"))
    monkeypatch.setattr(https, "_connect", only_loopback(https._connect))
    refuse(serve(redirect(place)), r"is not plain https|is not a public server|is not a valid address|cannot reach")


def only_loopback(real: Callable) -> Callable:
    """Let connections to the test server through, with a separate socket."""

    def connect(parts, loopback: bool):
        if parts.scheme == "http":
            connection = https.http.client.HTTPConnection(parts.hostname, parts.port, timeout=1)
            connection.connect()
            return connection
        return real(parts, loopback)

    return connect


def test_a_name_of_a_private_place_is_not_connected_to(monkeypatch):
    """Nor one that has a public address as well: whichever were taken, it has been checked."""
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("93.184.216.34", "192.168.1.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    monkeypatch.setattr(https, "_connect_first", lambda _: pytest.fail("connected"))
    refuse("https://rebound.example.org/x", r"is 192\.168\.1\.1, which is not a public server")


@pytest.mark.parametrize("host", ["169.254.169.254", "[::1]", "2130706433", "localhost"])
def test_a_proxy_is_not_asked_for_a_place_without_a_name(monkeypatch, host):
    monkeypatch.setattr(https.urllib.request, "getproxies", lambda: {"https": "http://proxy.example.org:3128"})
    monkeypatch.setattr(https.urllib.request, "proxy_bypass", lambda _: False)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    refuse(f"https://{host}/x", r"is not the name of a public server")


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111"])
def test_public_addresses(ip):
    assert is_public(ip)


PRIVATE = ["10.1.2.3", "172.16.0.1", "192.168.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1%eth0"]
PRIVATE += ["fd00::1", "::ffff:127.0.0.1", "224.0.0.1", "100.64.0.1", "255.255.255.255"]


@pytest.mark.parametrize("ip", PRIVATE)
def test_private_addresses(ip):
    assert not is_public(ip)


def test_redirects_have_an_end(serve):
    server = serve(redirect("/again"))
    refuse(server, r"more than 5 redirects")
    assert len(server.asked) == 6


def test_plain_http_is_not_spoken(serve):
    server = serve(answer())
    refuse(server, "is not plain https", loopback=False)
    assert server.asked == []


@pytest.mark.parametrize("turn", [dawdling, dawdling_before, silent])
def test_a_server_that_dawdles_is_given_up(serve, turn, monkeypatch):
    monkeypatch.setattr(https, "TIMEOUT", 0.3)
    monkeypatch.setattr(https, "WINDOW", 0.3)
    start = time.monotonic()
    refuse(serve(turn), r"bytes in 0 s|no answer from|the connection ended")
    assert time.monotonic() - start < 5


def test_no_network_is_one_line(monkeypatch):
    def failing(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    refuse("https://example.org/x", r"cannot reach example.org: Name or service not known$")


def test_nobody_there_is_one_line():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refuse(f"http://127.0.0.1:{unused.getsockname()[1]}/x", r"cannot reach 127.0.0.1: .*refused")
