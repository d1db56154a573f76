"""Tokenize once, train often: pictures to shards of codes, by one process or many, resumable after any end.

The shard is the unit of work. Its content is a function of the plan and of its pictures alone, and its sidecar
`train-00000.json`, written last, is what "done" means; so neither a kill nor the number of processes can change a byte.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unmask.data.augment import crop
from unmask.data.image_files import Bad
from unmask.data.pictures import Pictures
from unmask.data.shards.dataset import MAX_JSON, Meta, Shard, code_type, is_sound, write_shard
from unmask.errors import ConfigError, DataError
from unmask.method.rand import Rand
from unmask.runtime.progress import Progress
from unmask.storage.config import list_differences, read_json, write_json
from unmask.storage.lock import lock

Encode = Callable[[Float[Tensor, "b c h w"]], Int[Tensor, "b l"]]
Part = Literal["train", "test"]

PLAN = "plan.json"
_LEFTOVER = re.compile(r"\.[\w.-]+\.tmp-[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to cut a picture to the tokenizer's size: from the centre or at `random`, and mirrored if `flip`."""

    name: str
    flip: bool = False
    random: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ConfigError(f"the view's name is {self.name!r}; use letters, digits, _ and -")


CENTER = View(name="center")
FLIP = View(name="flip", flip=True)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the codes depend on; a folder holds the codes of one plan.

    `tokenizer` is its sha256 and `size` the (h, w) it takes, `shape` the (c, h, w) of the stored pictures, `source`
    JSON as text that says where they come from, `train` and `test` how many there are.
    """

    tokenizer: str
    vocab_size: int
    grid: tuple[int, ...]
    size: tuple[int, int]
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    source: str
    train: int
    test: int
    views: tuple[View, ...] = (CENTER, FLIP)
    shard_size: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        height, width = self.size
        stored = self.shape[1:]
        if not names or self.views[0] != CENTER or len(set(names)) < len(names):
            raise ConfigError(f"the views are {names}; name center first, and each once")
        if not (1 <= height <= stored[0] and 1 <= width <= stored[1]):
            raise ConfigError(
                f"the tokenizer takes {height}x{width} but the pictures are {stored[0]}x{stored[1]}: store them larger"
            )
        random = [view.name for view in self.views if view.random]
        if random and self.size == stored:
            raise ConfigError(
                f"the view {random[0]} would equal the centre, since the pictures are {height}x{width} as the "
                "tokenizer takes them: store them larger, or leave it out"
            )
        if self.shard_size < 1:
            raise ConfigError(f"shard_size is {self.shard_size}; it must be at least 1")
        if self.train < 1 or self.test < 0:
            raise ConfigError(f"{self.train} pictures to train on and {self.test} to test on: give at least 1 and 0")

    def num_pictures(self, part: Part) -> int:
        return self.train if part == "train" else self.test

    def num_shards(self, part: Part) -> int:
        return -(-self.num_pictures(part) // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A shard's sidecar: its files, and the pictures that could not be read and are left out of it."""

    shard: Shard
    bad: tuple[Bad, ...]


@contextmanager
def claim(out: Path, plan: Plan) -> Iterator[None]:
    """Hold `out` for this command alone and for this plan: new, or begun earlier with the same plan.

    Raises CheckpointError if another process has it, DataError if it holds other codes. With several ranks the first
    one claims, and the others wait until it has.
    """
    with lock(out):
        for path in out.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink()  # what a killed command left half-written
        if (out / PLAN).exists():
            _check_plan(out, plan)
        elif any(out.glob("*.npy")):
            raise DataError(f"{out} holds arrays but no {PLAN}: give another --out")
        else:
            write_json(out / PLAN, plan)
        yield


def tokenize(
    pictures: Pictures,
    encode: Encode,
    out: Path,
    part: Part,
    plan: Plan,
    *,
    batch: int = 64,
    rank: int = 0,
    size: int = 1,
    progress: Progress | None = None,
) -> list[Bad]:
    """Write those shards of `part` whose number is `rank` modulo `size`, and return the pictures left out of them.

    A shard that is there and sound is kept. `out` is claimed by the caller. Raises DiskError if a shard cannot be
    written; those before it are kept.
    """
    if batch < 1:
        raise ValueError(f"batch {batch}: must be at least 1")
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size}: rank must be below size")
    _check_plan(out, plan)
    _check_pictures(pictures, part, plan)
    numbers = range(rank, plan.num_shards(part), size)
    shards = {k: torch.arange(len(pictures))[k * plan.shard_size : (k + 1) * plan.shard_size] for k in numbers}
    total, seen = sum(len(index) for index in shards.values()), 0
    bad: list[Bad] = []

    def tick(name: str, more: int) -> None:
        nonlocal seen
        seen += more
        if progress is not None:
            progress(name, seen, total)

    for number, index in shards.items():
        name = f"{part}-{number:05d}"
        done = _read_done(out, name)
        if done is not None and is_sound(out, done.shard):
            tick(name, len(index))
        else:
            done = _tokenize_shard(pictures, encode, out, name, index, plan, batch, tick)
        bad += done.bad
    return bad


def collect(out: Path, plan: Plan) -> Meta:
    """What `codes.finish` writes once every shard of both parts is done; DataError if one is not."""
    return Meta(
        tokenizer=plan.tokenizer,
        vocab_size=plan.vocab_size,
        grid=plan.grid,
        views=tuple(view.name for view in plan.views),
        classes=plan.classes,
        source=plan.source,
        train=tuple(done.shard for done in finished(out, "train", plan)),
        test=tuple(done.shard for done in finished(out, "test", plan)),
    )


def finished(out: Path, part: Part, plan: Plan) -> list[Done]:
    """The sidecars of all shards of a part, in order; DataError if one is not there."""
    names = [f"{part}-{number:05d}" for number in range(plan.num_shards(part))]
    found = {name: _read_done(out, name) for name in names}
    absent = [name for name, done in found.items() if done is None]
    if absent:
        raise DataError(
            f"{out} is not finished: {len(absent)} of {len(names)} shards are to do, the first is {absent[0]}; "
            "run the same command again to continue"
        )
    return [done for done in found.values() if done is not None]


def cut(pixels: UInt8[Tensor, "b c H W"], index: Int[Tensor, "b"], view: View, plan: Plan) -> Float[Tensor, "b c h w"]:
    """One view of the pictures of these numbers, in [-1, 1]; a random place depends on (seed, number, view) alone."""
    height, width = plan.size
    room = torch.tensor(pixels.shape[2:]) - torch.tensor(plan.size)
    if view.random:
        u = Rand(plan.seed, index, plan.train)(f"view {view.name}", 2)
        top, left = (u * (room + 1)).long().minimum(room).unbind(1)
        pixels = crop(pixels, plan.size, top, left)
    else:
        top, left = (room // 2).tolist()
        pixels = pixels[:, :, top : top + height, left : left + width]
    return (pixels.flip(3) if view.flip else pixels).float() / 127.5 - 1


def _tokenize_shard(
    pictures: Pictures,
    encode: Encode,
    out: Path,
    name: str,
    index: Int[Tensor, "n"],
    plan: Plan,
    batch: int,
    tick: Callable[[str, int], None],
) -> Done:
    codes = [np.empty((0, len(plan.views), math.prod(plan.grid)), code_type(plan.vocab_size))]
    kept: list[Tensor] = [index[:0]]
    bad: list[Bad] = []
    # The cut into batches begins anew with each shard, so that its codes do not depend on who else works on the part.
    for some in index.split(batch):
        pixels, places, refused = pictures.try_at(some)
        good = some[places]
        if len(good):
            codes.append(_codes(encode, pixels, good, plan))
        kept.append(good)
        bad += refused
        tick(name, len(some))
    labels = None if pictures.labels is None else pictures.labels[torch.cat(kept)].int().numpy()
    done = Done(shard=write_shard(out, name, np.concatenate(codes), labels), bad=tuple(bad))
    write_json(out / f"{name}.json", done)
    return done


def _codes(encode: Encode, pixels: UInt8[Tensor, "b c h w"], index: Int[Tensor, "b"], plan: Plan) -> np.ndarray:
    """Codes [b, views, l]; ValueError if `encode` gives what the plan does not announce."""
    with torch.inference_mode():
        codes = torch.stack([encode(cut(pixels, index, view, plan)) for view in plan.views], dim=1).cpu()
    if codes.shape[2] != math.prod(plan.grid) or not 0 <= int(codes.min()) <= int(codes.max()) < plan.vocab_size:
        raise ValueError(
            f"the tokenizer gave {codes.shape[2]} codes from {int(codes.min())} to {int(codes.max())} per picture; "
            f"planned are {math.prod(plan.grid)} below {plan.vocab_size}"
        )
    return codes.numpy().astype(code_type(plan.vocab_size))


def _read_done(out: Path, name: str) -> Done | None:
    """A shard's sidecar, or None if it is absent, damaged or of another shard: then the shard is to do."""
    try:
        done = read_json(out / f"{name}.json", Done, MAX_JSON)
    except ConfigError:
        return None
    return done if done.shard.file == f"{name}.tokens.npy" else None


def _check_plan(out: Path, plan: Plan) -> None:
    try:
        changed = list_differences(read_json(out / PLAN, Plan, MAX_JSON), plan)
    except ConfigError as error:
        raise DataError(f"{out} cannot be continued: {error}; give another --out, or delete the folder") from error
    if changed:
        raise DataError(f"{out} holds other codes ({changed[0]}): give another --out, or delete the folder")


def _check_pictures(pictures: Pictures, part: Part, plan: Plan) -> None:
    here = (len(pictures), *pictures.shape)
    there = (plan.num_pictures(part), *plan.shape)
    if here != there:
        raise ConfigError(f"{part}: the pictures are {here} (n, c, h, w), but the plan says {there}: plan for these")
    if tuple(pictures.classes) != plan.classes:
        counts = f"{len(pictures.classes)} classes, the plan has {len(plan.classes)}, or others"
        raise ConfigError(f"{part}: the pictures have {counts}: plan for these")
