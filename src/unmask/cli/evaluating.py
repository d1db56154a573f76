"""`unmask evaluate-tokenizer`: what a trained tokenizer keeps of pictures."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from unmask import evaluate_tokenizer as evaluation
from unmask.cli.networks import NetworkFlags, open_networks
from unmask.cli.parsing import disk_errors, parse, positional, value_errors
from unmask.errors import ConfigError
from unmask.training.distributed import world


@dataclass(frozen=True, kw_only=True)
class EvaluateTokenizerFlags:
    network: Annotated[NetworkFlags, tyro.conf.arg(name="")] = field(default_factory=NetworkFlags)
    pictures: int = 10_000
    """How many held-out pictures to look at, at most."""


def evaluate_tokenizer(arguments: list[str]) -> None:
    """measure a tokenizer (rFID, PSNR, SSIM, use of its codes) into report.json, and draw pictures beside its own"""
    name, rest = positional(arguments, "evaluate-tokenizer RUN, where RUN is the folder of a trained tokenizer")
    flags = parse(EvaluateTokenizerFlags, rest, f"evaluate-tokenizer {name}")
    if flags.pictures < 2:
        raise ConfigError(f"--pictures {flags.pictures}: at least 2, to have a covariance")
    run, device = Path(name), None if flags.network.device == "auto" else flags.network.device
    with value_errors(), disk_errors(run), world(device) as here:
        features, judge = open_networks(flags.network, here)
        numbers = evaluation.report(run, world=here, features=features or judge, num=flags.pictures)
        if here.is_main:
            print(json.dumps(numbers, indent=2))
            print(f"\nwrote {run / 'report.json'} and {run / 'reconstructions.png'}; next: unmask tokenize {run}")
