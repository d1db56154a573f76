"""Token datasets of texts: one flat array per split, memory-mapped in training; every document ends with the end token.
`meta.json` is written last: without it the folder is not finished."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unmask.data.shards.dataset import MAX_JSON, META, choose_token_type
from unmask.data.text.reading import LocatedText
from unmask.data.text.rows import START, Packing, TextMeta, TextPart, TextSet
from unmask.data.text.sources import SplitName, TextSource
from unmask.errors import ConfigError, DataError, DiskError
from unmask.runtime.progress import Progress
from unmask.storage.config import list_differences, read_json, to_json, write_json
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
    source: TextSource, tokenizer: TextTokenizer, out: Path, progress: Progress | None = None
) -> TextMeta:
    """Tokenize both splits of a source into the folder `out`, or do nothing if they are there and intact.

    Memory depends on the longest document only.

    Raises:
        DataError: a text cannot be encoded (with its position), or `out` holds tokens of another source or tokenizer.
        DiskError: `out` cannot be written.
    """
    with lock(out):
        made: dict[str, Any] = {
            "tokenizer": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "source": json.dumps({"type": type(source).__name__, **to_json(source)}),
            "files": source.hash_files(),
        }
        found = _read_finished(out, made)
        if found is not None:
            return found
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
        write_json(out / META, meta)
        return meta


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


def open_text_dataset(folder: str | Path, context: int, packing: Packing = "stream") -> OpenText:
    """Open a finished folder; raise DataError if it is unfinished or damaged, or if a split has no row."""
    folder = Path(folder).expanduser()
    if not (folder / META).is_file():
        raise DataError(f"{escape_line(str(folder))} holds no finished tokens of a text: tokenize the text into it")
    meta = _read_meta(folder)
    tokenizer = open_text_tokenizer(folder / TEXT_TOKENIZER, context)
    check_text_tokenizer(meta, tokenizer.sha256)
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
        return read_json(folder / META, TextMeta, MAX_JSON)
    except ConfigError as error:
        message = f"{folder / META} is damaged or of another kind ({error}); give another folder"
        raise DataError(escape_line(message)) from error


def _read_finished(out: Path, made: dict[str, Any]) -> TextMeta | None:
    """Return the metadata of tokens that are there and intact, or None; raise DataError if they are other tokens."""
    foreign = sorted(path.name for path in out.glob("*.npy") if path.name not in ARRAYS)
    if foreign:
        raise DataError(f"{escape_line(str(out))} holds other arrays ({escape_line(foreign[0])}): give another folder")
    if not (out / META).exists():
        return None
    meta = _read_meta(out)
    there = {name: getattr(meta, name) for name in made}
    if there != made:
        pairs = [{**x, "source": json.loads(x["source"]), "files": list(x["files"])} for x in (there, made)]
        changed = escape_line(list_differences(*pairs)[0])
        raise DataError(f"{escape_line(str(out))} holds other tokens ({changed}): give another folder")
    wanted = {TEXT_TOKENIZER: meta.tokenizer}
    for part in ("train", "test"):
        wanted |= {f"{part}.tokens.npy": meta.get_part(part).sha256, f"{part}.starts.npy": meta.get_part(part).starts}
    with contextlib.suppress(OSError):
        if all(hash_file(out / name) == digest for name, digest in wanted.items()):
            return meta
    return None  # damaged: it is tokenized again


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
        raise DiskError(f"cannot write {path}: {error.strerror}; {again}") from error
