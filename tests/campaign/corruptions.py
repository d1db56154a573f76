"""One change to one file that is read back: refused, healed with a word, harmless; or another result without a word."""

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from children import Ending, mask_numbers, run_commands
from digests import digest_folder, list_differences
from tallies import Campaign, Result, lose, survive
from works import COMMANDS, Work

SAID = re.compile(
    r"damag|left out|skip|differ|restor|again|chang|replac|not match|missing|cannot|ignor|instead|bad |unreadable"
    r"|repair|removed|lost|gone|no such|not sound|anew|stale|left in place|does not", re.IGNORECASE)  # fmt: skip
"""What a line says that is a word on a damaged file."""
KINDS = ("flip", "flip", "zeros", "cut", "longer", "empty", "missing", "swap", "digit")


@dataclass(frozen=True)
class Reader:
    """Commands that read a kind of file back, and what their result is."""

    name: str
    about: str
    needs: tuple[str, ...]
    """What is copied into the folder of the attempt."""
    targets: tuple[str, ...]
    """Patterns of the files to damage."""
    commands: tuple[str, ...]
    result: tuple[str, ...]
    """Files and folders that hold the result."""
    takes_text: bool = False
    """Whether what it prints is the result."""


READERS = [
    Reader("run", "weights and settings of a run, by sample", ("runs/pixels",),
           ("runs/pixels/model.safetensors", "runs/pixels/*.json"), ("sample",), ("s.png",)),
    Reader("coded", "a run with a learned tokenizer, by sample", ("runs/coded",),
           ("runs/coded/*.safetensors", "runs/coded/*.json"), ("sample-coded",), ("s.png",)),
    Reader("export", "an export, by sample", ("exported",), ("exported/*",), ("sample-export",), ("s.png",)),
    Reader("hub", "an export with a tokenizer, as it lies on the hub, by sample", ("exported-coded",),
           ("exported-coded/*",), ("sample-export-coded",), ("s.png",)),
    Reader("published", "a converted published model in the cache, by sample", ("cache/models/toy-32",),
           ("cache/models/toy-32/*",), ("sample-published",), ("s.png",)),
    Reader("text", "a run of text, by generate", ("runs/text",),
           ("runs/text/*.safetensors", "runs/text/*.json"), ("generate",), (), True),
    Reader("checkpoint", "checkpoints, by resuming", ("photos", "stopped/pixels>runs/pixels"),
           ("runs/pixels/checkpoints/**/*",), ("train",), ("runs/pixels/",)),
    Reader("resume", "the other files of a stopped run, by resuming", ("photos", "stopped/pixels>runs/pixels"),
           ("runs/pixels/*.json*",), ("train",), ("runs/pixels/",)),
    Reader("resume-tokenizer", "a stopped run of a tokenizer, by resuming", ("photos", "stopped/tok>runs/tok"),
           ("runs/tok/*.json*", "runs/tok/*.safetensors", "runs/tok/checkpoints/**/*"), ("train-tokenizer",),
           ("runs/tok/",)),
    Reader("resume-text", "a stopped run of text, by resuming", ("corpus.txt", "stopped/text>runs/text"),
           ("runs/text/*.json*", "runs/text/tokens/*"), ("train-text",), ("runs/text/",)),
    Reader("tokens", "text tokens given by path, by training", ("tokens",), ("tokens/*",), ("train-tokens",),
           ("runs/text/model.safetensors", "runs/text/metrics.jsonl")),
    Reader("codes", "token shards, by training", ("photos", "codes"), ("codes/**/*",), ("train-codes",),
           ("runs/coded/model.safetensors", "runs/coded/metrics.jsonl", "runs/coded/tokenizer.safetensors")),
    Reader("codes-resume", "token shards under a stopped run, by resuming",
           ("photos", "codes", "stopped/coded>runs/coded"), ("codes/**/*", "runs/coded/tokenizer.safetensors"),
           ("train-codes",), ("runs/coded/model.safetensors", "runs/coded/metrics.jsonl")),
    Reader("codes-again", "token shards, by tokenizing again", ("photos", "runs/tok", "codes"), ("codes/**/*",),
           ("tokenize",), ("codes/",)),
    Reader("tokenizer", "a tokenizer's run, by tokenize", ("photos", "runs/tok"),
           ("runs/tok/model.safetensors", "runs/tok/*.json"), ("tokenize",), ("codes/",)),
    Reader("cached", "cached classifier and reference statistics, by evaluate", ("photos", "evaluated>runs/pixels"),
           ("runs/pixels/classifier*", "runs/pixels/reference*"), ("evaluate",), ("runs/pixels/report.json",)),
    Reader("evaluate", "the files of a finished run, by evaluate", ("photos", "evaluated>runs/pixels"),
           ("runs/pixels/*.json*", "runs/pixels/model.safetensors"), ("evaluate",), ("runs/pixels/report.json",)),
    Reader("sweep", "the table of a sweep, by sweeping again", ("photos", "evaluated>runs/pixels"),
           ("runs/pixels/sweep/sweep.csv",), ("sweep",), ("runs/pixels/sweep/",)),
    Reader("photos", "the pictures under a stopped run, by resuming", ("photos", "stopped/pixels>runs/pixels"),
           ("photos/*/*.png",), ("train",), ("runs/pixels/model.safetensors", "runs/pixels/metrics.jsonl")),
]  # fmt: skip
SHARES = {"checkpoint": 400, "run": 500, "export": 400, "photos": 100, "sweep": 100, "evaluate": 150, "cached": 150}
"""Attempts in full; 225 of each other reader."""


def corrupt(reader: Reader):
    """Damage one file of an attempt's copy, and compare what the commands then leave with what they leave untouched."""

    def attack(work: Work, count: int, seed: int) -> Iterator[Result]:
        wanted, whole = _read_untouched(work, reader)
        for turn in range(count):
            folder = work.lay_out(reader.needs)
            dice = random.Random(f"{seed}-{reader.name}-{turn}")
            what = damage(folder, reader.targets, dice)
            if what:
                ending = run_commands([COMMANDS[name] for name in reader.commands], folder, timeout=60.0)
                found = _take_result(reader, folder, ending)
                yield judge(reader, ending, whole, list_differences(found, wanted), f"{what} (turn {turn})")
            work.remove(folder)

    return attack


def _read_untouched(work: Work, reader: Reader) -> tuple[dict[str, str], Ending]:
    """Return the result without any damage, and how the commands ended; twice, and both must agree."""
    results = []
    for _ in range(2):
        folder = work.lay_out(reader.needs)
        ending = run_commands([COMMANDS[name] for name in reader.commands], folder)
        if ending.code:
            raise RuntimeError(f"{reader.commands} fail untouched: {ending.text[-1500:]}")
        results.append(_take_result(reader, folder, ending))
        work.remove(folder)
    if results[0] != results[1]:
        raise RuntimeError(f"{reader.name} differs from itself: {list_differences(results[0], results[1])}")
    return results[1], ending


def _take_result(reader: Reader, folder: Path, ending: Ending) -> dict[str, str]:
    found = digest_folder(folder, reader.result) if reader.result else {}
    if reader.takes_text:
        found["what it prints"] = ending.text.removesuffix(ending.errors)
    return found


def judge(reader: Reader, ending: Ending, whole: Ending, other: str, what: str) -> Result:
    """Say what became of a damaged file."""
    lines = mask_numbers(ending.text) - mask_numbers(whole.text)
    said = any(SAID.search(line) for line in lines if reader.takes_text is False or line in mask_numbers(ending.errors))
    if ending.is_crash:
        return lose("crash", f"{what}: code {ending.code}: {ending.last_line}")
    if ending.code:
        return survive("refused")
    if not other:
        return survive("healed and said" if said else "same result")
    if said:
        return survive("said")
    return Result("silent", "another result without a word", f"{what}: {other}")


def damage(folder: Path, targets: tuple[str, ...], dice: random.Random) -> str:
    """Change one file; return what was done, or "" if there was nothing to do."""
    files = sorted({path for pattern in targets for path in folder.glob(pattern) if path.is_file()})
    files = [path for path in files if path.name != ".lock"]
    if not files:
        return ""
    path, kind = dice.choice(files), dice.choice(KINDS)
    data = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    if kind == "missing" or not data:
        path.unlink()
        return f"{name} missing"
    if kind == "swap":
        return _swap(path, files, name, dice)
    changed, where = change_bytes(data, kind, dice)
    if changed == data:
        return ""
    path.write_bytes(changed)
    return f"{name}: {where}"


def _swap(path: Path, files: list[Path], name: str, dice: random.Random) -> str:
    others = [f for f in files if f.suffix == path.suffix and f.read_bytes() != path.read_bytes()]
    if not others:
        path.unlink()
        return f"{name} missing"
    other = dice.choice(others)
    held = path.with_name(path.name + ".held")
    shutil.move(path, held)
    shutil.move(other, path)
    shutil.move(held, other)
    return f"{name} swapped with {other.name}"


def change_bytes(data: bytes, kind: str, dice: random.Random) -> tuple[bytes, str]:
    """Return the bytes with one change, and the change in words."""
    at = dice.randrange(len(data))
    if kind == "digit":
        digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
        if digits:
            at = dice.choice(digits)
            return data[:at] + bytes([48 + (data[at] - 47) % 10]) + data[at + 1 :], f"digit at {at} raised"
        kind = "flip"
    if kind == "zeros":
        start = at // 4096 * 4096
        end = min(len(data), start + 4096)
        return data[:start] + bytes(end - start) + data[end:], f"zeros from {start} to {end}"
    if kind == "cut":
        return data[:at], f"cut at {at}"
    if kind == "longer":
        return data + dice.randbytes(1 + dice.randrange(64)), "longer"
    if kind == "empty":
        return b"", "empty"
    bit = dice.randrange(8)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :], f"bit {bit} of byte {at} turned"


CAMPAIGNS = [
    Campaign(f"corrupt-{reader.name}", reader.about, SHARES.get(reader.name, 225), corrupt(reader), 3)
    for reader in READERS
]
