"""Hostile files: weights that would run a program, and settings that would fill the memory or the time."""

import json
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import hostile_files as made
import hostile_pickles as pickles
from children import GIB, run_command, run_items
from corruptions import change_bytes
from tallies import Campaign, Result, lose, survive
from works import Work

from unmask.errors import CheckpointError
from unmask.storage.foreign.reader import open_foreign

CANARY = "canary"
SECONDS = 20
VALUES: list[Any] = [
    0, -1, 1, 2**31, 2**63, 2**64, 10**9, 10**18, 10**400, 1e308, -1e308, 0.5, 1e-300, True, False, None, "", "x",
    "auto", "../../etc/passwd", "/dev/zero", "a" * 10**6, "\x1b[2J", "\ud800", [], {}, [0], [[[]]], [10**9, 10**9],
    {"type": "os.system"}, [1] * 10**5, "1", "nan", "Infinity",
]  # fmt: skip


def attack_weights(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Open weight files of all kinds that are known to deceive, and mutants of sound ones."""
    folder = work.lay_out(())
    files = list_weight_files(str(folder / CANARY))

    def attempt(index: int) -> Result:
        dice = random.Random(f"{seed}-weights-{index}")
        name, data = files[index] if index < len(files) else _change_weights(dice)
        path = folder / "x.weights"
        path.write_bytes(data)
        try:
            found = open_foreign(path)
            result = survive(f"opened as {'data' if index >= len(files) else 'sound'}") if found else survive("empty")
        except CheckpointError as error:
            line = str(error)
            sound = line.isprintable() and len(line) < 1500
            result = survive("refused") if sound else lose("not one line", f"{name}: {line[:200]!r}")
        if (folder / CANARY).exists():
            (folder / CANARY).unlink()
            return lose("executed", f"weights {name} (attempt {index})")
        return result

    order = random.Random(seed).sample(range(len(files)), len(files))
    files = [files[place] for place in order]
    yield from run_items(attempt, count, folder, seconds=SECONDS)
    work.remove(folder)


def list_weight_files(canary: str) -> list[tuple[str, bytes]]:
    """Return the files made by hand: programs, tricks, bombs and lies."""
    bodies = pickles.gadgets(canary) | pickles.tricks(canary) | pickles.descriptions()
    found = [(f"{name} in {form.__name__}", form(body)) for form in (made.archive, made.legacy)
             for name, body in bodies.items()]  # fmt: skip
    for group in (made.archives, made.old_files, made.safetensors_files, made.flax_files):
        found += list(group())
    return found


@cache
def _sound_files() -> dict[str, bytes]:
    return made.sound_files()


def _change_weights(dice: random.Random) -> tuple[str, bytes]:
    """Return a sound weight file with one to four changes."""
    name = dice.choice(sorted(_sound_files()))
    data, said = _sound_files()[name], [name]
    for _ in range(dice.randint(1, 4)):
        if data:
            data, what = change_bytes(data, dice.choice(("flip", "zeros", "cut", "longer", "digit")), dice)
            said.append(what)
    return ", ".join(said), data


def attack_settings(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Change config.json of a run whose manifest is gone, and use it: for a picture, a text, or as a recipe."""
    uses = (
        ("runs/pixels", ["sample", "runs/pixels", "--num", "1", "--out", "s.png"]),
        ("runs/coded", ["sample", "runs/coded", "--num", "1", "--out", "s.png"]),
        ("runs/text", ["generate", "runs/text", "--num", "1"]),
        ("runs/pixels", ["train", "runs/pixels/config.json", "--out", "new", "--dry-run"]),
    )
    for index in range(count):
        run, words = uses[index % len(uses)]
        folder = work.lay_out(("photos", run) if "train" in words else (run,))
        dice = random.Random(f"{seed}-settings-{index}")
        (folder / run / "manifest.json").unlink(missing_ok=True)
        path = folder / run / "config.json"
        data, what = change_settings(path.read_bytes(), dice)
        path.write_bytes(data)
        ending = run_command(words, folder, timeout=SECONDS, memory=3 * GIB)
        where = f"{words[0]} {run}, attempt {index}: {what}: code {ending.code}: {ending.last_line}"
        if ending.is_crash:
            yield lose("hang" if ending.timed_out else "crash", where)
        else:
            yield survive("refused" if ending.code else "used")
        work.remove(folder)


def change_settings(data: bytes, dice: random.Random) -> tuple[bytes, str]:
    """Return a config.json with one odd value, name or byte, and the change in words."""
    kind = dice.choice(("value", "value", "value", "value", "bytes", "missing", "more", "deep"))
    if kind == "bytes":
        return change_bytes(data, dice.choice(("flip", "zeros", "cut", "longer", "digit")), dice)
    if kind == "deep":
        return data[:-3] + b',"x":' + b"[" * 10**5 + b"]" * 10**5 + b"}", "a deep list"
    value = json.loads(data)
    spots = [spot for spot in _list_spots(value) if spot[0]]
    at, holder, key = dice.choice(spots)
    if kind == "missing":
        del holder[key]
        said = f"{at} is gone"
    elif kind == "more":
        said = f"one more beside {at}"
        if isinstance(holder, dict):
            holder["more"] = dice.choice(VALUES)
        else:
            holder.append(dice.choice(VALUES))
    else:
        holder[key] = dice.choice(VALUES)
        said = f"{at} = {str(holder[key])[:60]!r}"
    return json.dumps(value).encode("utf-8", "surrogatepass"), said


def _list_spots(value: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Return every value inside, as (name, what holds it, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        name = f"{at}.{key}".lstrip(".")
        yield name, value, key
        yield from _list_spots(inner, name)


CAMPAIGNS = [
    Campaign("hostile-weights", "weight files: programs, bombs, lies, mutants", 1000, attack_weights, 10),
    Campaign("hostile-settings", "config.json: absurd values, missing and unknown fields, damaged bytes", 1000,
             attack_settings, 8),
]  # fmt: skip
