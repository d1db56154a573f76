import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import struct
import sys
import threading
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unmask.data.sources import mnist
from unmask.data.sources.choice import Arrays, Digits, Folder, Mnist
from unmask.data.sources.hub import load_parts
from unmask.data.sources.mnist import MNIST, download_mnist, read_idx
from unmask.errors import ConfigError, DataError, DiskError, ShortageError
from unmask.storage.cache import find_cache_dir

REAL_MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
real_mnist = pytest.mark.skipif(not REAL_MNIST.is_dir(), reason="real MNIST: no folder shared/data/mnist")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(root: Path, packed: bool, n=7) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    root.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", np.arange(n) % 10)):
            data = idx(array.astype(np.uint8))
            (root / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return images


# -- digits --


def test_digits_are_all_there_and_split_the_same_way_each_time():
    from sklearn.datasets import load_digits

    a, b = Digits().load(), Digits().load()
    assert (len(a.train), len(a.test), a.bad) == (1500, 297, ())
    assert torch.equal(a.train.pixels, b.train.pixels)
    assert not torch.equal(a.train.pixels, Digits(seed=1).load().train.pixels)
    both = torch.cat([a.train.pixels, a.test.pixels]).flatten(1)
    ours = sorted(map(tuple, both.tolist()))
    theirs = sorted(map(tuple, np.rint(load_digits().data * 255 / 16).astype(int).tolist()))
    assert ours == theirs
    assert a.train.classes == tuple("0123456789")
    assert both.max() == 255


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"unmask\[demo\]"):
        Digits().load()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Digits(held_out=0),
        lambda: Digits(held_out=1797),
        lambda: Mnist(size=0),
        lambda: Folder(path="x", channels=2),
        lambda: Folder(path="x", size=0),
        lambda: Folder(path="x", held_out=1.0),
        lambda: Arrays(path="x", held_out=-0.1),
    ],
)
def test_impossible_configs_are_refused(make):
    with pytest.raises(ConfigError, match=r"\d"):
        make()


def test_configs_are_plain_json():
    for config in (Digits(), Mnist(), Folder(path="x"), Arrays(path="x")):
        assert type(config)(**json.loads(json.dumps(asdict(config)))) == config


# -- MNIST files --


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_reads_both_kinds_of_file(tmp_path, packed):
    images = write_mnist(tmp_path, packed)
    loaded = Mnist(path=str(tmp_path), size=28, binary=False).load()
    assert np.array_equal(loaded.train.pixels[:, 0], images)
    assert loaded.test.labels.tolist() == list(range(7))
    small = Mnist(path=str(tmp_path)).load().train.pixels
    assert small.shape == (7, 1, 14, 14)
    assert set(small.unique().tolist()) == {0, 255}


@real_mnist
def test_real_mnist_is_the_published_one():
    for name, (size, sha256) in MNIST.items():
        data = (REAL_MNIST / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    loaded = Mnist(path=str(REAL_MNIST), size=28, binary=False).load()
    assert (len(loaded.train), len(loaded.test)) == (60000, 10000)
    assert loaded.train.pixels.double().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)  # the well-known mean
    assert loaded.train.labels[:5].tolist() == [5, 0, 4, 1, 9]


GOOD = idx(np.zeros((3, 4, 4), np.uint8))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not an idx file"),
        (GOOD[:10], "not an idx file"),
        (b"\0\0\x0d" + GOOD[3:], "not an idx file"),
        (idx(np.zeros(9, np.uint8)), "not an idx file"),
        (b"<html>not found</html>", "not an idx file"),
        (GOOD[:-1], "47 bytes .* needs 48"),
        (GOOD + b"\0", "more bytes"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", *[2**32 - 1] * 3), "claims the shape"),
        (idx(np.zeros((0, 4, 4), np.uint8)), "claims the shape"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_idx_files_are_refused_by_name(tmp_path, data, said, packed):
    path = tmp_path / ("x" + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=said) as caught:
        read_idx(tmp_path / "x", 3)
    assert str(path) in str(caught.value)


def test_damaged_gzip_is_refused_by_name(tmp_path):
    whole = gzip.compress(np.random.default_rng(0).bytes(3000))
    flipped = bytearray(gzip.compress(GOOD))
    flipped[-6] ^= 1  # the checksum
    for data in (whole[:500], b"not gzip", bytes(flipped)):
        (tmp_path / "x.gz").write_bytes(data)
        with pytest.raises(DataError, match=r"x\.gz"):
            read_idx(tmp_path / "x", 3)
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "missing", 3)


def test_mnist_parts_must_agree(tmp_path):
    write_mnist(tmp_path, packed=False)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(6, np.uint8)))
    with pytest.raises(DataError, match="7 images but 6 labels"):
        Mnist(path=str(tmp_path)).load()
    labels.write_bytes(idx(np.full(7, 10, np.uint8)))
    with pytest.raises(DataError, match=r"train: labels span 10..10"):
        Mnist(path=str(tmp_path)).load()


# -- the downloader, against a server on this machine --


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `cut` promises more than it sends, `elsewhere` redirects."""

    files: dict[str, bytes]
    cut = False
    elsewhere = ""
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        data = self.files.get(self.path.rsplit("/", 1)[-1])
        if self.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.elsewhere)
            self.end_headers()
            return
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that has seen enough hangs up
            self.wfile.write(data[: len(data) // 2] if self.cut else data)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Start a server: serve(files, **behaviour) -> (its url, the list of paths it was asked for)."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = []

    def start(files, **behaviour):
        handler = type("Mirror", (Server,), {"files": files, "asked": [], **behaviour})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/mnist/", handler.asked

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def published(monkeypatch, tmp_path) -> dict[str, bytes]:
    """Small stand-ins for the four files, published under their own digests."""
    write_mnist(tmp_path / "published", packed=True)
    files = {name: (tmp_path / "published" / name).read_bytes() for name in MNIST}
    digests = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(mnist, "MNIST", digests)
    return files


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*") if p.suffix != ".lock")


def test_download_once_then_never_again(tmp_path, serve, published):
    url, asked = serve(published)
    seen = []
    download_mnist(tmp_path / "cache", lambda *step: seen.append(step), (url,))
    assert kept(tmp_path / "cache") == sorted(published)
    assert all((tmp_path / "cache" / name).read_bytes() == data for name, data in published.items())
    assert {(name, total) for name, _, total in seen} == {(name, len(data)) for name, data in published.items()}
    assert all(done == total for name, done, total in {s[0]: s for s in seen}.values())
    assert len(asked) == 4
    download_mnist(tmp_path / "cache", mirrors=(url,))
    assert len(asked) == 4


def test_a_damaged_cache_is_mended(tmp_path, serve, published):
    url, asked = serve(published)
    download_mnist(tmp_path / "cache", mirrors=(url,))
    name = next(iter(published))
    (tmp_path / "cache" / name).write_bytes(b"rotten")
    download_mnist(tmp_path / "cache", mirrors=(url,))
    assert (tmp_path / "cache" / name).read_bytes() == published[name]
    assert len(asked) == 5


def test_the_second_mirror_helps_out(tmp_path, serve, published):
    wrong, _ = serve(dict.fromkeys(published, b"<html>login</html>"))
    right, _ = serve(published)
    download_mnist(tmp_path / "cache", mirrors=(wrong, right))
    assert kept(tmp_path / "cache") == sorted(published)


@pytest.mark.parametrize(
    "fault", ["same size", "longer", "short", "missing", "redirect", "unreachable", "http", "file"]
)
def test_what_is_not_the_published_file_is_not_kept(tmp_path, serve, published, fault):
    if fault == "same size":
        url, _ = serve({name: bytes(len(data)) for name, data in published.items()})
    elif fault == "longer":
        url, _ = serve({name: data + b"x" for name, data in published.items()})
    elif fault == "short":
        url, _ = serve(published, cut=True)
    elif fault == "missing":
        url, _ = serve({})
    elif fault == "redirect":
        url, _ = serve(published, elsewhere="http://example.invalid/x")
    elif fault == "unreachable":
        url = "http://127.0.0.1:9/"
    elif fault == "http":
        url = "http://example.invalid/"
    else:
        url = (tmp_path / "published").as_uri() + "/"
    with pytest.raises(DataError) as caught:
        download_mnist(tmp_path / "cache", mirrors=(url,))
    text = str(caught.value)
    assert kept(tmp_path / "cache") == []
    assert "\n" not in text
    assert all(name in text for name in published)
    assert "--data DIR" in text
    assert str(tmp_path / "cache") in text
    if fault in ("redirect", "http", "file"):
        assert "not https" in text


def test_a_flood_is_cut_off(tmp_path, serve, published):
    url, _ = serve({name: bytes(5_000_000) for name in published})
    most = []
    with pytest.raises(DataError):
        download_mnist(tmp_path / "cache", lambda name, done, total: most.append(done - total), (url,))
    assert max(most, default=0) <= 0


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path, serve, published):
    url, _ = serve(published)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DiskError, match="cache"):
        download_mnist(tmp_path / "cache", mirrors=(url,))


def test_a_failed_rename_leaves_no_part_behind(tmp_path, serve, published, monkeypatch):
    url, _ = serve(published)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match="No space left"):
        download_mnist(tmp_path / "cache", mirrors=(url,))
    assert kept(tmp_path / "cache") == []


def test_mnist_without_a_root_uses_the_cache(tmp_path, published, monkeypatch):
    shutil.copytree(tmp_path / "published", tmp_path / "cache" / "mnist")
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    assert len(Mnist().load().train) == 7


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("UNMASK_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    monkeypatch.setenv("HOME", "/three")
    assert find_cache_dir() == Path("/one")
    monkeypatch.delenv("UNMASK_CACHE")
    assert find_cache_dir() == Path("/two/unmask")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert find_cache_dir() == Path("/three/.cache/unmask")


# -- folders and arrays --


def test_folder_splits_reports_and_keeps_classes(tmp_path):
    for i in range(20):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (9, 7), (i, 0, 0)).save(tmp_path / "ab"[i % 2] / f"{i:02}.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"")
    loaded = Folder(path=str(tmp_path), size=4).load()
    assert (len(loaded.train), len(loaded.test)) == (17, 3)  # about a tenth: the content of each decides
    both = torch.cat([loaded.train.pixels, loaded.test.pixels])
    labels = torch.cat([loaded.train.labels, loaded.test.labels])
    assert sorted(both[:, 0, 0, 0].tolist()) == list(range(20))
    assert torch.equal(both[:, 0, 0, 0].long() % 2, labels)
    assert [b.reason for b in loaded.bad] == ["empty file (0 bytes)"]
    assert Folder(path=str(tmp_path), size=4, channels=1).load().train.pixels.shape == (17, 1, 4, 4)
    assert len(Folder(path=str(tmp_path), size=4, held_out=0.0).load().test) == 0


def test_a_single_image_cannot_be_split(tmp_path):
    Image.new("RGB", (9, 7)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="1 of 1"):
        Folder(path=str(tmp_path)).load()


@pytest.mark.parametrize("shape", [(20, 5, 6), (20, 5, 6, 1), (20, 5, 6, 3)])
def test_arrays_come_back(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez_compressed(tmp_path / "x.npz", images=images, labels=np.arange(20) % 4)
    loaded = Arrays(path=str(tmp_path / "x.npz"), held_out=0.25).load()
    exact = Arrays(path=str(tmp_path / "x.npz"), held_out=0.25, arrange="position").load()
    assert (len(exact.train), len(exact.test)) == (15, 5)
    assert len(loaded.train) + len(loaded.test) == 20
    assert 0 < len(loaded.test) < 10
    assert loaded.train.classes == ("0", "1", "2", "3")
    both = torch.cat([loaded.train.pixels, loaded.test.pixels]).flatten(1).tolist()
    assert sorted(both) == sorted(np.moveaxis(images.reshape(20, 5, 6, -1), -1, 1).reshape(20, -1).tolist())


def test_arrays_need_no_labels(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 2, 2), np.uint8))
    assert Arrays(path=str(tmp_path / "x.npz")).load().train.labels is None


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


HUGE = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999999, 999999, 9)}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "npz"),
        (b"text", "npz"),
        (npz(images=np.zeros((4, 2, 2), np.uint8))[:-30], "npz"),
        (npz(pictures=np.zeros(3)), "no array 'images'"),
        (npz(images=np.zeros((4, 2, 2))), "float64"),
        (npz(images=np.zeros((4, 2, 2), np.uint8), labels=np.zeros(3, int)), r"\(3,\)"),
        (npz(images=np.array([{"a": 1}], dtype=object)), "allow_pickle"),
        (zipped("images.npy", b"\x80\x04K\x01."), "no array 'images'"),
        (zipped("images.npy", HUGE.ljust(128) + b"\n"), "npz"),
    ],
    ids=["empty", "text", "cut", "no images", "float", "labels", "objects", "pickle", "huge"],
)
def test_damaged_arrays_are_refused_by_name(tmp_path, data, said):
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as caught:
        Arrays(path=str(path)).load()
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_flipped_byte_in_an_npz_goes_unseen(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images)
    path, changed = tmp_path / "x.npz", 0
    for place in range(len(buffer.getvalue())):
        data = bytearray(buffer.getvalue())
        data[place] ^= 0xFF
        path.write_bytes(data)
        try:
            loaded = Arrays(path=str(path), held_out=0.0).load()
        except DataError:
            continue
        same = sorted(loaded.train.pixels.flatten(1).tolist()) == sorted(images.reshape(6, -1).tolist())
        changed += not same
    assert changed == 0


def test_missing_arrays_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz: No such file"):
        Arrays(path=str(tmp_path / "none.npz")).load()


def test_a_data_set_of_the_hub_is_pinned_and_runs_no_code(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name=None, *, trust_remote_code=True, revision=None):
        asked.append((path, trust_remote_code, revision))
        return {"train": []}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("me/cats", "me/cats@abc"):
        assert load_parts(name) == {"train": []}
    assert asked == [("me/cats", False, None), ("me/cats", False, "abc")]


def test_an_npz_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=np.zeros((1000, 64, 64), np.uint8))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("unmask.runtime.shortage.measure_free_memory", lambda: 4e6)
    monkeypatch.setattr(np, "load", lambda *args, **options: pytest.fail("it was unpacked"))
    with pytest.raises(
        ShortageError, match=r"this needs at least 3\.9 MiB of memory .*, and 3\.8 MiB are free: .*x\.npz"
    ):
        Arrays(path=str(path)).load()
