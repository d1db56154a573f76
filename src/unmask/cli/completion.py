"""`unmask completion`: a script that lets bash, zsh or fish complete commands, flags, choices and names.

The script holds all words, so that completing starts no Python. Print it again after an update.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from unmask.cli import COMMANDS, describe_command
from unmask.cli.command_flags import list_command_flags
from unmask.cli.flag_table import Flag
from unmask.cli.help import make_sentence
from unmask.errors import ConfigError, look_up
from unmask.recipes.listing import list_recipe_names

MODEL_COMMANDS = ("sample", "inpaint", "evaluate", "evaluate-tokenizer", "export", "fetch", "models", "tokenize")
"""Commands that take the name of a published model."""
COMPLETION_USAGE = "unmask completion bash|zsh|fish"


@dataclass(frozen=True)
class Words:
    """What completes one command."""

    name: str
    flags: list[Flag]
    operands: tuple[str, ...]
    """Names that it works on, beside files."""

    @property
    def flag_names(self) -> tuple[str, ...]:
        """Its flags, by all their names."""
        return tuple(name for flag in self.flags for name in flag.names)


def run_completion(arguments: list[str]) -> None:
    """Print the script of a shell."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: {COMPLETION_USAGE}\n\n{make_sentence(describe_command('completion'))}\n")
        print("bash  unmask completion bash > ~/.local/share/bash-completion/completions/unmask")
        print("zsh   unmask completion zsh > a folder of your $fpath, as the file _unmask")
        print("fish  unmask completion fish > ~/.config/fish/completions/unmask.fish")
        return
    if len(arguments) != 1:
        raise ConfigError(f"usage: {COMPLETION_USAGE}")
    write = look_up(SHELLS, arguments[0], "shell")
    print("\n".join(write([_list_words(name) for name in COMMANDS])))


def _list_words(name: str) -> Words:
    return Words(name, list_command_flags(name), tuple(_list_operands(name)))


def _list_operands(name: str) -> list[str]:
    from unmask.cli.tokenizers import list_sources
    from unmask.published.catalogue import MODELS

    if name in ("train", "tokenize-text"):
        return list_recipe_names()
    if name == "train-tokenizer":
        return list_recipe_names(tokenizers=True)
    if name == "train-features":
        return list(list_sources(32, 3))
    if name == "completion":
        return list(SHELLS)
    return list(MODELS) if name in MODEL_COMMANDS else []


def _write_cases(commands: list[Words]) -> Iterator[str]:
    """Yield the cases of bash and zsh that choose `list` by the command, the last flag, and how far back it is."""
    yield '    case "$command $flag $back" in'
    for words in commands:
        for flag in words.flags:
            if flag.choices:
                far = "*" if flag.values is None else "1"
                patterns = "|".join(f'"{words.name} {name} "{far}' for name in flag.names)
                yield f'        {patterns}) list="{" ".join(flag.choices)}"; return ;;'
    yield "    esac"
    yield '    case "$command" in'
    for words in commands:
        names, operands = " ".join(words.flag_names), " ".join(words.operands)
        yield f'        {words.name}) flags="{names}"; operands="{operands}" ;;'
    yield "    esac"
    yield '    if [[ "$current" == -* ]]; then list="$flags"'
    yield '    elif [[ "$back" != 1 ]]; then list="$operands"; fi'


def _write_bash(commands: list[Words]) -> list[str]:
    return [
        "# bash completion of unmask",
        "_unmask_words() {",
        '    local flags="" operands=""',
        *_write_cases(commands),
        "}",
        "_unmask() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" flag="" back=0 list="" place',
        "    COMPREPLY=()",
        "    if (( COMP_CWORD == 1 )); then",
        f'        list="{" ".join(words.name for words in commands)} --help --version"',
        "    else",
        "        for (( place = COMP_CWORD - 1; place > 1; place-- )); do",
        '            if [[ "${COMP_WORDS[place]}" == --* ]]; then',
        '                flag="${COMP_WORDS[place]}"; back=$(( COMP_CWORD - place )); break',
        "            fi",
        "        done",
        "        _unmask_words",
        "    fi",
        '    [[ -n "$list" ]] && COMPREPLY=( $(compgen -W "$list" -- "$current") )',
        "}",
        "complete -o default -F _unmask unmask",
    ]


def _write_zsh(commands: list[Words]) -> list[str]:
    return [
        "#compdef unmask",
        "_unmask_words() {",
        '    local flags="" operands=""',
        *_write_cases(commands),
        "}",
        "_unmask() {",
        '    local current="${words[CURRENT]}" command="${words[2]}" flag="" back=0 list="" place',
        "    if (( CURRENT == 2 )); then",
        f'        list="{" ".join(words.name for words in commands)} --help --version"',
        "    else",
        "        for (( place = CURRENT - 1; place > 2; place-- )); do",
        '            if [[ "${words[place]}" == --* ]]; then',
        '                flag="${words[place]}"; back=$(( CURRENT - place )); break',
        "            fi",
        "        done",
        "        _unmask_words",
        "    fi",
        '    [[ -n "$list" ]] && compadd -- ${(z)list}',
        '    [[ "$current" == -* ]] || (( CURRENT == 2 )) || _files',
        "}",
        'if [[ "$funcstack[1]" == _unmask ]]; then _unmask "$@"; else compdef _unmask unmask; fi',
    ]


def _write_fish(commands: list[Words]) -> list[str]:
    lines = ["# fish completion of unmask", "complete -c unmask -n __fish_use_subcommand -f -l help -l version"]
    for words in commands:
        about = describe_command(words.name).replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"complete -c unmask -n __fish_use_subcommand -f -a {words.name} -d '{about}'")
        here = f"complete -c unmask -n '__fish_seen_subcommand_from {words.name}'"
        if words.operands:
            lines.append(f"{here} -a '{' '.join(words.operands)}'")
        for flag in words.flags:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
            takes = f" -x -a '{' '.join(flag.choices)}'" if flag.choices else "" if flag.values == 0 else " -r"
            lines.append(f"{here} {names}{takes}")
    return lines


SHELLS: dict[str, Callable[[list[Words]], list[str]]] = {"bash": _write_bash, "zsh": _write_zsh, "fish": _write_fish}
