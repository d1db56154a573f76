"""What help shows beside the flags: two examples of each command, and sentences that fit a terminal."""

import shutil
import textwrap

EXAMPLES: dict[str, tuple[str, str]] = {
    "demo": ("unmask demo", "unmask demo --steps 200 --samples 300 --out runs/quick"),
    "data": ("unmask data photos", "unmask data photos --size 64 --sheet sheet.png"),
    "train": ("unmask train digits", "unmask train runs/digits --training.steps 2000"),
    "train-tokenizer": (
        "unmask train-tokenizer folder-tokenizer --data photos",
        "unmask train-tokenizer cifar10-tokenizer --training.steps 2000 --dry-run",
    ),
    "train-features": (
        "unmask train-features folder --data photos --out runs/photos-features",
        "unmask train-features digits --classifier.steps 300",
    ),
    "tokenize": (
        "unmask tokenize runs/folder-tokenizer --crops 2",
        "unmask tokenize besnier-256 --data photos --out codes/photos",
    ),
    "tokenize-text": (
        "unmask tokenize-text shakespeare --data tinyshakespeare.txt",
        "unmask tokenize-text tinystories --data stories.txt --data.test held-out.txt",
    ),
    "sample": (
        "unmask sample runs/demo --labels 3 --num 20 --steps 4",
        "unmask sample besnier-256 --labels 207 --num 4 --preset besnier-256-8",
    ),
    "inpaint": (
        "unmask inpaint runs/demo digit.png --box 2 2 4 4 --label 3",
        "unmask inpaint besnier-256 photo.jpg --mask mask.png --variants 2",
    ),
    "generate": (
        'unmask generate runs/shakespeare --prompt "ROMEO:"',
        "unmask generate runs/tinystories --num 2 --steps 32 --html stories.html",
    ),
    "infill": (
        'unmask infill runs/tinystories "The [MASK:12] dog ran to the [MASK:3]."',
        'unmask infill runs/shakespeare "To be, or [MASK:30] question." --num 1',
    ),
    "evaluate": (
        "unmask evaluate runs/demo --samples 1500",
        "unmask evaluate besnier-256 --data codes/imagenet --features inception",
    ),
    "evaluate-tokenizer": (
        "unmask evaluate-tokenizer runs/folder-tokenizer",
        "unmask evaluate-tokenizer besnier-256 --data photos --pictures 2000",
    ),
    "evaluate-inpaint": (
        "unmask evaluate-inpaint runs/demo --images 200",
        "unmask evaluate-inpaint runs/demo --schedules cosine linear --stops 4",
    ),
    "evaluate-text": (
        "unmask evaluate-text runs/shakespeare --steps 4 16 64 --samples 50",
        "unmask evaluate-text runs/shakespeare --orders halton raster",
    ),
    "sweep": (
        "unmask sweep runs/demo --samples 1500 --steps 1 4 16",
        "unmask sweep runs/demo --orders halton confidence --scales 1 2 4",
    ),
    "score": (
        "unmask score runs/demo",
        "unmask score runs/shakespeare --orders halton raster --steps 4 16 64 --rows 64",
    ),
    "tune": (
        "unmask tune runs/demo --passes 2 4",
        "unmask tune runs/shakespeare --passes 8 16 --order raster",
    ),
    "schedule": (
        "unmask schedule --shape cosine --tokens 256 --steps 8",
        "unmask schedule --style halton --tokens 576 --steps 32 --json",
    ),
    "models": ("unmask models", "unmask models besnier-256"),
    "fetch": ("unmask fetch besnier-256", "unmask fetch titok-l32 --weights downloads"),
    "convert": (
        "unmask convert maskgit.pth --family valeoai-v1 --out models/mine",
        "unmask convert vqgan.ckpt --family taming-vqgan --out models/mine",
    ),
    "app": ("unmask app", "unmask app runs/demo --space spaces/digits"),
    "export": (
        "unmask export runs/demo --out exports/demo",
        "unmask export besnier-256 --out exports/besnier-256 --offline",
    ),
}
"""Two commands each, which run as they stand once the runs and files in them are there."""

WIDTH = 80
"""Columns that printed sentences fill at most."""


def wrap(text: str) -> str:
    """Break a sentence into lines that fit a terminal; the second and later ones are indented."""
    width = min(WIDTH, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def make_sentence(phrase: str) -> str:
    """Return a phrase with a capital letter and a full stop, in lines that fit a terminal."""
    return wrap(f"{phrase[:1].upper()}{phrase[1:].rstrip(' .')}.")


def print_examples(command: str) -> None:
    """Print the examples of a command, the last lines of its help."""
    if command in EXAMPLES:
        print("examples:", *EXAMPLES[command], sep="\n  ")
