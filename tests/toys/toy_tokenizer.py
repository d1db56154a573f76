"""A tokenizer's training small enough for tests, and, as a script, the jobs that need two processes."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from toy_run import ADAMW, ALONE, metrics, two_ranks

from unmask.data.augment import PictureSet
from unmask.data.images import Images
from unmask.data.tokens import Batches
from unmask.errors import NonFiniteError
from unmask.runtime.distributed import World, distribute, resolve_strategy
from unmask.tokenizers.losses import PatchGAN, TokenizerLoss
from unmask.tokenizers.quantizers import FSQ, LFQ, VQ
from unmask.tokenizers.vqgan import VQGAN
from unmask.training.ema import Ema
from unmask.training.loop import TrainConfig
from unmask.training.optim import CosineDecay
from unmask.training.tokenizer_loop import Networks, train_autoencoder

BATCH, STEPS = 16, 12
QUANTIZERS = {
    "fsq": FSQ(levels=(5, 4, 3)),
    "vq": VQ(vocab_size=60, dim=4, decay=0.9),
    "vq-gradient": VQ(vocab_size=60, dim=4, decay=0.0),
    "lfq": LFQ(bits=6),
}
LOSS = TokenizerLoss(start=0.5, discriminator=PatchGAN(width=8, layers=1))
"""The discriminator begins at step 6 of 12."""
KERNELS = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(7))


def toy_stages(images: Tensor) -> list[Tensor]:
    """Features that nobody trained."""
    kernels = KERNELS.to(images)
    return [F.conv2d(images, kernels, padding=1), F.conv2d(images, kernels, stride=2).relu()]


def toy_pictures(num: int = 40) -> PictureSet:
    """Bars and blobs, a little larger than what is cut from them."""
    dice = torch.Generator().manual_seed(1)
    coarse = torch.rand(num, 1, 3, 3, generator=dice)
    pixels = F.interpolate(coarse, size=(9, 10), mode="bilinear", align_corners=True) * 255
    return PictureSet(pictures=Images(pixels=pixels.to(torch.uint8), labels=None), size=(8, 8))


def toy_config(**changes) -> TrainConfig:
    base = {"steps": STEPS, "batch_size": BATCH, "optimizer": ADAMW, "learning_rate": CosineDecay(warmup=3)}
    every = {"log_every": 1, "evaluate_every": 10**6, "save_every": 10**6}
    return TrainConfig(**{**base, **every, "precision": "fp32", **changes})


def toy_networks(quantizer: str = "fsq", here: World = ALONE, **changes) -> Networks:
    """Without attention: its key's bias has no gradient but rounding, which AdamW makes as large as any other."""
    config = VQGAN(
        size=(8, 8),
        channels=1,
        width=8,
        multipliers=(1, 2),
        blocks=1,
        decoder_blocks=1,
        attention=(),
        middle_attention=False,
        z_channels=8,
        groups=2,
        quantizer=QUANTIZERS[quantizer],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, discriminator = replace(config, **changes).build(), LOSS.discriminator.build(1)
    strategy = resolve_strategy("auto", here)
    return Networks(distribute(model, strategy, here), distribute(discriminator, strategy, here), toy_stages)


def toy_batches() -> Batches:
    return Batches(toy_pictures(), BATCH, 0, torch.device("cpu"))


def stopping(at: int, act):
    """Batches that call `act` at one step, before it gives any rows."""
    inner = toy_batches()

    def batches(step, rows):
        if step == at:
            act()
        return inner(step, rows)

    return batches


def poisoned(at: int, row: int):
    """Batches with a NaN in one row of one step."""
    inner = toy_batches()

    def batches(step, rows):
        images, labels = inner(step, rows)
        if step == at:
            images = torch.where((rows == row)[:, None, None, None], torch.nan, images)
        return images, labels

    return batches


def toy_train(
    run: Path,
    config: TrainConfig,
    networks: Networks | None = None,
    here: World = ALONE,
    *,
    batches=None,
    loss=LOSS,
    more=(),
) -> tuple[Networks, Ema]:
    """Train in `run` as the product does; returns (networks, average)."""
    networks = networks or toy_networks()
    run.mkdir(parents=True, exist_ok=True)
    evaluators = [e(networks.core) for e in more]
    ema = train_autoencoder(networks, loss, batches or toy_batches(), config, run, world=here, evaluators=evaluators)
    return networks, ema


def toy_metrics(run: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in metrics(run)]


def everything(networks: Networks, ema: Ema | None = None) -> dict[str, Tensor]:
    """Weights and buffers of both networks, and the average."""
    parts = {"model": networks.core.state_dict(), "discriminator": networks.critic.state_dict()}
    if ema is not None:
        parts["ema"] = ema.average
    return {f"{part}.{n}": x.detach().clone() for part, tensors in parts.items() for n, x in tensors.items()}


def job(folder: Path) -> Path:
    """Run this file in a process of its own, at one thread; returns `folder`."""
    setting = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, folder], env=setting, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


# -- the job -----------------------------------------------------------------------------------------------------------


def equal_runs(folder: Path, here: World) -> None:
    """Each quantizer at each accumulation; what every rank holds at the end goes to a file."""
    for quantizer in ("fsq", "vq", "vq-gradient"):
        for accumulate in (1, 2) if here.size == 2 else (1, 4):
            name = f"{quantizer}-{here.size}-{accumulate}"
            config = toy_config(accumulate=accumulate, steps=8)
            trained = toy_train(folder / name, config, toy_networks(quantizer, here), here)
            save_file(everything(*trained), folder / f"{name}-rank{here.rank}.safetensors")


def not_a_number(folder: Path, here: World) -> None:
    """A NaN that only rank 1 sees."""
    networks = toy_networks("vq", here)
    try:
        toy_train(folder / "nan", toy_config(), networks, here, batches=poisoned(7, 5))
    except NonFiniteError as error:
        (folder / f"nan-{here.rank}").write_text(str(error))
    save_file(everything(networks), folder / f"nan-rank{here.rank}.safetensors")


def both(folder: Path):
    def task(here: World) -> None:
        equal_runs(folder, here)
        not_a_number(folder, here)

    return task


def float64() -> None:
    """Everything from now on: float32's rounding now and then flips a code, and then two runs differ visibly."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double


if __name__ == "__main__":
    torch.set_num_threads(1)
    float64()
    equal_runs(Path(sys.argv[1]), ALONE)
    two_ranks(both(Path(sys.argv[1])))
