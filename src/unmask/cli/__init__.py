"""The command line: `unmask <command> ...`. Each command reads its flags, calls one function, and says what it made.

Errors a user can act on are one line and an exit code: 2 wrong flag or field, 3 data, 4 checkpoint or run folder,
5 a number that is not finite, 6 disk, 7 memory, 8 another process of torchrun, 85 stopped by a signal after saving, and
128 plus the number of a signal that stopped anything else: 129 SIGHUP, 130 Ctrl-C, 138 SIGUSR1, 140 SIGUSR2,
143 SIGTERM; 141 is a reader of the output that left.
"""

import sys
from collections.abc import Callable, Sequence

from unmask.cli.data import run_data
from unmask.cli.editing import run_inpaint
from unmask.cli.ending import finish_in_one_line
from unmask.cli.evaluating import run_evaluate_inpaint, run_evaluate_tokenizer
from unmask.cli.networks import run_train_features
from unmask.cli.parsing import check_text
from unmask.cli.published import list_models, run_convert, run_export, run_fetch
from unmask.cli.sampling import run_evaluate, run_sample
from unmask.cli.schedule import run_schedule
from unmask.cli.scoring import run_score
from unmask.cli.sweeping import run_sweep
from unmask.cli.text import run_evaluate_text, run_generate, run_infill, run_tokenize_text
from unmask.cli.tokenizers import run_tokenize, run_train_tokenizer
from unmask.cli.training import run_demo, run_train
from unmask.decoding.names import suggest_nearest
from unmask.errors import ConfigError
from unmask.runtime.distributed import check_alone
from unmask.runtime.memory import keep_freed_memory

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "demo": run_demo,
    "data": run_data,
    "train": run_train,
    "train-tokenizer": run_train_tokenizer,
    "evaluate-tokenizer": run_evaluate_tokenizer,
    "tokenize": run_tokenize,
    "tokenize-text": run_tokenize_text,
    "train-features": run_train_features,
    "sample": run_sample,
    "inpaint": run_inpaint,
    "generate": run_generate,
    "infill": run_infill,
    "evaluate": run_evaluate,
    "evaluate-inpaint": run_evaluate_inpaint,
    "evaluate-text": run_evaluate_text,
    "sweep": run_sweep,
    "score": run_score,
    "schedule": run_schedule,
    "export": run_export,
    "models": list_models,
    "fetch": run_fetch,
    "convert": run_convert,
}

ALONE = ("data", "tokenize-text", "sample", "inpaint", "generate", "infill", "export", "fetch", "convert")
"""Commands whose work the ranks of torchrun do not share."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    with finish_in_one_line(arguments[0] if arguments else ""):
        _dispatch(arguments)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: unmask COMMAND ...   (unmask COMMAND --help tells the flags of each)\n")
        for name, run in COMMANDS.items():
            print(f"  {name:18s} {(run.__doc__ or '').splitlines()[0]}")
        return
    check_text(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"no command {name}{suggest_nearest(name, COMMANDS)}")
    if name in ALONE:
        check_alone(name)
    COMMANDS[name](rest)
