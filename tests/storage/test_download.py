"""Downloads, against a server on this machine that cuts, lies, redirects and dawdles."""

import hashlib
import http.server
import multiprocessing
import time
from pathlib import Path

import pytest
from odd_server import BODY, Server, answer, partial, redirect, serving

from unmask.errors import CheckpointError, ConfigError, DiskError
from unmask.storage import download, https
from unmask.storage.download import PublishedFile, fetch_file

DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def serve():
    with serving() as start:
        yield start


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(https, "TIMEOUT", 1.0)


def source(server: Server | str, **options: object) -> PublishedFile:
    url = server if isinstance(server, str) else server.url
    return PublishedFile(**{"url": url, "size": len(BODY), "sha256": DIGEST, **options})


def get(server: Server | PublishedFile, folder: Path, **options: object) -> Path:
    wanted = server if isinstance(server, PublishedFile) else source(server)
    return fetch_file(wanted, folder, _loopback=True, **options)


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def refuse(
    server: Server | PublishedFile, folder: Path, said: str, error: type = CheckpointError, **options: object
) -> str:
    with pytest.raises(error, match=said) as caught:
        get(server, folder, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


# -- what goes well --


def test_a_file_is_fetched_once_and_then_never_again(tmp_path, serve):
    server, seen = serve(answer()), []
    path = get(server, tmp_path, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == BODY
    assert kept(tmp_path) == ["x.pth"]
    assert seen[-1] == ("x.pth", len(BODY), len(BODY))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert get(server, tmp_path) == path
    assert fetch_file(source(server), tmp_path, offline=True) == path
    assert len(server.asked) == 1
    assert "Authorization" not in server.asked[0]


@pytest.mark.parametrize("options", [{"sha256": DIGEST[:8]}, {"size": None}, {"sha256": None}])
def test_what_is_not_published_is_not_checked(tmp_path, serve, options):
    assert get(source(serve(answer()), **options), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("digest", [DIGEST, None])
def test_a_download_that_was_cut_goes_on_where_it_ended(tmp_path, serve, digest):
    half = len(BODY) // 2
    server = serve(answer(body=BODY[:half], length=len(BODY), ETag='"1"'), partial)
    assert get(source(server, sha256=digest), tmp_path).read_bytes() == BODY
    assert (server.asked[1]["Range"], server.asked[1]["If-Range"]) == (f"bytes={half}-", '"1"')
    assert kept(tmp_path) == ["x.pth"]


def test_another_command_goes_on_as_well(tmp_path, serve):
    cut = serve(answer(body=BODY[:5000], length=len(BODY), ETag='"1"'))
    refuse(cut, tmp_path, r"the connection ended after 5000 of 3145728 bytes")
    assert len(cut.asked) >= 3
    path = tmp_path / source(cut).place
    assert path.with_name("x.pth.part").stat().st_size == 5000
    assert not path.exists()
    cut.turns[:] = [partial]
    assert get(cut, tmp_path).read_bytes() == BODY
    assert cut.asked[-1]["Range"] == "bytes=5000-"


def test_a_changed_file_is_fetched_anew(tmp_path, serve):
    """The server has another version: it sends the whole file, or the hash shows the difference."""
    old = bytes(len(BODY))
    for second in (answer(ETag='"2"'), partial):
        server = serve(answer(body=old[:9999], length=len(BODY), ETag='"1"'), second)
        assert get(server, tmp_path / str(second)).read_bytes() == BODY


def test_without_a_tag_or_a_hash_nothing_is_patched_together(tmp_path, serve):
    server = serve(answer(body=BODY[:5000], length=len(BODY)), partial)
    assert get(source(server, sha256=None), tmp_path).read_bytes() == BODY
    assert "Range" not in server.asked[1]


def test_a_server_that_sends_another_part_is_asked_anew(tmp_path, serve):
    wrong = answer(206, BODY[7:], ETag='"1"', Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}")
    for odd in (wrong, answer(416, b"")):
        server = serve(answer(body=BODY[:5000], length=len(BODY), ETag='"1"'), odd, partial)
        assert get(server, tmp_path / str(odd)).read_bytes() == BODY


def test_redirects_are_followed_and_a_busy_server_is_asked_again(tmp_path, serve):
    last = serve(answer(503, b""), answer())
    first = serve(redirect("/other"), redirect(last.url))
    assert get(first, tmp_path).read_bytes() == BODY
    assert first.paths == ["/weights/x.pth", "/other", "/weights/x.pth"]


def load(url: str, folder: Path, done: "multiprocessing.Queue[bool]") -> None:
    done.put(fetch_file(source(url), folder, _loopback=True).read_bytes() == BODY)


def test_two_processes_at_once_do_no_harm(tmp_path, serve):
    def slowly(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.5)
        answer()(handler)

    server, fork = serve(slowly), multiprocessing.get_context("spawn")
    done = fork.Queue()
    both = [fork.Process(target=load, args=(server.url, tmp_path, done)) for _ in range(2)]
    for process in both:
        process.start()
    assert [done.get(timeout=60), done.get(timeout=60)] == [True, True]
    for process in both:
        process.join()
    assert (len(server.asked), kept(tmp_path)) == (1, ["x.pth"])


# -- what does not --


def test_another_file_than_the_published_is_not_kept(tmp_path, serve):
    wrong = BODY[:-1] + b"\0"
    line = refuse(serve(answer(body=wrong)), tmp_path, rf"of sha256 {hashlib.sha256(wrong).hexdigest()} and not the")
    assert "nothing was kept" in line
    assert f"put it at {tmp_path}" in line
    refuse(serve(answer(body=BODY + b"\0")), tmp_path, r"it is 3145729 bytes and not the published 3145728")
    refuse(serve(answer(body=BODY[:9])), tmp_path, r"it is 9 bytes and not the published 3145728")
    refuse(serve(answer(body=BODY + bytes(9), length=-1)), tmp_path, r"it is longer than 3145728 bytes")
    refuse(source(serve(answer(length=-1)), size=None), tmp_path, r"does not give the size")
    refuse(serve(answer(Content_Encoding="gzip")), tmp_path, r"encoded as gzip")
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, r"no such file \(404\)"), (401, r"account \(401\)"), (403, "account"), (500, r"out of order"), (204, "204")],
)
def test_what_a_server_refuses_is_one_line(tmp_path, serve, status, said):
    refuse(serve(answer(status, b"")), tmp_path, said)
    assert kept(tmp_path) == []


def test_offline_only_the_cache_is_looked_at(tmp_path, serve):
    server = serve(answer())
    place = tmp_path / source(server).place
    line = refuse(server, tmp_path, "is not there, and this is offline", offline=True)
    assert f"put it at {place} by hand, from {server.url}" in line
    place.parent.mkdir(parents=True)
    place.write_bytes(BODY[:-1])
    refuse(server, tmp_path, r"is 3145727 bytes and not the published 3145728, and this is offline", offline=True)
    place.write_bytes(BODY[:-1] + b"\0")
    refuse(server, tmp_path, "is of sha256 ", offline=True)
    assert server.asked == []
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_disk_without_room_is_seen_before_anything_comes(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    refuse(serve(answer()), tmp_path, r"3 MiB remain to download, and 1 MiB are free; or set UNMASK_CACHE", DiskError)
    assert kept(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path, serve):
    (tmp_path / "cache").write_text("a file")
    refuse(serve(answer()), tmp_path / "cache", "cache", DiskError)


# -- sources --


def test_where_a_file_of_the_hub_is_and_lies():
    made = PublishedFile(repo="a/b", path="sub dir/x.pth", revision="0" * 40)
    assert made.address == f"https://huggingface.co/a/b/resolve/{'0' * 40}/sub%20dir/x.pth"
    assert made.place == Path("a--b/000000000000/sub dir/x.pth")
    assert PublishedFile(url="https://example.org/a/x?y=1", sha256=DIGEST).place == Path("example.org/a/x")
    assert PublishedFile(repo="a/b", path="x", sha256=DIGEST).address == "https://huggingface.co/a/b/resolve/main/x"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "give exactly one of them"),
        ({"repo": "a/b", "url": "https://x.org/y"}, "give exactly one of them"),
        ({"repo": "a/b", "path": "x"}, r"revision '' is not a commit"),
        ({"repo": "a/b", "path": "x", "revision": "main"}, r"revision 'main' is not a commit"),
        ({"repo": "a/b", "path": "../x", "sha256": DIGEST}, r"path '\.\./x'"),
        ({"repo": "a/b", "path": "/etc/x", "sha256": DIGEST}, r"path '/etc/x'"),
        ({"repo": "a/b", "path": "", "sha256": DIGEST}, "path ''"),
        ({"repo": "../b", "path": "x\0", "sha256": DIGEST}, "path"),
        ({"url": "https://x.org/%2e%2e/y"}, "without .."),
        ({"url": "https://x.org"}, "the path of a file"),
        ({"url": "https://x.org/y", "path": "z"}, "the whole address"),
        ({"url": "https://x.org/y", "sha256": "abc"}, "sha256 'abc'"),
        ({"url": "https://x.org/y", "sha256": "G" * 64}, "hexadecimal"),
        ({"url": "https://x.org/y", "size": 0}, "size 0"),
    ],
)
def test_impossible_sources_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        PublishedFile(**wrong)
