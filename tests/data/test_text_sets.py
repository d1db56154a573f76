"""A folder of texts as people mean it: which files are read or held out, what is left out, and rows by column."""

import gzip
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.data.text import tables as text_tables
from unmask.data.text.shards import write_text_dataset
from unmask.data.text.sources import TextFile
from unmask.errors import ConfigError, DataError
from unmask.tokenizers.text import ByteTokenizer

CASES = Path(__file__).parents[3] / "shared" / "cases" / "text"


def put(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def parts_of(source):
    return [list(source.read_documents(part)) for part in ("train", "test")]


def all_of(source):
    return [text for part in parts_of(source) for text in part]


# -- rows --------------------------------------------------------------------------------------------------------------

TEXTS = ["one", 'two "2", with a comma', "drei 東京\nzwei Zeilen", "four"] * 6
CONTENTS = {
    "a.jsonl": "".join(json.dumps({"n": 1, "text": text}) + "\n" for text in TEXTS),
    "a.NDJSON": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
    "lines.json": "\n" + "".join(json.dumps({"text": text}) + "\n" for text in TEXTS),
    "objects.json": json.dumps([{"text": text, "n": 2} for text in TEXTS], indent=1),
    "strings.json": json.dumps(TEXTS),
    "a.csv": "n,text\n" + "".join('1,"' + text.replace('"', '""') + '"\r\n' for text in TEXTS),
    "a.tsv": "\ufefftext\tn\n" + "".join('"' + text.replace('"', '""') + '"\t1\n' for text in TEXTS),
}


@pytest.mark.parametrize("name", [*CONTENTS, *(f"{name}.gz" for name in CONTENTS)])
def test_rows_are_read_by_their_ending(tmp_path, name):
    path = put(tmp_path / name, CONTENTS[name.removesuffix(".gz")])
    assert all_of(TextFile(path=path, arrange="position")) == TEXTS
    assert all_of(TextFile(path=str(tmp_path), arrange="position")) == TEXTS  # a folder of it


def test_a_column_of_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `data` is not installed")
    import pyarrow

    table = pyarrow.table({"n": range(26), "text": [*TEXTS, None, " "]})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = TextFile(path=str(tmp_path), arrange="position")
    assert all_of(source) == TEXTS
    (line,) = source.list_left_out()
    assert line.startswith("2 rows without a text, the first ")
    assert line.endswith("a.parquet, row 25: null in 'text'")
    with pytest.raises(DataError, match=r"a\.parquet: no column 'body', but n, text; set --data\.field"):
        all_of(replace(source, field="body"))
    with pytest.raises(DataError, match=r"a\.parquet, row 1: int instead of text"):
        all_of(replace(source, field="n"))
    body = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"", b"no parquet", body[:-20]):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet: ") as caught:
            all_of(source)
        assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"a\.parquet: it takes pyarrow .* pip install 'unmask\[data\]'"):
        all_of(TextFile(path=put(tmp_path / "a.parquet", b"PAR1")))


def test_a_cell_may_be_larger_than_the_limit_of_the_csv_module(tmp_path):
    path = put(tmp_path / "a.csv", 'text\n"' + "x," * 100_000 + '"\n')
    assert "".join(all_of(TextFile(path=path))) == "x," * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,n\none,1\ntwo,2,3\n", r"a\.csv, line 3: 3 cells in a table of 2 columns"),
        ("a.csv", 'text\n"one\n\ntwo\n', r"a\.csv, row from line 2: unexpected end of data"),
        ("a.csv", 'text\n"one"x\n', r"a\.csv, row from line 2: .* expected after"),
        ("a.csv", "body\none\n", r"a\.csv: no column 'text', but body; set --data\.field"),
        ("a.csv", "text,text\none,two\n", r"a\.csv: 2 columns are called 'text'"),
        ("a.csv", "", r"a\.csv holds no text"),
        ("a.json", '{"text":\n "one"}', r"a\.json, line 1: not JSON .* put one object on each line"),
        ("a.json", '{"data": ["one"]}', r"no text in a field 'text', but it has data; set --data\.field"),
        ("a.json", '["one", 2]', r"a\.json, item 2: no text in a field 'text', but it is no object"),
        ("a.json", '["one", {"text": 2}]', r"a\.json, item 2: no text in a field 'text', but int there"),
        ("a.json", '["one"', r"a\.json: not JSON .* one array of strings or objects"),
        ("a.json", "[" * 100_000, r"a\.json: not JSON"),
        ("a.json", '["a\\ud800"]', r"a\.json, item 1: it has '\\ud800'"),
        ("a.json", " ", r"a\.json holds no text"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        all_of(TextFile(path=put(tmp_path / name, content)))
    assert "\n" not in str(caught.value)


def test_a_json_array_of_any_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "MAX_LINE", 20)
    with pytest.raises(DataError, match=r"more than 20 characters; save it as JSON lines"):
        all_of(TextFile(path=put(tmp_path / "a.json", json.dumps(["long enough", "for it"]))))


def test_rows_without_a_text_are_counted_and_the_first_is_named(tmp_path):
    rows = ['{"text": "one"}', '{"text": null}', '{"text": ""}', '{"text": "two"}']
    source = TextFile(path=put(tmp_path / "a.jsonl", "\n".join(rows)))
    assert "".join(all_of(source)) == "onetwo"
    assert source.list_left_out() == [
        f"2 rows without a text, the first {tmp_path}/a.jsonl, line 2: null in 'text'",
    ]


# -- folders -----------------------------------------------------------------------------------------------------------


def test_hidden_files_are_skipped_and_the_others_are_named(tmp_path):
    for name in ("a.txt", ".b.txt", ".git/c.txt", "d.pdf", "sub/e.txt", "README.md", "f.csv", "sub/LICENSE.txt"):
        put(tmp_path / name, name)
    source = TextFile(path=str(tmp_path))
    assert [name for name, _ in source.list_files()] == ["a.txt", "sub/e.txt"]
    left = source.list_left_out()
    assert [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in left] == [
        "README.md",
        "d.pdf",
        "sub/LICENSE.txt",
        "f.csv",
    ]
    assert left[1].endswith("its name ends in none of .txt, .md, .jsonl, .ndjson, .parquet, .csv, .tsv, .json")
    assert left[3].endswith("the folder is read as .txt and .md; --data.format csv reads this one instead")
    with pytest.raises(DataError, match=r"f\.csv: no column 'text', but f\.csv"):
        all_of(replace(source, format="csv"))
    (tmp_path / "empty").mkdir()
    put(tmp_path / "empty" / "x.pdf", "x")
    with pytest.raises(DataError, match=r"no \.txt, .* files in this folder; .*; left out .*x\.pdf: its name ends in"):
        all_of(TextFile(path=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("names", "train", "test", "unused"),
    [
        (["train.txt", "val.txt"], ["train.txt"], ["val.txt"], []),
        (["Train.TXT", "Test.TXT"], ["Train.TXT"], ["Test.TXT"], []),
        (["training/a.txt", "training/b.txt", "Dev/a.txt"], ["training/a.txt", "training/b.txt"], ["Dev/a.txt"], []),
        (["train.txt", "validation.txt", "test.txt"], ["train.txt"], ["validation.txt"], ["test.txt"]),
        (["train/a.txt", "valid/a.txt", "more.txt"], ["train/a.txt"], ["valid/a.txt"], ["more.txt"]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"],
         ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], ["test-00000-of-00001.jsonl"], []),
        (["train.txt", "other.txt"], ["other.txt", "train.txt"], None, []),
        (["trainer.txt", "tester.txt"], ["tester.txt", "trainer.txt"], None, []),
        (["train.md", "test.md", "index.md"], ["index.md", "test.md", "train.md"], None, []),
    ],
)  # fmt: skip
def test_splits_by_name(tmp_path, names, train, test, unused):
    for name in names:
        put(tmp_path / name, json.dumps({"text": name}) if name.endswith("l") else name)
    source = TextFile(path=str(tmp_path))
    if test is None:
        assert "".join(all_of(source)) == "".join(train)
    else:
        assert parts_of(source) == [train, test]
    assert [name for name, _ in source.list_files()] == [*train, *(test or [])]
    left = source.list_left_out()
    assert [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in left] == unused
    assert all("which is held out, it is not used" in line for line in left)
    other = replace(source, test=put(tmp_path.parent / "held.txt", "held"))  # named by hand: the whole folder is read
    assert sorted(parts_of(other)[0]) == sorted(names)
    assert parts_of(other)[1] == ["held"]


# -- what happens between two commands ---------------------------------------------------------------------------------


def test_the_same_text_elsewhere_is_the_same(tmp_path):
    for name in ("a.txt", "b.txt"):
        put(tmp_path / "here" / name, name * 20)
    source = TextFile(path=str(tmp_path / "here"))
    meta = write_text_dataset(source, ByteTokenizer(8), tmp_path / "out")
    assert meta.names == ("a.txt", "b.txt")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert write_text_dataset(TextFile(path=str(tmp_path / "there")), ByteTokenizer(8), tmp_path / "out") == meta


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: put(folder / "c.txt", "new"), r"c\.txt is new"),
        (lambda folder: put(folder / "b.txt", "x" * 99), r"b\.txt has changed"),
        (lambda folder: (folder / "b.txt").unlink(), r"b\.txt is gone"),
        (lambda folder: (folder / "a.txt").rename(folder / "d.txt"), r"d\.txt is new, a\.txt is gone"),
    ],
)
def test_a_changed_text_is_refused_with_what_changed(tmp_path, change, said):
    for name in ("a.txt", "b.txt"):
        put(tmp_path / "in" / name, name * 20)
    source = TextFile(path=str(tmp_path / "in"))
    write_text_dataset(source, ByteTokenizer(8), tmp_path / "out")
    change(tmp_path / "in")
    with pytest.raises(DataError, match=rf"out holds the tokens of another text \({said}\): restore the text, give"):
        write_text_dataset(source, ByteTokenizer(8), tmp_path / "out")


# -- the cases ---------------------------------------------------------------------------------------------------------

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")


@needs_cases
def test_case_rows_ndjson():
    texts = all_of(TextFile(path=str(CASES / "rows.ndjson")))
    assert len(texts) == 200
    assert all(text.startswith("Line ") for text in texts)


@needs_cases
def test_case_a_null_row():
    source = TextFile(path=str(CASES / "nullrow.jsonl"))
    assert len(all_of(source)) == 200
    (line,) = source.list_left_out()
    assert line.startswith("1 row without a text, the first ")
    assert line.endswith("nullrow.jsonl, line 201: null in 'text'")


@needs_cases
def test_case_mixed_names():
    source = TextFile(path=str(CASES / "mixed"))
    assert [name for name, _ in source.list_files()] == ["A.TXT", "b.md", "c.txt"]
    assert source.list_left_out() == []
