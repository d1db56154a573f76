"""LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924): the perceptual distance of two images. It compares the features
of VGG16 (arXiv 1409.1556) at the last ReLU before each pooling, with learned non-negative weights of their channels.

The network uses torchvision's names, so it reads the two published files directly: vgg16-397923af.pth (528 MB, without
its classifier), and the 7 KB of weights v0.1/vgg.pth from the authors' repository.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.storage.files import escape_line
from unmask.storage.foreign.reader import read_tensors
from unmask.tokenizers.configs import LPIPS_LINEAR, VGG
from unmask.tokenizers.configs import LpipsFiles as LpipsFiles

VGG_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each
CHANNELS = [channels for channels, _ in VGG_STAGES]
MIN_PIXELS = 16  # pixels; four poolings leave one cell
# Published for images in [-1, 1]: the mean and deviation of ImageNet's colours, moved there from [0, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """A frozen feature network: `lpips(images)` returns one map per stage, from fine to coarse.

    Each cell is scaled to length 1, then its channels are weighted. Squared differences, summed over channels and
    averaged over cells and stages, are LPIPS. Without `linear` all weights are equal: eq. 1 with w = 1/5.

    Args:
        weights: VGG16's `features`, by torchvision's names.
        linear: one weight per channel of each stage.
    """

    shift: Tensor
    scale: Tensor
    roots: Tensor

    def __init__(self, weights: Mapping[str, Tensor], linear: Sequence[Float[Tensor, "c"]] | None = None):
        super().__init__()
        with torch.device("meta"):
            self.features = _build_vgg16()
        self.load_state_dict(dict(weights), strict=True, assign=True)
        # The published distance is a sum over stages, ours a mean.
        squares = torch.ones(sum(CHANNELS)) if linear is None else torch.cat(list(linear)) * len(VGG_STAGES)
        self.register_buffer("roots", squares.sqrt())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on CPUs in bfloat16
        self.requires_grad_(False).eval()

    def forward(self, images: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the maps of images in [-1, 1], in float32; grey counts as three equal channels."""
        if images.shape[1] not in (1, 3) or min(images.shape[2:]) < MIN_PIXELS:
            shape = tuple(images.shape[1:])
            raise ConfigError(
                f"images are {shape} (c, h, w): LPIPS takes 1 or 3 channels and {MIN_PIXELS} pixels or more"
            )
        x, maps = (images - self.shift) / self.scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        lengths = [F.normalize(x.float(), dim=1, eps=1e-10) for x in (*maps, x)]
        return [x * root[:, None, None] for x, root in zip(lengths, self.roots.split(CHANNELS), strict=True)]

    def measure_distance(self, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
        """Return the LPIPS of each pair, at least 0; both get gradients."""
        pairs = zip(self(a), self(b), strict=True)
        return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in pairs]).mean(0)


def _build_vgg16() -> nn.Sequential:
    """Build VGG16's convolutions up to relu5_3, numbered as published."""
    layers: list[nn.Module] = []
    for dim_in, (dim, convolutions) in zip([3, *CHANNELS], VGG_STAGES, strict=False):
        layers += [nn.MaxPool2d(2)] if layers else []
        for i in range(convolutions):
            layers += [nn.Conv2d(dim if i else dim_in, dim, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def load_lpips(vgg: Path | str, linear: Path | str | None = None) -> Lpips:
    """Load LPIPS from .pth or .safetensors files, on the CPU; raise CheckpointError unless they fit exactly.

    `vgg` holds torchvision's whole VGG16, or its `features` alone. Without `linear` all channels weigh the same.
    """
    found = {k: v.float() for k, v in read_tensors(Path(vgg), VGG).items() if not k.startswith("classifier.")}
    with torch.device("meta"):
        wanted = {f"features.{name}": tuple(value.shape) for name, value in _build_vgg16().state_dict().items()}
    _check(found, wanted, vgg, VGG)
    if linear is None:
        return Lpips(found)
    shapes = {f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(CHANNELS)}
    table = {k: v.float() for k, v in read_tensors(Path(linear), LPIPS_LINEAR).items()}
    _check(table, shapes, linear, LPIPS_LINEAR)
    for name, value in table.items():
        if not float(value.min()) >= 0:
            raise CheckpointError(
                f"{escape_line(str(linear))}: {name} has weights below 0, but {LPIPS_LINEAR} has none: get it again"
            )
    return Lpips(found, [table[name].flatten() for name in shapes])


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], path: Path | str, source: str) -> None:
    """Raise CheckpointError, naming the first differences, unless names and shapes match and all values are finite."""
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is not known" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if tuple(found[name].shape) != wanted[name]:
            wrong.append(f"{name} is {tuple(found[name].shape)}, not {wanted[name]}")
        elif not bool(found[name].isfinite().all()):
            wrong.append(f"{name} is not finite")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{escape_line(str(path))} is not {source}: {escape_line('; '.join(wrong[:3]))}{more}")
