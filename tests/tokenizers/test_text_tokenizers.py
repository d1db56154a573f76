"""Text tokenizers: round trips, GPT-2's own ids, files that rebuild them, and a place for what they cannot say."""

import copy
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="the extra `text` is not installed")

from unmask.errors import ConfigError, DataError
from unmask.tokenizers import bpe
from unmask.tokenizers.bpe import END, Rules, read_rules, split_text, train_rules
from unmask.tokenizers.text import (
    BPE,
    BPETokenizer,
    Bytes,
    ByteTokenizer,
    Characters,
    CharacterTokenizer,
    build_tokenizer,
    open_text_tokenizer,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "tokenizers"
TEXTS = Path(__file__).parents[3] / "shared" / "data" / "text"
real = pytest.mark.skipif(not REAL.is_dir(), reason="real tokenizers: no folder shared/data/tokenizers")

CORPUS = ["the cat sat on the mat and the cat sat on the hat\n" * 3, "a naïve café, 東京 and an 🙂\n", "the dog's hats"]


def none():
    raise AssertionError("the corpus is not to be read")


@pytest.fixture(scope="module")
def trained():
    return build_tokenizer(BPE(vocab_size=280, context=8), lambda: iter(CORPUS))


def gpt2_like(folder, text="low lower lowest new newer"):
    """GPT-2's two files of a tiny vocabulary, under its own names, and the rules they came from."""
    rules = train_rules(iter([text]), 262)
    model = rules.data["model"]
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (folder / "vocab.bpe").write_text("\n".join(lines), encoding="utf-8")
    return rules


# -- round trips -------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(text=st.text(max_size=60))
def test_bytes_and_bpe_give_back_any_text(trained, text):
    for tokenizer in (ByteTokenizer(8), trained):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert not set(ids.tolist()) & {tokenizer.end_id, *tokenizer.unused}
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(torch.tensor([*ids.tolist(), tokenizer.end_id, -1])) == text
    assert ByteTokenizer(8).encode(text).tolist() == list(text.encode())


@given(text=st.text(alphabet="abc \né", max_size=40))
def test_characters_give_back_any_text_of_theirs(text):
    tokenizer = CharacterTokenizer("\n abcé", 8)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).tolist() == ["\n abcé".index(c) for c in text]


def test_many_texts_are_encoded_as_each_alone(trained):
    for tokenizer in (trained, ByteTokenizer(4), CharacterTokenizer("".join(sorted(set("".join(CORPUS)))), 4)):
        together = tokenizer.encode_all(["", *CORPUS])
        assert [ids.tolist() for ids in together] == [tokenizer.encode(text).tolist() for text in ["", *CORPUS]]


def test_the_vocabularies_have_an_end_and_padding_that_no_text_has(trained):
    characters = build_tokenizer(Characters(context=7), lambda: iter(["cab", "bad"]))
    assert (characters.alphabet, characters.vocab_size, characters.end_id, characters.unused) == ("abcd", 5, 4, ())
    assert (ByteTokenizer(7).vocab_size, ByteTokenizer(7).end_id) == (257, 256)
    assert (trained.vocab_size, trained.end_id, trained.unused, trained.grid) == (280, 0, (), (8,))
    padded = BPETokenizer(trained.rules, 8, rows=320)
    assert padded.vocab_size == 320
    assert padded.unused == tuple(range(280, 320))
    assert padded.decode([300, padded.end_id, -1]) == ""


def test_broken_utf8_is_a_replacement_character(trained):
    for tokenizer in (ByteTokenizer(4), trained):
        ids = tokenizer.encode("z§")
        assert tokenizer.decode(ids[:-1]) == "z\ufffd"


def test_ids_beyond_the_vocabulary_are_refused(trained):
    for wrong in (-2, 280):
        with pytest.raises(ValueError, match=str(wrong)):
            trained.decode([0, wrong])


def test_special_tokens_in_a_text_are_plain_text(trained):
    ids = trained.encode(f"a{END}b")
    assert trained.end_id not in ids
    assert trained.decode(ids) == f"a{END}b"


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_is_a_function_of_the_corpus():
    code = f"""
from unmask.tokenizers.text import BPE, build_tokenizer
print(build_tokenizer(BPE(vocab_size=280), lambda: iter({CORPUS!r})).sha256)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = build_tokenizer(BPE(vocab_size=280), lambda: iter(CORPUS)).sha256
    assert run.stdout.strip() == here


def test_every_merge_is_of_the_most_frequent_pair():
    text = "the cat sat on the mat and that cat ate the oat at the gate"
    merges = train_rules(iter([text]), 275).data["model"]["merges"]
    assert len(merges) == 275 - 257
    parts = [list(word.replace(" ", "Ġ")) for word in re.findall(" ?[a-z]+", text)]
    for first, second in merges:
        counts = Counter(pair for word in parts for pair in pairwise(word))
        assert counts[first, second] == max(counts.values())
        for word in parts:
            places = [i for i, pair in enumerate(pairwise(word)) if pair == (first, second)]
            for i in reversed(places):
                word[i : i + 2] = [first + second]


def test_a_corpus_too_small_is_refused():
    with pytest.raises(DataError, match="gives a BPE of 257 tokens, not 300: lower vocab_size"):
        build_tokenizer(BPE(vocab_size=300), lambda: iter(["a"]))
    with pytest.raises(DataError, match="no alphabet"):
        build_tokenizer(Characters(), lambda: iter([]))


def test_an_error_of_the_corpus_is_passed_on():
    def broken():
        yield "abc"
        raise DataError("corpus.txt, line 7: not a text")

    with pytest.raises(DataError, match="line 7"):
        build_tokenizer(BPE(vocab_size=300), broken)


@settings(max_examples=200)
@given(text=st.text(alphabet="ab '.\n\r\t\x1c\x85\u2028\xa0\u180e1é", max_size=60))
def test_long_texts_are_cut_where_it_changes_nothing(trained, text):
    whole = trained.encode(text)
    longest, bpe.MAX_CHUNK = bpe.MAX_CHUNK, 3
    try:
        assert "".join(split_text(text)) == text
        assert trained.encode(text).tolist() == whole.tolist()
    finally:
        bpe.MAX_CHUNK = longest


def test_long_texts_are_cut_at_all(monkeypatch):
    monkeypatch.setattr(bpe, "MAX_CHUNK", 10)
    assert list(split_text("twelve chars\nand more of it\nend")) == ["twelve chars\n", "and more of it\n", "end"]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_rebuilds_each_kind(tmp_path, trained):
    for made in (trained, BPETokenizer(trained.rules, 8, 300), ByteTokenizer(8), CharacterTokenizer("aé\n", 8)):
        path = tmp_path / "tokenizer.json"
        path.write_bytes(made.to_bytes())
        again = open_text_tokenizer(path, 5)
        assert (again.vocab_size, again.end_id, again.unused) == (made.vocab_size, made.end_id, made.unused)
        assert again.grid == (5,)
        assert again.to_bytes() == made.to_bytes()
        assert again.sha256 == made.sha256
        assert again.encode("aéa\n").tolist() == made.encode("aéa\n").tolist()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"type": "Words"}',
        '{"type": "Bytes", "x": 1}',
        '{"type": "Characters", "alphabet": ""}',
        '{"type": "Characters", "alphabet": "aa"}',
        '{"type": "BPE", "rows": 0, "tokenizer": {}}',
        '{"type": "BPE", "rows": 0, "tokenizer": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}}',
    ],
)
def test_a_foreign_tokenizer_file_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        open_text_tokenizer(path, 8)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot read"):
        open_text_tokenizer(tmp_path / "none.json", 8)


def test_rows_below_the_vocabulary_are_refused(tmp_path, trained):
    with pytest.raises(ConfigError, match="rows is 100, but the tokenizer has 280"):
        BPETokenizer(trained.rules, 8, 100)
    (tmp_path / "tokenizer.json").write_bytes(trained.to_bytes().replace(b'"rows":280', b'"rows":100'))
    with pytest.raises(DataError, match="rows is 100"):
        open_text_tokenizer(tmp_path / "tokenizer.json", 8)


def test_gpt2s_two_files_are_read_from_a_folder_or_a_prefix(tmp_path):
    rules = gpt2_like(tmp_path)
    text = "lower newest <lows> é\n"
    expected = rules.encode([text])[0].tolist()
    assert read_rules(str(tmp_path), 1 << 20).encode([text])[0].tolist() == expected
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).rename(tmp_path / f"tiny_{name}")
    found = build_tokenizer(BPE(file=str(tmp_path / "tiny"), rows=264), none)
    assert found.encode(text).tolist() == expected
    assert found.unused == (262, 263)
    (tmp_path / "one.json").write_text(json.dumps(rules.data))
    assert build_tokenizer(BPE(file=str(tmp_path / "one.json")), none).encode(text).tolist() == expected


def test_damaged_files_are_named(tmp_path):
    gpt2_like(tmp_path)
    merges = (tmp_path / "vocab.bpe").read_text(encoding="utf-8")
    (tmp_path / "vocab.bpe").write_text(merges.replace("#version: 0.2\n", "#version: 0.2\na\n"), encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.bpe, line 2: not a merge"):
        read_rules(str(tmp_path), 1 << 20)
    (tmp_path / "vocab.bpe").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"vocab\.bpe cannot be read"):
        read_rules(str(tmp_path), 1 << 20)
    (tmp_path / "vocab.bpe").write_text("q zz", encoding="utf-8")
    with pytest.raises(DataError, match="out of vocabulary"):
        read_rules(str(tmp_path), 1 << 20)
    (tmp_path / "encoder.json").write_text("[1]")
    with pytest.raises(DataError, match="not an object of tokens"):
        read_rules(str(tmp_path), 1 << 20)
    (tmp_path / "encoder.json").write_text(" " * 200)
    with pytest.raises(DataError, match="longer than 100 bytes"):
        read_rules(str(tmp_path), 100)
    with pytest.raises(DataError, match="no tokenizer there"):
        read_rules(str(tmp_path / "nothing"), 100)


def test_without_tokenizers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'unmask\[text\]'"):
        build_tokenizer(BPE(vocab_size=300), lambda: iter(CORPUS))


# -- what a vocabulary lacks -------------------------------------------------------------------------------------------


def test_a_character_outside_the_alphabet_is_named_with_its_place():
    tokenizer = CharacterTokenizer("ab\n", 8)
    with pytest.raises(DataError, match=r"'\\xe9' \(U\+00E9\) at line 2, column 3 is not one of the alphabet.*bytes"):
        tokenizer.encode("ab\nabé")


def test_half_a_character_is_named_with_its_place(trained):
    for tokenizer in (ByteTokenizer(4), trained, CharacterTokenizer("a", 4)):
        with pytest.raises(DataError, match=r"U\+D800\) at line 1, column 2"):
            tokenizer.encode("a\ud800")


def words(vocab, unknown="[UNK]"):
    """A JSON of whole words, which cannot say others."""
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": unknown}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}


def test_another_model_says_what_it_can_and_names_what_not():
    tokenizer = BPETokenizer(Rules(words({"[UNK]": 0, "cat": 1, "dog": 3, "[SEP]": 4}), "words"), 8)
    assert (tokenizer.end_id, tokenizer.unused, tokenizer.vocab_size) == (4, (0, 2), 5)
    assert tokenizer.encode("cat dog\ncat").tolist() == [1, 3, 1]
    with pytest.raises(DataError, match=r"'f' .* line 2, column 5"):
        tokenizer.encode("cat\ndog fox")


def test_characters_that_a_bpe_drops_in_silence_are_named():
    """Without an unknown token, `tokenizers` leaves them out."""
    data = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
    tokenizer = BPETokenizer(Rules(data, "letters"), 8)
    assert tokenizer.encode("abba").tolist() == [2, 1, 0]
    assert (tokenizer.end_id, tokenizer.vocab_size) == (3, 4)
    with pytest.raises(DataError, match=r"'x' .* column 3"):
        tokenizer.encode("abx")


def test_noise_and_cutting_that_a_file_asks_for_are_turned_off(trained):
    data = copy.deepcopy(trained.rules.data)
    data["model"]["dropout"] = 0.9
    data["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    noisy = BPETokenizer(Rules(data, "noisy"), 8)
    for _ in range(3):
        assert noisy.encode(CORPUS[0]).tolist() == trained.encode(CORPUS[0]).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Characters(alphabet="aba"), "'a'"),
        (lambda: Characters(alphabet="\ud800"), "half"),
        (lambda: Bytes(context=0), "context is 0"),
        (lambda: BPE(vocab_size=256), "vocab_size is 256"),
        (lambda: BPE(file="x", vocab_size=300), "add --tokenizer.vocab-size 0"),
        (lambda: BPE(rows=-1), "rows is -1"),
        (lambda: build_tokenizer(BPE(), none), "no BPE chosen"),
    ],
)
def test_impossible_configs_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# -- published files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    return build_tokenizer(BPE(file=str(REAL / "gpt2"), rows=50304), none)


@real
def test_gpt2_has_its_own_ids(gpt2, tmp_path):
    known = {
        "Hello world": [15496, 995],
        "Hello, world!": [15496, 11, 995, 0],
        "\n\n": [628],
        " the": [262],
        "": [],
    }
    for text, ids in known.items():
        assert gpt2.encode(text).tolist() == ids
    assert (gpt2.vocab_size, gpt2.end_id, gpt2.unused) == (50304, 50256, tuple(range(50257, 50304)))
    (tmp_path / "tokenizer.json").write_bytes(gpt2.to_bytes())
    again = open_text_tokenizer(tmp_path / "tokenizer.json", 256)
    assert again.sha256 == gpt2.sha256
    assert again.encode("Hello world").tolist() == [15496, 995]


@real
def test_gpt2_is_the_same_as_in_transformers(gpt2):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    cls = transformers.GPT2Tokenizer
    try:
        other = cls(vocab=str(REAL / "gpt2_encoder.json"), merges=str(REAL / "gpt2_vocab.bpe"))
    except TypeError:
        other = cls(vocab_file=str(REAL / "gpt2_encoder.json"), merges_file=str(REAL / "gpt2_vocab.bpe"))
    for text in ("It's 3:45 pm,   and\n\n\tnaïve 東京 🙂 don't!", "x" * 50, "  two  spaces "):
        assert gpt2.encode(text).tolist() == other(text)["input_ids"]


@real
@settings(max_examples=60)
@given(text=st.text(max_size=60))
def test_gpt2_gives_back_any_text(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


@real
def test_a_published_json_bans_its_special_tokens():
    tokenizer = build_tokenizer(BPE(file=str(REAL / "tinystories_bpe_4096.json")), none)
    assert (tokenizer.vocab_size, tokenizer.end_id, tokenizer.unused) == (4096, 0, (1, 2))
    assert tokenizer.decode(tokenizer.encode("Once <|mask|> time")) == "Once <|mask|> time"


@pytest.mark.skipif(
    not (TEXTS / "tinyshakespeare.txt").is_file(), reason="tiny Shakespeare: no folder shared/data/text"
)
def test_shakespeare_in_parts_is_as_in_one(gpt2, monkeypatch):
    text = (TEXTS / "tinyshakespeare.txt").read_text(encoding="utf-8")[:100_000]
    whole = gpt2.encode(text)
    monkeypatch.setattr(bpe, "MAX_CHUNK", 500)
    assert np.array_equal(gpt2.encode(text), whole)
