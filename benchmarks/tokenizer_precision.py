"""What bfloat16 costs in the tokenizers of published models: codes that change, pixels that change, and time saved.

    OMP_NUM_THREADS=1 python benchmarks/tokenizer_precision.py
    OMP_NUM_THREADS=1 python benchmarks/tokenizer_precision.py --photos FOLDER --weights EXPORT ...

Each tokenizer encodes and decodes the same pictures in float32 and in bfloat16. An EXPORT is a folder that holds
config.json and tokenizer.safetensors, such as `unmask fetch NAME` makes. Without one, the published sizes get random
weights: their codes are less sure of themselves than those of trained tokenizers, but the rounding is the same. Without
photos the pictures are smooth noise.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unmask.pretrained.amused_vqvae import AMUSED_VQ_256
from unmask.pretrained.llamagen import LLAMAGEN_VQ16
from unmask.pretrained.maskgit_vqgan import MASKGIT_VQGAN_256
from unmask.pretrained.taming import TAMING_F16_1024
from unmask.pretrained.titok import TITOK_B64_TOKENIZER, TITOK_L32_TOKENIZER
from unmask.recipes.reading import read_config
from unmask.recipes.spec import ModelSpec
from unmask.runtime.provenance import describe_environment
from unmask.storage.layout import CONFIG, TOKENIZER
from unmask.tokenizers.base import open_tokenizer

SIZES = {
    "taming f16 (besnier)": TAMING_F16_1024,
    "LlamaGen VQ16 (halton)": LLAMAGEN_VQ16,
    "MaskGIT VQGAN (google)": MASKGIT_VQGAN_256,
    "TiTok L-32": TITOK_L32_TOKENIZER,
    "TiTok B-64": TITOK_B64_TOKENIZER,
    "aMUSEd VQ": AMUSED_VQ_256,
}


def draw_pictures(num: int, size: tuple[int, int]) -> Tensor:
    """Return smooth noise in [-1, 1]: octaves from 4 to 64 waves."""
    g = torch.Generator().manual_seed(0)
    parts = [F.interpolate(torch.randn(num, 3, n, n, generator=g) / n**0.5, size, mode="bicubic") for n in (4, 16, 64)]
    return sum(parts).clamp(-1, 1)  # type: ignore[union-attr]


def read_pictures(folder: Path, num: int, size: tuple[int, int]) -> Tensor:
    names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:num]
    pixels = [np.asarray(Image.open(name).convert("RGB").resize(size[::-1])) for name in names]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def clock(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.process_time()
    return run(), time.process_time() - start


@torch.no_grad()
def compare(name: str, model: torch.nn.Module, pictures: Tensor) -> None:
    """Print one row; the network ends in bfloat16."""
    full = model.float()
    codes, slow = clock(lambda: full.encode(pictures))  # type: ignore[operator]
    images, slower = clock(lambda: full.decode(codes))  # type: ignore[operator]
    half = model.bfloat16()
    rounded, fast = clock(lambda: half.encode(pictures))  # type: ignore[operator]
    blurred, faster = clock(lambda: half.decode(codes))  # type: ignore[operator]
    levels = (blurred.float().clamp(-1, 1) - images.clamp(-1, 1)).abs() * 127.5
    changed = float((rounded != codes).float().mean())
    print(
        f"{name:24s} {changed:8.2%} {float(levels.mean()):8.2f} {float(levels.max()):7.1f} "
        f"{float((levels >= 1).float().mean()):8.1%} {slow:7.2f} {fast:7.2f} {slower:7.2f} {faster:7.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of pictures")
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="exports with trained tokenizers")
    parser.add_argument("--num", type=int, default=1, help="pictures")
    flags = parser.parse_args()
    print(describe_environment(torch.device("cpu")))
    print(f"{flags.num} pictures from {'smooth noise' if flags.photos is None else 'photos'}")
    print("codes that differ in bfloat16; pixels of 255: mean, largest, share that differ by 1; CPU s")
    print(f"{'tokenizer':24s}    codes     mean largest  share>1  encode    bf16  decode    bf16")
    for name, config in SIZES.items() if not flags.weights else ():
        torch.manual_seed(0)
        report(flags, name, config.build().eval())
    for folder in flags.weights:
        spec = read_config(folder / CONFIG, ModelSpec)
        report(flags, folder.name, open_tokenizer(spec.tokenizer, folder / TOKENIZER))  # type: ignore[arg-type]


def report(flags: argparse.Namespace, name: str, model: torch.nn.Module) -> None:
    size = model.config.size  # type: ignore[union-attr]
    pictures = draw_pictures(flags.num, size) if flags.photos is None else read_pictures(flags.photos, flags.num, size)  # type: ignore[arg-type]
    compare(name, model, pictures)


if __name__ == "__main__":
    main()
