"""From pictures to a folder that is all a training needs: their codes, and the tokenizer that made these."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from unmask.data.fingerprint import (
    STRICT,
    DataFingerprint,
    DataPolicy,
    PartFingerprint,
    compute_fingerprint,
    describe_unverified,
    match_arrangement,
)
from unmask.data.image_files import Unreadable
from unmask.data.pictures import Pictures, Split
from unmask.data.shards.dataset import (
    MAX_JSON,
    Meta,
    TokenShards,
    check_tokenizer,
    finish_dataset,
    open_token_dataset,
    verify_shards,
)
from unmask.data.shards.tokenizing import (
    PLAN,
    Encode,
    ShardPlan,
    SplitName,
    View,
    claim_folder,
    collect_meta,
    tokenize_shards,
)
from unmask.data.shards.workers import tokenize_parallel
from unmask.data.sources.choice import PictureSource, fill_arrangement, resolve_paths, write_source
from unmask.data.summary import describe_split
from unmask.data.tokens import Tokens
from unmask.errors import ConfigError, DataError
from unmask.pretrained.families import choose_tokenizer_dtype
from unmask.pretrained.lone_tokenizer import LearnedModel, read_lone_tokenizer, write_lone_tokenizer
from unmask.pretrained.networks import LearnedConfig
from unmask.runtime.distributed import World, barrier
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.progress import Progress
from unmask.runtime.torchrun import is_main_process
from unmask.storage.config import dump_json, from_json, read_json
from unmask.storage.layout import MODEL
from unmask.storage.weights import hash_weights


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the pictures behind codes are, as a source's config."""

    data: PictureSource


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A finished token dataset, open.

    `counted` images were there to train on and held out, unreadable ones too; `images` is their fingerprint, None if an
    early version made the dataset; `tokens` that of the tokens and labels.
    """

    meta: Meta
    tokenizer: LearnedConfig
    weights: Path
    train: Tokens
    test: Tokens
    source: PictureSource
    counted: tuple[int, int]
    images: DataFingerprint | None
    tokens: DataFingerprint


@dataclass(frozen=True, kw_only=True)
class TokenizerEncoder:
    """Build `encode` in each process: load the tokenizer from its folder.

    Its type is bfloat16 where that is fast, but float32 for a published tokenizer.
    """

    folder: Path
    device: str

    def __call__(self) -> Encode:
        device = torch.device(self.device)
        tokenizer = read_lone_tokenizer(self.folder)
        return tokenizer.to(device, choose_tokenizer_dtype(tokenizer.config, choose_dtype(device))).encode


def open_coded(folder: str | Path) -> Coded:
    """Open a finished token dataset, after the main process has compared its shards with their checksums.

    Raises:
        DataError: The folder is unfinished or damaged, or its tokenizer made other tokens.
        CheckpointError: Its tokenizer is damaged.
    """
    folder = Path(folder).expanduser()
    meta, train, test = open_token_dataset(folder)
    if is_main_process():
        verify_shards(folder, meta)
    if test is None:
        raise DataError(f"{folder} holds no codes to validate on: tokenize a source that holds some pictures out")
    model = read_lone_tokenizer(folder / "tokenizer")
    check_tokenizer(meta, hash_weights(model, model.config))
    plan = read_json(folder / PLAN, ShardPlan, MAX_JSON)
    source = read_origin(meta.source)
    weights = folder / "tokenizer" / MODEL
    return Coded(
        meta=meta,
        tokenizer=model.config,
        weights=weights,
        train=train,
        test=test,
        source=source,
        counted=(plan.train, plan.test),
        images=plan.data,
        tokens=compute_token_fingerprint(meta, train, test),
    )


def read_origin(text: str) -> PictureSource:
    """Return the source of a token dataset from its JSON text."""
    data = json.loads(text)
    return from_json(Origin, data | {"data": fill_arrangement(data.get("data"))}, "source").data


def compute_token_fingerprint(meta: Meta, train: TokenShards, test: TokenShards) -> DataFingerprint:
    """Return the fingerprint of tokens and labels, from the checksums of the shards."""
    parts = []
    for split, shards in ((train, meta.train), (test, meta.test)):
        counts = [len(split)] if split.labels is None else split.labels.bincount(minlength=len(meta.classes)).tolist()
        digest = hashlib.sha256(repr([(shard.sha256, shard.labels, shard.rows) for shard in shards]).encode())
        parts.append(PartFingerprint(counts=tuple(counts), content=digest.hexdigest()))
    return DataFingerprint(classes=meta.classes, train=parts[0], test=parts[1])


def make_codes(
    source: PictureSource,
    model: LearnedModel,
    out: Path,
    *,
    views: tuple[View, ...],
    shard_size: int,
    seed: int,
    batch: int,
    processes: int,
    world: World,
    progress: Progress | None = None,
    split: Split | None = None,
    policy: DataPolicy = STRICT,
    say: Callable[[str], None] | None = None,
) -> tuple[Meta, list[Unreadable]]:
    """Tokenize a source into `out`, going on where an earlier command was stopped; returns the pictures left out.

    `split`: the source's pictures, if they are open already. `say` is called with lines on what was taken.
    Under torchrun the ranks share the shards; alone, `processes` do. Raises DataError, DiskError, ConfigError.
    """
    earlier = read_json(out / PLAN, ShardPlan, MAX_JSON) if (out / PLAN).is_file() else None
    if earlier is not None and split is None:
        source = match_arrangement(source, read_origin(earlier.source))
    split = split or source.load(progress)
    if say is not None:
        unverified: list[str] = []
        if earlier is not None:
            unverified = describe_unverified(earlier.data, policy, recorded=earlier.data is not None)
        for line in [*describe_split(split), *(f"note: {note}" for note in unverified)]:
            say(line)
    plan = ShardPlan(
        tokenizer=hash_weights(model, model.config),
        vocab_size=model.vocab_size,
        grid=model.grid,
        size=model.config.size,
        shape=split.train.shape,
        classes=tuple(split.train.classes),
        source=dump_json({"data": {"type": type(source).__name__, **write_source(resolve_paths(source))}}),
        train=len(split.train),
        test=len(split.test),
        views=views,
        shard_size=shard_size,
        seed=seed,
        data=None if earlier is not None and earlier.data is None else compute_fingerprint(split, verify=policy.verify),
    )
    if not len(split.test):
        raise ConfigError("no image is held out, but training validates on some: raise --data.held-out")
    if split.train.shape[0] != model.config.channels:
        raise ConfigError(f"the images have {split.train.shape[0]} channels, the tokenizer {model.config.channels}")
    if world.size > 1:
        meta, bad = _by_ranks(split.train, split.test, model, out, plan, batch, world, policy, progress)
        return meta, [*split.bad, *bad] if world.is_main else bad
    bad = []
    with claim_folder(out, plan, policy):
        write_lone_tokenizer(model, out / "tokenizer")
        encoder = TokenizerEncoder(folder=(out / "tokenizer").resolve(), device=str(world.device))
        for part, pictures in _parts(split.train, split.test):
            bad += tokenize_parallel(
                pictures, encoder, out, part, plan, batch=batch, processes=processes, progress=progress
            )
        meta = collect_meta(out, plan)
        finish_dataset(out, meta)
    return meta, [*split.bad, *bad]


def _parts(train: Pictures, test: Pictures) -> list[tuple[SplitName, Pictures]]:
    return [("train", train), ("test", test)] if len(test) else [("train", train)]


def _by_ranks(
    train: Pictures,
    test: Pictures,
    model: LearnedModel,
    out: Path,
    plan: ShardPlan,
    batch: int,
    world: World,
    policy: DataPolicy,
    progress: Progress | None,
) -> tuple[Meta, list[Unreadable]]:
    """Rank 0 holds the folder; each rank writes its own shards; rank 0 finishes."""
    bad: list[Unreadable] = []

    def work() -> None:
        barrier(world)  # the tokenizer is there, and so is the plan
        encode = TokenizerEncoder(folder=out / "tokenizer", device=str(world.device))()
        for part, pictures in _parts(train, test):
            bad.extend(
                tokenize_shards(pictures, encode, out, part, plan, batch=batch, rank=world.rank, size=world.size,
                         progress=progress)
            )  # fmt: skip
        barrier(world)

    if not world.is_main:
        work()
        return collect_meta(out, plan), bad
    with claim_folder(out, plan, policy):
        write_lone_tokenizer(model, out / "tokenizer")
        work()
        meta = collect_meta(out, plan)
        finish_dataset(out, meta)
    return meta, bad
