"""Folders where the commands of the documentation have run, with little training."""

import numpy as np
import pytest
from PIL import Image

SMALL = ["--training.steps", "2", "--training.batch-size", "4", "--device", "cpu"]
NETWORK = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2"]
CLASSIFIER = ["--classifier.steps", "2", "--classifier.width", "4", "--classifier.batch-size", "8"]
TOKENIZER = ["--tokenizer.width", "8", "--tokenizer.groups", "2", "--tokenizer.z-channels", "8"]
TOKENIZER += ["--loss.discriminator.width", "4", "--perceptual.steps", "2", "--perceptual.width", "4"]


def run_in(folder, *commands):
    """Run commands in a folder."""
    from unmask.cli import main  # not at the top: nothing of unmask is imported before its types are checked

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in commands:
            main(words)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with runs/demo, of digits, and runs/shakespeare."""
    pytest.importorskip("sklearn", reason="the examples need scikit-learn's digits")
    home = tmp_path_factory.mktemp("home")
    (home / "play.txt").write_text("ROMEO:\nBut soft, the dog ran to the light.\n\nThe light, it is the east. " * 60)
    run_in(
        home,
        ["train", "digits", "--out", "runs/demo", *SMALL, *NETWORK, *CLASSIFIER],
        ["train", "shakespeare", "--data", "play.txt", "--tokenizer.context", "96", *SMALL, *NETWORK],
    )
    return home


@pytest.fixture(scope="session")
def home_of_photos(home):
    """The same with photo.jpg and all that the guide to photos makes: runs/folder, codes/pictures, runs/features."""
    dice = np.random.default_rng(0)
    for place in range(48):
        folder = home / "pictures" / ("horse" if place % 2 else "frog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (np.array([90, 160, 60]) * (1 + place % 2) * 0.5 + dice.normal(0, 30, (80, 76, 3))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place}.png")
    Image.fromarray(dice.integers(0, 255, (400, 512, 3), dtype=np.uint8)).save(home / "photo.jpg")
    features = ["--data", "pictures", "--data.size", "64", "--out", "runs/features"]
    run_in(
        home,
        ["train-tokenizer", "folder-tokenizer", "--data", "pictures", *SMALL, *TOKENIZER],
        ["tokenize", "runs/folder-tokenizer", "--out", "codes/pictures"],
        ["train", "folder", "--data", "codes/pictures", *SMALL, *NETWORK, *CLASSIFIER],
        ["train-features", "folder", *features, *CLASSIFIER],
    )
    return home
