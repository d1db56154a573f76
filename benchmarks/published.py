"""An image of valeoai's published MaskGIT, as its code makes it in float32 against ours, and what loading takes.

    OMP_NUM_THREADS=1 python benchmarks/published.py

The peer is its network and its sampling loop (github.com/valeoai/Maskgit-pytorch, 32062fa) written plainly, with the
same random weights: attention by `nn.MultiheadAttention`, which returns its weights too, a head of 2026 rows, both
halves of the guidance in every step, and a VQGAN whose channels come first. Ours is `Pipeline.from_pretrained`, from
files. One class, batch 1, 256 tokens, 8 steps. One thread, one process, interleaved, CPU seconds; what is compared is
the median of the paired ratios. "its products" are the linear layers of the forward pass and nothing else: their ratio
is what this CPU gives for bfloat16, and nearly all that an image can gain. Loading is measured in processes of its own:
the peak of the resident memory above what there was before, as a multiple of the weights' size in memory.
"""

import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.data.sources.choice import Codes
from unmask.decoding.presets import REPORT_256
from unmask.decoding.sampling import resolve_priority
from unmask.method.rand import seeded
from unmask.method.sampling.decode import State
from unmask.pipelines.image import Pipeline
from unmask.pretrained.taming import TAMING_F16_1024
from unmask.pretrained.valeoai import VALEOAI_BASE_256, translate
from unmask.recipes.schema import Recipe
from unmask.runtime.packed import PackedLinear
from unmask.runtime.provenance import describe_environment
from unmask.storage.config import to_json, write_json
from unmask.storage.weights import write_weights
from unmask.tokenizers.vqgan import Autoencoder

SEED, ROUNDS, LABEL = 0, 5, 207
CODES, CELLS, DIM, CLASSES = 1024, 256, 768, 1000
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS, WEIGHT, NOISE = 8, 3.0, 4.5
"""The report's, as REPORT_256 has them."""


# -- the peer ----------------------------------------------------------------------------------------------------------


class PreNorm(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(DIM), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class PeerAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(DIM, 16, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mha(x, x, x, need_weights=True)[0]


class PeerMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(DIM, 3072), nn.GELU(), nn.Dropout(0.1), nn.Linear(3072, DIM), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PeerLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([PreNorm(PeerAttention()), PreNorm(PeerMLP())]) for _ in range(VALEOAI_BASE_256.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, mlp in self.layers:
            x = attention(x) + x
            x = mlp(x) + x
        return x


class Peer(nn.Module):
    """The published network under its published names: codes, mask, classes and "no class" share one table."""

    def __init__(self) -> None:
        super().__init__()
        words = CODES + 1 + CLASSES + 1
        self.tok_emb = nn.Embedding(words, DIM)
        self.pos_emb = nn.Parameter(torch.randn(1, CELLS + 1, DIM) * 0.02)
        ends = [nn.LayerNorm(DIM, eps=1e-12), nn.Dropout(0.1), nn.Linear(DIM, DIM), nn.GELU()]
        ends += [nn.LayerNorm(DIM, eps=1e-12), nn.Dropout(0.1), nn.Linear(DIM, DIM)]
        self.first_layer = nn.Sequential(*ends)
        self.transformer = PeerLayers()
        self.last_layer = nn.Sequential(
            nn.LayerNorm(DIM, eps=1e-12), nn.Dropout(0.1), nn.Linear(DIM, DIM), nn.GELU(), nn.LayerNorm(DIM, eps=1e-12)
        )
        self.bias = nn.Parameter(torch.zeros(CELLS + 1, words))
        nn.init.normal_(self.tok_emb.weight, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor, drop: Tensor) -> Tensor:
        words = torch.where(drop, CODES + 1 + CLASSES, labels + CODES + 1)
        x = self.tok_emb(torch.cat([tokens, words[:, None]], dim=1)) + self.pos_emb
        x = self.last_layer(self.transformer(self.first_layer(x)))
        return (x @ self.tok_emb.weight.T + self.bias)[:, :CELLS, : CODES + 1]


def counts() -> list[int]:
    """Tokens per step of its arccos schedule."""
    share = torch.arccos(torch.linspace(1, 0, STEPS)) / (math.pi / 2)
    many = (share / share.sum() * CELLS).round().clamp(min=1)
    many[-1] += CELLS - many.sum()
    return many.int().tolist()


@torch.no_grad()
def peer_tokens(network: Callable[..., Tensor], labels: Tensor) -> Tensor:
    """Its loop: a batch of both halves each step, a Categorical over all cells, Gumbel noise on the log probability."""
    rows = len(labels)
    code, mask = torch.full((rows, CELLS), CODES), torch.ones(rows, CELLS)
    drop = torch.ones(rows, dtype=torch.bool)
    for step, many in enumerate(counts()):
        if mask.sum() == 0:
            break
        both = network(torch.cat([code, code]), torch.cat([labels, labels]), torch.cat([~drop, drop]))
        given, free = both.chunk(2)
        w = WEIGHT * step / STEPS
        p = torch.softmax((1 + w) * given - w * free, -1)
        drawn = torch.distributions.Categorical(probs=p).sample()
        sure = p.gather(2, drawn[..., None])[..., 0].log()
        sure = sure - NOISE * (1 - step / STEPS) * torch.rand_like(sure).log().neg().log()
        sure[~mask.bool()] = -math.inf
        best, where = sure.topk(min(many, int(mask.sum())), dim=-1)
        revealed = mask.bool() & (sure >= best[:, -1:])
        code[revealed] = drawn[revealed]
        for row, cells in enumerate(where):
            mask[row, cells] = 0
    return code.clamp(0, CODES - 1)


@torch.no_grad()
def peer_decode(vqgan: Autoencoder, tokens: Tensor) -> Tensor:
    codes = vqgan.quantizer.look_up(tokens).unflatten(1, (16, 16))
    return vqgan.decoder(vqgan.after(codes.permute(0, 3, 1, 2).contiguous()))


# -- the measurements --------------------------------------------------------------------------------------------------


def files(folder: Path, peer: Peer, vqgan: Autoencoder) -> None:
    """What `unmask convert` would make of such weights."""
    ours: dict[str, Tensor] = {}
    for name, tensor in peer.state_dict().items():
        ours |= translate(VALEOAI_BASE_256, name, tensor)
    write_weights(ours, folder / "model.safetensors")
    write_weights(dict(vqgan.named_parameters()), folder / "tokenizer.safetensors")
    recipe = Recipe(
        data=Codes(path=""), tokenizer=TAMING_F16_1024, model=VALEOAI_BASE_256, sampling=REPORT_256.sampling
    )
    write_json(folder / "config.json", to_json(recipe))


def products(network: nn.Module, dtype: torch.dtype) -> Callable[[], object]:
    """The linear layers of a network without what is between them: how fast this CPU multiplies decides the rest."""
    x = {width: torch.randn(2 * (CELLS + 1), width, dtype=dtype) for width in (DIM, 4 * DIM)}
    layers: list[Callable[[], object]] = []
    for part in network.modules():
        if isinstance(part, (nn.Linear, PackedLinear)):
            layers.append(partial(part, x[part.weight.shape[1]]))
        if isinstance(part, nn.MultiheadAttention):  # whose first layer is a parameter
            layers.append(partial(F.linear, x[DIM], part.in_proj_weight, part.in_proj_bias))
    return lambda: [layer() for layer in layers]


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(what: str, runs: Mapping[str, Callable[[], object]]) -> None:
    """The first of `runs` against each of the others: medians, and the median of the paired ratios with their range."""
    rounds = [[cpu_seconds(run) for run in runs.values()] for _ in range(ROUNDS)]
    columns = list(zip(*rounds, strict=True))
    first = columns[0]
    for name, column in zip(runs, columns, strict=True):
        pairs = sorted(a / b for a, b in zip(first, column, strict=True))
        ratio = f"{statistics.median(pairs):8.2f}  {pairs[0]:.2f}..{pairs[-1]:.2f}" if column is not first else ""
        print(f"{what:16s} {name:14s} {statistics.median(column):9.3f} {ratio}", flush=True)


def against(folder: Path) -> None:
    peer, vqgan = Peer().eval(), TAMING_F16_1024.build().eval()
    files(folder, peer, vqgan)
    full, half = (Pipeline.from_pretrained(folder, device="cpu", dtype=dtype) for dtype in TYPES.values())
    tokens, both, one = torch.randint(CODES + 1, (2, CELLS)), torch.tensor([LABEL, -1]), torch.tensor([LABEL])
    drop, labels, code = both < 0, both.clamp(min=0), tokens[:1].clamp(max=CODES - 1)
    with torch.no_grad():
        want, picture = peer(tokens, labels, drop)[..., :CODES], peer_decode(vqgan, code).clamp(-1, 1)
        for name, pipeline, most in (("float32", full, 1e-4), ("bfloat16", half, 0.1)):
            off = float((pipeline.model(tokens, both) - want).norm() / want.norm())
            blurred = float((pipeline.tokenizer.decode(code) - picture).norm() / picture.norm())
            print(f"ours in {name} is off by {off:.1e} of the logits' length, and by {blurred:.1e} of the picture's")
            assert max(off, blurred) < most
        print(f"\nwhat             whose             CPU s  peer/ours (median and range of {ROUNDS} pairs)")
        free, sampling = torch.randn(2, CELLS, CODES + 1), REPORT_256.sampling
        blank, noise, given = half.make_canvas(1), seeded(SEED, 1), free[:1, :, :CODES].contiguous()

        def ours_alone() -> list[State]:
            order = resolve_priority(sampling.priority, half.model)
            return list(sampling.run(lambda *_: given, blank, mask_id=CODES, rand=noise, priority=order))

        alone = {
            "peer": lambda: peer_tokens(lambda *_: free, one),
            "ours": ours_alone,
        }
        forward = {
            "peer": lambda: peer(tokens, labels, drop),
            "ours float32": lambda: full.model(tokens, both),
            "ours bfloat16": lambda: half.model(tokens, both),
        }
        multiplying = {
            "peer": products(peer, torch.float32),
            "ours float32": products(full.model, torch.float32),  # type: ignore[arg-type]
            "ours bfloat16": products(half.model, torch.bfloat16),  # type: ignore[arg-type]
        }
        decoding = {
            "peer": lambda: peer_decode(vqgan, code),
            "ours float32": lambda: full.tokenizer.decode(code),
            "ours bfloat16": lambda: half.tokenizer.decode(code),
        }
        compare("sampler, 8 steps", alone)
        compare("forward, 2 rows", forward)
        compare("its products", multiplying)
        compare("VQGAN decode", decoding)
    whole = {
        "peer": lambda: peer_decode(vqgan, peer_tokens(peer, one)),
        "ours bfloat16": lambda: half.generate(one, seed=SEED),
    }
    compare("one image", whole)


def memory(field: str) -> int:
    """Bytes of this process, on Linux: VmRSS is what is resident now, VmHWM the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def load(folder: Path, dtype: torch.dtype) -> None:
    before = memory("VmRSS")
    pipeline = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    peak = memory("VmHWM") - before
    parts = [part for part in (pipeline.model, pipeline.tokenizer) if isinstance(part, nn.Module)]
    size = sum(x.nbytes for part in parts for x in (*part.parameters(), *part.buffers()))
    print(f"{peak / 2**20:9.0f} {size / 2**20:12.0f} {peak / size:14.2f}  CPU s so far {time.process_time():.1f}")


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        return load(Path(sys.argv[1]), TYPES[sys.argv[2]])
    torch.manual_seed(SEED)
    print(describe_environment(torch.device("cpu")) | {"seed": SEED})
    with tempfile.TemporaryDirectory() as name:
        against(Path(name))
        print("\nloading    peak MiB  weights MiB   peak/weights")
        for kind in TYPES:
            command = [sys.executable, __file__, name, kind]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            print(f"{kind:10s}{said}", end="")


if __name__ == "__main__":
    main()
