"""A folder with small runs that the page offers: random weights, so that samples differ by class and noise."""

import asyncio
import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from unmask.data.sources.choice import Digits
from unmask.decoding.sampling import Sampling
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.recipes.reading import write_config
from unmask.recipes.schema import Recipe
from unmask.storage.weights import write_weights
from unmask.tokenizers.pixels import Pixels

TOKENIZER = Pixels(size=(8, 8), patch=2, levels=4)
LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def pytest_collection_modifyitems(items):
    """gradio leaves event loops and sockets to the garbage collector, which warns of them."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(LEAKS)


@pytest.fixture(autouse=True)
def collect_leaks():
    """Collect what gradio left in the test that made it, not in one of another folder: also its loop, once let go."""
    yield
    asyncio.set_event_loop(None)
    gc.collect()


def write_run(folder, seed=0):
    """Write what a finished run of 8x8 images in ten classes leaves."""
    config = TransformerConfig(dim=16, depth=1, heads=2, num_classes=10)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedTransformer(config, TOKENIZER.vocab_size, TOKENIZER.grid)
        for p in model.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.3)
    folder.mkdir(parents=True)
    write_config(Recipe(data=Digits(), tokenizer=TOKENIZER, model=config, sampling=Sampling(steps=5)), folder)
    write_weights(dict(model.named_parameters()), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs below a folder "runs"."""
    root = tmp_path_factory.mktemp("app") / "runs"
    write_run(root / "one")
    write_run(root / "sub" / "two", seed=1)
    return root
