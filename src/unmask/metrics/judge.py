"""A small autoregressive judge of text, the LSTM of torch (Hochreiter and Schmidhuber 1997): trained on the training
text in minutes and then kept fixed, it says how many nats a sample's tokens surprise it. That is a cross-entropy under
another model, not a likelihood under the sampled one, and repetition lowers it: read it beside `metrics/text.py`."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unmask.data.tokens import Batches, Tokens
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.runtime.progress import Progress
from unmask.storage.weights import write_weights
from unmask.training.optim import AdamW, CosineDecay, set_learning_rate

LOGITS_PER_BLOCK = 1 << 24  # numbers in the largest table of logits that judging makes: 64 MiB


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What the judge is and how it is trained; it learns from pieces of `context` tokens, and reads rows of any length.

    The defaults are for characters on a CPU.
    """

    dim: int = 256
    depth: int = 1
    steps: int = 3000
    batch_size: int = 16
    context: int = 128
    learning_rate: float = 6e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "depth", "steps", "batch_size", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be positive and finite, got {self.learning_rate}; try 6e-3")


class Judge(nn.Module):
    """Embedding, LSTM and a linear layer; before its first token a row reads as if a text had just ended."""

    def __init__(self, config: JudgeConfig, vocab_size: int, end_id: int):
        super().__init__()
        if not 0 <= end_id < vocab_size:
            raise ConfigError(f"end_id {end_id} is no token of a vocabulary of {vocab_size}: give the tokenizer's own")
        self.config, self.vocab_size, self.end_id = config, vocab_size, end_id
        self.embedding = nn.Embedding(vocab_size, config.dim)
        self.lstm = nn.LSTM(config.dim, config.dim, config.depth, batch_first=True)
        self.head = nn.Linear(config.dim, vocab_size)

    def shifted(self, rows: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """What the LSTM reads at each place: the token before it, and the end token where there is none."""
        before = F.pad(rows[:, :-1], (1, 0), value=self.end_id)
        return before.masked_fill(before < 0, self.end_id)

    def hidden(self, before: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """The state at each place, given the tokens before each."""
        return self.lstm(self.embedding(before))[0]

    def forward(self, rows: Int[Tensor, "b l"]) -> Float[Tensor, "b l k"]:
        """Logits of each token of the rows, from the tokens before it; -1 is an absent token."""
        return self.head(self.hidden(self.shifted(rows)))


def train_judge(
    rows: Tokens,
    config: JudgeConfig,
    *,
    vocab_size: int,
    end_id: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Judge:
    """AdamW, a cosine rate after a short rise, gradients of at most norm 1; a row longer than `context` in pieces.

    A function of its arguments: the same rows, config, machine and thread count give the same weights.
    """
    device = torch.device(device)
    # Layers draw their first weights from torch's global generator and take no other; the fork seeds it for that moment
    # and puts the caller's state back.
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
        logits = judge.head(judge.hidden(judge.shifted(tokens)[:, piece]))
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
    """-log p(token) at each place, 0 where it is absent."""
    flat = F.cross_entropy(logits.flatten(0, -2).float(), tokens.flatten(), ignore_index=-1, reduction="none")
    return flat.view(tokens.shape)


def _check_range(rows: Int[Tensor, "b l"], vocab_size: int) -> None:
    low, high = (int(x) for x in rows.aminmax())
    if low < -1 or high >= vocab_size:
        raise DataError(
            f"tokens run from {low} to {high}; a judge of {vocab_size} tokens reads 0 to {vocab_size - 1}, and -1 for "
            "none: decode to the end, with the tokenizer that the judge was trained with"
        )


@torch.no_grad()
def measure_surprise(judge: Judge, rows: Int[Tensor, "n l"], batch: int = 256) -> Float[Tensor, "n l"]:
    """-log p(token | those before it) in nats, 0 at absent (-1) tokens, where the rows lie.

    The first tokens of rows cut out of a longer text surprise more than the others: compare rows cut alike.
    """
    if rows.numel() == 0:
        raise ConfigError(f"{rows.shape[0]} rows of {rows.shape[1]} tokens to judge; pass at least one token")
    _check_range(rows, judge.vocab_size)
    return torch.cat(
        [_score_rows(judge, part.to(judge.head.weight.device).long()).to(rows.device) for part in rows.split(batch)]
    )


def _score_rows(judge: Judge, rows: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
    """The states are small and made at once; their logits are as wide as the vocabulary, and made in blocks."""
    hidden = judge.hidden(judge.shifted(rows)).flatten(0, 1)
    size = max(1, LOGITS_PER_BLOCK // judge.vocab_size)
    blocks = zip(hidden.split(size), rows.flatten().split(size), strict=True)
    return torch.cat([_compute_nats(judge.head(states), tokens) for states, tokens in blocks]).view(rows.shape)


def save_judge(judge: Judge, path: Path | str, text: str = "") -> None:
    """Weights as safetensors, with the config as JSON and the digest of its training `text` in the metadata; a crash
    leaves the old file whole."""
    config = {"config": asdict(judge.config), "vocab_size": judge.vocab_size, "end_id": judge.end_id}
    write_weights(judge.state_dict(), Path(path), {"judge": json.dumps(config, sort_keys=True), "text": text})


def read_text_digest(path: Path | str) -> str:
    """The digest of the text that a saved judge learned from, "" if its file does not say."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("text", "")


def load_judge(path: Path | str) -> Judge:
    """The judge that `save_judge` wrote, on the CPU, in evaluation mode; CheckpointError if it is not one."""
    remedy = "give another, or delete it and it is trained anew"
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; give a judge that was saved")
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {})["judge"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        config = JudgeConfig(**stored["config"])
        with torch.device("meta"):
            judge = Judge(config, stored["vocab_size"], stored["end_id"])
        judge.load_state_dict(weights, strict=True, assign=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{path} is not a saved judge ({str(error).splitlines()[0]}); {remedy}") from error
    return judge.eval()
