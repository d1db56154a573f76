"""One kind of fault has one exit code in all commands, and one line."""

import shutil
from pathlib import Path

import pytest

from unmask.cli import COMMANDS, main

EARLIER = Path(__file__).parents[1] / "fixtures/earlier"
DIGIT = ["--box", "2", "2", "3", "3"]
IMAGE = [
    ["sample", "{}"],
    ["inpaint", "{}", "photo.png", *DIGIT],
    ["evaluate", "{}"],
    ["evaluate-inpaint", "{}"],
    ["sweep", "{}"],
    ["score", "{}"],
    ["export", "{}", "--out", "new"],
]
TEXT = [["generate", "{}"], ["infill", "{}", "a [MASK:2]"], ["evaluate-text", "{}"], ["score", "{}"]]
TOKENIZER = [["tokenize", "{}"], ["evaluate-tokenizer", "{}"]]
ANY = [*IMAGE, *TEXT[:-1], *TOKENIZER]
EACH = [[name] for name in COMMANDS if name not in ("models", "completion")]
SUBJECTS = {"train": "digits", "train-tokenizer": "cifar10-tokenizer", "tokenize-text": "shakespeare"}
SUBJECTS |= {"train-features": "digits", "data": "digits", "inpaint": "x photo.png", "infill": "x text"}
WITH_DEVICE = ["sample", "inpaint", "evaluate", "evaluate-inpaint", "sweep", "score", "generate", "infill"]
WITH_DEVICE += ["evaluate-text", "evaluate-tokenizer", "tokenize", "train", "train-tokenizer", "train-features", "demo"]
DATA = [
    ["data", "{}"],
    ["train", "mnist", "--data", "{}"],
    ["train", "folder", "--data", "{}"],
    ["train", "shakespeare", "--data", "{}"],
    ["train-tokenizer", "folder-tokenizer", "--data", "{}"],
    ["train-features", "folder", "--data", "{}"],
    ["tokenize-text", "shakespeare", "--data", "{}", "--out", "new"],
    ["inpaint", "export", "{}", *DIGIT],
]


@pytest.fixture
def here(tmp_path, monkeypatch, photo):
    """A folder with an old run, an export and a text model, without a manifest."""
    for name in ("run", "export", "text_export"):
        shutil.copytree(EARLIER / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fail(capsys, *words):
    """(exit code, line) of a command that must say one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    error = capsys.readouterr().err
    assert error.startswith("unmask: "), error
    assert error.count("\n") == 1, error
    return stop.value.code, error


def fill(words, name):
    return [word.replace("{}", name) for word in words]


def join(words):
    return " ".join(words)


@pytest.mark.parametrize("words", ANY, ids=join)
def test_a_missing_run_is_4(here, words, capsys):
    code, error = fail(capsys, *fill(words, "nowhere"))
    assert (code, "nowhere: no such run" in error) == (4, True), error


@pytest.mark.parametrize("text", ["{", "[]", "3", "\x00\x01"])
@pytest.mark.parametrize("words", [*ANY, ["train", "{}/config.json"], ["train-tokenizer", "{}/config.json"]], ids=join)
def test_a_damaged_config_is_4(here, words, text, capsys):
    (here / "run/config.json").write_text(text)
    code, error = fail(capsys, *fill(words, "run"))
    assert (code, "config.json" in error, "restore it" in error) == (4, True, True), error


def test_a_run_with_a_damaged_config_is_not_trained_on(here, capsys):
    (here / "run/config.json").write_text("{")
    assert fail(capsys, "train", "digits", "--out", "run")[0] == 4


@pytest.mark.parametrize("words", [*(w for w in IMAGE if w[0] in ("sample", "inpaint", "export")), *TEXT[:2]], ids=join)
def test_damaged_weights_are_4(here, words, capsys):
    name = "text_export" if words in TEXT else "export"
    (here / name / "model.safetensors").write_bytes(b"nonsense")
    code, error = fail(capsys, *fill(words, name))
    assert (code, "model.safetensors" in error) == (4, True), error


@pytest.mark.parametrize("words", DATA, ids=join)
def test_missing_data_is_3(here, words, capsys):
    code, error = fail(capsys, *fill(words, "nothing"))
    assert (code, "nothing" in error) == (3, True), error


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["smaple"], "sample"),
        (["train", "digts"], "digits"),
        (["train-tokenizer", "cifar10-tokeniser"], "cifar10-tokenizer"),
        (["tokenize-text", "shakespere"], "shakespeare"),
        (["train-features", "digts"], "digits"),
        (["fetch", "besnier-265"], "besnier-256"),
        (["models", "besnier-265"], "besnier-256"),
        (["convert", "x", "--family", "valeoai-v2", "--out", "new"], "valeoai-v1"),
        (["sample", "export", "--order", "haltn"], "halton"),
        (["sample", "export", "--schedule", "cosin"], "cosine"),
        (["generate", "text_export", "--sampler", "paralel"], "parallel"),
        (["schedule", "--style", "gogle"], "google"),
        (["completion", "bahs"], "bash"),
    ],
    ids=str,
)
def test_a_mistyped_name_is_2_with_the_nearest(here, words, near, capsys):
    code, error = fail(capsys, *words)
    assert (code, f"did you mean {near}?" in error) == (2, True), error


@pytest.mark.parametrize("words", EACH, ids=join)
def test_an_unknown_flag_is_2(here, words, capsys):
    after = [*words, *SUBJECTS.get(words[0], "export").split(), "--xyzzy", "3"]
    after = after if words[0] not in ("demo", "schedule") else [*words, "--xyzzy", "3"]
    after += ["--out", "new"] if words[0] in ("export", "convert") else []
    after += ["--family", "valeoai-v1"] if words[0] == "convert" else []
    code, error = fail(capsys, *after)
    seen = words[0] != "tokenize"  # it finds first that this export has no tokenizer: its flags depend on that
    assert (code, "--xyzzy" in error) == (2, seen), error


@pytest.mark.parametrize("name", ["sample", "inpaint", "evaluate", "sweep", "score", "export", "generate", "tokenize"])
def test_an_unknown_flag_before_the_run_is_2(here, name, capsys):
    assert fail(capsys, name, "--overwite", "export") == (
        2,
        f"unmask: no flag --overwite: did you mean --overwrite? (flags: unmask {name} --help)\n",
    )


@pytest.mark.parametrize("device", ["cuda", "mps", "abacus"])
@pytest.mark.parametrize("name", WITH_DEVICE)
def test_a_device_that_is_not_there_is_2(here, name, device, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    text = name in ("generate", "infill", "evaluate-text")
    subject = SUBJECTS.get(name, "text_export" if text else "export").replace("x ", f"{'text_' * text}export ")
    words = [name, *([] if name == "demo" else subject.split()), "--device", device]
    words += DIGIT if name == "inpaint" else ["--out", "new"] if name == "tokenize" else []
    code, error = fail(capsys, *words)
    assert code == 2, error
    seen = name not in ("tokenize", "evaluate-tokenizer")  # these find first that this export has no tokenizer
    assert device in error or not seen


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "export", "--num", "0"],
        ["sample", "export", "--num", "many"],
        ["sample", "export", "--temperature", "-1"],
        ["generate", "text_export", "--num", "0"],
        ["inpaint", "export", "photo.png", *DIGIT, "--cells", "2"],
        ["train", "digits", "--training.steps", "0"],
        ["train-tokenizer", "cifar10-tokenizer", "--training.steps", "0"],
        ["schedule", "--steps", "0"],
        ["data", "digits", "--size", "0"],
        ["evaluate-inpaint", "export", "--images", "1"],
        ["demo", "--steps", "0"],
    ],
    ids=join,
)
def test_a_bad_value_is_2(here, words, capsys):
    code, error = fail(capsys, *words)
    assert code == 2, error


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["generate", "export"], "use unmask sample export"),
        (["generate", "run"], "use unmask sample run"),
        (["infill", "run", "a [MASK:2]"], "use unmask inpaint run PHOTO"),
        (["evaluate-text", "run"], "use unmask evaluate run"),
        (["sample", "text_export"], "use unmask generate"),
        (["inpaint", "text_export", "photo.png", *DIGIT], "use unmask generate, infill"),
        (["evaluate", "text_export"], "evaluate-text"),
        (["sweep", "text_export"], "evaluate-text"),
        (["evaluate-inpaint", "text_export"], "evaluate-text"),
        (["tokenize", "text_export"], "use unmask tokenize-text"),
        (["tokenize", "run"], "use unmask sample or evaluate"),
        (["evaluate-tokenizer", "run"], "use unmask sample or evaluate"),
        (["train-tokenizer", "run/config.json"], "use unmask train (or, for a run, sample"),
        (["train", "cifar10-tokenizer"], "use unmask train-tokenizer"),
        (["tokenize-text", "digits"], "use unmask train"),
    ],
    ids=str,
)
def test_a_run_of_the_wrong_kind_names_the_command_for_it(here, words, instead, capsys):
    code, error = fail(capsys, *words)
    assert (code, instead in error) == (2, True), error


def test_an_export_is_not_trained_on(here, capsys):
    main(["export", "export", "--out", "new"])
    code, error = fail(capsys, "train", "new/config.json")
    assert (code, "is an image model: use unmask sample" in error) == (2, True), error
    assert fail(capsys, "export", "export") == (2, "unmask: --out must be given (flags: unmask export export --help)\n")


def test_a_seed_is_a_flag_of_every_training(here, capsys):
    main(["train", "--seed", "5", "digits", "--dry-run"])
    assert '"seed": 5' in capsys.readouterr().out
    assert fail(capsys, "train-tokenizer", "cifar10-tokenizer", "--seed", "x")[0] == 2
    assert fail(capsys, "train-features", "digits", "--seed", "x")[0] == 2
