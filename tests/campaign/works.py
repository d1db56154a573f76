"""Tiny runs, datasets and models to attack, made once by the commands themselves, and copied for each attempt."""

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from children import Ending, run_command
from digests import digest_folder
from PIL import Image
from published_toys import catalogue, convert_all, write_files

NET = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--device", "cpu"]
TRAINING = """--training.batch-size 8 --training.steps 8 --training.evaluate-every 4 --training.save-every 2
    --training.log-every 1 --training.keep 4 --training.precision fp32""".split()  # noqa: SIM905 - words to type
JUDGE = ["--classifier.steps", "3", "--classifier.width", "4"]
TOKENIZER = """--data.size 12 --tokenizer.size 8 8 --tokenizer.width 4 --tokenizer.multipliers 1 2 --tokenizer.blocks 1
    --tokenizer.decoder-blocks 1 --tokenizer.groups 2 --tokenizer.z-channels 8 --loss.discriminator.width 4
    --loss.discriminator.layers 1 --perceptual.steps 2 --perceptual.width 4 --device cpu""".split()  # noqa: SIM905

COMMANDS: dict[str, list[str]] = {
    "train": ["train", "folder-pixels", "--data", "photos", "--data.size", "8", "--tokenizer.size", "8", "8",
              "--out", "runs/pixels", *NET, *TRAINING, *JUDGE],
    "train-tokenizer": ["train-tokenizer", "folder-tokenizer", "--data", "photos", "--out", "runs/tok", *TOKENIZER,
                        *TRAINING],
    "tokenize": ["tokenize", "runs/tok", "--out", "codes", "--shard-size", "8", "--device", "cpu"],
    "train-codes": ["train", "folder", "--data", "codes", "--out", "runs/coded", *NET, *TRAINING, *JUDGE],
    "tokenize-text": ["tokenize-text", "shakespeare", "--data", "corpus.txt", "--out", "tokens",
                      "--tokenizer.context", "32"],
    "train-text": ["train", "shakespeare", "--data", "corpus.txt", "--out", "runs/text", "--tokenizer.context", "32",
                   *NET, *TRAINING],
    "train-tokens": ["train", "shakespeare", "--data", "tokens", "--out", "runs/text", "--tokenizer.context", "32",
                     *NET, *TRAINING],
    "evaluate": ["evaluate", "runs/pixels", "--samples", "16"],
    "sweep": ["sweep", "runs/pixels", "--samples", "16", "--tune", "8", "--orders", "confidence", "halton",
              "--steps", "2", "4"],
    "export": ["export", "runs/pixels", "--out", "exported"],
    "export-coded": ["export", "runs/coded", "--out", "exported-coded"],
    "convert": ["convert", "files/toy/generator.pth", "--family", "valeoai-v1", "--out", "made"],
    "convert-tokenizer": ["convert", "files/toy/vqgan.ckpt", "--family", "taming-vqgan", "--out", "made"],
    "sample": ["sample", "runs/pixels", "--num", "4", "--steps", "2", "--out", "s.png"],
    "sample-coded": ["sample", "runs/coded", "--num", "4", "--steps", "2", "--out", "s.png"],
    "sample-export": ["sample", "exported", "--num", "4", "--steps", "2", "--out", "s.png"],
    "sample-export-coded": ["sample", "exported-coded", "--num", "4", "--steps", "2", "--out", "s.png"],
    "sample-published": ["sample", "toy-32", "--num", "2", "--steps", "2", "--out", "s.png"],
    "generate": ["generate", "runs/text", "--num", "2"],
}  # fmt: skip
NEEDS = {
    "train": ("photos",), "train-tokenizer": ("photos",), "tokenize": ("photos", "runs/tok"),
    "train-codes": ("photos", "codes"), "tokenize-text": ("corpus.txt",), "train-text": ("corpus.txt",),
    "train-tokens": ("tokens",), "evaluate": ("photos", "runs/pixels"), "sweep": ("photos", "runs/pixels"),
    "export": ("runs/pixels",), "export-coded": ("runs/coded",), "convert": ("files",),
    "convert-tokenizer": ("files",),
}  # fmt: skip
"""What a command finds in its folder before it has ever run."""
LEAVES = {
    "train": "runs/pixels", "train-tokenizer": "runs/tok", "tokenize": "codes", "train-codes": "runs/coded",
    "tokenize-text": "tokens", "train-text": "runs/text", "train-tokens": "runs/text", "evaluate": "runs/pixels",
    "sweep": "runs/pixels", "export": "exported", "export-coded": "exported-coded", "convert": "made",
    "convert-tokenizer": "made",
}  # fmt: skip
"""The folder that a command fills."""


@dataclass
class Work:
    """A folder with everything a campaign attacks; each attempt gets a copy of what it needs."""

    root: Path
    references: dict[str, tuple[dict[str, str], Ending]] = field(default_factory=dict)

    @property
    def material(self) -> Path:
        return self.root / "material"

    def lay_out(self, needs: tuple[str, ...]) -> Path:
        """Return an empty folder with copies of `needs`; "a>b" is a under the name b.

        It is always the same folder of this process, since some files hold the absolute path of the data.
        """
        folder = self.root / f"place-{os.getpid()}"
        self.remove(folder)
        folder.mkdir()
        for name in needs:
            first, _, second = name.partition(">")
            source, target = self.material / first, folder / (second or first)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                shutil.copy2(source, target)
        return folder

    def remove(self, folder: Path) -> None:
        """Remove the folder of an attempt, and what its children said."""
        shutil.rmtree(folder, ignore_errors=True)
        for path in folder.parent.glob(f"{folder.name}.*"):
            path.unlink()

    def run_whole(self, command: str) -> tuple[dict[str, str], Ending]:
        """Return what a command leaves if nothing happens to it, and how it ended; run it twice, and require equality.

        Raises:
            RuntimeError: The command fails, or its result is not a function of its arguments.
        """
        if command not in self.references:
            found = []
            for _ in range(2):
                folder = self.lay_out(NEEDS[command])
                ending = run_command(COMMANDS[command], folder)
                if ending.code:
                    raise RuntimeError(f"{command} fails untouched: {ending.text[-1500:]}")
                found.append((digest_folder(folder / LEAVES[command]), ending))
                self.remove(folder)
            if found[0][0] != found[1][0]:
                names = [name for name, value in found[0][0].items() if found[1][0].get(name) != value]
                raise RuntimeError(f"{command} differs from itself in {names}")
            self.references[command] = found[1]
        return self.references[command]


def make_work(root: Path) -> Work:
    """Make all material below `root`."""
    work = Work(root)
    there = work.material
    there.mkdir(parents=True)
    _draw_photos(there / "photos")
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran."]
    (there / "corpus.txt").write_text(" ".join(draw.choice(words) for _ in range(2000)))
    _add_toys(there)
    for command in ("train", "train-tokenizer", "tokenize", "train-codes", "tokenize-text", "train-text"):
        _run(command, there)
    for name in ("pixels", "tok", "coded", "text"):
        _stop_halfway(there / "runs" / name, there / "stopped" / name)
    shutil.copytree(there / "runs/pixels", there / "fresh")
    for command in ("evaluate", "sweep", "export", "export-coded"):
        _run(command, there)
    shutil.copytree(there / "runs/pixels", there / "evaluated")
    shutil.rmtree(there / "runs/pixels")
    shutil.move(there / "fresh", there / "runs/pixels")
    return work


def _run(command: str, folder: Path) -> None:
    ending = run_command(COMMANDS[command], folder)
    if ending.code:
        raise RuntimeError(f"{command} fails: {ending.text[-2000:]}")


def _draw_photos(folder: Path) -> None:
    rand = np.random.default_rng(0)
    for place, name in enumerate(("disc", "square")):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            pixels = rand.normal(80 + 80 * place, 40, (12, 12, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def _add_toys(there: Path) -> None:
    """Add weight files in a published layout, and a cache of converted models that this process uses from now on."""
    write_files(there / "files")
    convert_all(there / "files", there / "cache")
    catalogue(pytest.MonkeyPatch(), Path("cache"))  # in the folder of each attempt


def _stop_halfway(run: Path, target: Path) -> None:
    """Copy a finished run as it was when it had just saved step 4 of 8 and the process died some steps later."""
    shutil.copytree(run, target)
    for step in (6, 8):
        shutil.rmtree(target / f"checkpoints/step-{step:08d}")
    for path in [target / "model.safetensors", *target.glob("samples/*-00000008.*")]:
        path.unlink(missing_ok=True)
