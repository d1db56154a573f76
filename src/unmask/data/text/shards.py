"""Token datasets of texts: one flat array per split, memory-mapped in training; every document ends with the end token.
`meta.json` is written last: without it the folder is not finished."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unmask.data.shards.dataset import MAX_JSON, META, choose_token_type
from unmask.data.sources.choice import fill_arrangement
from unmask.data.text.reading import LocatedText
from unmask.data.text.rows import START, Packing, TextMeta, TextPart, TextSet
from unmask.data.text.sources import SplitName, TextSource
from unmask.errors import ConfigError, DataError, DiskError, describe_os_error
from unmask.runtime.progress import Progress
from unmask.storage.config import dump_json, list_differences, read_json, to_json, write_json
from unmask.storage.files import escape_line, hash_file, write_atomic
from unmask.storage.layout import TEXT_TOKENIZER
from unmask.storage.lock import lock
from unmask.storage.outputs import check_folder
from unmask.tokenizers.text import TextTokenizer, open_text_tokenizer

GROUP = 1 << 22  # characters that are encoded at once; a longer document is encoded alone
ARRAYS = tuple(f"{part}.{name}.npy" for part in ("train", "test") for name in ("tokens", "starts"))
HEADER = 128  # bytes, reserved until the length is known


class OpenText(NamedTuple):
    """An open token dataset: training rows, held-out rows, and the tokenizer that made them."""

    meta: TextMeta
    train: TextSet
    test: TextSet
    tokenizer: TextTokenizer


def write_text_dataset(
    source: TextSource,
    tokenizer: TextTokenizer,
    out: Path,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    *,
    accept: bool = False,
) -> TextMeta:
    """Tokenize both splits of a source into the folder `out`, or do nothing if they are there and intact.

    Memory depends on the longest document only. `say` is called with a line if tokens that are there are damaged. With
    `accept`, a text that changed replaces the tokens of the earlier one.

    Raises:
        DataError: a text cannot be encoded (with its position), or `out` holds tokens of another source or tokenizer.
        DiskError: `out` cannot be written.
    """
    with lock(out):
        files = source.list_files()
        made: dict[str, Any] = {
            "tokenizer": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "source": json.dumps({"type": type(source).__name__, **to_json(source)}),
            "files": tuple(digest for _, digest in files),
            "names": tuple(name for name, _ in files),
        }
        found = _read_finished(out, made, accept=accept)
        if found is not None:
            return found
        earlier = _read_meta(out) if (out / META).exists() else None
        if earlier is not None and earlier.files == made["files"] and say is not None:
            say(f"{escape_line(str(out))} is damaged, so the text is tokenized again")
        with _write_atomic(out / TEXT_TOKENIZER) as file:
            file.write(tokenizer.to_bytes())
        (out / META).unlink(missing_ok=True)  # of damaged tokens; from here on, the folder is not finished
        train = _write_part(source, "train", tokenizer, out, progress)
        test = _write_part(source, "test", tokenizer, out, progress)
        if not train.tokens or not test.tokens:
            raise DataError(
                f"{made['source']} gives {train.tokens} tokens to train on and {test.tokens} held out: neither may be "
                "empty; give more text, or hold out another share"
            )
        meta = TextMeta(train=train, test=test, **made)
        meta = replace(meta, digest=_compute_digest(meta))
        write_json(out / META, meta)
        if earlier is not None and earlier.files != meta.files and say is not None:
            say(_describe_growth(earlier, meta))
        return meta


def keep_text_arrangement(source: TextSource, out: Path) -> TextSource:
    """Return the source with its documents held out as in the tokens that `out` holds, if it holds any."""
    if not (out / META).exists():
        return source
    earlier = fill_arrangement(json.loads(_read_meta(out).source))
    return replace(source, arrange=earlier.get("arrange", source.arrange))


def _describe_growth(earlier: TextMeta, meta: TextMeta) -> str:
    """Return a line on a text that changed, and was tokenized again: how much it grew or shrank, and where."""
    before, now = (one.train.characters + one.test.characters for one in (earlier, meta))
    verb = "grew" if now > before else "shrank" if now < before else "changed, and stayed"
    size = f"from {before:,} to {now:,} characters" if now != before else f"at {now:,} characters"
    changes = escape_line(_describe_changes(earlier, vars(meta)))
    return f"the text {verb} {size} ({changes}), so it was tokenized again"


def check_text_folder(out: Path, *, overwrite: bool = False) -> None:
    """Refuse, before the work, to replace files in `out` that `write_text_dataset` did not make.

    The first file that it writes is the tokenizer, so that a killed command is recognised.

    Raises:
        ConfigError: `out` holds other files of the same names, and not `overwrite`.
    """
    if (out / META).exists():
        return  # `write_text_dataset` compares it
    try:
        begun = (out / TEXT_TOKENIZER).is_file() and bool(open_text_tokenizer(out / TEXT_TOKENIZER, context=1))
    except (DataError, ConfigError):
        begun = False
    if not begun:
        check_folder(out, [TEXT_TOKENIZER, *ARRAYS], overwrite=overwrite)


def open_text_dataset(
    folder: str | Path, context: int, packing: Packing = "stream", *, verify: bool = True
) -> OpenText:
    """Open a finished folder; raise DataError if it is unfinished or damaged, or if a split has no row.

    Every file is read once to compare its sha256 (about a second per GB), unless `verify` is False.
    """
    folder = Path(folder).expanduser()
    if not (folder / META).is_file():
        raise DataError(f"{escape_line(str(folder))} holds no finished tokens of a text: tokenize the text into it")
    meta = _read_meta(folder)
    tokenizer = open_text_tokenizer(folder / TEXT_TOKENIZER, context)
    check_text_tokenizer(meta, tokenizer.sha256)
    if verify:
        check_text_files(folder, meta)
    train = TextSet(folder, meta, "train", context, packing)
    test = TextSet(folder, meta, "test", context, packing)
    return OpenText(meta, train, test, tokenizer)


def check_text_tokenizer(meta: TextMeta, sha256: str) -> None:
    """Raise DataError unless the tokenizer with this sha256 made the tokens."""
    if meta.tokenizer != sha256:
        raise DataError(
            f"the tokens were made by tokenizer {meta.tokenizer[:12]}, but this one is {sha256[:12]}: use the "
            f"{TEXT_TOKENIZER} that was made with the tokens, or tokenize again into another folder"
        )


def check_text_files(folder: Path, meta: TextMeta) -> None:
    """Raise DataError, with its name, if a file of tokens is missing or not as it was written."""
    for name, digest in _list_digests(meta).items():
        try:
            intact = hash_file(folder / name) == digest
        except OSError as error:
            raise DataError(
                f"{escape_line(str(folder / name))} cannot be read: {describe_os_error(error)}; tokenize the text again"
            ) from error
        if not intact:
            raise DataError(
                f"{escape_line(str(folder / name))} is damaged: its sha256 is not the one in {META}; restore it, or "
                "tokenize the text again, which mends it"
            )


def _list_digests(meta: TextMeta) -> dict[str, str]:
    digests: dict[str, str] = {}
    for part in ("train", "test"):
        digests |= {f"{part}.tokens.npy": meta.get_part(part).sha256, f"{part}.starts.npy": meta.get_part(part).starts}
    return digests


def _write_part(
    source: TextSource, part: SplitName, tokenizer: TextTokenizer, out: Path, progress: Progress | None
) -> TextPart:
    total = sum(1 for _ in source.read_documents(part)) if progress is not None else 0
    documents = tokens = characters = size = 0
    paths = [out / f"{part}.{name}.npy" for name in ("tokens", "starts")]
    with _write_atomic(paths[0]) as body, _write_atomic(paths[1]) as starts:
        for file in (body, starts):
            file.write(bytes(HEADER))
        starts.write(np.zeros(1, START).tobytes())
        for group in _group(source.read_located(part)):
            ids = [np.append(x, tokenizer.end_id) for x in _encode(tokenizer, group)]
            stops = tokens + np.cumsum([len(x) for x in ids])
            body.write(np.concatenate(ids).astype(choose_token_type(tokenizer.vocab_size)).tobytes())
            starts.write(stops.astype(START).tobytes())
            documents, tokens = documents + len(group), int(stops[-1])
            characters += sum(len(text) for _, text in group)
            size += sum(len(text.encode()) for _, text in group)
            if progress is not None:
                progress(f"tokenizing {part}", documents, total)
        for file, dtype, num in (
            (body, choose_token_type(tokenizer.vocab_size), tokens),
            (starts, START, documents + 1),
        ):
            file.seek(0)
            file.write(_build_header(dtype, num))
    digests = [hash_file(path) for path in paths]
    return TextPart(
        documents=documents, tokens=tokens, characters=characters, bytes=size, sha256=digests[0], starts=digests[1]
    )


def _encode(tokenizer: TextTokenizer, group: list[LocatedText]) -> list[np.ndarray]:
    try:
        return tokenizer.encode_all([text for _, text in group])
    except DataError:
        for where, text in group:
            try:
                tokenizer.encode(text)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        raise


def _group(documents: Iterator[LocatedText]) -> Iterator[list[LocatedText]]:
    """Group documents, since a tokenizer is faster on many at once."""
    group: list[LocatedText] = []
    size = 0
    for where, text in documents:
        group.append((where, text))
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _build_header(dtype: np.dtype, num: int) -> bytes:
    """Return the header of a .npy file of `num` numbers, padded to `HEADER` bytes."""
    plain = io.BytesIO()
    np.lib.format.write_array_header_1_0(plain, {"descr": dtype.str, "fortran_order": False, "shape": (num,)})
    text = plain.getvalue()[10:].strip().ljust(HEADER - 11) + b"\n"
    return plain.getvalue()[:8] + len(text).to_bytes(2, "little") + text


def _read_meta(folder: Path) -> TextMeta:
    try:
        meta = read_json(folder / META, TextMeta, MAX_JSON)
        if meta.digest not in ("", _compute_digest(meta)):
            raise ConfigError("its sha256 is not the one it holds")
    except ConfigError as error:
        message = f"{folder / META} is damaged or of another kind ({error}); give another folder"
        raise DataError(escape_line(message)) from error
    return meta


def _compute_digest(meta: TextMeta) -> str:
    return hashlib.sha256(dump_json(replace(meta, digest="")).encode()).hexdigest()


def _read_finished(out: Path, made: dict[str, Any], *, accept: bool) -> TextMeta | None:
    """Return the metadata of tokens that are there and intact, or None; raise DataError if they are other tokens.

    With `accept` a text that changed is as if there were none.
    """
    foreign = sorted(path.name for path in out.glob("*.npy") if path.name not in ARRAYS)
    if foreign:
        raise DataError(f"{escape_line(str(out))} holds other arrays ({escape_line(foreign[0])}): give another folder")
    if not (out / META).exists():
        return None
    meta = _read_meta(out)
    if meta.files != made["files"]:
        if accept:
            return None
        changed = escape_line(_describe_changes(meta, made))
        raise DataError(
            f"{escape_line(str(out))} holds the tokens of another text ({changed}): restore the text, give another "
            "--out (and --init RUN to start from a run's weights), or train with --accept-data to continue knowingly"
        )
    there, here = (
        {"source": _forget_paths(fill_arrangement(json.loads(one["source"]))), "tokenizer": one["tokenizer"]}
        for one in (vars(meta), made)
    )
    if there != here:
        changed = escape_line(list_differences(there, here)[0])
        raise DataError(f"{escape_line(str(out))} holds other tokens ({changed}): give another folder")
    wanted = {TEXT_TOKENIZER: meta.tokenizer, **_list_digests(meta)}
    with contextlib.suppress(OSError):
        if all(hash_file(out / name) == digest for name, digest in wanted.items()):
            return meta
    return None


def _forget_paths(source: dict[str, Any]) -> dict[str, Any]:
    """Return a source, as JSON, without where its files lie: the same files elsewhere are the same text."""
    if source.get("type") != "TextFile":
        return source
    return {**source, "path": "", "test": None if source.get("test") is None else ""}


def _describe_changes(meta: TextMeta, made: dict[str, Any]) -> str:
    """Return in words how the source files differ from those that were tokenized."""
    if len(meta.names) != len(meta.files):  # made before names were kept
        return f"{len(made['files'])} files now, {len(meta.files)} then, and their content differs"
    there, here = (dict(zip(one["names"], one["files"], strict=True)) for one in (vars(meta), made))
    changes = [
        ("is new", [name for name in here if name not in there]),
        ("is gone", [name for name in there if name not in here]),
        ("has changed", [name for name in here if name in there and here[name] != there[name]]),
    ]
    said = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {verb}"
        for verb, names in changes
        if names
    ]
    return ", ".join(said) or "the files are in another order"


@contextlib.contextmanager
def _write_atomic(path: Path) -> Iterator[Any]:
    """Open a file to write, renamed to `path` once it is complete and on disk; raise DiskError if writing fails.

    Reading the text raises other errors, so an OSError here comes from writing.
    """
    try:
        with write_atomic(path) as temporary, open(temporary, "wb") as file:
            yield file
    except OSError as error:
        again = "free or mend the disk, then run the same command again"
        raise DiskError(f"cannot write {path}: {describe_os_error(error)}; {again}") from error
