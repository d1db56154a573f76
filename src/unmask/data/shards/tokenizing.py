"""Tokenize once, train often: images to token shards, by one process or many, resumable after any interruption.

The shard is the unit of work. Its content depends only on the plan and its images. A shard is done once its sidecar
`train-00000.json` is written, so neither a kill nor the number of processes can change a byte.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unmask.data.augment import crop
from unmask.data.fingerprint import STRICT, DataFingerprint, DataPolicy, describe_changes, merge_whole
from unmask.data.image_files import Unreadable
from unmask.data.pictures import Pictures
from unmask.data.shards.dataset import MAX_JSON, META, Meta, Shard, SplitName, choose_token_type, is_sound, write_shard
from unmask.errors import ConfigError, DataError
from unmask.method.rand import Rand
from unmask.runtime.progress import Progress
from unmask.storage.config import list_differences, read_json, write_json
from unmask.storage.lock import lock

Encode = Callable[[Float[Tensor, "b c h w"]], Int[Tensor, "b l"]]

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to crop an image to the tokenizer's size."""

    name: str
    """Name of the view; letters, digits, _ and -."""
    flip: bool = False
    """Mirror the image."""
    random: bool = False
    """Crop at a random position instead of the centre."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name):
            raise ConfigError(f"the view's name is {self.name!r}; use letters, digits, _ and -")


CENTER = View(name="center")
FLIP = View(name="flip", flip=True)


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Everything that the tokens depend on; a folder holds the tokens of one plan."""

    tokenizer: str
    """SHA-256 of the tokenizer."""
    vocab_size: int
    """Number of tokens of the tokenizer."""
    grid: tuple[int, ...]
    """Grid of the tokens of an image."""
    size: tuple[int, int]
    """Height and width of the tokenizer's images."""
    shape: tuple[int, int, int]
    """Channels, height and width of the stored images."""
    classes: tuple[str, ...]
    """Names of the classes; () without labels."""
    source: str
    """The source of the images, JSON as text."""
    train: int
    """Number of training images."""
    test: int
    """Number of held-out images."""
    views: tuple[View, ...] = (CENTER, FLIP)
    """Views of each image; the first is the centre."""
    shard_size: int = 4096
    """Images per shard."""
    seed: int = 0
    """Seed of the random crops."""
    data: DataFingerprint | None = None
    """What the images are; None in folders of early versions."""

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
                f"the view {random[0]} would equal the centre, since the stored images are {height}x{width}, the "
                "size of the tokenizer: store them larger, or leave the view out"
            )
        if self.shard_size < 1:
            raise ConfigError(f"shard_size is {self.shard_size}; it must be at least 1")
        if self.train < 1 or self.test < 0:
            raise ConfigError(f"{self.train} images to train on and {self.test} to test on: give at least 1 and 0")

    def count_pictures(self, part: SplitName) -> int:
        """Return the number of images of a split."""
        return self.train if part == "train" else self.test

    def count_shards(self, part: SplitName) -> int:
        """Return the number of shards of a split."""
        return -(-self.count_pictures(part) // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A shard's sidecar: its files, and the unreadable images that it leaves out."""

    shard: Shard
    bad: tuple[Unreadable, ...]
    pictures: str = ""
    """Digest of the images and classes of the shard, the unreadable ones too; "" in folders of early versions."""
    whole: str = ""
    """Digest over all bytes of the images, if they were all read."""


@contextmanager
def claim_folder(out: Path, plan: ShardPlan, policy: DataPolicy = STRICT) -> Iterator[None]:
    """Lock `out` for this process and this plan; `out` is new, or was started with the same plan.

    With several ranks, the first one locks and the others wait for it. The images may lie elsewhere or have other names
    than before. If they changed and `policy` accepts that, the shards with other images are made again.

    Raises:
        CheckpointError: another process has locked it.
        DataError: it holds other tokens, or tokens of other images.
    """
    with lock(out):
        if (out / PLAN).exists():
            _update_plan(out, plan, policy)
        elif any(out.glob("*.npy")):
            raise DataError(f"{out} holds arrays but no {PLAN}: give another --out")
        else:
            write_json(out / PLAN, plan)
        yield


def tokenize_shards(
    pictures: Pictures,
    encode: Encode,
    out: Path,
    part: SplitName,
    plan: ShardPlan,
    *,
    batch: int = 64,
    rank: int = 0,
    size: int = 1,
    progress: Progress | None = None,
) -> list[Unreadable]:
    """Write the shards of `part` whose number is `rank` modulo `size`; return the images that they leave out.

    An intact shard is kept. The caller must hold `claim_folder`.

    Raises:
        DiskError: a shard cannot be written; earlier shards are kept.
    """
    if batch < 1:
        raise ValueError(f"batch {batch}: must be at least 1")
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size}: rank must be below size")
    _check_plan(out, plan)
    _check_pictures(pictures, part, plan)
    numbers = range(rank, plan.count_shards(part), size)
    keys = None if plan.data is None else pictures.compute_keys()
    whole = None if plan.data is None or plan.data.train.whole is None else pictures.compute_whole_keys()
    shards = {k: torch.arange(len(pictures))[k * plan.shard_size : (k + 1) * plan.shard_size] for k in numbers}
    total, seen = sum(len(index) for index in shards.values()), 0
    bad: list[Unreadable] = []

    def tick(name: str, more: int) -> None:
        nonlocal seen
        seen += more
        if progress is not None:
            progress(name, seen, total)

    for number, index in shards.items():
        name = f"{part}-{number:05d}"
        digest = "" if keys is None else _hash_shard(keys, pictures.labels, index, plan)
        every = "" if whole is None else _hash_shard(whole, pictures.labels, index, plan)
        done = _read_done(out, name)
        same = done is not None and done.pictures == digest and (done.whole == every or not (done.whole and every))
        if done is not None and same and is_sound(out, done.shard):
            tick(name, len(index))
        else:
            done = _tokenize_shard(pictures, encode, out, name, index, plan, batch, tick, (digest, every))
        bad += done.bad
    return bad


def collect_meta(out: Path, plan: ShardPlan) -> Meta:
    """Return the metadata for `finish_dataset`; raise DataError unless every shard of both splits is done."""
    return Meta(
        tokenizer=plan.tokenizer,
        vocab_size=plan.vocab_size,
        grid=plan.grid,
        views=tuple(view.name for view in plan.views),
        classes=plan.classes,
        source=plan.source,
        train=tuple(done.shard for done in read_finished(out, "train", plan)),
        test=tuple(done.shard for done in read_finished(out, "test", plan)),
    )


def read_finished(out: Path, part: SplitName, plan: ShardPlan) -> list[Done]:
    """Read the sidecars of all shards of a split, in order; raise DataError if one is missing."""
    names = [f"{part}-{number:05d}" for number in range(plan.count_shards(part))]
    found = {name: _read_done(out, name) for name in names}
    absent = [name for name, done in found.items() if done is None]
    if absent:
        raise DataError(
            f"{out} is not finished: {len(absent)} of {len(names)} shards are to do, the first is {absent[0]}; "
            "run the same command again to continue"
        )
    return [done for done in found.values() if done is not None]


def cut_view(
    pixels: UInt8[Tensor, "b c H W"], index: Int[Tensor, "b"], view: View, plan: ShardPlan
) -> Float[Tensor, "b c h w"]:
    """Return one view of images, in [-1, 1]; a random crop depends only on (seed, the image's index, view)."""
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
    plan: ShardPlan,
    batch: int,
    tick: Callable[[str, int], None],
    digests: tuple[str, str],
) -> Done:
    tokens = [np.empty((0, len(plan.views), math.prod(plan.grid)), choose_token_type(plan.vocab_size))]
    kept: list[Tensor] = [index[:0]]
    bad: list[Unreadable] = []
    # Batches start again with each shard, so that its tokens do not depend on which process does the others.
    for some in index.split(batch):
        pixels, places, refused = pictures.try_read(some)
        good = some[places]
        if len(good):
            tokens.append(_encode_views(encode, pixels, good, plan))
        kept.append(good)
        bad += refused
        tick(name, len(some))
    labels = None if pictures.labels is None else pictures.labels[torch.cat(kept)].int().numpy()
    shard = write_shard(out, name, np.concatenate(tokens), labels)
    done = Done(shard=shard, bad=tuple(bad), pictures=digests[0], whole=digests[1])
    write_json(out / f"{name}.json", done)
    return done


def _encode_views(
    encode: Encode, pixels: UInt8[Tensor, "b c h w"], index: Int[Tensor, "b"], plan: ShardPlan
) -> np.ndarray:
    """Return tokens [b, views, l]; raise ValueError if they do not match the plan."""
    with torch.inference_mode():
        tokens = torch.stack([encode(cut_view(pixels, index, view, plan)) for view in plan.views], dim=1).cpu()
    if tokens.shape[2] != math.prod(plan.grid) or not 0 <= int(tokens.min()) <= int(tokens.max()) < plan.vocab_size:
        raise ValueError(
            f"the tokenizer gave {tokens.shape[2]} tokens from {int(tokens.min())} to {int(tokens.max())} per image; "
            f"planned are {math.prod(plan.grid)} below {plan.vocab_size}"
        )
    return tokens.numpy().astype(choose_token_type(plan.vocab_size))


def _read_done(out: Path, name: str) -> Done | None:
    """Read a shard's sidecar; return None, so that the shard is redone, if it is missing or damaged."""
    try:
        done = read_json(out / f"{name}.json", Done, MAX_JSON)
    except ConfigError:
        return None
    return done if done.shard.file == f"{name}.tokens.npy" else None


def _hash_shard(
    keys: UInt8[np.ndarray, "n 16"], labels: Int[Tensor, " n"] | None, index: Int[Tensor, " b"], plan: ShardPlan
) -> str:
    """Return a digest of everything about the images that the tokens and labels of a shard depend on."""
    digest = hashlib.sha256(keys[index.numpy()].tobytes())
    if labels is not None:
        digest.update(repr([plan.classes[i] for i in labels[index].tolist()]).encode("utf-8", "surrogatepass"))
        digest.update(labels[index].numpy().tobytes())
    if any(view.random for view in plan.views):  # where a crop lies depends on the position
        digest.update(f"{index[:1].tolist()} of {plan.train}".encode())
    return digest.hexdigest()


def _read_plan(out: Path) -> ShardPlan:
    try:
        return read_json(out / PLAN, ShardPlan, MAX_JSON)
    except ConfigError as error:
        raise DataError(f"{out} cannot be continued: {error}; give another --out") from error


def _check_plan(out: Path, plan: ShardPlan) -> None:
    there = _read_plan(out)
    if there.data is not None and plan.data is not None:
        # Where the images lie may change, and the fingerprint covers what they are.
        there, plan = (replace(one, source="", train=1, test=0, classes=(), data=None) for one in (there, plan))
    changed = list_differences(there, plan)
    if there.views != plan.views:
        before, now = (", ".join(view.name for view in one.views) for one in (there, plan))
        changed = [f"of each image {before} there, {now} here"]
    if changed:
        raise DataError(f"{out} holds other tokens ({changed[0]}): give another --out")


def _update_plan(out: Path, plan: ShardPlan, policy: DataPolicy) -> None:
    """Check the plan that is there, and replace it if the images moved, or changed and `policy` accepts it."""
    _check_plan(out, plan)
    there = _read_plan(out)
    if there == plan or there.data is None or plan.data is None:
        return
    changed = describe_changes(there.data, plan.data)
    if changed is not None:
        if not policy.accept:
            raise DataError(
                f"the images changed since {out} was made: {changed}; restore them, give another --out, or "
                "--accept-data to tokenize again what changed"
            )
        (out / META).unlink(missing_ok=True)  # the folder is unfinished until its shards are those of the new images
    else:
        plan = replace(plan, data=merge_whole(there.data, plan.data))
    write_json(out / PLAN, plan)


def _check_pictures(pictures: Pictures, part: SplitName, plan: ShardPlan) -> None:
    here = (len(pictures), *pictures.shape)
    there = (plan.count_pictures(part), *plan.shape)
    if here != there:
        raise ConfigError(f"{part}: the pictures are {here} (n, c, h, w), but the plan says {there}: plan for these")
    if tuple(pictures.classes) != plan.classes:
        counts = f"{len(pictures.classes)} classes, the plan has {len(plan.classes)}, or others"
        raise ConfigError(f"{part}: the images have {counts}: plan for these")
