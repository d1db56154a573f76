"""Hostile weight files run nothing, hang nothing, fill nothing, and are refused in one line each."""

import io
import os
import pickle
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import hostile_files as made
import hostile_pickles as pickles
import pytest
import torch

from unmask.errors import CheckpointError
from unmask.pretrained.conversion import convert_tensors
from unmask.storage.foreign import reader as foreign
from unmask.storage.foreign.reader import open_foreign

PACKAGE = Path(foreign.__file__).parent
SECONDS = 10.0
GROWTH = 256 << 20
"""Bytes by which no file may make this process larger."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Campaign:
    """Opens files in a folder, and keeps count."""

    def __init__(self, folder: Path):
        self.folder, self.canary = folder, folder / "canary"
        self.refused, self.opened, self.slowest, self.before = 0, 0, 0.0, resident()

    def open(self, data: bytes | Path) -> dict[str, torch.Tensor] | str:
        """Return the content of a file, or the error line."""
        path = data if isinstance(data, Path) else self.folder / f"{self.refused + self.opened}.weights"
        if isinstance(data, bytes):
            path.write_bytes(data)
        start = time.monotonic()
        try:
            found = open_foreign(path)
            self.opened += 1
            return found
        except CheckpointError as error:
            line = str(error)
            self.refused += 1
            assert line.startswith(str(path).replace("\n", "\\n").replace("\0", "\\x00")), line
            assert line.isprintable(), line
            assert len(line) < 1500, line
            return line
        finally:
            spent = time.monotonic() - start
            self.slowest = max(self.slowest, spent)
            assert spent < SECONDS
            assert not self.canary.exists(), path
            assert resident() - self.before < GROWTH, path
            if isinstance(data, bytes):
                path.unlink()

    def refuse(self, name: str, data: bytes | Path) -> str:
        line = self.open(data)
        assert isinstance(line, str), f"{name} was opened"
        return line

    def told(self, what: str) -> None:
        print(f"\n{what}: {self.refused} refused, {self.opened} opened, slowest {self.slowest:.2f} s")


@pytest.fixture
def campaign(tmp_path):
    return Campaign(tmp_path)


def unpickle_all(canary: Path, bodies: dict[str, bytes]) -> set[str]:
    """Return the bodies that write the canary if Python unpickles them; a child process does so."""
    code = """
import os, pickle, sys
canary, bodies = pickle.load(sys.stdin.buffer)
for name, body in bodies.items():
    try:
        pickle.loads(body)
    except BaseException:
        pass
    if os.path.exists(canary):
        os.remove(canary)
        print(name)
"""
    given = pickle.dumps((str(canary), {name: pickles.pickled(body) for name, body in bodies.items()}))
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True, cwd=canary.parent)
    return set(done.stdout.decode().splitlines())


def test_negative_control_the_canary_sings_if_a_gadget_is_unpickled(campaign):
    bodies = pickles.gadgets(str(campaign.canary))
    assert unpickle_all(campaign.canary, bodies) == set(bodies)
    assert len(bodies) >= 12


@pytest.mark.parametrize("form", [made.archive, made.legacy])
def test_no_gadget_runs(campaign, form):
    gadgets = pickles.gadgets(str(campaign.canary)) | pickles.tricks(str(campaign.canary))
    for name, body in gadgets.items():
        campaign.refuse(name, form(body))
        campaign.refuse(name, form(pickles.table(model=pickles.table(a=pickles.tensor()), optimizer=body)))
    campaign.told(f"gadgets in {form.__name__}")


def test_a_gadget_is_named(campaign):
    line = campaign.refuse("os.system", made.archive(pickles.gadgets("x")["os.system"]))
    assert "os.system" in line


@pytest.mark.parametrize("form", [made.archive, made.legacy])
def test_bombs_and_lies_within_a_sound_frame(campaign, form):
    assert isinstance(campaign.open(form(pickles.table(a=pickles.tensor()))), dict), "the frame itself is sound"
    for name, body in pickles.descriptions().items():
        data = form(body)
        if name == "truth of 2":
            data = data.replace(pickles.struct.pack("<q", 4) + made.DATA, pickles.struct.pack("<q", 16) + made.DATA)
        campaign.refuse(name, data)
    campaign.told(f"descriptions in {form.__name__}")


def test_archives_that_lie(campaign):
    for name, data in [*made.archives(), *made.old_files()]:
        campaign.refuse(name, data)
    campaign.told("archives")


def test_safetensors_and_flax_that_lie(campaign):
    assert {"a"} == set(campaign.open(made.header(made.entry())))
    assert {"a", "b"} == set(campaign.open(made.flax_file()))
    for name, data in [*made.safetensors_files(), *made.flax_files()]:
        campaign.refuse(name, data)
    campaign.told("safetensors and flax")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "flax"])
def test_no_cut_file_is_opened(campaign, form):
    for part in made.cut(made.sound_files()[form], 30, random.Random(form)):
        campaign.refuse(f"{form} cut to {len(part)}", part)
    campaign.told(f"{form} cut off")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "flax"])
def test_a_turned_bit_crashes_nothing_and_in_an_archive_is_seen(campaign, form):
    sound = made.sound_files()[form]
    right = campaign.open(sound)
    for data in made.flipped(sound, 40, random.Random(form)):
        found = campaign.open(data)
        if form == "zip" and isinstance(found, dict):  # a date, or optimizer state, that nobody reads
            assert found.keys() == right.keys()
            assert all(torch.equal(found[name], right[name]) for name in right)
    campaign.told(f"{form} with a turned bit")


def test_what_is_no_file(campaign, tmp_path):
    sound = tmp_path / "sound"
    sound.write_bytes(made.sound_files()["zip"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to(sound)
    (tmp_path / "new\nline").write_bytes(b"\x80\x02}.......")
    strange = ("pipe", "folder", "lost", "round", "device", "missing", "nul\0", "a/b", "new\nline", "long" * 100)
    for name in strange:
        campaign.refuse(name, tmp_path / name)
    for name in ("/dev/zero", "/dev/stdin", "/dev/null"):
        campaign.refuse(name, Path(name))
    campaign.refuse("empty", b"")
    campaign.refuse("noise", random.Random(0).randbytes(1 << 16))
    campaign.refuse("a page", b"<!DOCTYPE html><html>404</html>")
    assert isinstance(campaign.open(tmp_path / "link"), dict), "a cache may hold links"


def test_there_are_enough_of_them(campaign):
    """And no two are the same file."""
    canary = str(campaign.canary)
    bodies = [*pickles.gadgets(canary).values(), *pickles.tricks(canary).values(), *pickles.descriptions().values()]
    files = [form(body) for form in (made.archive, made.legacy) for body in bodies]
    files += [
        data
        for group in (made.archives, made.old_files, made.safetensors_files, made.flax_files)
        for _, data in group()
    ]
    for form, sound in made.sound_files().items():
        files += made.cut(sound, 30, random.Random(form)) + made.flipped(sound, 40, random.Random(form))
    assert len(set(files)) >= 450


def test_sound_files_of_the_wrong_weights_get_no_further(campaign):
    """NaN, wrong shapes, more, fewer, and another family's: opened, and then refused by the conversion."""
    with torch.device("meta"):
        model = torch.nn.Linear(4, 1, bias=False)

    def end(weights: dict[str, torch.Tensor]) -> str:
        buffer = io.BytesIO()
        torch.save({"model": weights}, buffer)
        found = campaign.open(buffer.getvalue())
        with pytest.raises(CheckpointError) as caught:
            convert_tensors(
                found, lambda name, tensor: {name: tensor}, model, source="x", families={"theirs": ["cls_emb.weight"]}
            )
        return str(caught.value)

    assert end({"weight": torch.tensor([[1.0, float("nan"), 1.0, 1.0]])}) == (
        "x: does not fit: 1 with NaN, or too large for the type, first weight"
    )
    assert "float32 [4, 1] where the model has float32 [1, 4]" in end({"weight": torch.ones(4, 1)})
    assert "1 unknown, first bias" in end({"weight": torch.ones(1, 4), "bias": torch.ones(1)})
    assert "its tensors are those of theirs" in end({"cls_emb.weight": torch.ones(3)})


# -- the child's own walls, tried from inside --

INSIDE = "import os, socket, subprocess, sys; sys.path.append({!r}); from unpacking.job import forbid, set_limits; {}"


def inside(code: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", "-S", "-c", INSIDE.format(str(PACKAGE), code)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=30, check=False)


@pytest.mark.parametrize(
    "action",
    [
        "os.system('echo > canary')",
        "subprocess.run(['touch', 'canary'])",
        "os.posix_spawn('/bin/touch', ['touch', 'canary'], {})",
        "os.execv('/bin/touch', ['touch', 'canary'])",
        "open('canary', 'w')",
        "os.mkdir('canary')",
        "exec('1')",
        "compile('1', 'x', 'eval')",
        "import ftplib",
        "socket.socket().connect(('127.0.0.1', 9))",
        "__import__('ctypes')",
    ],
)
def test_the_childs_hook_ends_it_before_anything_happens(tmp_path, action):
    done = inside(f"sys.addaudithook(forbid); {action}; print('done')", tmp_path)
    assert (done.returncode, done.stdout) == (97, ""), done
    assert done.stderr.startswith("attempted ")
    assert not (tmp_path / "canary").exists()


def test_the_childs_memory_and_output_are_bounded(tmp_path):
    assert "MemoryError" in inside("set_limits(100); bytes(2 << 30)", tmp_path).stderr
    done = inside("set_limits(100); f = open('x', 'wb'); [f.write(bytes(1 << 20)) for _ in range(100)]", tmp_path)
    assert "File too large" in done.stderr
    assert (tmp_path / "x").stat().st_size <= 65 << 20
