"""A judge of text: a small autoregressive language model, torch's LSTM (Hochreiter and Schmidhuber 1997).

It is trained on the training text in minutes and then kept fixed. It measures the surprise (negative log-likelihood in
nats) of a sample's tokens. That is a cross-entropy under another model, not a likelihood under the sampled model, and
repetition lowers it. So read it beside the metrics of `metrics/text.py`.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from unmask.data.tokens import Batches, Tokens
from unmask.errors import (
    CheckpointError,
    ConfigError,
    DataError,
)
from unmask.metrics.configs import JudgeConfig
from unmask.runtime.progress import Progress
from unmask.storage.weights import read_sealed, write_sealed
from unmask.training.configs import AdamW, CosineDecay
from unmask.training.optim import set_learning_rate

LOGITS_PER_BLOCK = 1 << 24  # numbers in the largest tensor of logits: 64 MiB


class Judge(nn.Module):
    """The judge: an embedding, an LSTM and a linear layer. Each row starts as if a text had just ended."""

    def __init__(self, config: JudgeConfig, vocab_size: int, end_id: int):
        super().__init__()
        if not 0 <= end_id < vocab_size:
            raise ConfigError(
                f"end_id {end_id} is no token of a vocabulary of {vocab_size}: pass the tokenizer's end_id"
            )
        self.config, self.vocab_size, self.end_id = config, vocab_size, end_id
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.lstm = nn.LSTM(config.dim, config.dim, config.depth, batch_first=True)
        self.head = nn.Linear(config.dim, vocab_size)

    def shift(self, rows: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """Return the LSTM's input at each position: the token before it, or the end token where there is none."""
        before = F.pad(rows[:, :-1], (1, 0), value=self.end_id)
        return before.masked_fill(before < 0, self.end_id)

    def compute_states(self, before: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Return the LSTM's state at each position, from the tokens before it."""
        return self.lstm(self.embedding(before))[0]

    def forward(self, rows: Int[Tensor, "b l"]) -> Float[Tensor, "b l k"]:
        """Return the logits of each token, from the tokens before it; -1 is an absent token."""
        return self.head(self.compute_states(self.shift(rows)))


def train_judge(
    rows: Tokens,
    config: JudgeConfig,
    *,
    vocab_size: int,
    end_id: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Judge:
    """Train a judge with AdamW, a cosine rate after a short warm-up, and gradients clipped to norm 1.

    A row longer than `context` is cut into pieces. The result depends on the arguments only: the same rows, config,
    machine and thread count give the same weights.

    Raises:
        DataError: If a token lies outside the vocabulary.
    """
    device = torch.device(device)
    # Layers draw their first weights from torch's global generator and accept no other one. The fork seeds it here and
    # restores the caller's state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        judge = Judge(config, vocab_size, end_id)
    judge.to(device).train()
    rand = torch.Generator().manual_seed(config.seed)
    batches = Batches(rows, config.batch_size, config.seed, device)
    (optimizer,) = optimizers = AdamW(learning_rate=config.learning_rate, beta2=0.99).build(judge)
    rate = CosineDecay(warmup=config.steps // 20)
    every = torch.arange(config.batch_size)
    for step in range(config.steps):
        tokens, _ = batches(step, every)
        _check_range(tokens, vocab_size)
        start = config.context * int(torch.randint(math.ceil(tokens.shape[1] / config.context), (), generator=rand))
        piece = slice(start, start + config.context)
        logits = judge.head(judge.compute_states(judge.shift(tokens)[:, piece]))
        loss = _compute_nats(logits, tokens[:, piece]).sum() / (tokens[:, piece] >= 0).sum().clamp(min=1)
        set_learning_rate(optimizers, rate(step, config.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress("judge", step + 1, config.steps)
    return judge.eval()


def _compute_nats(logits: Float[Tensor, "... k"], tokens: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Compute -log p(token) at each position; 0 where the token is absent."""
    flat = F.cross_entropy(logits.flatten(0, -2).float(), tokens.flatten(), ignore_index=-1, reduction="none")
    return flat.view(tokens.shape)


def _check_range(rows: Int[Tensor, "b l"], vocab_size: int) -> None:
    low, high = (int(x) for x in rows.aminmax())
    if low < -1 or high >= vocab_size:
        raise DataError(
            f"tokens run from {low} to {high}; a judge of {vocab_size} tokens reads 0 to {vocab_size - 1}, and -1 for "
            "no token: decode to the end, and use the tokenizer that the judge was trained with"
        )


@torch.no_grad()
def measure_surprise(judge: Judge, rows: Int[Tensor, "n l"], batch: int = 256) -> Float[Tensor, "n l"]:
    """Compute -log p(token | tokens before it) in nats, on the device of the rows; 0 at absent (-1) tokens.

    The first tokens of a row cut out of a longer text get higher values than the others. So compare rows that were cut
    in the same way.
    """
    if rows.numel() == 0:
        raise ConfigError(f"{rows.shape[0]} rows of {rows.shape[1]} tokens to judge; pass at least one token")
    _check_range(rows, judge.vocab_size)
    return torch.cat(
        [_score_rows(judge, part.to(judge.head.weight.device).long()).to(rows.device) for part in rows.split(batch)]
    )


def _score_rows(judge: Judge, rows: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """Score rows. States are small and computed at once; logits are wide and computed in blocks."""
    hidden = judge.compute_states(judge.shift(rows)).flatten(0, 1)
    size = max(1, LOGITS_PER_BLOCK // judge.vocab_size)
    blocks = zip(hidden.split(size), rows.flatten().split(size), strict=True)
    return torch.cat([_compute_nats(judge.head(states), tokens) for states, tokens in blocks]).view(rows.shape)


def save_judge(judge: Judge, path: Path | str, text: str = "") -> None:
    """Save the weights as safetensors, with the config as JSON and the digest of its training `text` in the metadata.

    A crash leaves the old file intact.
    """
    config = {"config": asdict(judge.config), "vocab_size": judge.vocab_size, "end_id": judge.end_id}
    write_sealed(judge.state_dict(), Path(path), {"judge": json.dumps(config, sort_keys=True), "text": text})


def read_text_digest(path: Path | str) -> str:
    """Return the digest of the text that a saved judge was trained on, or "" if its file does not hold it."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("text", "")


def load_judge(path: Path | str) -> Judge:
    """Load the judge that `save_judge` wrote, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: If the file is missing or is not a saved judge.
    """
    remedy = "pass another file, or delete it to train a new judge"
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; pass a saved judge")
    try:
        weights, facts = read_sealed(Path(path))
        stored = json.loads(facts["judge"])
        config = JudgeConfig(**stored["config"])
        with torch.device("meta"):
            judge = Judge(config, stored["vocab_size"], stored["end_id"])
        judge.load_state_dict(weights, strict=True, assign=True)
    except (CheckpointError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a saved judge ({str(error).splitlines()[0]}); {remedy}") from error
    return judge.eval()
