"""Names of the files of a run, an export and a converted model, each written once."""

CONFIG = "config.json"
"""The configuration, beside the weights."""
MODEL = "model.safetensors"
"""The weights."""
TOKENIZER = "tokenizer.safetensors"
"""Beside `model.safetensors` in a run, if its tokenizer was learned."""
