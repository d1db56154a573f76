"""Pictures to codes: the same bytes whatever was killed, refused or shared out on the way.

Run as a script, this file is a command of its own: it imports torch once and forks the children that are killed.
"""

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.data.identity import hash_encoded, join_keys
from unmask.data.image_files import Unreadable
from unmask.data.images import Images
from unmask.data.pictures import Pictures
from unmask.data.shards import dataset as codes
from unmask.data.shards import workers
from unmask.data.shards.dataset import META, finish_dataset, open_token_dataset
from unmask.data.shards.tokenizing import (
    CENTER,
    FLIP,
    ShardPlan,
    View,
    claim_folder,
    collect_meta,
    cut_view,
    read_finished,
    tokenize_shards,
)
from unmask.data.shards.workers import tokenize_parallel
from unmask.errors import CheckpointError, ConfigError, DataError, DiskError, ShortageError, UnmaskError
from unmask.storage.config import from_json, to_json

CROPS = (CENTER, FLIP, View(name="crop-0", random=True), View(name="crop-1", random=True, flip=True))
PLAN = ShardPlan(
    tokenizer="0123456789abcdef" * 4,
    vocab_size=256,
    grid=(2, 3),
    size=(4, 6),
    shape=(1, 7, 8),
    classes=("a", "b", "c"),
    source='{"data": "fake"}',
    train=23,
    test=5,
    views=CROPS,
    shard_size=6,
)
LOST = (1, 7, 12, 13, 14, 15, 16, 17, 22)  # all of shard 2, which is 12..17


@dataclass(frozen=True, kw_only=True)
class Fake:
    """Picture i is noise of its own; some cannot be read."""

    num: int = PLAN.train
    lost: tuple[int, ...] = ()
    shape: tuple[int, int, int] = PLAN.shape
    classes: tuple[str, ...] = PLAN.classes

    @property
    def labels(self):
        return torch.arange(self.num) % 3 if self.classes else None

    def __len__(self):
        return self.num

    def read(self, index):
        pixels = [torch.randint(256, self.shape, generator=torch.Generator().manual_seed(i)) for i in index.tolist()]
        return torch.stack([torch.empty(self.shape), *pixels])[1:].byte()

    def try_read(self, index):
        good = torch.tensor([place for place, i in enumerate(index.tolist()) if i not in self.lost], dtype=torch.int64)
        bad = [Unreadable(f"{i}.png", "lost\udcff") for i in index.tolist() if i in self.lost]
        return self.read(index[good]), good, bad

    def read_float(self, index):
        raise NotImplementedError

    def take(self, index):
        raise NotImplementedError

    def compute_keys(self):
        return join_keys([hash_encoded(f"{i}".encode()) for i in range(self.num)])

    def compute_whole_keys(self):
        raise NotImplementedError


@dataclass(frozen=True)
class Every2nd:
    """Builds the tokenizer whose codes are the first channel's pixels at even places; it can be slow, or fail."""

    seconds: float = 0.0
    error: Exception | None = None
    pids: Path | None = None

    def __call__(self):
        if self.pids is not None:
            (self.pids / str(os.getpid())).touch()

        def encode(images):
            time.sleep(self.seconds)
            if self.error is not None:
                raise self.error
            return ((images + 1) * 127.5).round().long()[:, 0, ::2, ::2].flatten(1)

        return encode


@dataclass(frozen=True)
class Dies:
    """A tokenizer that ends its process as a lack of memory does."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


TRAIN, TEST = Fake(lost=LOST), Fake(num=PLAN.test)


def write(out, plan=PLAN, encoder: Callable = Every2nd(), processes=1, batch=4):
    """Both parts, as the command does it; returns what could not be read."""
    with claim_folder(out, plan):
        bad = tokenize_parallel(TRAIN, encoder, out, "train", plan, batch=batch, processes=processes)
        bad += tokenize_parallel(TEST, encoder, out, "test", plan, batch=batch, processes=processes)
        finish_dataset(out, collect_meta(out, plan))
    return bad


def contents(out):
    """All files but the lock."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder that was written in one go."""
    out = tmp_path_factory.mktemp("whole")
    write(out)
    return out


# -- what the codes are ------------------------------------------------------------------------------------------------


def test_codes_are_those_of_each_view_of_each_good_picture(whole):
    assert isinstance(TRAIN, Pictures)
    meta, train, test = open_token_dataset(whole)
    assert meta.views == ("center", "flip", "crop-0", "crop-1")
    assert [shard.rows for shard in meta.train] == [5, 5, 0, 4]
    good = torch.tensor([i for i in range(PLAN.train) if i not in LOST])
    assert len(train) == len(good)
    assert len(test) == PLAN.test
    for number, view in enumerate(PLAN.views):
        u = torch.full((len(good),), (number + 0.5) / 4)
        found, labels = train.read_rows(torch.arange(len(good)), torch.device("cpu"), u)
        assert torch.equal(found, Every2nd()()(cut_view(TRAIN.read(good), good, view, PLAN)))
        assert torch.equal(labels, TRAIN.labels[good])


def test_the_fixed_views_are_the_centre_and_its_mirror_image():
    pixels, index = TRAIN.read(torch.arange(3)), torch.arange(3)
    middle = pixels[:, :, 1:5, 1:7].float() / 127.5 - 1
    assert torch.equal(cut_view(pixels, index, CENTER, PLAN), middle)
    assert torch.equal(cut_view(pixels, index, FLIP, PLAN), middle.flip(3))


@pytest.mark.parametrize("view", CROPS[2:])
def test_a_random_view_depends_on_the_picture_the_view_and_the_seed_alone(view):
    """Pixels are numbered, so that each window tells its place; all 4 x 3 places come, about equally often."""
    num = 2400
    pixels = torch.arange(56, dtype=torch.uint8).reshape(1, 1, 7, 8).repeat(num, 1, 1, 1)

    def places(plan, index):
        windows = ((cut_view(pixels[index], index, view, plan) + 1) * 127.5).round().long()[:, 0]
        windows = windows.flip(2) if view.flip else windows
        first = windows[:, 0, 0]
        expected = torch.arange(4)[:, None] * 8 + torch.arange(6)
        assert torch.equal(windows, first[:, None, None] + expected)
        return first

    whole = places(PLAN, torch.arange(num))
    assert torch.equal(torch.cat([places(PLAN, part) for part in torch.arange(num).split(7)]), whole)
    assert torch.equal(places(PLAN, torch.arange(num).flip(0)), whole.flip(0))
    assert not torch.equal(places(replace(PLAN, seed=1), torch.arange(num)), whole)
    assert not torch.equal(
        ((cut_view(pixels, torch.arange(num), View(name="crop-9", random=True), PLAN) + 1) * 127.5).round()[:, 0, 0, 0],
        whole.double(),
    )
    counts = whole.bincount(minlength=27).reshape(-1)[[8 * y + x for y in range(4) for x in range(3)]].double()
    assert int(counts.sum()) == num
    assert float(((counts - num / 12) ** 2 / (num / 12)).sum()) < 31.3  # chi-squared, 11 degrees, 99.9 %


def test_pictures_in_memory_without_labels(tmp_path):
    images = Images(pixels=TEST.read(torch.arange(5)), labels=None)
    plan = replace(PLAN, classes=(), train=5, test=0)
    with claim_folder(tmp_path, plan):
        assert tokenize_shards(images, Every2nd()(), tmp_path, "train", plan) == []
        assert tokenize_shards(images.take(torch.arange(0)), Every2nd()(), tmp_path, "test", plan) == []
        finish_dataset(tmp_path, collect_meta(tmp_path, plan))
    meta, train, test = open_token_dataset(tmp_path)
    assert test is None
    assert meta.classes == ()
    tokens, labels = train.read_rows(torch.arange(5), torch.device("cpu"))
    assert labels is None
    assert torch.equal(tokens, Every2nd()()(cut_view(images.pixels, torch.arange(5), CENTER, plan)))


# -- the same bytes, whoever does it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_share_the_shards(whole, tmp_path, size):
    found = {}
    with claim_folder(tmp_path, PLAN):
        for rank in reversed(range(size)):
            bad = tokenize_shards(TRAIN, Every2nd()(), tmp_path, "train", PLAN, batch=4, rank=rank, size=size)
            found |= {one.path: rank for one in bad}
            tokenize_shards(TEST, Every2nd()(), tmp_path, "test", PLAN, batch=4, rank=rank, size=size)
        finish_dataset(tmp_path, collect_meta(tmp_path, PLAN))
    assert found == {f"{i}.png": i // 6 % size for i in LOST}
    assert contents(tmp_path) == contents(whole)


def test_processes_share_the_shards(whole, tmp_path):
    told = []
    with claim_folder(tmp_path, PLAN):
        bad = tokenize_parallel(
            TRAIN,
            Every2nd(),
            tmp_path,
            "train",
            PLAN,
            batch=4,
            processes=2,
            progress=lambda *message: told.append(message),
        )
        tokenize_shards(TEST, Every2nd()(), tmp_path, "test", PLAN, batch=4)
        finish_dataset(tmp_path, collect_meta(tmp_path, PLAN))
    assert [one.path for one in bad] == [f"{i}.png" for i in LOST]
    assert contents(tmp_path) == contents(whole)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert {name for name, _, _ in told} == {f"train-0000{i}" for i in range(4)}
    assert told[-1][1:] == (PLAN.train, PLAN.train)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DiskError("the disk is full"), DiskError, "the disk is full"),
        (
            RuntimeError("no such kernel\ndetails"),
            UnmaskError,
            "a tokenizing process failed: RuntimeError: no such kernel",
        ),
        (
            RuntimeError("out of memory\ndetails"),
            ShortageError,
            "a tokenizing process: not enough memory: lower --batch or --processes",
        ),
    ],
)
def test_the_error_of_a_worker_is_told_in_one_line(tmp_path, monkeypatch, error, kind, message):
    """A worker's life, in this process."""
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    monkeypatch.setattr(workers, "_end_with_parent", lambda: None)
    mine, theirs = multiprocessing.Pipe(duplex=False)
    with mine, theirs, claim_folder(tmp_path, PLAN):
        workers._work(theirs, 1, TRAIN, Every2nd(error=error), tmp_path, "train", PLAN, 4, 0, 1)
        told = mine.recv()
    assert type(told) is kind
    assert str(told) == message


def test_a_worker_that_dies_ends_the_work(tmp_path, capfd):
    with (
        claim_folder(tmp_path, PLAN),
        pytest.raises(UnmaskError, match=r"ended without a message \(exit code -9; out of memory"),
    ):
        tokenize_parallel(TRAIN, Dies(), tmp_path, "train", PLAN, processes=2)
    assert capfd.readouterr().err == ""


def test_progress_counts_pictures_and_what_is_done_is_counted_at_once(tmp_path):
    told = []
    with claim_folder(tmp_path, PLAN):
        for _ in range(2):
            tokenize_shards(
                TRAIN, Every2nd()(), tmp_path, "train", PLAN, batch=4, progress=lambda *message: told.append(message)
            )
    names = [f"train-0000{i}" for i in range(4)]
    first = [(names[done // 6.5 > 0 and int((done - 1) // 6)], done, 23) for done in (4, 6, 10, 12, 16, 18, 22, 23)]
    again = [(name, done, 23) for name, done in zip(names, (6, 12, 18, 23), strict=True)]
    assert told == first + again


# -- after any end it goes on ------------------------------------------------------------------------------------------


def untouchable(_):
    raise AssertionError("this picture was tokenized before")


def test_what_is_done_is_not_done_again(whole, tmp_path):
    bad = write(tmp_path)
    before = contents(tmp_path)
    with claim_folder(tmp_path, PLAN):
        assert tokenize_shards(TRAIN, untouchable, tmp_path, "train", PLAN) == bad
    assert contents(tmp_path) == before == contents(whole)


@pytest.mark.parametrize("file", ["train-00001.tokens.npy", "train-00001.labels.npy", "train-00001.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "another"])
def test_a_damaged_shard_is_mended(whole, tmp_path, file, damage):
    write(tmp_path)
    path = tmp_path / file
    body = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(body[:-3])
    elif damage == "flipped":
        path.write_bytes(body[:-4] + bytes([body[-4] ^ 1]) + body[-3:])
    else:
        path.write_bytes((tmp_path / file.replace("00001", "00000")).read_bytes())
    write(tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_a_part_that_is_not_done_cannot_be_finished(tmp_path):
    with claim_folder(tmp_path, PLAN):
        tokenize_shards(TRAIN, Every2nd()(), tmp_path, "train", PLAN, rank=0, size=3)
        with pytest.raises(DataError, match=r"2 of 4 shards are to do, the first is train-00001; run the same command"):
            collect_meta(tmp_path, PLAN)
    with pytest.raises(DataError, match="not finished"):
        open_token_dataset(tmp_path)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(whole, tmp_path):
    """One child for each fsync of the run, killed there; and one for each file that a full disk refuses."""
    done = subprocess.run([sys.executable, __file__, "kills", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kills, refusals = json.loads((tmp_path / "result.json").read_text())
    assert kills >= 30
    assert refusals >= 3
    for folder in (tmp_path / name for name in ("killed-once", "killed-often", "full")):
        assert contents(folder) == contents(whole)


def test_killed_with_its_workers_it_goes_on_to_the_same_bytes(whole, tmp_path):
    out, pids = tmp_path / "out", tmp_path / "pids"
    pids.mkdir()
    child = subprocess.Popen([sys.executable, __file__, "slow", out, pids], stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(out.glob("train-*.json"))) >= 1 and len(list(pids.iterdir())) == 2)
    child.kill()
    child.wait()
    assert not (out / META).exists()
    started = [int(path.name) for path in pids.iterdir()]
    assert len(started) == 2
    wait_until(lambda: not any(alive(pid) for pid in started))
    write(out, processes=1)
    assert contents(out) == contents(whole)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat")
        if stat.parent.parent.joinpath("self").exists():
            return stat.read_text().rpartition(")")[2].split()[0] != "Z"
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def test_two_commands_cannot_write_at_once(tmp_path):
    with claim_folder(tmp_path, PLAN), pytest.raises(CheckpointError, match="in use"), claim_folder(tmp_path, PLAN):
        pass


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (".train-00000.tokens.npy.tmp-0123456789abcdef", ".mine.tmp-x", "notes.txt"):
        (tmp_path / name).touch()
    with claim_folder(tmp_path, PLAN):
        assert sorted(contents(tmp_path)) == [".mine.tmp-x", "notes.txt", "plan.json"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "f" * 64}, 'tokenizer "0123.* there, "ffff'),
        ({"views": (CENTER,)}, "of each image center, .* there, center here"),
        ({"shard_size": 7}, "shard_size 6 there, 7 here"),
        ({"source": "{}"}, "source"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"train": 24}, "train 23 there, 24 here"),
        ({"vocab_size": 512}, "vocab_size"),
    ],
)
def test_a_folder_of_other_codes_is_refused(whole, change, message):
    before = contents(whole)
    other = replace(PLAN, **change)
    with (
        pytest.raises(DataError, match=f"holds other tokens .{message}.*give another --out"),
        claim_folder(whole, other),
    ):
        pass
    with pytest.raises(DataError, match="holds other tokens"):
        tokenize_shards(TRAIN, untouchable, whole, "train", other)
    assert contents(whole) == before


def test_a_folder_that_is_not_ours_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"holds arrays but no plan\.json"), claim_folder(tmp_path, PLAN):
        pass
    with pytest.raises(DataError, match="cannot be continued"):
        tokenize_shards(TRAIN, untouchable, tmp_path, "train", PLAN)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (Fake(num=24), r"\(24, 1, 7, 8\)"),
        (Fake(shape=(1, 7, 9)), r"\(23, 1, 7, 9\)"),
        (Fake(classes=("a", "b")), "2 classes, the plan has 3"),
    ],
)
def test_pictures_of_another_plan_are_refused(tmp_path, pictures, message):
    with claim_folder(tmp_path, PLAN), pytest.raises(ConfigError, match=message):
        tokenize_shards(pictures, untouchable, tmp_path, "train", PLAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, 4, 6)}, "the view crop-0 would equal the centre, since the stored images are 4x6"),
        ({"shape": (1, 3, 8)}, "takes 4x6 but the pictures are 3x8: store them larger"),
        ({"size": (0, 6)}, "0x6"),
        ({"views": ()}, "center first"),
        ({"views": (FLIP, CENTER)}, "center first"),
        ({"views": (CENTER, FLIP, FLIP)}, "each once"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"train": 0}, "0 images to train on"),
        ({"test": -1}, "-1 to test on"),
    ],
)
def test_impossible_plans_are_refused(change, message):
    assert from_json(ShardPlan, to_json(PLAN)) == PLAN
    replace(PLAN, shape=(1, 4, 6), views=(CENTER, FLIP))
    with pytest.raises(ConfigError, match=message):
        replace(PLAN, **change)


def test_a_view_has_a_plain_name():
    with pytest.raises(ConfigError, match="'a b'"):
        View(name="a b")


@pytest.mark.parametrize("wrong", [-1, 256])
def test_codes_that_the_plan_does_not_announce_are_refused(tmp_path, wrong):
    with claim_folder(tmp_path, PLAN):
        with pytest.raises(ValueError, match=f"6 tokens from {min(wrong, 0)} to {max(wrong, 0)} per image"):
            tokenize_shards(
                TRAIN, lambda x: torch.tensor([0] * 5 + [wrong]).repeat(len(x), 1), tmp_path, "train", PLAN, batch=4
            )
        with pytest.raises(ValueError, match="5 tokens"):
            tokenize_shards(TRAIN, lambda x: torch.zeros(len(x), 5).long(), tmp_path, "train", PLAN, batch=4)
        for wrong_call in ({"rank": 1}, {"rank": -1}, {"batch": 0}):
            with pytest.raises(ValueError, match=r"rank must be below size|batch 0: must be at least 1"):
                tokenize_shards(TRAIN, untouchable, tmp_path, "train", PLAN, **wrong_call)
    assert not read_finished(tmp_path, "test", replace(PLAN, test=0))


# -- the script --------------------------------------------------------------------------------------------------------


def fork(action: Callable[[], None]) -> int:
    """Run `action` in a child; its exit code, negative if it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number: int, out: Path) -> int:
    """Run in a child that kills itself at its n-th fsync, and does no other: the machine stays up. Its exit code."""
    left = [number]

    def fsync(descriptor) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def action() -> None:
        os.fsync = fsync
        write(out)

    return fork(action)


def refused_at(number: int, out: Path) -> bool:
    """Run in a child whose disk is full from its n-th rename on: whether it ends with a DiskError that names `out`."""
    real, left = os.replace, [number]

    def full(source, target) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    def action() -> None:
        codes.os.replace = full
        try:
            write(out)
        except DiskError as error:
            os._exit(42 if str(out) in str(error) else 43)

    return fork(action) == 42


def small_disk(out: Path) -> None:
    """As `refused_at`, by a limit of the kernel on the size of files."""

    def action() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        try:
            write(out)
        except DiskError as error:
            os._exit(42 if str(out) in str(error) else 43)

    assert fork(action) == 42


def kills(folder: Path) -> None:
    """Kill at every fsync there is: in a folder of its own each time, and in one folder over and over."""
    number = 1
    while True:
        out = folder / f"killed-{number}"
        if killed_at(number, out) == 0:
            break
        assert killed_at(10**6, out) == 0
        assert contents(out) == contents(folder / "killed-1")
        number += 1
    (folder / "killed-1").rename(folder / "killed-once")
    often = folder / "killed-often"
    while killed_at(7, often):
        pass
    (folder / "full").mkdir()
    small_disk(folder / "full")
    refusals = 1
    while refused_at(4, folder / "full"):
        refusals += 1
    result = [number - 1, refusals]
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "kills":
        kills(Path(sys.argv[2]))
    else:
        write(Path(sys.argv[2]), encoder=Every2nd(0.15, pids=Path(sys.argv[3])), processes=2)
