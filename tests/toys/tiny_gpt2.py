"""A GPT-2 of a few thousand random weights on the disk, as transformers writes it, with a tokenizer of characters."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

END = "<|endoftext|>"
CONTEXT = 24


def save_tiny_gpt2(folder: Path, begin: str | None = END) -> Path:
    vocab = {character: i for i, character in enumerate("abcdefghijklmnopqrstuvwxyz .\n")} | {END: 29}
    plain = Tokenizer(models.WordLevel(vocab, unk_token="."))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"eos_token": END} | ({"bos_token": begin} if begin else {})
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=29, eos_token_id=29,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
