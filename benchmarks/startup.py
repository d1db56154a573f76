"""What each command costs before its work begins.

    OMP_NUM_THREADS=1 python benchmarks/startup.py

CPU seconds of a process, user and system, its children included; the least of ROUNDS. The last column is what it takes
beyond `import torch`, where torch is needed.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from unmask.cli import COMMANDS
from unmask.recipes.listing import list_recipe_names, read_recipe_note
from unmask.runtime.provenance import describe_environment

ROUNDS = 5
EXPORT = Path(__file__).parents[1] / "tests/fixtures/earlier/export"
RECIPES = (
    *(["train", name] for name in list_recipe_names()),
    *(["train-tokenizer", name] for name in list_recipe_names(tokenizers=True)),
    *(["tokenize-text", name] for name in list_recipe_names() if read_recipe_note(name).kind == "TextRecipe"),
)
"""Each command that takes a recipe, with each of its recipes."""


def measure(words: list[str], folder: str) -> float:
    """Return the CPU seconds of `python` with these words."""
    least = float("inf")
    for _ in range(ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def main() -> None:
    print(describe_environment(torch.device("cpu")))
    rows = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS), *([*one, "--help"] for one in RECIPES)]
    rows += [["schedule"], ["models"], ["sample", str(EXPORT), "--num", "4", "--out", "samples.png", "--overwrite"]]
    with tempfile.TemporaryDirectory() as folder:
        base = measure(["-c", "import torch"], folder)
        print(f"{'command':52s}  CPU s  beyond torch\n{'python -c ' + repr('import torch'):52s} {base:6.2f}")
        for words in rows:
            shown = " ".join(["unmask", *words]).replace(str(EXPORT), "RUN")
            seconds = measure(["-m", "unmask", *words], folder)
            print(f"{shown[:52]:52s} {seconds:6.2f}  {seconds - base:12.2f}", flush=True)


if __name__ == "__main__":
    main()
