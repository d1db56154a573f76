"""The scripts of `unmask completion` complete commands, flags, choices and names in the shells themselves."""

import contextlib
import io
import shutil
import subprocess

import pytest

from unmask.cli import COMMANDS, main

LINES = [
    ("unmask sa", "sample", "score"),
    ("unmask score runs/demo --dev", "--device", "--seed"),
    ("unmask score runs/demo --device c", "cpu", "auto"),
    ("unmask train digits --model.de", "--model.depth", "--model.dim"),
    ("unmask train cifar10-g", "cifar10-gpu", "digits"),
    ("unmask train-tokenizer cifar10-v", "cifar10-vq-tokenizer", "cifar10"),
    ("unmask sample runs/demo --num 3 --lab", "--labels", "--num"),
    ("unmask fetch besnier-2", "besnier-256", "besnier-512"),
    ("unmask completion ", "zsh", "sample"),
]
"""A line, a word that completes it, and one that does not."""
PROGRAMS = {
    "bash": 'source "$1"; COMP_WORDS=("${@:2}"); COMP_CWORD=$(( $# - 2 )); _unmask; printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'compdef() {}; _files() {}; compadd() { shift; print -l -- "$@" }; source "$1"; '
    'words=("${@:2}"); CURRENT=$(( $# - 1 )); _unmask',
    "fish": 'source $argv[1]; complete -C "$argv[2..]"',
}


@pytest.fixture(scope="module", params=list(PROGRAMS))
def script(request, tmp_path_factory):
    """A shell that is here, and its script."""
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        main(["completion", request.param])
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(written.getvalue())
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed, so its script is not run")
    return request.param, path


def run(shell, *arguments):
    plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run([shell, *plain, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


def complete(shell, path, line):
    program = PROGRAMS[shell]
    if shell == "fish":
        return run(shell, "-c", program, str(path), *line.split(" "))
    found = run(shell, "-c", program, shell, str(path), *line.split(" "))
    return [word for word in found if word.startswith(line.split(" ")[-1])]  # as compadd of zsh selects


@pytest.mark.parametrize(("line", "word", "other"), LINES)
def test_a_line_is_completed(script, line, word, other):
    found = complete(*script, line)
    assert word in found
    assert other not in found


def test_each_command_is_completed_and_the_script_parses(script):
    shell, path = script
    assert set(COMMANDS) <= set(complete(shell, path, "unmask "))
    assert run(shell, "-n", str(path)) == []


def test_a_shell_that_is_unknown_is_one_line(capsys):
    for words, line in ((["bsh"], "no shell bsh: did you mean bash?"), ([], "usage: unmask completion bash|zsh|fish")):
        with pytest.raises(SystemExit) as stop:
            main(["completion", *words])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"unmask: {line}\n"
    main(["completion", "--help"])
    said = capsys.readouterr().out
    assert "~/.config/fish/completions/unmask.fish" in said
    assert "\nPrint a script by which bash, zsh or fish complete commands, flags and names.\n" in said
