"""Downloads, against a server on this machine that cuts, lies, redirects and dawdles."""

import hashlib
import http.server
import multiprocessing
import time
from pathlib import Path

import pytest
from odd_server import BODY, Server, answer, redirect, serving, silent

from unmask.errors import DiskError
from unmask.storage import download
from unmask.storage.download import Unavailable, download_file

DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def serve():
    with serving() as start:
        yield start


def get(folder: Path, *servers: Server, **options: object) -> Path:
    path = folder / "sub/x.pth"
    download_file([one.url for one in servers], path, **{"size": len(BODY), "sha256": DIGEST, **options})
    return path


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_then_never_again(tmp_path, serve):
    server, seen = serve(answer()), []
    path = get(tmp_path, server, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == BODY
    assert kept(tmp_path) == ["x.pth"]
    assert seen[-1] == ("x.pth", len(BODY), len(BODY))
    get(tmp_path, server)
    assert len(server.asked) == 1


@pytest.mark.parametrize("options", [{"sha256": DIGEST[:8]}, {"size": None}, {"sha256": None}])
def test_what_is_not_published_is_not_checked(tmp_path, serve, options):
    assert get(tmp_path, serve(answer()), **options).read_bytes() == BODY


def test_redirects_are_followed_and_the_next_mirror_helps_out(tmp_path, serve):
    last = serve(answer())
    first, second = serve(answer(503, b"")), serve(redirect("/other"), redirect(last.url))
    assert get(tmp_path, first, second).read_bytes() == BODY
    assert second.paths == ["/weights/x.pth", "/other"]


def load(url: str, path: Path, done: "multiprocessing.Queue[bool]") -> None:
    download_file([url], path, size=len(BODY), sha256=DIGEST)
    done.put(path.read_bytes() == BODY)


def test_two_processes_at_once_do_no_harm(tmp_path, serve):
    def slowly(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        answer()(handler)

    server, fork = serve(slowly), multiprocessing.get_context("fork")
    done = fork.Queue()
    both = [fork.Process(target=load, args=(server.url, tmp_path / "x.pth", done)) for _ in range(2)]
    for process in both:
        process.start()
    assert [done.get(timeout=60), done.get(timeout=60)] == [True, True]
    for process in both:
        process.join()
    assert (len(server.asked), kept(tmp_path)) == (1, ["x.pth"])


@pytest.mark.parametrize(("turn", "options", "said"), [
    (answer(body=BODY[:-1] + b"\0"), {}, "the file is of sha256 "),
    (answer(body=BODY + b"\0"), {}, "longer than the published 3,145,728 bytes"),
    (answer(body=BODY[:9]), {}, "the connection ended after 9 of 3,145,728 bytes"),
    (answer(body=BODY[:9], length=len(BODY)), {}, "the connection ended"),
    (answer(length=-1), {"size": None}, "does not state the size"),
    (answer(404, b""), {}, "Not Found"),
    (answer(403, b""), {}, "Forbidden"),
    (redirect("http://example.invalid/x"), {}, "is not https"),
    (redirect("file:///etc/passwd"), {}, "is not allowed"),
])  # fmt: skip
def test_another_file_than_the_published_is_not_kept(tmp_path, serve, turn, options, said):
    with pytest.raises(Unavailable, match=said) as caught:
        get(tmp_path, serve(turn), **options)
    assert str(caught.value).isprintable()
    assert kept(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(download, "MIRROR_TIMEOUT", 0.2)
    with pytest.raises(Unavailable, match="timed out"):
        get(tmp_path, serve(silent))
    assert kept(tmp_path) == []


def test_a_disk_without_room_is_seen_before_anything_comes(tmp_path, serve, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(DiskError, match="3 MiB to download, and 1 MiB are free: make room"):
        get(tmp_path, serve(answer()))
    assert kept(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path, serve):
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(DiskError, match="sub"):
        get(tmp_path, serve(answer()))
