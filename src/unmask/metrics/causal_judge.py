"""Generative perplexity: texts under a published causal language model, as other papers quote it.

It is exp of the mean surprise, in nats per token of the judge, over all tokens of all texts together (MDLM, arXiv
2406.07524; SEDD, arXiv 2310.16834, averages the perplexities of texts instead). Which tokens count:

* A text is what a reader sees: the tokens of the sampled model are decoded, and the judge's tokenizer reads the text.
* The judge's first input is its begin token (GPT-2: `<|endoftext|>`), so that the first token counts too. A judge
  without such a token does not score the first one.
* Where a text ends inside a row, the judge reads its end token. That one does not count, and neither does padding.
* A row is cut to the 1,024 tokens that GPT-2 can read, with the begin token, or to fewer if the judge reads fewer.

Repetition lowers it, so quote it with the entropy of the same texts.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unmask.errors import DEPTHS, CheckpointError, ConfigError
from unmask.storage.config import load_json
from unmask.storage.files import escape_line
from unmask.storage.foreign.transformers_files import link_plain_files, list_transformers_errors, silence_transformers
from unmask.storage.hub import read_hub_facts
from unmask.storage.layout import CONFIG

PUBLISHED_JUDGES = {
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
}
"""Names of `--judge`, with the repository on the Hub and its commit."""
JUDGE_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "vocab.*", "merges.txt", "*token*.*")
"""What is read of a folder: weights, numbers and the tokenizer."""
_COUNT = re.compile(r"layer|expert|block")
"""Entries of config.json by which the number of parts of a network may grow."""
MOST_TOKENS = 1024
"""What GPT-2 reads at once."""


@dataclass(frozen=True)
class CausalJudge:
    """A causal language model of transformers with its tokenizer; `name` says which one it is."""

    network: Any
    tokenizer: Any
    name: str

    @property
    def context(self) -> int:
        """Tokens of a row that are read, with the begin token."""
        return min(MOST_TOKENS, getattr(self.network.config, "max_position_embeddings", MOST_TOKENS))

    def encode(self, documents: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the tokens of a row of documents, and which of them count."""
        tokens: list[int] = []
        counted: list[bool] = []
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        for number, text in enumerate(documents):
            between = begin if not number else end
            if between is not None:
                tokens, counted = [*tokens, between], [*counted, False]
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
            tokens, counted = [*tokens, *ids], [*counted, *(True for _ in ids)]
        if counted:
            counted[0] = False  # nothing comes before it
        return torch.tensor(tokens[: self.context], dtype=torch.int64), torch.tensor(counted[: self.context])


def load_causal_judge(name: str, device: torch.device | str = "cpu") -> CausalJudge:
    """Load gpt2 or gpt2-large of the Hub at a pinned commit, or a folder in transformers' format; no code of it runs.

    Raises:
        ConfigError: transformers is not installed, or nothing has this name.
        CheckpointError: The model cannot be downloaded, or is damaged.
    """
    try:
        import transformers  # noqa: F401
        from huggingface_hub import try_to_load_from_cache
    except ImportError as error:
        raise ConfigError(f"--judge {name} needs transformers: pip install 'unmask[prompts]'") from error
    folder = Path(name).expanduser()
    if name not in PUBLISHED_JUDGES and not folder.is_dir():
        raise ConfigError(f"--judge {name}: no such folder; give one, or {' or '.join(PUBLISHED_JUDGES)}")
    try:
        if name in PUBLISHED_JUDGES:
            repo, revision = PUBLISHED_JUDGES[name]
            held = isinstance(try_to_load_from_cache(repo, "tokenizer.json", revision=revision), str)
            held &= isinstance(try_to_load_from_cache(repo, "model.safetensors", revision=revision), str)
            if not held:  # transformers would repeat a lost request for half a minute, and print every try
                read_hub_facts(repo, "config.json")
            tokenizer, (network, info) = _load(repo, revision=revision, local_files_only=held)
        else:
            revision = None
            with link_plain_files(folder, JUDGE_FILES) as own:
                check_judge_size(own)
                tokenizer, (network, info) = _load(own, local_files_only=True)
    except list_transformers_errors() as error:
        reason = escape_line((str(error).strip() or type(error).__name__).splitlines()[0])
        raise CheckpointError(
            f"--judge {escape_line(name)} cannot be loaded ({reason}); check the network, or give a folder with "
            "config.json, model.safetensors and tokenizer.json"
        ) from error
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind])
    if wrong:  # transformers fills missing tensors with noise
        raise CheckpointError(
            f"--judge {escape_line(name)}: {len(wrong)} tensors do not fit, first {escape_line(wrong[0])}; get it again"
        )
    at = "" if revision is None else f" at {revision[:12]}"
    return CausalJudge(network.float().requires_grad_(False).eval().to(device), tokenizer, f"{name}{at}")


def check_judge_size(folder: Path) -> None:
    """Refuse a config.json that describes more than the weights beside it, before memory is taken for it.

    Raises:
        ConfigError: There are too many layers, or more parameters than bytes of weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, number in _list_numbers(load_json(folder / CONFIG)):
        if _COUNT.search(name) and number > DEPTHS[1]:
            raise ConfigError(f"{name} {number:,} in config.json is more than {DEPTHS[1]:,}")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with silence_transformers(), torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    num = sum(one.numel() for one in network.parameters())
    if num > size:
        raise ConfigError(f"config.json describes {num:,} parameters, and the weights have {size:,} bytes")


def _list_numbers(data: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of nested JSON objects, each with its name."""
    for name, value in data.items() if isinstance(data, dict) else ():
        if isinstance(value, int):
            yield name, value
        yield from _list_numbers(value)


def _load(place: str | Path, **options: Any) -> tuple[Any, Any]:
    """Return a tokenizer, and a network with what did not fit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options["trust_remote_code"] = False
    with silence_transformers():
        network: Any = AutoModelForCausalLM.from_pretrained(
            place, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True, **options
        )
        return AutoTokenizer.from_pretrained(place, **options), network


@torch.no_grad()
def measure_generative_perplexity(judge: CausalJudge, rows: Sequence[Sequence[str]]) -> float:
    """Return exp of the mean nats per counted token of all rows; NaN without such a token. See the module for which.

    Args:
        rows: The documents of each row.
    """
    encoded = sorted((judge.encode(documents) for documents in rows), key=lambda row: len(row[0]))
    nats, count = 0.0, 0
    while encoded:
        size = max(1, judge.context // max(1, len(encoded[-1][0])))  # the logits of a whole row are 200 MB
        batch, encoded = encoded[-size:], encoded[:-size]
        tokens = pad_sequence([ids for ids, _ in batch], batch_first=True)
        counted = pad_sequence([mask for _, mask in batch], batch_first=True)
        if not counted.any():
            continue
        # Padding stands behind the text, so no counted token sees it.
        logits = judge.network(tokens.to(judge.network.device)).logits[:, :-1].float()
        surprise = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:].to(logits.device), reduction="none").cpu()
        nats += float(surprise[counted[:, 1:]].double().sum())
        count += int(counted.sum())
    return math.exp(nats / count) if count else math.nan
