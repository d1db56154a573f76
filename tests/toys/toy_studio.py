"""Tabs of the page without a browser: tiny runs on the disk, and the functions that a click calls."""

import gradio as gr
import torch
from torch import nn

from unmask.app.models import Holder, ModelChoice
from unmask.app.sessions import Sessions
from unmask.app.studio import Studio
from unmask.data.sources.choice import Digits
from unmask.data.text.sources import TextFile
from unmask.decoding.sampling import Sampling
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.sampling.priorities import Random
from unmask.recipes.reading import write_config
from unmask.recipes.schema import Recipe, TextRecipe
from unmask.storage.weights import write_weights
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.text import Characters, CharacterTokenizer

ALPHABET = "\n abcdefghijklmnopqrstuvwxyzT.:<>&/'\"-"
CONTEXT = 24
REQUEST = gr.Request(session_hash="page")
"""What a click comes with."""


def write_image_run(folder, num_classes=4):
    """A finished run of 8x8 images in colour, with random weights."""
    tokenizer = Pixels(size=(8, 8), channels=3, patch=2, levels=2)
    config = TransformerConfig(dim=16, depth=1, heads=2, num_classes=num_classes)
    recipe = Recipe(data=Digits(), tokenizer=tokenizer, model=config, sampling=Sampling(steps=3))
    return write_toy_run(folder, recipe, config, tokenizer.vocab_size, tokenizer.grid)


def write_text_run(folder):
    """A finished run of texts by characters, with random weights."""
    tokenizer = CharacterTokenizer(ALPHABET, CONTEXT)
    config = TransformerConfig(dim=16, depth=1, heads=2)
    recipe = TextRecipe(
        data=TextFile(path=""), tokenizer=Characters(context=CONTEXT), model=config,
        sampling=Sampling(steps=4, priority=Random()),
    )  # fmt: skip
    write_toy_run(folder, recipe, config, tokenizer.vocab_size, (CONTEXT,))
    (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    return folder


def write_toy_run(folder, recipe, config, vocab_size, grid):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedTransformer(config, vocab_size, grid)
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.5)
    folder.mkdir(parents=True)
    write_config(recipe, folder)
    write_weights(dict(model.named_parameters()), folder / "model.safetensors")
    return folder


def make_studio(folder, **kinds):
    """A studio that offers models: their names by kind."""
    downloads = folder / "downloads"
    downloads.mkdir()
    choices = [ModelChoice(name=str(name), title=str(name), kind=kind) for kind, name in kinds.items()]
    return Studio(holder=Holder(device="cpu"), sessions=Sessions(), choices=choices, folder=downloads)


def open_tab(studio, make):
    """Return the blocks of a page that has one tab, and the tab."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        tab = make(studio, gr.Dropdown(label="Model"))
    return blocks, tab


def find_block(blocks, name):
    """Return the component with this elem_id."""
    return next(block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == name)


def click(blocks, name, *values, before_step=None):
    """Call the function of an event, and return what each component shows at the end, by elem_id.

    `before_step` is called with each update.
    """
    function = next(f for f in blocks.fns.values() if f.name == name).fn
    shown = {}
    for update in function(REQUEST, *values):
        shown |= {block.elem_id: value for block, value in update.items()}
        if before_step is not None:
            before_step(shown)
    return shown


def list_defaults(settings):
    """Return the values of settings that nobody touched."""
    return [control.value for control in settings.inputs]
