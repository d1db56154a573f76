"""Tokens of texts on the disk: one flat array per part, in which every document ends with the end token, mapped into
memory as training reads it. `meta.json` is written last: without it the folder is not finished."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unmask.data.shards.dataset import MAX_JSON, META, code_type
from unmask.data.text.reading import Located
from unmask.data.text.rows import START, Packing, TextMeta, TextPart, TextSet
from unmask.data.text.sources import Part, TextSource
from unmask.errors import ConfigError, DataError, DiskError
from unmask.runtime.progress import Progress
from unmask.storage.config import list_differences, read_json, to_json, write_json
from unmask.storage.files import one_line, sha256_of, write_atomic
from unmask.storage.layout import TEXT_TOKENIZER
from unmask.storage.lock import lock
from unmask.tokenizers.text import TextTokenizer, open_text_tokenizer

GROUP = 1 << 22  # characters that are encoded at once, or those of one longer document
HEADER = 128  # bytes, in which the length can be written when it is known


class OpenText(NamedTuple):
    """What a folder holds: its rows for training, those held out, and the tokenizer that made them."""

    meta: TextMeta
    train: TextSet
    test: TextSet
    tokenizer: TextTokenizer


def write_text(source: TextSource, tokenizer: TextTokenizer, out: Path, progress: Progress | None = None) -> TextMeta:
    """Tokenize both parts of a source into the folder `out`, or find that this is done and whole.

    Memory is that of the longest document. DataError, with its place, for a text that cannot be encoded, or if `out`
    holds another source's tokens or another tokenizer's; DiskError if it cannot be written.
    """
    with lock(out):
        made: dict[str, Any] = {
            "tokenizer": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "source": json.dumps({"type": type(source).__name__, **to_json(source)}),
            "files": source.digests(),
        }
        found = _finished(out, made)
        if found is not None:
            return found
        for path in out.glob(".*.tmp-*"):
            path.unlink()  # what a killed command left half-written
        with _whole(out / TEXT_TOKENIZER) as file:
            file.write(tokenizer.to_bytes())
        train = _write_part(source, "train", tokenizer, out, progress)
        test = _write_part(source, "test", tokenizer, out, progress)
        if not train.tokens or not test.tokens:
            raise DataError(
                f"{made['source']} gives {train.tokens} tokens to train on and {test.tokens} held out: neither may be "
                "empty; give more text, or hold out another share"
            )
        meta = TextMeta(train=train, test=test, **made)
        write_json(out / META, meta)
        return meta


def open_text(folder: str | Path, context: int, packing: Packing = "stream") -> OpenText:
    """The rows of a finished folder; DataError if it is unfinished or damaged, or if a part has no row."""
    folder = Path(folder).expanduser()
    if not (folder / META).is_file():
        raise DataError(f"{one_line(str(folder))} holds no finished tokens of a text: tokenize the text into it")
    meta = _read_meta(folder)
    tokenizer = open_text_tokenizer(folder / TEXT_TOKENIZER, context)
    check_text_tokenizer(meta, tokenizer.sha256)
    train = TextSet(folder, meta, "train", context, packing)
    test = TextSet(folder, meta, "test", context, packing)
    return OpenText(meta, train, test, tokenizer)


def check_text_tokenizer(meta: TextMeta, sha256: str) -> None:
    """DataError if the tokens were made by another tokenizer than the one of this sha256."""
    if meta.tokenizer != sha256:
        raise DataError(
            f"the tokens were made by tokenizer {meta.tokenizer[:12]}, but this one is {sha256[:12]}: use the "
            f"{TEXT_TOKENIZER} that was made with the tokens, or tokenize again into another folder"
        )


def _write_part(
    source: TextSource, part: Part, tokenizer: TextTokenizer, out: Path, progress: Progress | None
) -> TextPart:
    total = sum(1 for _ in source.documents(part)) if progress is not None else 0
    documents = tokens = characters = size = 0
    paths = [out / f"{part}.{name}.npy" for name in ("tokens", "starts")]
    with _whole(paths[0]) as body, _whole(paths[1]) as starts:
        for file in (body, starts):
            file.write(bytes(HEADER))
        starts.write(np.zeros(1, START).tobytes())
        for group in _groups(source.located(part)):
            ids = [np.append(x, tokenizer.end_id) for x in _encode(tokenizer, group)]
            stops = tokens + np.cumsum([len(x) for x in ids])
            body.write(np.concatenate(ids).astype(code_type(tokenizer.vocab_size)).tobytes())
            starts.write(stops.astype(START).tobytes())
            documents, tokens = documents + len(group), int(stops[-1])
            characters += sum(len(text) for _, text in group)
            size += sum(len(text.encode()) for _, text in group)
            if progress is not None:
                progress(f"tokenizing {part}", documents, total)
        for file, dtype, num in ((body, code_type(tokenizer.vocab_size), tokens), (starts, START, documents + 1)):
            file.seek(0)
            file.write(_header(dtype, num))
    digests = [sha256_of(path) for path in paths]
    return TextPart(
        documents=documents, tokens=tokens, characters=characters, bytes=size, sha256=digests[0], starts=digests[1]
    )


def _encode(tokenizer: TextTokenizer, group: list[Located]) -> list[np.ndarray]:
    try:
        return tokenizer.encode_all([text for _, text in group])
    except DataError:
        for where, text in group:
            try:
                tokenizer.encode(text)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        raise


def _groups(documents: Iterator[Located]) -> Iterator[list[Located]]:
    """Documents by the handful, as a tokenizer is faster on many."""
    group: list[Located] = []
    size = 0
    for where, text in documents:
        group.append((where, text))
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _header(dtype: np.dtype, num: int) -> bytes:
    """That of a .npy file of `num` numbers, filled up to `HEADER` bytes."""
    plain = io.BytesIO()
    np.lib.format.write_array_header_1_0(plain, {"descr": dtype.str, "fortran_order": False, "shape": (num,)})
    text = plain.getvalue()[10:].strip().ljust(HEADER - 11) + b"\n"
    return plain.getvalue()[:8] + len(text).to_bytes(2, "little") + text


def _read_meta(folder: Path) -> TextMeta:
    try:
        return read_json(folder / META, TextMeta, MAX_JSON)
    except ConfigError as error:
        message = f"{folder / META} is damaged or of another kind ({error}); give another folder, or delete this one"
        raise DataError(one_line(message)) from error


def _finished(out: Path, made: dict[str, Any]) -> TextMeta | None:
    """The tokens that are there and whole, or None; DataError if they are others."""
    ours = {f"{part}.{name}.npy" for part in ("train", "test") for name in ("tokens", "starts")}
    foreign = sorted(path.name for path in out.glob("*.npy") if path.name not in ours)
    if foreign:
        raise DataError(f"{one_line(str(out))} holds other arrays ({one_line(foreign[0])}): give another folder")
    if not (out / META).exists():
        return None
    meta = _read_meta(out)
    there = {name: getattr(meta, name) for name in made}
    if there != made:
        pairs = [{**x, "source": json.loads(x["source"]), "files": list(x["files"])} for x in (there, made)]
        changed = one_line(list_differences(*pairs)[0])
        raise DataError(f"{one_line(str(out))} holds other tokens ({changed}): give another folder, or delete this one")
    wanted = {TEXT_TOKENIZER: meta.tokenizer}
    for part in ("train", "test"):
        wanted |= {f"{part}.tokens.npy": meta.part(part).sha256, f"{part}.starts.npy": meta.part(part).starts}
    with contextlib.suppress(OSError):
        if all(sha256_of(out / name) == digest for name, digest in wanted.items()):
            return meta
    (out / META).unlink()  # damaged, so it is made anew
    return None


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """A file to write, which takes its name once it is whole and on the disk; DiskError if the disk will not have it.

    Reading the text has its own errors, so what arrives here as OSError is of writing.
    """
    try:
        with write_atomic(path) as temporary, open(temporary, "wb") as file:
            yield file
    except OSError as error:
        again = "free or mend the disk, then run the same command again"
        raise DiskError(f"cannot write {path}: {error.strerror}; {again}") from error
