"""Texts from files to rows of tokens: every format, every refusal with its place, and shards that are whole or none."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unmask.data.shards.dataset import META
from unmask.data.sources.choice import fill_arrangement
from unmask.data.text import reading as text_reading
from unmask.data.text import rows as text_rows
from unmask.data.text import shards as text_shards
from unmask.data.text import sources as text_data
from unmask.data.text.shards import TextSet, check_text_tokenizer, open_text_dataset, write_text_dataset
from unmask.data.text.sources import HubText, TextFile, draw_by_content
from unmask.data.tokens import Batches, Tokens
from unmask.errors import CheckpointError, ConfigError, DataError, DiskError
from unmask.storage.lock import lock
from unmask.tokenizers.text import BPE, Bytes, ByteTokenizer, CharacterTokenizer, build_tokenizer

CPU = torch.device("cpu")
REAL = Path(__file__).parents[3] / "shared" / "data"
END = "<|endoftext|>"
SPLITS = ("train", "test")


def put(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def all_of(source):
    return [*source.read_documents("train"), *source.read_documents("test")]


def lines_of(num, start=0):
    return "".join(f"document {i}\n" for i in range(start, start + num))


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_single_text_is_cut_where_nanogpt_cuts_it(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1234)) + "\n end \n"
    source = TextFile(path=put(tmp_path / "a.txt", text))
    end = int(0.9 * len(text))
    assert list(source.read_documents("train")) == [text[:end]]
    assert list(source.read_documents("test")) == [text[end:]]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_many_documents_are_held_out_whole(tmp_path, name):
    source = TextFile(path=put(tmp_path / name, lines_of(30)), format="lines", held_out=0.2, arrange="position")
    assert list(source.read_documents("train")) == [f"document {i}" for i in range(24)]
    assert list(source.read_documents("test")) == [f"document {i}" for i in range(24, 30)]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=20, max_size=60),
    more=st.lists(st.text("abcdef", min_size=1, max_size=6), max_size=60),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
)
def test_documents_that_arrive_anywhere_never_move_one_into_the_held_out_set(texts, more, share, seed):
    def divide(documents):
        rows = [(f"{i}", text) for i, text in enumerate(documents)]
        try:
            parts = [list(text_data.hold_out(lambda: iter(rows), part, share, "x", "content")) for part in SPLITS]
        except DataError as error:
            assert "would be held out" in str(error)  # noqa: PT017
            assume(False)
        assert sorted(parts[0] + parts[1]) == sorted(rows)
        assert all(part == sorted(part, key=rows.index) for part in parts)  # their order is kept
        return [{text for _, text in part} for part in parts]

    train, test = divide(texts)
    assert test
    assert not train & test  # copies stay together
    mixed = texts + more
    np.random.default_rng(seed).shuffle(mixed)
    later_test = divide(mixed)[1]
    assert not train & later_test
    if any(draw_by_content(text) < share for text in texts):
        assert test <= later_test
    assert divide(texts[::-1]) == [train, test]


def test_about_the_share_of_the_documents_is_held_out_and_a_forced_one_stays_until_a_nearer_one_arrives():
    rows = [(f"{i}", f"document {i}") for i in range(2000)]
    test = list(text_data.hold_out(lambda: iter(rows), "test", 0.1, "x", "content"))
    assert 150 < len(test) < 250
    ranked = sorted(rows, key=lambda row: draw_by_content(row[1]))
    far, near = ranked[100:130], ranked[0]

    def pick(documents):
        return list(text_data.hold_out(lambda: iter(documents), "test", 1e-9, "x", "content"))

    assert pick(far) == [far[0]] == pick(far[::-1]) == pick([*ranked[130:], *far])
    assert pick([*far, near]) == [near]
    same = [("0", "a")] * 30
    with pytest.raises(DataError, match="all 30 documents would be held out"):
        list(text_data.hold_out(lambda: iter(same), "train", 0.1, "x", "content"))


@pytest.mark.parametrize("arrange", ["content", "position"])
@settings(max_examples=60)
@given(texts=st.lists(st.text("ab", max_size=4), max_size=19), share=st.floats(0.01, 0.99))
def test_few_documents_are_held_out_by_characters(arrange, texts, share):
    whole = [(f"{i}", text) for i, text in enumerate(texts) if text]
    if not whole:
        return
    parts = [list(text_data.hold_out(lambda: iter(whole), part, share, "x", arrange)) for part in SPLITS]
    joined = ["".join(text for _, text in part) for part in parts]
    everything = "".join(texts)
    assert "".join(joined) == everything
    assert len(joined[0]) == int((1 - share) * len(everything))


def test_documents_between_separators_and_in_a_second_file(tmp_path):
    train = put(tmp_path / "a.txt", f"one\n{END}\n\n two\n2 \n{END}{END} three{END}\n")
    test = put(tmp_path / "b.txt", "four")
    source = TextFile(path=train, test=test, separator=END)
    assert list(source.read_documents("train")) == ["one", "two\n2", "three"]
    assert list(source.read_documents("test")) == ["four"]
    assert [where.rsplit(",", 1)[1] for where, _ in source.read_located("train")] == [
        " document at line 1",
        " document at line 4",
        " document at line 6",
    ]


@settings(max_examples=200)
@given(text=st.text("ab\r\n\ufeff東", max_size=40), separator=st.sampled_from(["a", "aa", "aab", "\n\n"]))
def test_blocks_of_any_size_read_the_same(tmp_path_factory, text, separator):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    expected = text.removeprefix("\ufeff").replace("\r\n", "\n")
    block = text_reading.READ_BYTES
    try:
        for text_reading.READ_BYTES in (1, 2, 3, 7, 1000):
            assert "".join(text_reading.read_blocks(path)) == expected
            found = [document for _, document in text_reading.read_documents(path, separator)]
            assert found == [piece.strip() for piece in expected.split(separator) if piece.strip()]
            numbered = [(int(where.rsplit(" ", 1)[1]), line) for where, line in text_reading.read_lines(path)]
            assert numbered == [(i, line) for i, line in enumerate(expected.split("\n"), 1) if line.strip()]
    finally:
        text_reading.READ_BYTES = block


def test_json_lines(tmp_path):
    rows = [{"text": "one\r\ntwo", "id": 1}, {"text": " "}, {"text": "drei 東京"}]
    path = put(tmp_path / "a.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\n")
    source = TextFile(path=path, test=path)
    assert list(source.read_documents("train")) == ["one\ntwo", "drei 東京"]
    assert "".join(all_of(TextFile(path=path, field="text", held_out=0.5))) == "one\ntwodrei 東京"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{nonsense", "line 2: not JSON"),
        ("[1]", "line 2: no text in a field 'text', but it is no object"),
        ('{"body": "x"}', "line 2: no text in a field 'text', but it has body; set --data.field"),
        ('{"text": 3}', "line 2: no text in a field 'text'"),
        ('{"text": "a\\u0000b"}', r"line 2: it has '\\x00'"),
        ('{"text": "a\\ud800"}', r"line 2: it has '\\ud800'"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_bad_json_lines_are_named(tmp_path, line, message):
    path = put(tmp_path / "a.jsonl", '{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as caught:
        all_of(TextFile(path=path))
    assert "\n" not in str(caught.value)
    assert "a.jsonl" in str(caught.value)


def test_a_folder_is_its_text_files_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, text in (("b.TXT", "second"), ("a.txt.gz", "first"), ("sub/c.txt", "fourth"), ("d.md", "third")):
        put(tmp_path / name, text)
    source = TextFile(path=str(tmp_path))
    assert "".join(all_of(source)) == "firstsecondthirdfourth"
    assert [name for name, _ in source.list_files()] == ["a.txt.gz", "b.TXT", "d.md", "sub/c.txt"]
    assert source.list_left_out() == []
    with pytest.raises(DataError, match=r"no \.jsonl, \.ndjson files"):
        all_of(replace(source, format="jsonl"))


@pytest.mark.parametrize("format", ["text", "lines"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_nul_and_broken_utf8_are_named_with_their_place(tmp_path, monkeypatch, name, format, block):
    monkeypatch.setattr(text_reading, "READ_BYTES", block)
    source = TextFile(path=put(tmp_path / name, "é\n\nab".encode() + b"\0c"), format=format)
    with pytest.raises(DataError, match=r"a\.txt(\.gz)?, line 3 \(byte 6\): a NUL byte"):
        all_of(source)
    for wrong in (b"\xffc\n", b"\xc3", b"\xed\xa0\x80"):
        put(tmp_path / name, b"\xef\xbb\xbf" + "é\nab".encode() + wrong)
        with pytest.raises(DataError, match=r"a\.txt(\.gz)?, byte 8 \(line 2\): .* not UTF-8"):
            all_of(source)


def test_an_endless_line_is_refused_and_read_as_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text_reading, "READ_BYTES", 10)
    monkeypatch.setattr(text_reading, "MAX_LINE", 50)
    path = put(tmp_path / "a.txt", "short\n" + "x" * 50 + "\n" + "y" * 51 + "\n")
    with pytest.raises(DataError, match=r"a\.txt, line 3: more than 50 characters"):
        all_of(TextFile(path=path, format="lines"))
    assert "".join(all_of(TextFile(path=path))).count("y") == 51


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read: No such file"):
        all_of(TextFile(path=str(tmp_path / "none.txt")))
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        TextFile(path=str(tmp_path / "none.txt")).list_files()
    whole = gzip.compress(b"some text" * 100)
    for damaged in (whole[:-9], b"no gzip", whole[:20] + b"\xff\xff\xff" + whole[23:]):
        (tmp_path / "a.txt.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read"):
            all_of(TextFile(path=str(tmp_path / "a.txt.gz")))
    for format in ("text", "lines"):
        with pytest.raises(DataError, match="holds no text"):
            all_of(TextFile(path=put(tmp_path / "empty.txt", " \n\n"), format=format))


def test_impossible_sources_are_refused():
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="held_out is"):
            TextFile(path="x", held_out=share)
    with pytest.raises(ConfigError, match="leave it out"):
        TextFile(path="x", format="lines", separator="--")


def test_a_data_set_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    rows = datasets.Dataset.from_dict({"text": [f"row {i}\r\n" for i in range(40)] + [""], "n": list(range(41))})
    held = datasets.Dataset.from_dict({"text": ["held", None], "n": [1, 2]})
    datasets.DatasetDict({"train": rows, "validation": held}).save_to_disk(str(tmp_path / "set"))
    source = HubText(name=str(tmp_path / "set"), arrange="position")
    assert all_of(source) == [f"row {i}\n" for i in range(40)]
    assert len(list(source.read_documents("test"))) == 4
    assert source.list_files() == source.list_files()
    held_out = replace(source, test="validation")
    assert list(held_out.read_documents("test")) == ["held"]
    (line,) = held_out.list_left_out()
    assert re.fullmatch(r"2 rows without a text, the first .*, train, row 40: blank in 'text'", line)
    assert source.list_left_out()[0] == f"{source.name}, validation: only train is read; see --data.test"
    with pytest.raises(DataError, match="train, row 0: int instead of text"):
        all_of(replace(source, field="n"))
    with pytest.raises(ConfigError, match="no split 'dev', but train, validation"):
        all_of(replace(source, test="dev"))
    with pytest.raises(ConfigError, match="no column 'body', but text, n"):
        all_of(replace(source, field="body"))
    with pytest.raises(ConfigError, match="which dataset"):
        all_of(HubText(name=""))


def test_a_subset_of_a_data_set_is_asked_for_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    asked = []

    def load(name, subset):
        asked.append((name, subset))
        if subset == "absent":
            raise ValueError("BuilderConfig 'absent'\nnot found")
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": [f"{i}" for i in range(20)]})})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(all_of(HubText(name="owner/books", subset="small"))) == 20
    assert set(asked) == {("owner/books", "small")}
    with pytest.raises(ConfigError, match="cannot load owner/books, absent") as caught:
        all_of(HubText(name="owner/books", subset="absent"))
    assert "\n" not in str(caught.value)


# -- shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    return TextFile(path=put(tmp_path / "a.txt", lines_of(40)), format="lines")


def flat(source, part, tokenizer):
    """The stream that a part is to be."""
    documents = [[*tokenizer.encode(text).tolist(), tokenizer.end_id] for text in source.read_documents(part)]
    return [token for document in documents for token in document], documents


def test_tokens_of_an_early_version_keep_their_split(tmp_path, corpus):
    early = replace(corpus, arrange="position")
    tokenizer, out = ByteTokenizer(8), tmp_path / "out"
    write_text_dataset(early, tokenizer, out)
    meta = json.loads((out / META).read_text())
    source = json.loads(meta["source"])
    del source["arrange"], meta["digest"]  # as an early version wrote it
    (out / META).write_text(json.dumps(meta | {"source": json.dumps(source)}))
    before = (out / META).read_bytes()
    assert text_shards.keep_text_arrangement(corpus, out) == early
    assert text_shards.keep_text_arrangement(corpus, tmp_path / "new") == corpus
    write_text_dataset(early, tokenizer, out)
    assert (out / META).read_bytes() == before
    with pytest.raises(DataError, match="arrange"):
        write_text_dataset(corpus, tokenizer, out)
    assert fill_arrangement({"type": "TextFile", "path": "x"})["arrange"] == "position"
    assert fill_arrangement({"type": "HubText", "name": "x"})["arrange"] == "position"


def test_every_document_is_there_with_its_end(tmp_path, corpus):
    tokenizer, out = ByteTokenizer(8), tmp_path / "out"
    seen = []
    meta = write_text_dataset(corpus, tokenizer, out, lambda *report: seen.append(report))
    train, test = (len(list(corpus.read_documents(part))) for part in SPLITS)
    assert train + test == 40
    assert seen == [("tokenizing train", train, train), ("tokenizing test", test, test)]
    for part in ("train", "test"):
        stream, documents = flat(corpus, part, tokenizer)
        tokens = np.load(out / f"{part}.tokens.npy", mmap_mode="r")
        assert tokens.dtype == np.dtype("<u2")
        assert tokens.tolist() == stream
        starts = np.load(out / f"{part}.starts.npy")
        assert starts.tolist() == np.cumsum([0, *(len(document) for document in documents)]).tolist()
        there, texts = meta.get_part(part), list(corpus.read_documents(part))
        assert (there.documents, there.tokens) == (len(texts), len(stream))
        assert there.characters == there.bytes == sum(map(len, texts))
    assert isinstance(open_text_dataset(out, 8).train, Tokens)
    assert isinstance(open_text_dataset(out, 8).train._tokens, np.memmap)
    assert open_text_dataset(out, 8).tokenizer.sha256 == tokenizer.sha256
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == [
        "meta.json",
        "test.starts.npy",
        "test.tokens.npy",
        "tokenizer.json",
        "train.starts.npy",
        "train.tokens.npy",
    ]


def test_bytes_are_those_of_utf8(tmp_path):
    source = TextFile(path=put(tmp_path / "a.txt", "é東🙂x" * 10))
    meta = write_text_dataset(source, ByteTokenizer(4), tmp_path / "out")
    assert (meta.train.characters, meta.train.bytes, meta.train.tokens) == (36, 90, 91)
    assert (meta.train.documents, meta.test.documents) == (1, 1)


@pytest.mark.parametrize("group", [1, 25, 1 << 22])
def test_the_grouping_changes_no_byte(tmp_path, corpus, monkeypatch, group):
    expected = write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "a")
    monkeypatch.setattr(text_shards, "GROUP", group)
    assert write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "b") == expected


def test_a_large_vocabulary_takes_four_bytes(tmp_path, corpus):
    alphabet = "".join(chr(i) for i in range(1, 70_000) if not 0xD800 <= i <= 0xDFFF)
    source = TextFile(path=put(tmp_path / "b.txt", "a\U000110ff" * 60))
    write_text_dataset(source, CharacterTokenizer(alphabet, 8), tmp_path / "out")
    opened = open_text_dataset(tmp_path / "out", 8)
    assert np.load(tmp_path / "out" / "train.tokens.npy", mmap_mode="r").dtype == np.dtype("<i4")
    assert opened.tokenizer.decode(opened.train.read_rows(torch.tensor([1]), CPU)[0][0]) == "a\U000110ff" * 4


def test_the_same_again_is_reused_and_another_refused(tmp_path, corpus):
    out = tmp_path / "out"
    meta = write_text_dataset(corpus, ByteTokenizer(8), out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    assert write_text_dataset(corpus, ByteTokenizer(99), out) == meta
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")} == times
    for source, tokenizer, message in (
        (replace(corpus, held_out=0.2), ByteTokenizer(8), r"source\.held_out 0\.1 there, 0\.2 here"),
        (corpus, CharacterTokenizer("document 0123456789", 8), "tokenizer"),
    ):
        with pytest.raises(DataError, match=rf"out holds other tokens \({message}.*give another folder"):
            write_text_dataset(source, tokenizer, out)
    put(Path(corpus.path), lines_of(41))
    with pytest.raises(DataError, match=r"holds the tokens of another text \(a\.txt has changed\): restore the text"):
        write_text_dataset(corpus, ByteTokenizer(8), out)


def test_a_text_that_grew_is_said_to_have_grown(tmp_path, corpus):
    out, said = tmp_path / "out", []
    before = write_text_dataset(corpus, ByteTokenizer(8), out)
    put(Path(corpus.path), lines_of(60))
    after = write_text_dataset(corpus, ByteTokenizer(8), out, say=said.append, accept=True)
    old, new = (one.train.characters + one.test.characters for one in (before, after))
    assert old < new
    grew = f"the text grew from {old:,} to {new:,} characters (a.txt has changed), so it was tokenized again"
    assert said == [grew]
    put(Path(corpus.path), lines_of(40))
    write_text_dataset(corpus, ByteTokenizer(8), out, say=said.append, accept=True)
    assert said[1].startswith(f"the text shrank from {new:,} to {old:,} characters")


def test_a_damaged_file_is_made_anew(tmp_path, corpus):
    out = tmp_path / "out"
    meta = write_text_dataset(corpus, ByteTokenizer(8), out)
    for name in ("train.tokens.npy", "test.starts.npy", "tokenizer.json"):
        body = (out / name).read_bytes()
        for damaged in (body[:-1] + bytes([body[-1] ^ 1]), None):
            (out / name).unlink()
            if damaged is not None:
                (out / name).write_bytes(damaged)
            said = []
            assert write_text_dataset(corpus, ByteTokenizer(8), out, say=said.append) == meta
            assert said == [f"{out} is damaged, so the text is tokenized again"]
            assert (out / name).read_bytes() == body


@pytest.mark.parametrize("fails", ["train.tokens.npy", "test.starts.npy", "meta.json"])
def test_a_crash_leaves_an_unfinished_folder_that_the_next_call_finishes(tmp_path, corpus, monkeypatch, fails):
    expected, out, replaced = (
        write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "whole"),
        tmp_path / "out",
        os.replace,
    )

    def crash(source, target):
        if Path(target).name == fails:
            raise KeyboardInterrupt
        replaced(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text_dataset(corpus, ByteTokenizer(8), out)
    monkeypatch.undo()
    with pytest.raises(DataError, match="holds no finished tokens"):
        open_text_dataset(out, 8)
    left = out / f".{fails}.tmp-0123456789abcdef"
    left.touch()
    assert write_text_dataset(corpus, ByteTokenizer(8), out) == expected
    assert not left.exists()
    assert len(open_text_dataset(out, 8).train) == expected.train.tokens // 8


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_line(tmp_path, corpus, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskError, match=r"No space left.*run the same command again"):
        write_text_dataset(corpus, ByteTokenizer(8), out)
    monkeypatch.undo()
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_what_cannot_be_encoded_is_named_with_file_and_line(tmp_path):
    source = TextFile(path=put(tmp_path / "a.txt", lines_of(30) + "wörd\n" + lines_of(9)), format="lines")
    out, tokenizer = tmp_path / "out", build_tokenizer(Bytes(context=4), lambda: iter(()))
    with pytest.raises(DataError, match=r"a\.txt, line 31: character '\\xf6' \(U\+00F6\) at line 1, column 2"):
        write_text_dataset(source, CharacterTokenizer("document 0123456789wr", 4), out)
    assert not (out / META).exists()
    write_text_dataset(source, tokenizer, out)


def test_a_folder_of_something_else_or_in_use_is_left_alone(tmp_path, corpus):
    out = tmp_path / "out"
    out.mkdir()
    np.save(out / "train-00000.tokens.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"out holds other arrays \(train-00000"):
        write_text_dataset(corpus, ByteTokenizer(8), out)
    (out / "train-00000.tokens.npy").unlink()
    (out / META).write_text("{}")
    with pytest.raises(DataError, match=r"meta\.json is damaged or of another kind"):
        write_text_dataset(corpus, ByteTokenizer(8), out)
    with lock(tmp_path / "busy"), pytest.raises(CheckpointError, match="in use"):
        write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "busy")


def test_a_tokenizer_that_did_not_make_the_tokens_is_refused(tmp_path, corpus):
    out = tmp_path / "out"
    meta = write_text_dataset(corpus, ByteTokenizer(8), out)
    check_text_tokenizer(meta, ByteTokenizer(8).sha256)
    (out / "tokenizer.json").write_bytes(CharacterTokenizer("abc", 8).to_bytes())
    with pytest.raises(DataError, match=f"made by tokenizer {meta.tokenizer[:12]}, but this one is"):
        open_text_dataset(out, 8)
    (out / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"cannot read .*tokenizer\.json"):
        open_text_dataset(out, 8)


# -- rows --------------------------------------------------------------------------------------------------------------


def u_of(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of documents of 1 to 12 letters, its meta, its stream, and its documents."""
    folder = tmp_path_factory.mktemp("rows")
    texts = ["".join(chr(97 + (7 * i + j) % 26) for j in range(1 + 5 * i % 12)) for i in range(40)]
    source = TextFile(path=put(folder / "a.txt", "\n".join(texts)), format="lines")
    meta = write_text_dataset(source, ByteTokenizer(8), folder / "out")
    return folder / "out", meta, *flat(source, "train", ByteTokenizer(8))


@settings(max_examples=80)
@given(data=st.data())
def test_windows_tile_the_stream_and_shift_within_it(shelf, data):
    folder, meta, stream, _ = shelf
    context = data.draw(st.integers(1, 40))
    train = TextSet(folder, meta, "train", context)
    assert len(train) == len(stream) // context
    rows, condition = train.read_rows(torch.arange(len(train)), CPU)
    assert condition is None
    assert rows.dtype == torch.int64
    assert rows.flatten().tolist() == stream[: len(train) * context]
    index = data.draw(st.lists(st.integers(0, len(train) - 1), max_size=8))
    u = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=len(index), max_size=len(index)))
    shifted = train.read_rows(torch.tensor(index, dtype=torch.int64), CPU, u_of(u))[0].tolist()
    for i, noise, row in zip(index, u, shifted, strict=True):
        room = min(context, len(stream) - (i + 1) * context + 1)
        start = i * context + int(noise * room)
        assert row == stream[start : start + context]


def test_noise_reaches_every_token_of_the_stream(tmp_path, corpus):
    tokenizer = ByteTokenizer(8)
    meta = write_text_dataset(corpus, tokenizer, tmp_path / "out")
    stream, _ = flat(corpus, "train", tokenizer)
    train = TextSet(tmp_path / "out", meta, "train", 100)
    last = torch.tensor([len(train) - 1])
    assert train.read_rows(last, CPU, u_of([1 - 2**-53]))[0][0].tolist() == stream[-100:]
    # In single precision u * context may round up to context.
    assert train.read_rows(torch.tensor([0]), CPU, torch.tensor([1 - 2**-24]))[0][0].tolist() == stream[99:199]


@settings(max_examples=80)
@given(context=st.integers(1, 14), noise=st.floats(0, 1, exclude_max=True))
def test_documents_are_padded_or_shown_by_a_window(shelf, context, noise):
    folder, meta, _, documents = shelf
    train = TextSet(folder, meta, "train", context, "documents")
    assert len(train) == len(documents)
    for u in (None, u_of([noise] * len(train))):
        rows = train.read_rows(torch.arange(len(train)), CPU, u)[0].tolist()
        for row, document in zip(rows, documents, strict=True):
            start = 0 if u is None else int(noise * max(len(document) - context + 1, 1))
            shown = document[start : start + context]
            assert row == shown + [-1] * (context - len(shown))


def test_windows_of_a_long_document_are_even(tmp_path):
    """Chi-squared of 5 windows with 4 degrees of freedom below its 99.9 % point."""
    path = put(tmp_path / "a.txt", "abcdefg\n" + "x\n" * 30)
    meta = write_text_dataset(TextFile(path=path, format="lines"), ByteTokenizer(4), tmp_path / "out")
    train = TextSet(tmp_path / "out", meta, "train", 4, "documents")
    u = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = train.read_rows(torch.zeros(5000, dtype=torch.int64), CPU, u)[0][:, 0]
    counts = (first - ord("a")).bincount(minlength=5).double()
    assert len(counts) == 5
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 18.5


def test_batches_do_not_depend_on_their_cut(tmp_path, corpus):
    meta = write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "out")
    for packing in ("stream", "documents"):
        train = TextSet(tmp_path / "out", meta, "train", 16, packing)
        whole = Batches(train, 12, 3, CPU)(4, torch.arange(12))[0]
        parts = torch.cat([Batches(train, 12, 3, CPU)(4, some)[0] for some in torch.arange(12).split(5)])
        assert torch.equal(whole, parts)


def test_too_little_text_or_a_row_beyond_the_end_is_refused(tmp_path, corpus):
    meta = write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "out")
    with pytest.raises(DataError, match=rf"the test part has {meta.test.tokens} tokens, fewer than a context of 60"):
        open_text_dataset(tmp_path / "out", 60)
    opened = open_text_dataset(tmp_path / "out", 60, "documents")
    for wrong in (-1, len(opened.test)):
        with pytest.raises(IndexError, match=str(wrong)):
            opened.test.read_rows(torch.tensor([0, wrong]), CPU)
    with pytest.raises(ConfigError, match="context is 0"):
        TextSet(tmp_path / "out", meta, "train", 0)
    with pytest.raises(DataError, match="neither may be empty"):
        write_text_dataset(TextFile(path=put(tmp_path / "b.txt", "x")), ByteTokenizer(8), tmp_path / "tiny")


def test_damage_is_named_when_it_is_read(tmp_path, corpus):
    out = tmp_path / "out"
    write_text_dataset(corpus, ByteTokenizer(8), out)
    tokens, starts = np.load(out / "train.tokens.npy"), np.load(out / "train.starts.npy")
    assert open_text_dataset(out, 8).meta == open_text_dataset(out, 8, verify=False).meta
    np.save(out / "train.tokens.npy", np.where(np.arange(len(tokens)) == 5, 257, tokens).astype(np.uint16))
    with pytest.raises(
        DataError, match=r"train\.tokens\.npy or its starts are damaged: tokens .*\.\.257 of a voc.* 257"
    ):
        open_text_dataset(out, 8, verify=False).train.read_rows(torch.tensor([0]), CPU)
    np.save(out / "train.starts.npy", starts[::-1])
    with pytest.raises(DataError, match="do not follow one another"):
        open_text_dataset(out, 8, "documents", verify=False).train.read_rows(torch.tensor([3]), CPU)
    np.save(out / "train.tokens.npy", tokens[:-1])
    with pytest.raises(DataError, match=r"train\.tokens\.npy"):
        open_text_dataset(out, 8, verify=False)


@pytest.mark.parametrize("name", ["train.tokens.npy", "train.starts.npy", "test.tokens.npy", "test.starts.npy"])
def test_values_that_are_swapped_inside_the_vocabulary_are_found_at_open(tmp_path, corpus, name):
    """Neither the range nor the size shows it: only the sha256 does."""
    out = tmp_path / "out"
    write_text_dataset(corpus, ByteTokenizer(8), out)
    open_text_dataset(out, 8)
    values = np.load(out / name)
    values[[1, 2]] = values[[2, 1]]
    body = bytearray((out / name).read_bytes())
    body[text_shards.HEADER :] = values.tobytes()
    (out / name).write_bytes(body)
    with pytest.raises(DataError, match=rf"{re.escape(name)} is damaged: its sha256 is not the one in meta\.json"):
        open_text_dataset(out, 8)
    (out / name).unlink()
    with pytest.raises(DataError, match=rf"{re.escape(name)} cannot be read: No such file"):
        open_text_dataset(out, 8)


def test_any_flipped_bit_is_found_at_open_or_changes_nothing(tmp_path, corpus):
    """200 single corruptions of the 6 files; a changed space in JSON means the same."""
    out, generator = tmp_path / "out", np.random.default_rng(0)
    write_text_dataset(corpus, ByteTokenizer(8), out)
    expected, found = open_text_dataset(out, 8).meta, 0
    for number in range(200):
        path = sorted(out.glob("[!.]*"))[number % 6]
        body = path.read_bytes()
        place, bit = generator.integers(len(body)), 1 << generator.integers(8)
        path.write_bytes(body[:place] + bytes([body[place] ^ bit]) + body[place + 1 :])
        try:
            assert open_text_dataset(out, 8).meta == expected
        except DataError:
            found += 1
        path.write_bytes(body)
    assert found > 190


def test_the_files_are_mapped_anew_and_read_the_same(tmp_path, corpus, monkeypatch):
    meta = write_text_dataset(corpus, ByteTokenizer(8), tmp_path / "out")
    train = TextSet(tmp_path / "out", meta, "train", 8)
    before, first = train.read_rows(torch.arange(10), CPU)[0], train._tokens
    monkeypatch.setattr(text_rows, "MAX_MAPPED", 0)
    assert torch.equal(train.read_rows(torch.arange(10), CPU)[0], before)
    assert train._tokens is not first
    assert torch.equal(train.read_rows(torch.arange(10), CPU)[0], before)


def test_a_billion_tokens_are_read_in_little_memory(tmp_path):
    """A sparse file of 2 GB: 60 batches of 256 random rows of 512 tokens add less than 512 MiB to the peak."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc here: the peak of resident memory cannot be read")
    num = 1 << 30
    with open(tmp_path / "train.tokens.npy", "wb") as file:
        file.write(text_shards._build_header(np.dtype("<u2"), num))
        file.truncate(text_shards.HEADER + 2 * num)
    np.save(tmp_path / "train.starts.npy", np.array([0, num], np.int64))
    code = f"""
import sys, torch
from pathlib import Path
from unmask.data.text.rows import TextMeta, TextPart, TextSet
from unmask.data.tokens import Batches
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
part = TextPart(documents=1, tokens={num}, characters=1, bytes=1, sha256="0" * 64, starts="0" * 64)
meta = TextMeta(tokenizer="0" * 64, vocab_size=50304, source="", files=(), train=part, test=part)
before = peak()
train = TextSet(Path(sys.argv[1]), meta, "train", 512)
generator = torch.Generator().manual_seed(0)
for step in range(60):
    index = torch.randint(len(train), (256,), generator=generator)
    train.read_rows(index, torch.device("cpu"), torch.rand(256, generator=generator))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 512


# -- real data ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL / "text").is_dir(), reason="tiny Shakespeare: no folder shared/data/text")
def test_tiny_shakespeare_is_split_as_nanogpt_splits_it(tmp_path):
    source = TextFile(path=str(REAL / "text" / "tinyshakespeare.txt"))
    tokenizer = CharacterTokenizer("".join(sorted(set("".join(all_of(source))))), 256)
    meta = write_text_dataset(source, tokenizer, tmp_path / "out")
    assert tokenizer.vocab_size == 65 + 1
    assert (meta.train.tokens, meta.test.tokens) == (1_003_854 + 1, 111_540 + 1)


@pytest.mark.skipif(not (REAL / "text").is_dir(), reason="TinyStories: no folder shared/data/text")
def test_tinystories_has_the_tokens_of_its_page(tmp_path):
    """That page counts two new lines around each end token too, which are no part of our documents."""
    pytest.importorskip("tokenizers", reason="the extra `text` is not installed")
    tokenizer = build_tokenizer(
        BPE(file=str(REAL / "tokenizers" / "tinystories_bpe_4096.json"), context=256), lambda: iter(())
    )
    paths = [str(REAL / "text" / f"tinystories_part_{part}.txt.gz") for part in ("train", "valid")]
    meta = write_text_dataset(TextFile(path=paths[0], test=paths[1], separator=END), tokenizer, tmp_path / "out")
    assert (meta.train.documents, meta.test.documents) == (7_259, 3_117)
    assert meta.train.tokens + 2 * meta.train.documents == 1_526_368
    assert meta.test.tokens + 2 * meta.test.documents == 642_059
