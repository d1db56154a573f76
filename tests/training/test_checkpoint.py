"""A checkpoint is whole or absent: after kill -9, exits and faults at every step of a save, damage, and a full disk.

Run as a script, this file is the campaign process: it imports torch once and forks the children that are killed.
"""

import builtins
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unmask.errors import CheckpointError, ConfigError, DiskError, NonFiniteError
from unmask.storage.lock import lock
from unmask.training import checkpoint, runfolder
from unmask.training.checkpoint import load_checkpoint, save_checkpoint
from unmask.training.runfolder import find_latest_checkpoint, remove_leftovers, verify_checkpoint

TOKEN = "0123456789abcdef"
SYSCALLS = ["open", "fsync", "rename", "mkdir", "listdir", "stat", "unlink", "rmdir"]


def payload(step: int, rows: int = 7) -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(step)
    return {
        "model.weight": torch.randn(rows, 33, generator=rand),
        "ema.weight": torch.randn(rows, 33, generator=rand).to(torch.bfloat16),
        "optimizer.step": torch.tensor(step),
        "seen": torch.randint(0, 2, (5,), generator=rand).bool(),
    }


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def meta(step: int) -> dict:
    return {"config": {"depth": 4, "lr": 3e-4}, "note": f"after {step}"}


def put(root: Path, step: int, rows: int = 7, token: str = TOKEN, **options: object) -> Path:
    return save_checkpoint(root, step, payload(step, rows), meta(step), token=token, **options)


def is_right(found: runfolder.VerifiedCheckpoint, rows: int = 7) -> bool:
    into = blank(payload(0, rows))
    load_checkpoint(found, into, sharded=False)
    right = payload(found.step, rows)
    return found.meta == meta(found.step) and all(torch.equal(into[name], right[name]) for name in right)


def silent(line: str) -> None:
    raise AssertionError(f"nothing should be damaged: {line}")


class Faults:
    """Count the file-system calls of a block of code, and run `strike` at call number k."""

    def __init__(self, at: int, strike: Callable[[], None], *, forever: bool = False) -> None:
        self.count, self.at, self.strike, self.forever = 0, at, strike, forever

    def wrap(self, function: Callable) -> Callable:
        def counted(*args: object, **kwargs: object) -> object:
            self.count += 1
            if self.count == self.at or (self.forever and self.count > self.at):
                self.strike()
            return function(*args, **kwargs)

        return counted

    def __enter__(self) -> "Faults":
        self.stack = ExitStack()
        for name in SYSCALLS:
            self.stack.enter_context(mock.patch.object(os, name, self.wrap(getattr(os, name))))
        for module in (io, builtins):
            self.stack.enter_context(mock.patch.object(module, "open", self.wrap(module.open)))
        self.stack.enter_context(mock.patch.object(checkpoint, "save_file", self.wrap(checkpoint.save_file)))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()


def fail_with(number: int) -> Callable[[], None]:
    def strike() -> None:
        raise OSError(number, os.strerror(number))

    return strike


def count_calls(root: Path) -> int:
    put(root, 1)
    put(root, 2)
    with Faults(-1, lambda: None) as faults:
        put(root, 3)
    return faults.count


# -- plain behaviour --


def test_round_trip_and_layout(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "checkpoints"
    assert find_latest_checkpoint(root, report=silent) is None
    path = put(root, 500)
    assert path == root / "step-00000500"
    assert sorted(entry.name for entry in path.iterdir()) == ["manifest.json", "state.safetensors"]
    found = find_latest_checkpoint(root, report=silent)
    assert found is not None
    assert found.step == 500
    assert is_right(found)
    assert [entry.name for entry in root.iterdir()] == ["step-00000500"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = put(tmp_path, 1)
    finally:
        os.umask(before)
    assert {entry.stat().st_mode & 0o777 for entry in path.iterdir()} == {0o666 & ~umask}


def test_views_ties_and_odd_shapes_are_kept(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "base": base,
        "tied": base,
        "view": base[1:3],
        "transposed": base.T,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "param": torch.nn.Parameter(torch.ones(2)),
    }
    save_checkpoint(tmp_path, 1, tensors, {}, token=TOKEN)
    into = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    into["param"] = torch.nn.Parameter(torch.zeros(2))
    kept = into["param"]
    load_checkpoint(verify_checkpoint(tmp_path / "step-00000001"), into, sharded=False)
    assert all(torch.equal(into[name], tensors[name]) for name in tensors)
    assert into["param"] is kept


def test_newest_by_step_and_not_by_time(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        put(tmp_path, step, keep=5)
    for age, step in enumerate((10, 9, 2)):
        os.utime(tmp_path / f"step-{step:08d}", (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "step-00000002", (4e9, 4e9))
    found = find_latest_checkpoint(tmp_path, report=silent)
    assert found is not None
    assert found.step == 10


def test_prune_keeps_the_newest_complete_ones(tmp_path: Path) -> None:
    for step in range(1, 7):
        put(tmp_path, step, keep=3)
    assert [path.name[-1] for path in runfolder.list_checkpoints(tmp_path)] == ["6", "5", "4"]
    (tmp_path / "step-00000006" / "state.safetensors").write_bytes(b"rotten")
    put(tmp_path, 7, keep=2)
    # The damaged 6 does not count as one of the two, and is not touched.
    assert [path.name[-1] for path in runfolder.list_checkpoints(tmp_path)] == ["7", "6", "5"]


def test_nothing_is_pruned_before_the_new_one_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    put(tmp_path, 2)
    whole = checkpoint.write_manifest

    def rotting(folder: Path, step: int, meta: dict) -> None:
        whole(folder, step, meta)
        with open(folder / "state.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")

    monkeypatch.setattr(checkpoint, "write_manifest", rotting)
    with pytest.raises(DiskError, match="files read back differ"):
        put(tmp_path, 3)
    assert all(runfolder.is_complete(tmp_path / f"step-0000000{step}") for step in (1, 2))


def test_a_step_is_saved_once_but_a_damaged_one_makes_room(tmp_path: Path) -> None:
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    with pytest.raises(CheckpointError, match="exists already"):
        put(tmp_path, 2)
    (path / "state.safetensors").write_bytes(b"rotten")
    put(tmp_path, 2)
    assert is_right(verify_checkpoint(path))
    assert (tmp_path / f"step-00000002.damaged-{TOKEN}" / "state.safetensors").read_bytes() == b"rotten"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("sharded", [False, True])
def test_non_finite_tensors_are_refused_before_anything_is_written(tmp_path: Path, bad: float, sharded: bool) -> None:
    tensors = payload(1)
    tensors["ema.weight"][3, 4] = bad
    with pytest.raises(NonFiniteError, match=r"ema\.weight"):
        save_checkpoint(tmp_path / "root", 1, tensors, {}, token=TOKEN, sharded=sharded)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("step", "change"),
    [(-1, {}), (1, {"keep": 1}), (1, {"token": "../../x"}), (1, {"token": "short"})],
)
def test_bad_arguments(tmp_path: Path, step: int, change: dict) -> None:
    with pytest.raises(ConfigError):
        put(tmp_path / "root", step, **change)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"x": object()}])
def test_meta_that_could_not_be_read_back_is_refused(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(ConfigError):
        save_checkpoint(tmp_path / "root", 1, payload(1), bad, token=TOKEN)
    assert not (tmp_path / "root").exists()


def test_meta_is_what_json_makes_of_it(tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path, 1, payload(1), {"grid": (8, 8), "by_step": {9: 1, 10: 2}, "best": float("inf")}, token=TOKEN
    )
    found = verify_checkpoint(tmp_path / "step-00000001")
    assert found.meta == {"grid": [8, 8], "by_step": {"9": 1, "10": 2}, "best": float("inf")}


def test_only_main_writes_and_every_rank_meets_the_barrier(tmp_path: Path) -> None:
    met: list[int] = []
    put(tmp_path / "root", 1, is_main=False, barrier=lambda: met.append(1))
    assert met == [1]
    assert not (tmp_path / "root").exists()
    put(tmp_path / "root", 1, barrier=lambda: met.append(0))
    with pytest.raises(CheckpointError):
        put(tmp_path / "root", 1, barrier=lambda: met.append(0))
    assert met == [1, 0, 0]


@pytest.mark.parametrize("sharded", [False, True])
def test_another_model_is_refused_and_nothing_is_copied(tmp_path: Path, sharded: bool) -> None:
    put(tmp_path, 1, sharded=sharded)
    found = verify_checkpoint(tmp_path / "step-00000001")
    into = blank(payload(0))
    into["model.weight"] = torch.zeros(33, 7)
    into["seen"] = torch.zeros(5)
    into["extra"] = into.pop("optimizer.step")
    with pytest.raises(CheckpointError, match=r"extra is missing; optimizer\.step is unexpected") as caught:
        load_checkpoint(found, into, sharded=False)
    assert "and 1 more" in str(caught.value)
    assert all(not tensor.any() for tensor in into.values())
    into = blank(payload(0))
    into["seen"] = torch.zeros(5)
    with pytest.raises(CheckpointError, match=r"seen is \[5\] bool there, \[5\] float32 here"):
        load_checkpoint(found, into, sharded=False)


# -- damage --


def damage(data: bytearray, rand: random.Random) -> None:
    kind, at = rand.choice(["flip", "cut", "zero"]), rand.randrange(len(data))
    if kind == "flip":
        data[at] ^= 1 << rand.randrange(8)
    elif kind == "cut":
        del data[at:]
    else:
        data[at : at + 64] = bytes(len(data[at : at + 64]))


def test_no_damage_goes_unnoticed(tmp_path: Path) -> None:
    put(tmp_path, 1)
    path = put(tmp_path, 2)
    rand = random.Random(0)
    noticed = control = harmless = 0
    for trial in range(400):
        victim = path / ("manifest.json" if trial % 4 == 0 else "state.safetensors")
        before = victim.read_bytes()
        data = bytearray(before)
        damage(data, rand)
        if data == before:
            continue
        victim.write_bytes(data)
        lines: list[str] = []
        found = find_latest_checkpoint(tmp_path, report=lines.append)
        assert found is not None
        assert is_right(found)
        assert found.step == (1 if lines else 2)
        assert all("step-00000002 is damaged" in line for line in lines)
        noticed += bool(lines)
        harmless += not lines
        assert lines or victim.name == "manifest.json"
        control += victim.name != "manifest.json" and silently_different(victim)
        victim.write_bytes(before)
    # Negative control: safetensors alone accepts most of the same damage silently.
    assert noticed > 300
    assert control > 100
    # Only blanks in the manifest may change without harm.
    assert harmless < 40


def silently_different(path: Path) -> bool:
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, RuntimeError, KeyError):
        return False
    right = payload(2)
    return set(tensors) != set(right) or any(not torch.equal(tensors[name], right[name]) for name in right)


def forge(path: Path, **changes: object) -> None:
    """Change a manifest and its hash, as an attacker who knows the format would."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest |= changes
    del manifest["sha256"]
    manifest["sha256"] = runfolder._hash_body(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def swap_manifest(path: Path) -> None:
    shutil.copy(path.parent / "step-00000001" / "manifest.json", path / "manifest.json")


def link_payload(path: Path) -> None:
    (path / "state.safetensors").rename(path.parent / "elsewhere")
    (path / "state.safetensors").symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: (path / "state.safetensors").unlink(), "state.safetensors cannot be read"),
        (lambda path: (path / "manifest.json").unlink(), "cannot read"),
        (lambda path: (path / "manifest.json").write_text("{}"), "not a manifest of ours"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "not valid JSON"),
        (swap_manifest, "step 1"),
        (link_payload, "state.safetensors"),
        (lambda path: forge(path, files={}), "is of"),
        (lambda path: forge(path, format="other-1"), "other-1"),
        (lambda path: forge(path, files={"state.safetensors": 3}), "expected _File"),
        (lambda path: forge(path, files={"../x": {"bytes": 1, "sha256": ""}}), "is no file of a checkpoint"),
        (lambda path: forge(path, files={"dcp/..": {"bytes": 1, "sha256": ""}}), "is no file of a checkpoint"),
    ],
)
def test_foreign_and_incomplete_folders_fall_back_by_name(tmp_path: Path, harm: Callable, reason: str) -> None:
    put(tmp_path, 1)
    harm(put(tmp_path, 2))
    lines: list[str] = []
    found = find_latest_checkpoint(tmp_path, report=lines.append)
    assert found is not None
    assert found.step == 1
    assert len(lines) == 1
    assert reason in lines[0]
    assert (tmp_path / "step-00000002").is_dir()


def test_extra_files_are_not_read(tmp_path: Path) -> None:
    (put(tmp_path, 1) / ".DS_Store").write_text("x")
    (tmp_path / "step-1").mkdir()
    (tmp_path / f"step-00000009.tmp-{TOKEN}").mkdir()
    found = find_latest_checkpoint(tmp_path, report=silent)
    assert found is not None
    assert is_right(found)


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        (put(tmp_path, step) / "state.safetensors").unlink()
    lines: list[str] = []
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        find_latest_checkpoint(tmp_path, report=lines.append)
    assert len(lines) == 2


# -- faults --


@pytest.mark.parametrize("forever", [False, True])
def test_a_fault_at_every_step_of_a_save(tmp_path: Path, forever: bool) -> None:
    calls = count_calls(tmp_path / "count")
    refused = 0
    for at in range(1, calls + 1):
        root = tmp_path / str(at)
        put(root, 1)
        put(root, 2)
        number = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES)[at % 5]
        with Faults(at, fail_with(number), forever=forever):
            result = outcome(lambda root=root: put(root, 3))
        # A call whose failure does no harm, such as listing what to prune, may pass.
        assert result["error"] in (None, "DiskError"), result
        assert "\n" not in result["message"]
        refused += result["error"] is not None
        check_after_fault(root)
    assert calls > 25
    assert refused > calls // 2


def check_after_fault(root: Path) -> None:
    found = find_latest_checkpoint(root, report=silent)
    assert found is not None
    assert found.step in (2, 3)
    assert is_right(found)
    remove_leftovers(root)
    assert not list(root.glob("*.tmp-*"))
    if found.step == 2:
        put(root, 3)
    put(root, 4)
    assert [path.name[-1] for path in runfolder.list_checkpoints(root)][:2] == ["4", "3"]


def test_all_is_on_the_disk_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 keeps the page cache, so the order of calls shows what would survive a power cut."""
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        events.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    put(tmp_path / "root", 1)
    folder = f"root/step-00000001.tmp-{TOKEN}"
    assert events == [
        ".",
        f"{folder}/state.safetensors",
        f"{folder}/manifest.json",
        folder,
        "rename",
        "root",
    ]


# -- the lock and the leftovers --


def test_the_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    with lock(tmp_path / "run"):  # noqa: SIM117
        with (
            pytest.raises(CheckpointError, match=f"in use by another process .pid {os.getpid()}"),
            lock(tmp_path / "run"),
        ):
            pass
    with lock(tmp_path / "run"):
        pass


def test_another_process_is_kept_out_until_it_is_killed(tmp_path: Path) -> None:
    # The owner's child shares its lock, as a data worker does, and lives a moment longer.
    code = (
        "import fcntl, os, sys, time\n"
        "file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(file, fcntl.LOCK_EX); os.write(file, b'%d' % os.getpid())\n"
        "pid = os.fork()\n"
        "if pid: print('held', flush=True)\n"
        "time.sleep(60 if pid else 1.5)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError, match=f"pid {owner.pid}"), lock(tmp_path):
            pass
        owner.kill()
        owner.wait()
        with pytest.raises(CheckpointError), lock(tmp_path, patience=0.0):
            pass
        with lock(tmp_path):
            assert (tmp_path / ".lock").read_text().strip() == str(os.getpid())


def test_clean_removes_leftovers_only(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "none") == []
    put(tmp_path, 1)
    (tmp_path / f"step-00000002.tmp-{TOKEN}" / "dcp").mkdir(parents=True)
    (tmp_path / f"step-00000002.damaged-{TOKEN}").mkdir()
    (tmp_path / "notes.tmp-1").mkdir()
    assert remove_leftovers(tmp_path) == [f"step-00000002.tmp-{TOKEN}"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.tmp-1",
        "step-00000001",
        f"step-00000002.damaged-{TOKEN}",
    ]


# -- shards --


def test_shards_of_one_process(tmp_path: Path) -> None:
    path = put(tmp_path, 1, sharded=True)
    assert sorted(entry.name for entry in (path / "dcp").iterdir()) == [".metadata", "__0_0.distcp"]
    found = find_latest_checkpoint(tmp_path, report=silent)
    assert found is not None
    assert is_right(found)


def test_a_changed_or_foreign_metadata_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = put(tmp_path, 1, sharded=True) / "dcp" / ".metadata"
    found = verify_checkpoint(tmp_path / "step-00000001")
    before = metadata.read_bytes()
    canary = tmp_path / "canary"
    # This pickles os.system("touch canary"). Plain DCP would run it.
    metadata.write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")
    with pytest.raises(CheckpointError, match=r"dcp/\.metadata has"):
        load_checkpoint(found, blank(payload(1)), sharded=False)
    metadata.write_bytes(before)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CheckpointError, match="another user"):
        load_checkpoint(found, blank(payload(1)), sharded=False)
    assert not canary.exists()


def run_rank(rank: int, folder: str) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    root, main = Path(folder), rank == 0
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def shard(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: distribute_tensor(x, mesh, [Shard(0)], src_data_rank=None) if x.ndim == 2 else x
            for name, x in tensors.items()
        }

    def check(found: runfolder.VerifiedCheckpoint) -> None:
        into = shard(blank(payload(0)))
        load_checkpoint(found, into, sharded=True)
        for name, right in payload(found.step).items():
            whole = into[name].full_tensor() if right.ndim == 2 else into[name]
            assert torch.equal(whole, right), name

    group = dist.new_group(backend="gloo")
    options = {"sharded": True, "is_main": main, "barrier": dist.barrier, "token": TOKEN, "group": group}
    with mock.patch.object(dist.checkpoint, "save", wraps=dist.checkpoint.save) as save:
        for step in (1, 2, 3):
            save_checkpoint(root / "sharded", step, shard(payload(step)), meta(step), **options)
    assert [call.kwargs["process_group"] for call in save.call_args_list] == [group] * 3
    check(verify_checkpoint(root / "sharded" / "step-00000003"))
    check(verify_checkpoint(root / "whole" / "step-00000005"))
    # Only one rank holds the bad number, but both raise.
    bad = payload(4)
    bad["model.weight"][6, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        save_checkpoint(root / "sharded", 4, shard(bad), {}, **options)
    # Only the main rank meets the fault, before or after the shards, but both stop.
    for name in ("_prepare", "_commit"):
        with (
            mock.patch.object(checkpoint, name, side_effect=OSError(errno.ENOSPC, "No space left on device")),
            pytest.raises(DiskError, match="No space left" if main else "main process failed"),
        ):
            save_checkpoint(root / "sharded", 4, shard(payload(4)), meta(4), **options)
    with pytest.raises(ConfigError, match="sharded=True"):
        save_checkpoint(root / "sharded", 4, shard(payload(4)), {}, token=TOKEN)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_shard_and_reshard(tmp_path: Path) -> None:
    put(tmp_path / "whole", 5)
    torch.multiprocessing.spawn(run_rank, (str(tmp_path),), nprocs=2)
    found = find_latest_checkpoint(tmp_path / "sharded", report=silent)
    assert found is not None
    assert found.step == 3
    assert is_right(found)
    assert sorted(path.name for path in (tmp_path / "sharded").iterdir()) == ["step-00000002", "step-00000003"]


# -- the campaign, in a separate process --


def test_kill_9_at_random_times(campaign: dict) -> None:
    kills = campaign["kills"]
    assert len(kills) == 20
    assert all(kill["right"] and kill["step"] >= kill["promised"] for kill in kills)
    assert sum(kill["leftover"] for kill in kills) >= 5


def test_exit_at_every_step_of_a_save(campaign: dict) -> None:
    exits = campaign["exits"]
    assert len(exits) > 25
    assert all(entry["right"] and entry["step"] in (2, 3) for entry in exits)
    assert {entry["step"] for entry in exits} == {2, 3}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_disk(campaign: dict, sharded: bool) -> None:
    trials = [trial for trial in campaign["limits"] if trial["sharded"] == sharded]
    assert len(trials) == 12
    for trial in trials:
        assert trial["error"] == "DiskError", trial
        assert "\n" not in trial["message"]
        assert "step-00000001 is kept" in trial["message"]
        assert trial["right"]
        assert trial["step"] == 1
        assert not trial["leftover"]


def test_a_read_only_folder(campaign: dict) -> None:
    if campaign["readonly"] is None:
        pytest.skip("a read-only run folder: only root can become a user who may not write")
    assert campaign["readonly"] == {"save": "DiskError", "lock": "DiskError", "right": True}


@pytest.fixture(scope="module")
def campaign() -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=200)
    return json.loads(done.stdout)


def fork(action: Callable[[int], None]) -> tuple[int, int]:
    """Run `action(pipe)` in a child; return its pid and the reading end of the pipe."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        action(writing)
    finally:
        os._exit(0)


def finish(pid: int, pipe: int) -> bytes:
    data = b""
    while block := os.read(pipe, 65536):
        data += block
    os.close(pipe)
    os.waitpid(pid, 0)
    return data


def look(root: Path, rows: int = 7) -> dict:
    found = find_latest_checkpoint(root, report=silent)
    leftover = bool(list(root.glob("*.tmp-*")))
    return {"step": found.step if found else -1, "right": bool(found and is_right(found, rows)), "leftover": leftover}


def kill_often(root: Path, kills: int, rand: random.Random) -> list[dict]:
    rows, results = 2000, []
    put(root, 1, rows)

    def train(pipe: int) -> None:
        with lock(root):
            remove_leftovers(root)
            found = find_latest_checkpoint(root, report=silent)
            assert found is not None
            for step in range(found.step + 1, found.step + 1000):
                put(root, step, rows)
                os.write(pipe, f"{step} ".encode())

    for _ in range(kills):
        pid, pipe = fork(train)
        time.sleep(rand.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        # Every checkpoint that the child reported must exist.
        said = finish(pid, pipe).split()
        results.append({"promised": int(said[-1]) if said else 1} | look(root, rows))
    return results


def exit_everywhere(folder: Path) -> list[dict]:
    results = []
    for at in range(1, count_calls(folder / "count") + 1):
        root = folder / str(at)
        put(root, 1)
        put(root, 2)

        def die(pipe: int, at: int = at, root: Path = root) -> None:
            with Faults(at, lambda: os._exit(9)):
                put(root, 3)

        finish(*fork(die))
        results.append(look(root))
        check_after_fault(root)
    return results


def fill_disk(folder: Path) -> list[dict]:
    rows, results = 3000, []
    for sharded in (False, True):
        root = folder / str(sharded)
        put(root, 1, rows)
        size = max(path.stat().st_size for path in put(root / "size", 1, rows, sharded=sharded).rglob("*"))
        for trial in range(12):

            def squeeze(
                pipe: int, limit: int = trial * (size - 1) // 11, root: Path = root, how: bool = sharded
            ) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                os.write(pipe, json.dumps(outcome(lambda: put(root, 2, rows, sharded=how))).encode())

            results.append(json.loads(finish(*fork(squeeze))) | {"sharded": sharded} | look(root, rows))
    return results


def outcome(action: Callable[[], object]) -> dict:
    try:
        action()
    except (Exception, checkpoint.CheckpointError) as error:  # noqa: BLE001
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": None, "message": ""}


def read_only(root: Path) -> dict | None:
    if os.geteuid() != 0:
        return None
    put(root, 1)

    def enter(run: Path) -> None:
        with lock(run):
            pass

    def nobody(pipe: int) -> None:
        os.seteuid(65534)
        report = {"save": outcome(lambda: put(root, 2))["error"], "lock": outcome(lambda: enter(root))["error"]}
        os.write(pipe, json.dumps(report | {"right": look(root)["right"]}).encode())

    return json.loads(finish(*fork(nobody)))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        results = {
            "kills": kill_often(folder / "kills", 20, random.Random(0)),
            "exits": exit_everywhere(folder / "exits"),
            "limits": fill_disk(folder / "limits"),
            "readonly": read_only(folder / "readonly"),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
