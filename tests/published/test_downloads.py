"""Files of the Hub, against a server on this machine that speaks its protocol and cuts, lies, refuses and dawdles."""

import errno
import hashlib
import threading
import time

import pytest
from toy_hub import COMMIT, change, cut, send, serving, shorten, use

from unmask.errors import CheckpointError, DiskError
from unmask.published.files import PINS, File, fetch_file, read_pins
from unmask.storage import hub as storage_hub

BODY = bytes(range(256)) * 64
DIGEST = hashlib.sha256(BODY).hexdigest()
KEY = "toy/weights/big.bin"
FILE = File(family="valeoai-v1", repo="toy/weights", name="big.bin")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one large and one small file, and empty caches of ours and of huggingface_hub."""
    with serving({KEY: BODY, "toy/weights/sub/small.json": b"{}"}) as made:
        use(monkeypatch, made, tmp_path / "hub")
        monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield made


def kept(folder) -> list[str]:
    """The weights and parts of weights in the shared cache."""
    return [p.name for p in (folder / "hub").rglob("*") if p.is_file() and p.stat().st_size >= 1_000]


def refuse(said: str, kind: type = CheckpointError, file: File = FILE, **options) -> str:
    with pytest.raises(kind, match=said) as caught:
        fetch_file(file, **options)
    line = str(caught.value)
    assert line.isprintable()
    assert "big.bin" in line or "small.json" in line or "pins.json" in line
    return line


# -- what goes well --


def test_a_file_is_fetched_once_pinned_and_shown(hub, tmp_path):
    said, seen = [], []
    path = fetch_file(FILE, say=said.append, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == BODY
    assert path.is_relative_to(tmp_path / f"hub/models--toy--weights/snapshots/{COMMIT}")
    assert seen[-1] == ("big.bin", len(BODY), len(BODY))
    assert said == [f"note: {KEY}: sha256 {DIGEST}, {len(BODY):,} bytes; pinned in {tmp_path / 'cache' / PINS}"]
    assert (read_pins()[KEY].sha256, read_pins()[KEY].commit) == (DIGEST, COMMIT)
    there = len(hub.asked)
    assert fetch_file(FILE, say=said.append) == fetch_file(FILE, offline=True) == path
    assert (len(hub.asked), len(said)) == (there, 1)
    assert not any(hub.tokens)


def test_a_small_file_has_no_published_hash_and_is_pinned_too(hub):
    small = File(family="", repo="toy/weights", name="sub/small.json")
    assert fetch_file(small).read_bytes() == b"{}"
    assert read_pins()["toy/weights/sub/small.json"].sha256 == hashlib.sha256(b"{}").hexdigest()


def test_a_known_hash_needs_no_pin(hub):
    known = File(family="", repo="toy/weights", name="big.bin", size=len(BODY), sha256=DIGEST[:8])
    assert fetch_file(known).read_bytes() == BODY
    assert read_pins() == {}


def test_a_connection_that_breaks_is_resumed(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.faults[KEY] = [cut]
    assert fetch_file(FILE).read_bytes() == BODY
    assert hub.asked[-1] == f"GET /cdn/{KEY} bytes={len(BODY) // 2}-"


def test_what_another_program_downloaded_is_used(hub):
    from huggingface_hub import hf_hub_download

    hf_hub_download("toy/weights", "big.bin")
    there = len(hub.asked)
    assert fetch_file(FILE).read_bytes() == BODY
    assert len(hub.asked) == there


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub):
    path = fetch_file(FILE)
    path.resolve().write_bytes(BODY[:-1] + b"x")
    refuse("is of sha256 .* and not the published", offline=True)
    assert fetch_file(FILE).read_bytes() == BODY


def test_the_token_of_the_environment_is_sent(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_file(FILE)
    assert "Bearer hf_secret" in hub.tokens


def test_two_downloads_at_once_do_no_harm(hub):
    def slowly(handler, body):
        time.sleep(0.2)
        send(handler, 200, body)

    hub.faults[KEY] = [slowly]
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch_file(FILE).read_bytes())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY, BODY]
    assert hub.count(f"GET /cdn/{KEY}") == 1


# -- what does not --


def test_a_file_that_changed_since_its_first_use_stops(hub, tmp_path):
    path = fetch_file(FILE)
    path.resolve().unlink()
    path.unlink()
    hub.files[KEY], hub.commit = bytes(len(BODY)), "b" * 40
    there = hub.count("GET")
    line = refuse(rf"big\.bin of toy/weights changed: .*commit bbbbbbbbbbbb.* and not {DIGEST[:12]} of the first use")
    assert f"delete its entry in {tmp_path / 'cache' / PINS} to accept this one" in line
    assert hub.count("GET") == there
    (tmp_path / "cache" / PINS).unlink()
    assert fetch_file(FILE).read_bytes() == bytes(len(BODY))


def test_another_file_than_the_published_is_not_downloaded(hub, tmp_path):
    refuse(
        "changed: the Hub has sha256 .* and not 0123456789ab",
        file=File(family="", repo="toy/weights", name="big.bin", sha256="0123456789ab"),
    )
    refuse("is 16,384 bytes and not the published 7", file=File(family="", repo="toy/weights", name="big.bin", size=7))
    assert (hub.count("GET"), kept(tmp_path), read_pins()) == (0, [], {})


@pytest.mark.parametrize(("turn", "said"), [
    (change, "is of sha256 .* so nothing was kept: try again"),
    (shorten, "the connection ended too early, or the file has another size: try again"),
])  # fmt: skip
def test_wrong_bytes_are_not_kept(hub, tmp_path, turn, said):
    hub.faults[KEY] = [turn]
    refuse(said)
    assert (kept(tmp_path), read_pins()) == ([], {})
    assert fetch_file(FILE).read_bytes() == BODY


@pytest.mark.parametrize(("status", "code", "said"), [
    (401, "GatedRepo", "its owner asks for consent: accept the terms on its page at http.*, then log in with hf auth"),
    (403, "GatedRepo", "its owner asks for consent"),
    (401, "RepoNotFound", "there is no such repository, or it is private: check the name, or log in"),
    (404, "RepoNotFound", "there is no such repository, or it is private"),
    (403, "", r"the Hub refuses the token \(403\): log in"),
    (404, "EntryNotFound", "the repository has no such file: its owner may have moved it"),
    (503, "", r"is busy or out of order \(503\): try again later"),
])  # fmt: skip
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, status, code, said):
    hub.refused["toy/weights"] = (status, code)
    refuse(f"cannot download big.bin of toy/weights: .*{said}")
    assert kept(tmp_path) == []


def test_a_missing_file_that_is_optional_is_none(hub):
    assert fetch_file(File(family="", repo="toy/weights", name="more.json", optional=True)) is None


def test_offline_only_the_cache_is_looked_at(hub, monkeypatch):
    refuse("not in the cache, and this is offline: run it once without --offline", offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse("not in the cache, and HF_HUB_OFFLINE is set: run it once without")
    assert hub.asked == []


def test_no_network_is_one_line(hub, monkeypatch):
    hub.close()
    refuse(r"http://127\.0\.0\.1:\d+ does not answer \(.*\): check the network or HF_ENDPOINT, then try again")


def test_a_silent_hub_is_given_up(hub, tmp_path, monkeypatch):
    def dawdle(handler, body):
        time.sleep(0.5)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.faults[KEY] = [dawdle] * 20
    refuse("does not answer")
    assert kept(tmp_path) == []


def test_a_full_or_broken_disk_is_a_disk_error(hub, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage_hub, "SPARE", 1 << 60)
        with pytest.raises(DiskError, match=r"MiB to download, and \d+ MiB are free: make room, or set HF_HOME"):
            fetch_file(FILE)
    assert hub.count("GET") == 0

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        refuse("No space left on device; repair it, or set HF_HOME", DiskError)
    assert kept(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_a_disk_error(hub, tmp_path, monkeypatch):
    (tmp_path / "no-folder").write_text("a file")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-folder/hub"))
        refuse("set HF_HOME", DiskError)
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "no-folder/cache"))
    refuse("set UNMASK_CACHE", DiskError)


# -- files that are not on the Hub --


@pytest.fixture
def google(hub):
    """A file at an address of its own, as Google's are."""
    return File(family="google-vqgan", name="big.bin", url=f"{hub.url}/cdn/{KEY}")


def test_a_file_elsewhere_is_pinned_too(hub, google, tmp_path):
    said = []
    path = fetch_file(google, say=said.append)
    assert path.read_bytes() == BODY
    assert said == [f"note: {google.url}: sha256 {DIGEST}, {len(BODY):,} bytes; pinned in {tmp_path / 'cache' / PINS}"]
    there = len(hub.asked)
    assert fetch_file(google, offline=True) == path
    assert len(hub.asked) == there
    path.write_bytes(BODY[:-1] + b"x")
    refuse(r"is of sha256 .* and not the published .*: get the file of the first use, or delete its entry", file=google)
    path.unlink()
    hub.files[KEY] = bytes(len(BODY))
    refuse("cannot download big.bin .*: try again, or put it at .* by hand; get the file of the first use", file=google)
    assert not path.exists()
    refuse("is not there, and this is offline; go online once, or put it at", file=google, offline=True)


# -- pins --


def test_damaged_pins_are_one_line(hub, tmp_path):
    fetch_file(FILE)
    (tmp_path / "cache" / PINS).write_text("[]")
    refuse("pins.json is damaged .*: delete it")
