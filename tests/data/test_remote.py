"""Data behind an address: fsspec's memory file system and a local web server give what the same files on disk give."""

import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image

from unmask.data.fingerprint import compute_fingerprint, describe_changes
from unmask.data.sources.choice import Shards, resolve_paths
from unmask.data.sources.description import describe_source
from unmask.data.sources.detection import identify_source
from unmask.data.sources.shard_parts import find_shards
from unmask.data.text.sources import TextFile
from unmask.errors import ConfigError, DataError, DiskError
from unmask.storage import remote
from unmask.storage.remote import expand_braces, fetch_remote, list_remote

fsspec = pytest.importorskip("fsspec", reason="needs fsspec: pip install 'unmask[remote]'")


def forget() -> None:
    """Do what a new process does: look addresses up again."""
    list_remote.cache_clear()
    remote._look_up.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "remote"
    fsspec.filesystem("memory").store.clear()


def make_shard(first: int, num: int = 6) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(first, first + num):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 40, 7)).save(picture, "PNG")
            for name, data in ((f"{i:03d}.png", picture.getvalue()), (f"{i:03d}.cls", str(i % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


SHARDS = {f"train-{i:02d}.tar": make_shard(6 * i) for i in range(11)} | {"val-00.tar": make_shard(90)}


def put(files: dict[str, bytes], folder: str = "memory://bucket/set") -> str:
    for name, data in files.items():
        fsspec.filesystem("memory").pipe_file(f"{folder}/{name}", data)
    return folder


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


# -- patterns --


def test_braces_are_what_a_shell_makes_of_them():
    for pattern in (
        "a",
        "a{00..03}.tar",
        "{9..11}",
        "{09..11}",
        "{3..1}",
        "{0..10}",
        "{a,b}-{1..2}",
        "a{b",
        "a{b,{1..2}}c",
        "{b{1..2},c}-{x,y}",
        "x{a}y",
        "{train,val}{,2}",
    ):
        if pattern == "x{a}y":
            assert expand_braces(pattern) == ["xay"]  # WebDataset does so; a shell leaves it
            continue
        shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
        assert expand_braces(pattern) == shell.stdout.splitlines(), pattern
    for pattern in ("{0..999999}", "{0..999}" * 3):
        with pytest.raises(ConfigError, match="more than 100,000 files"):
            expand_braces(pattern)


def test_folders_globs_and_braces_name_the_same_shards(tmp_path):
    folder, local = put(SHARDS), write(SHARDS, tmp_path / "set")
    names = [Path(name).name for name in find_shards(str(local))]
    for pattern in ("", "/*.tar", "/{train-{00..10},val-00}.tar"):
        assert [name.rpartition("/")[2] for name in find_shards(folder + pattern)] == names, pattern
    assert find_shards(f"{local}/train-{{03..05}}.tar") == [str(local / f"train-0{i}.tar") for i in (3, 4, 5)]
    assert find_shards(f"{folder}/val-00.tar") == [f"{folder}/val-00.tar"]


# -- pictures --


def test_shards_are_the_same_data_as_local_ones(tmp_path):
    folder, local = put(SHARDS), write(SHARDS, tmp_path / "set")
    splits = [Shards(path=place, size=8).load() for place in (folder, str(local))]
    here, there = map(compute_fingerprint, splits)
    assert here == there
    assert (len(splits[0].train), len(splits[0].test)) == (66, 6)
    order = [split.train.names for split in splits]
    assert order[0] == order[1]  # so a rank and a worker get the same pictures


def test_sets_may_have_addresses_of_their_own():
    put(SHARDS)
    source = Shards(
        path="", train="memory://bucket/set/train-{00..01}.tar", test="memory://bucket/set/val-*.tar", size=8
    )
    split = source.load()
    assert (len(split.train), len(split.test)) == (12, 6)
    assert resolve_paths(source) == source
    inside = Shards(path="memory://bucket/set", train="train-0[01].tar", test="val-00.tar", size=8).load()
    assert (len(inside.train), len(inside.test)) == (12, 6)


def test_a_shard_is_copied_once_and_again_when_it_changes(cache):
    folder = put({"a.tar": make_shard(0), "b.tar": make_shard(6)})
    then = compute_fingerprint(Shards(path=folder, size=8).load())
    copies = sorted(cache.rglob("*.tar"))
    stamps = [path.stat().st_mtime_ns for path in copies]
    forget()
    assert compute_fingerprint(Shards(path=folder, size=8).load()) == then
    assert [path.stat().st_mtime_ns for path in copies] == stamps
    fsspec.filesystem("memory").pipe_file(f"{folder}/b.tar", make_shard(12))
    forget()
    now = compute_fingerprint(Shards(path=folder, size=8).load())
    assert describe_changes(then, now) is not None
    assert len(sorted(cache.rglob("*.tar"))) == 3


def test_a_source_is_found_by_its_address_and_described_without_it():
    source = identify_source("s3://bucket/set")
    assert source == Shards(path="s3://bucket/set")
    assert describe_source(source) == "remote image files"
    assert describe_source(TextFile(path="hf://datasets/a/b/c.txt")) == "remote text files"


# -- text --


def test_texts_are_the_same_data_as_local_ones(tmp_path):
    import gzip

    files = {
        "part-0.txt": "".join(f"text {i}\n" for i in range(40)).encode(),
        "part-1.txt": "".join(f"other {i}\n" for i in range(40)).encode(),
        "held.txt.gz": gzip.compress(b"one\ntwo\n"),
    }
    folder, local = put(files), write(files, tmp_path / "set")
    there = TextFile(path=f"{folder}/part-0.txt", test=f"{folder}/held.txt.gz", format="lines")
    here = TextFile(path=str(local / "part-0.txt"), test=str(local / "held.txt.gz"), format="lines")
    assert resolve_paths(there) == there
    for part in ("train", "test"):
        assert list(there.read_documents(part)) == list(here.read_documents(part))
    assert there.list_files() == here.list_files()
    both = TextFile(path=f"{folder}/part-{{0..1}}.txt", format="lines")
    assert len(list(both.read_documents("train"))) + len(list(both.read_documents("test"))) == 80
    assert list(TextFile(path=f"{folder}/part-*.txt", format="lines").read_documents("train")) == list(
        both.read_documents("train")
    )


# -- a web server --


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'unmask[remote]'")
    folder = write(SHARDS | {"text.txt": b"one\ntwo\nthree\n"}, tmp_path / "served")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Files(*arguments, directory=str(folder))
    ) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", folder
        found.shutdown()


def test_a_web_server(server, cache):
    url, folder = server
    local = compute_fingerprint(Shards(path=str(folder), size=8).load())
    for pattern in ("/{train-{00..10},val-00}.tar", "/*.tar"):
        assert compute_fingerprint(Shards(path=url + pattern, size=8).load()) == local
    assert len(list(cache.rglob("*.tar"))) == 12
    assert list(TextFile(path=f"{url}/text.txt?token=1", format="lines", held_out=0.5).read_documents("train"))
    with pytest.raises(DataError, match=r"gone\.tar: cannot be read \(not there\); check the address"):
        Shards(path=f"{url}/gone.tar").load()
    os.utime(folder / "val-00.tar", (0, 0))  # another Last-Modified
    forget()
    Shards(path=f"{url}/val-00.tar", size=8).load()
    assert len(list(cache.rglob("val-00.tar"))) == 2


def test_a_server_that_is_not_there_is_one_line():
    pytest.importorskip("aiohttp", reason="needs aiohttp: pip install 'unmask[remote]'")
    with pytest.raises(DataError, match=r"cannot be read .*check the address, the network") as caught:
        Shards(path="http://127.0.0.1:9/a.tar").load()
    assert "\n" not in str(caught.value)


# -- mistakes --


@pytest.mark.parametrize(("scheme", "package", "command"), [("s3", "s3fs", "pip install s3fs"),
    ("gs", "gcsfs", "pip install gcsfs"), ("https", "aiohttp", r"pip install 'unmask\[remote\]'")])  # fmt: skip
def test_a_missing_package_is_named_with_its_command(monkeypatch, scheme, package, command):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"fsspec.implementations.{scheme[:4]}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(ConfigError, match=f"{package} is needed to read it: {command}") as caught:
        list_remote(f"{scheme}://bucket/*.tar")
    assert "\n" not in str(caught.value)


def test_without_fsspec_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"fsspec is needed to read it: pip install 'unmask\[remote\]'"):
        list_remote("s3://bucket/*.tar")


def test_unknown_schemes_and_missing_files_are_one_line():
    for path in ("ftp://host/a.tar", "file:///etc/passwd", "s4://bucket/a.tar", "simplecache::s3://bucket/a.tar"):
        with pytest.raises((ConfigError, DataError)) as caught:
            Shards(path=path).load()
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        Shards(path="memory://bucket/nothing.tar").load()
    with pytest.raises(DataError, match=r"no \.tar file"):
        Shards(path="memory://bucket/nothing/*.tar").load()


def test_a_file_that_ends_early_is_refused_and_not_kept(monkeypatch, cache):
    folder = put({"a.tar": make_shard(0)})
    monkeypatch.setattr(remote, "_look_up", lambda address: (1 << 20, "v1"))
    with pytest.raises(DataError, match="of 1048576 bytes came; run the command again"):
        fetch_remote(f"{folder}/a.tar")
    assert [path.name for path in cache.rglob("*") if path.is_file()] in ([], [".lock"])


def test_a_full_disk_is_one_line_and_leaves_nothing(monkeypatch, cache):
    folder = put({"a.tar": make_shard(0)})

    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DiskError, match="free the disk, or set UNMASK_CACHE"):
        fetch_remote(f"{folder}/a.tar")
    assert [path.name for path in cache.rglob("*") if path.is_file()] in ([], [".lock"])


@pytest.mark.parametrize("address", ["http://example.org/a.tar", "HTTP://10.0.0.7/{a,b}.tar"])
def test_an_address_without_encryption_is_refused(address):
    with pytest.raises(ConfigError, match="is not encrypted, so others could change the data: give https://"):
        Shards(path=address).load()
