"""A small in-domain classifier, trained on the real training images in seconds.

Its accuracy on samples tells whether they show the requested class. Its penultimate layer gives features for a Fréchet
distance of images far from ImageNet (such as digits of 8x8 pixels). Every report must hold its `hash_network`, since
other weights measure other distances.
"""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, UInt8
from safetensors import safe_open
from torch import Tensor, nn

from unmask.errors import (
    CheckpointError,
    ConfigError,
)
from unmask.method.rand import to_double
from unmask.metrics.configs import SMALLEST_SIDE, ClassifierConfig
from unmask.runtime.distributed import World, autocast
from unmask.runtime.progress import Progress
from unmask.storage.weights import read_sealed, write_sealed

ClassifierImages = Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]
"""Images in [-1, 1], or as bytes 0..255, which take a quarter of the memory."""


def _build_stage(dim_in: int, dim_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim_in, dim_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(dim_out),
        nn.GELU(),
    )


class _Halving(nn.Module):
    """A convolution, a maximum over 2x2 pixels, and a residual convolution."""

    def __init__(self, dim_in: int, dim_out: int):
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim_out)
        self.residual = _build_stage(dim_out, dim_out, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        x = F.gelu(self.norm(F.max_pool2d(self.conv(x), 2)))
        return x + self.residual(x)


def _build_plain(channels: int, width: int) -> nn.Sequential:
    """Build six 3x3 convolutions, two of them with stride 2."""
    return nn.Sequential(
        _build_stage(channels, width, 1),
        _build_stage(width, width, 1),
        _build_stage(width, 2 * width, 2),
        _build_stage(2 * width, 2 * width, 1),
        _build_stage(2 * width, 4 * width, 2),
        _build_stage(4 * width, 4 * width, 1),
    )


def _build_residual(channels: int, width: int) -> nn.Sequential:
    """Build seven 3x3 convolutions. They are wide only where the image is small, since large images cost most time."""
    return nn.Sequential(
        _build_stage(channels, width, 1),
        _Halving(width, width),
        _Halving(width, 4 * width),
        _Halving(4 * width, 4 * width),
    )


class Classifier(nn.Module):
    """The classifier: convolutions, a global mean, one hidden layer. Images are 8x8 or larger."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.trunk = (_build_residual if config.residual else _build_plain)(config.channels, config.width)
        self.hidden = nn.Linear(4 * config.width, config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    def extract_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return the penultimate activations of images in [-1, 1]."""
        _, channels, height, width = images.shape
        if channels != self.config.channels or min(height, width) < SMALLEST_SIDE:
            need = f"{self.config.channels} channels, {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels or more"
            raise ConfigError(f"the classifier needs {need}, got {channels} channels, {height}x{width}; resize them")
        return F.gelu(self.hidden(self.trunk(images).mean(dim=(2, 3))))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the class logits of images in [-1, 1]."""
        return self.head(self.extract_features(images))


def train_classifier(
    images: ClassifierImages, labels: Int[Tensor, "n"], config: ClassifierConfig, progress: Progress | None = None
) -> Classifier:
    """Train a classifier on the device of the images, with AdamW, a one-cycle rate and label smoothing 0.1.

    The result depends on the arguments only: the same images, config, machine and thread count give the same weights.

    Raises:
        ConfigError: If there are no images, or labels outside 0..num_classes-1.
    """
    _check_labels(images, labels, config)
    # Layers draw their first weights from torch's global generator and accept no other one. The fork seeds it here and
    # restores the caller's state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = Classifier(config)
    classifier.to(images.device).train()
    half = autocast(config.precision, World(0, 1, images.device))
    if config.precision != "fp32":  # bfloat16 convolutions are fastest in this order
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rand = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(classifier.parameters(), config.learning_rate, weight_decay=0.01)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _compute_rate_factor(step / config.steps)
        batch = torch.randint(len(images), (config.batch_size,), generator=rand).to(images.device)
        with half:
            logits = classifier(_augment(_convert_to_float(images[batch]), config, rand))
        loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress("classifier", step + 1, config.steps)
    classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return classifier.eval()


def _convert_to_float(images: ClassifierImages) -> Float[Tensor, "n c h w"]:
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def _check_labels(images: ClassifierImages, labels: Int[Tensor, "n"], config: ClassifierConfig) -> None:
    if len(images) == 0:
        raise ConfigError("0 images to train the classifier on; pass at least one")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= config.num_classes:
        raise ConfigError(
            f"labels run from {low} to {high}; with num_classes {config.num_classes} use 0..num_classes-1"
        )


def _compute_rate_factor(progress: float) -> float:
    """Compute the learning-rate factor: linear up over the first tenth, cosine down to 0 over the rest."""
    if progress < 0.1:
        return (progress + 0.01) / 0.11
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def _augment(
    images: Float[Tensor, "b c h w"], config: ClassifierConfig, rand: torch.Generator
) -> Float[Tensor, "b c h w"]:
    images = _shift(images, rand, config.shift)
    if not config.flip:
        return images
    mirrored = torch.rand(len(images), 1, 1, 1, generator=rand).to(images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def _shift(images: Float[Tensor, "b c h w"], rand: torch.Generator, most: int = 1) -> Float[Tensor, "b c h w"]:
    """Shift each image by -most to most pixels in both directions.

    A border of one pixel is filled with -1, the darkest value, as around a digit. A wider border mirrors the image.
    """
    batch, _, height, width = images.shape
    border = (most, most, most, most)
    padded = F.pad(images, border, value=-1.0) if most <= 1 else F.pad(images, border, mode="reflect")
    offset = torch.randint(2 * most + 1, (2, batch, 1), generator=rand).to(images.device)
    rows = offset[0] + torch.arange(height, device=images.device)
    columns = offset[1] + torch.arange(width, device=images.device)
    which = torch.arange(batch, device=images.device)[:, None, None]
    # Advanced indices that are not adjacent put their axes first: b h w c.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def embed(classifier: Classifier, images: ClassifierImages, batch: int | None = None) -> Float64[Tensor, "n d"]:
    """Return the penultimate features, computed in evaluation mode. The classifier's own mode is restored.

    Args:
        classifier: The classifier.
        images: At least one image.
        batch: Images per forward pass. Default: as many as keep an activation below 256 MiB, at most 512.
    """
    if len(images) == 0:
        raise ConfigError("0 images to embed; pass at least one")
    training = classifier.training
    classifier.eval()
    pixels = images.shape[-1] * images.shape[-2]
    batch = batch or min(512, max(1, (1 << 26) // (pixels * classifier.config.width)))
    features = torch.cat(
        [
            to_double(classifier.extract_features(_convert_to_float(part.to(classifier.head.weight.device))))
            for part in images.split(batch)
        ]
    )
    classifier.train(training)
    return features


def hash_network(network: nn.Module) -> str:
    """Return the SHA-256 of names, shapes and weights. Two reports with the same hash used the same features."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_classifier(classifier: Classifier, path: Path | str, pictures: str = "") -> None:
    """Save the weights as safetensors, with the config as JSON and the digest of its `pictures` in the metadata.

    A crash leaves the old file intact.
    """
    facts = {"config": json.dumps(asdict(classifier.config), sort_keys=True), "pictures": pictures}
    write_sealed(classifier.state_dict(), Path(path), facts)


def read_picture_digest(path: Path | str) -> str:
    """Return the digest of the images that a saved classifier was trained on, or "" if its file does not hold it."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("pictures", "")


def load_classifier(path: Path | str) -> Classifier:
    """Load the classifier that `save_classifier` wrote, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: If the file is missing or is not a saved classifier.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file; create it with unmask train-features")
    try:
        weights, facts = read_sealed(Path(path))
        config = ClassifierConfig(**json.loads(facts["config"]))
        with torch.device("meta"):
            classifier = Classifier(config)
        classifier.load_state_dict(weights, strict=True, assign=True)
    except (CheckpointError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a saved classifier ({reason}); delete it to train it again, or run unmask train-features"
        ) from error
    return classifier.eval()
