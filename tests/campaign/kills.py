"""kill -9, signals and failing disks: the same command again must leave the bytes of a run that nobody disturbed."""

import errno
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

from children import Ending, run_child, run_command
from digests import digest_folder, list_differences
from points import Points, fail_here, kill_here, run_with_points
from tallies import Campaign, Result, lose, survive
from works import COMMANDS, LEAVES, NEEDS, Work

from unmask.cli import main

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def finish(work: Work, command: str, folder: Path, *, again: bool = True) -> str:
    """Run the command again to its end; return what is wrong with the result, or ""."""
    wanted, _ = work.run_whole(command)
    if again:
        ending = run_command(COMMANDS[command], folder)
        # a second conversion is refused if the first one is whole: then it was killed in its last moments
        if ending.code and (command != "convert" or list_differences(digest_folder(folder / LEAVES[command]), wanted)):
            return f"the same command again ends with {ending.code}: {ending.last_line}"
    return list_differences(digest_folder(folder / LEAVES[command]), wanted)


def kill_at_random(command: str):
    """Kill a command at random times, up to three times before it may end."""

    def attack(work: Work, count: int, seed: int) -> Iterator[Result]:
        dice = random.Random(f"{seed}-{command}")
        _, whole = work.run_whole(command)
        done, misses = 0, 0
        while done < count and misses < 20 + count:
            folder, wanted, kills = work.lay_out(NEEDS[command]), min(dice.randint(1, 3), count - done), []
            while len(kills) < wanted:
                after = dice.uniform(0.0, whole.seconds * 1.05)
                ending = run_command(COMMANDS[command], folder, strike=(after, signal.SIGKILL))
                if ending.code != -signal.SIGKILL:
                    misses += 1
                    break
                kills.append(after)
            if not kills and not ending.code:
                work.remove(folder)
                continue
            wrong = finish(work, command, folder)
            note = f"{command} killed after {', '.join(f'{t:.3f}' for t in kills)} s: {wrong}"
            for _ in kills or [0.0]:
                yield lose("other bytes", note) if wrong else survive("same bytes")
            done += len(kills)
            work.remove(folder)

    return attack


def kill_at_points(command: str, *, saving: bool = False):
    """Kill a command before, after or within one of its file-system calls; `saving`: within a save."""

    def attack(work: Work, count: int, seed: int) -> Iterator[Result]:
        dice = random.Random(f"{seed}-{command}-points-{saving}")
        places = list_points(work, command, saving=saving)
        for at in pick(places, count, dice):
            folder, turn = work.lay_out(NEEDS[command]), dice.getrandbits(32)
            ending = strike_at(work, command, folder, at, kill_here(random.Random(turn)))
            if ending.code == -signal.SIGKILL:
                wrong = finish(work, command, folder)
                note = f"{command} killed at call {at}, turn {turn}: {wrong}"
                yield lose("other bytes", note) if wrong else survive("same bytes")
            work.remove(folder)

    return attack


def fail_at_points(command: str):
    """Let each file-system call of a command fail once, with another error each time."""

    def attack(work: Work, count: int, seed: int) -> Iterator[Result]:
        dice = random.Random(f"{seed}-{command}-faults")
        places = list_points(work, command)
        for turn, at in enumerate(pick(places, count, dice)):
            number = ERRORS[turn % len(ERRORS)]
            folder = work.lay_out(NEEDS[command])
            ending = strike_at(work, command, folder, at, fail_here(number, random.Random(at)))
            what = f"{command}, {errno.errorcode[number]} at call {at}"
            yield judge_failure(work, command, folder, ending, what)
            work.remove(folder)

    return attack


def judge_failure(work: Work, command: str, folder: Path, ending: Ending, what: str) -> Result:
    """Say what became of a command whose disk failed once."""
    wrong = finish(work, command, folder, again=ending.code != 0)
    if ending.is_crash:
        return lose("traceback", f"{what}: {ending.last_line}")
    if wrong:
        return lose("other bytes", f"{what}: code {ending.code}, then {wrong}")
    if ending.code not in (0, 6, 7):  # 7: too many open files
        return lose("wrong exit code", f"{what}: exit code {ending.code}: {ending.last_line}")
    return survive(f"exit code {ending.code}, then the same bytes" if ending.code else "no effect")


def strike_at(work: Work, command: str, folder: Path, at: int, strike) -> Ending:
    """Run a command with a strike at one of its calls."""
    trace = folder.parent / f"{folder.name}.trace"
    return run_child(run_with_points(lambda: main(list(COMMANDS[command])), Points(at, strike), trace), folder)


def list_points(work: Work, command: str, *, saving: bool = False) -> list[int]:
    """Return the numbers of the file-system calls that write; `saving`: of those within a save of a checkpoint."""
    work.run_whole(command)
    folder = work.lay_out(NEEDS[command])
    ending = strike_at(work, command, folder, 0, None)
    trace = folder.parent / f"{folder.name}.trace"
    if ending.code:
        raise RuntimeError(f"{command} fails when its calls are counted: {ending.text[-1500:]}")
    seen = json.loads(trace.read_text())
    work.remove(folder)
    return [place for place, (_, inside) in enumerate(seen, 1) if inside or not saving]


def pick(places: list[int], count: int, dice: random.Random) -> list[int]:
    """Return `count` of the places, each as often as any other."""
    found: list[int] = []
    while len(found) < count:
        found += dice.sample(places, min(len(places), count - len(found)))
    return found


def stop_at_random(work: Work, count: int, seed: int) -> Iterator[Result]:
    """Send signals to trainings at random moments; the exit code and the resumed run must be right."""
    dice = random.Random(f"{seed}-signals")
    commands = ("train", "train", "train-tokenizer", "train-text", "tokenize")
    for turn in range(count):
        command, number = commands[turn % len(commands)], ASKED[turn // len(commands) % len(ASKED)]
        _, whole = work.run_whole(command)
        folder, after = work.lay_out(NEEDS[command]), dice.uniform(0, whole.seconds)
        ending = run_command(COMMANDS[command], folder, strike=(after, number))
        wrong = finish(work, command, folder)
        what = f"{signal.Signals(number).name} to {command} after {after:.3f} s"
        if "Traceback" in ending.text:
            yield lose("traceback", f"{what}: {ending.last_line}")
        elif ending.code not in allow_codes(number):
            yield lose("wrong exit code", f"{what}: {ending.code}: {ending.last_line}")
        elif wrong:
            yield lose("other bytes", f"{what}: code {ending.code}, then {wrong}")
        else:
            yield survive({0: "had ended", 85: "exit code 85", 130: "exit code 130"}.get(ending.code, "by the signal"))
        work.remove(folder)


def allow_codes(number: int) -> tuple[int, ...]:
    """Return the exit codes for a signal: 0 at the end, 85 in the loop; before it 130, or an end by the signal."""
    return (0, 85, 130) if number == signal.SIGINT else (0, 85, -number, 128 + number)


OTHERS = (
    "train-tokenizer",
    "train-codes",
    "train-text",
    "tokenize",
    "tokenize-text",
    "sweep",
    "evaluate",
    "export",
    "convert",
)
CAMPAIGNS = [
    Campaign("kill-train", "train, kill -9 at random times", 150, kill_at_random("train"), 3),
    Campaign("kill-save", "train, kill -9 inside a save", 50, kill_at_points("train", saving=True), 3),
    *(Campaign(f"kill-{c}", f"{c}, kill -9 at random times", 20, kill_at_random(c), 1) for c in OTHERS),
    *(Campaign(f"kill-points-{c}", f"{c}, kill -9 at file-system calls", 20, kill_at_points(c), 1) for c in OTHERS),
    Campaign("kill-points-train", "train, kill -9 at file-system calls", 40, kill_at_points("train"), 1),
    *(Campaign(f"disk-{c}", f"{c}, each write step failed once", 120 if c.startswith("train") else 60,
               fail_at_points(c), 3) for c in ("train", *OTHERS)),
    Campaign("signal-train", "trainings and tokenize, signals at random moments", 200, stop_at_random, 4),
]  # fmt: skip
