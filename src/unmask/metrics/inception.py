"""The Inception v3 network of FID and the Inception score (Szegedy et al. 2015, arXiv 1512.00567).

It follows TensorFlow's frozen graph of 2015-12-05: it has 1008 outputs, average pooling ignores padding, and the last
block takes a maximum where the paper averages. Names and shapes match the published port of the weights, which is
loaded strictly.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unmask.errors import CheckpointError
from unmask.runtime.progress import Progress
from unmask.storage.cache import find_cache_dir
from unmask.storage.download import Unavailable, download_file
from unmask.storage.files import escape_line
from unmask.storage.foreign.reader import read_tensors

SIZE = 299
FILE = "pt_inception-2015-12-05-6726825d.pth"
URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
BYTES, SHA256 = 95_628_359, "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class CleanResize:
    """Resize as clean-fid does (Parmar et al. 2021, arXiv 2104.11222): Pillow's bicubic filter, without rounding."""

    @property
    def text(self) -> str:
        """The description of this resize in reports."""
        return f"clean-fid: antialiased bicubic resize in float32 to {SIZE}x{SIZE}, (x - 128) / 128"

    def __call__(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 299 299"]:
        """Resize pixels to the network's input. Overshoot is kept, as in clean-fid."""
        size = (SIZE, SIZE)
        return (F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False) - 128) / 128


@dataclass(frozen=True)
class PlainResize:
    """Resize as pytorch-fid does: bilinear without antialiasing, so a shrunk image is aliased."""

    @property
    def text(self) -> str:
        """The description of this resize in reports."""
        return f"pytorch-fid: bilinear resize without antialiasing to {SIZE}x{SIZE}, 2 x / 255 - 1"

    def __call__(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 299 299"]:
        """Resize pixels to the network's input, in [-1, 1]."""
        return 2 * F.interpolate(pixels.float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False) - 1


class Norm(nn.Module):
    """Batch normalization with fixed statistics, since this network is never trained."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Buffer(torch.ones(dim)), nn.Buffer(torch.zeros(dim))
        self.running_mean, self.running_var = nn.Buffer(torch.zeros(dim)), nn.Buffer(torch.ones(dim))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Apply eq. 3 and 4 of arXiv 1502.03167 with the epsilon of the frozen graph."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class Conv(nn.Module):
    """Convolution, normalization, ReLU. `kernel` is an edge or (height, width); `same` pads by half the kernel."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int | tuple[int, int], *, stride: int = 1, same: bool = True):
        super().__init__()
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (kernel[0] // 2, kernel[1] // 2) if same else (0, 0)
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride, padding, bias=False)
        self.bn = Norm(dim_out)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return non-negative activations."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average_pool(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    # Average over real pixels only: TensorFlow does not count the padding.
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """The 35x35 block: 1x1, 5x5, two 3x3, and an average."""

    def __init__(self, dim: int, pool: int):
        super().__init__()
        self.branch1x1 = Conv(dim, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(dim, 48, 1), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = (
            Conv(dim, 64, 1),
            Conv(64, 96, 3),
            Conv(96, 96, 3),
        )
        self.branch_pool = Conv(dim, pool, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average_pool(x))], dim=1)


class BlockB(nn.Module):
    """The block from 35x35 to 17x17."""

    def __init__(self, dim: int):
        super().__init__()
        self.branch3x3 = Conv(dim, 384, 3, stride=2, same=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(dim, 64, 1), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, same=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """The 17x17 block: 1x1, one 7x7 and two 7x7 as rows and columns of seven, and an average."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(dim, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(dim, inner, 1), Conv(inner, inner, row)
        self.branch7x7_3 = Conv(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(dim, inner, 1), Conv(inner, inner, column)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Conv(inner, inner, row), Conv(inner, inner, column)
        self.branch7x7dbl_5 = Conv(inner, 192, row)
        self.branch_pool = Conv(dim, 192, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average_pool(x))], dim=1)


class BlockD(nn.Module):
    """The block from 17x17 to 8x8."""

    def __init__(self, dim: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(dim, 192, 1), Conv(192, 320, 3, stride=2, same=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(dim, 192, 1), Conv(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1)), Conv(192, 192, 3, stride=2, same=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """The 8x8 block, to 2048 channels. `maximum` pools by maximum: a slip in the frozen graph that FID depends on."""

    def __init__(self, dim: int, *, maximum: bool):
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = Conv(dim, 320, 1)
        self.branch3x3_1 = Conv(dim, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(dim, 448, 1), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(dim, 192, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 2048 h w"]:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """The network: maps 299x299 images in about [-1, 1] to the 2048 features of FID."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, same=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, same=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, maximum=False), BlockE(2048, maximum=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Float[Tensor, "b 3 299 299"]) -> Float[Tensor, "b 2048"]:
        """Return the activations before the last layer, averaged over the 8x8 grid."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))


def find_inception_weights(progress: Progress | None = None) -> Path:
    """Return the path of the published weights in the cache. Download them the first time.

    Raises:
        CheckpointError: If the download fails; it says where to put the file.
        DiskError: If the cache cannot be written.
    """
    path = find_cache_dir() / "inception" / FILE
    if path.is_file() and path.stat().st_size == BYTES:
        return path
    try:
        download_file(URLS, path, size=BYTES, sha256=SHA256, progress=progress)
    except Unavailable as error:
        where = escape_line(str(path))
        raise CheckpointError(
            f"cannot download {FILE} ({error}): put it at {where}, or pass --features classifier"
        ) from error
    return path


def load_inception(path: Path | str) -> Inception:
    """Load the network from a .pth or .safetensors file, on the CPU; raise CheckpointError unless its weights fit."""
    weights = {
        k: v.float()
        for k, v in read_tensors(Path(path), f"{FILE} again").items()
        if not k.endswith(".num_batches_tracked")
    }
    with torch.device("meta"):
        network = Inception()
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is not known" for name in weights if name not in wanted]
    for name, shape in wanted.items():
        if name in weights and tuple(weights[name].shape) != shape:
            wrong.append(f"{name} is {tuple(weights[name].shape)}, not {shape}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{escape_line(str(path))} is not {FILE}: {escape_line('; '.join(wrong[:3]))}{more}")
    network.load_state_dict(weights, strict=True, assign=True)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
    return network.requires_grad_(False).eval()
