"""Feature extractors for distances between sets of images, behind one protocol.

There are three: an in-domain classifier, the Inception network of FID, and DINOv2 (Stein et al. 2023, arXiv 2306.04675,
find it closest to human judgement). All of them round images to 8 bits. So a PNG file and the tensor that it was
written from have the same features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from unmask.errors import CheckpointError, ConfigError, NonFiniteError
from unmask.method.rand import to_double
from unmask.metrics.features import Classifier, embed, hash_network
from unmask.metrics.inception import CleanResize, Inception, PlainResize
from unmask.storage.files import escape_line, hash_file
from unmask.storage.foreign.transformers_files import link_plain_files, list_transformers_errors, silence_transformers
from unmask.storage.hub import download_hub_folder
from unmask.storage.layout import CONFIG, MODEL

ROUNDED = "8 bits"  # every `preprocessing` text begins with it
GREY = "grey as three equal channels"
CLEAN = CleanResize()


@runtime_checkable
class Features(Protocol):
    """A feature extractor: maps images in [-1, 1] to one vector each, and maybe to class probabilities.

    `sha256` is the hash of the weights, and `preprocessing` describes exactly how images are prepared. A distance means
    nothing without both. `num_classes` is None if there are no classes.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def preprocessing(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def num_classes(self) -> int | None: ...

    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b d"]:
        """Return the features of images in [-1, 1], on the network's device, in one forward pass."""
        ...

    def classify(self, features: Float64[Tensor, "b d"]) -> Float64[Tensor, "b k"]:
        """Return class probabilities from features, at almost no cost. Raise ConfigError if there are no classes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Identifies the features of a statistic, in reports and caches."""

    name: str
    sha256: str
    preprocessing: str
    dim: int

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]}; {self.preprocessing})"


def identify_features(features: Features) -> Identity:
    """Return the name, weights hash, preprocessing and dimension of a feature extractor."""
    return Identity(name=features.name, sha256=features.sha256, preprocessing=features.preprocessing, dim=features.dim)


def check_same_features(found: Identity, wanted: Identity) -> None:
    """Raise ConfigError unless two statistics are of the same features."""
    if found != wanted:
        raise ConfigError(f"statistics from other features: {found}, not {wanted}; compute both with one network")


@torch.no_grad()
def embed_all(
    features: Features, images: Float[Tensor, "n c h w"] | Iterable[Float[Tensor, "_ c h w"]], batch: int = 256
) -> Float64[Tensor, "n d"]:
    """Return the features of many images, or of an iterable of batches, at most `batch` images per forward pass."""
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    parts = [images] if isinstance(images, Tensor) else images
    found = [features(chunk) for part in parts if len(part) for chunk in part.split(batch)]
    if not found:
        raise ConfigError("0 images to embed; pass at least one")
    return torch.cat(found)


def convert_to_pixels(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Round [-1, 1] to the 0..255 of an image file. Clip values outside; raise NonFiniteError if any is not finite."""
    bad = ~images.isfinite().flatten(1).all(dim=1)
    if bad.any():
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(images)} images are not finite; check the weights of their tokenizer"
        )
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _convert_to_colour(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b 3 h w"]:
    if images.shape[1] not in (1, 3):
        raise ConfigError(f"these features are of images with 1 or 3 channels, got {images.shape[1]}")
    return convert_to_pixels(images).expand(-1, 3, -1, -1)


class ClassifierFeatures:
    """The penultimate layer of an in-domain classifier, always in evaluation mode."""

    def __init__(self, classifier: Classifier):
        self.classifier = classifier
        self.name = f"classifier-{classifier.config.features}"
        self.preprocessing = f"{ROUNDED}, own size, [-1, 1]"
        self.dim = classifier.config.features
        self.num_classes: int | None = classifier.config.num_classes
        self.sha256 = hash_network(classifier)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b d"]:
        return embed(self.classifier, convert_to_pixels(images))

    @torch.no_grad()
    def classify(self, features: Float64[Tensor, "b d"]) -> Float64[Tensor, "b k"]:
        """Return class probabilities from features."""
        head = self.classifier.head
        return F.linear(features, to_double(head.weight), to_double(head.bias)).softmax(dim=1)


class InceptionFeatures:
    """The Inception network: the 2048 features of FID, and the 1008 classes of the Inception score."""

    def __init__(self, network: Inception, resize: CleanResize | PlainResize = CLEAN):
        self.network = network
        self.resize = resize
        self.name = "inception-v3-fid-2048"
        self.preprocessing = f"{ROUNDED}, {GREY}, {resize.text}"
        self.dim = network.fc.in_features
        self.num_classes: int | None = network.fc.out_features
        self.sha256 = hash_network(network)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b d"]:
        pixels = _convert_to_colour(images).to(self.network.fc.weight.device)
        # Otherwise convolutions on GPUs keep 10 bits of each number, and distances differ between GPUs.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return to_double(self.network(self.resize(pixels)))

    @torch.no_grad()
    def classify(self, features: Float64[Tensor, "b d"]) -> Float64[Tensor, "b k"]:
        """Return probabilities of the 1008 classes from features, as in published Inception scores."""
        # Published Inception scores omit the bias of the last layer (code of Salimans et al. 2016).
        return F.linear(features, to_double(self.network.fc.weight)).softmax(dim=1)


# Mean and deviation of ImageNet's channels, as in the training of DINOv2.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_SIZE = 224


class Dinov2Features:
    """The class token of DINOv2 after its last normalization. `network` is a `transformers.Dinov2Model`.

    Published FD-DINOv2 numbers use ViT-L/14, "facebook/dinov2-large". Differs from the published code: transformers
    interpolates position embeddings by size, not by a factor. So compare numbers of this class only with each other.
    """

    def __init__(self, network: Any):
        self.network = network
        self.dim: int = network.config.hidden_size
        self.num_classes: int | None = None
        self.name = f"dinov2-{self.dim}"
        size = f"{DINOV2_SIZE}x{DINOV2_SIZE}"
        self.preprocessing = (
            f"{ROUNDED}, {GREY}, antialiased bicubic resize to {size}, 8 bits, ImageNet mean and deviation"
        )
        self.sha256 = hash_network(network)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b c h w"]) -> Float64[Tensor, "b d"]:
        pixels = _convert_to_colour(images).to(self.network.device).float()
        size = (DINOV2_SIZE, DINOV2_SIZE)
        resized = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).round().clamp(0, 255)
        mean, std = (torch.tensor(x, device=pixels.device)[:, None, None] for x in (MEAN, STD))
        return to_double(self.network((resized / 255 - mean) / std).last_hidden_state[:, 0])

    def classify(self, features: Float64[Tensor, "b d"]) -> Float64[Tensor, "b k"]:
        """Raise ConfigError, since DINOv2 has no classes."""
        raise ConfigError(
            f"{self.name} has no classes: compute the Inception score with inception or classifier features"
        )


DINOV2 = ("facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c")
"""Name and commit on the Hub."""
DINOV2_SHA256 = "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"
"""Of its model.safetensors."""


def load_dinov2(path: Path | str | None = None) -> Dinov2Features:
    """Load DINOv2: by default ViT-L/14 of the Hub at a pinned commit, whose weights are checked and downloaded once.

    Args:
        path: A folder in transformers' format, or OWNER/NAME@REVISION on the Hub.

    Raises:
        ConfigError: If transformers is not installed.
        CheckpointError: If there is no complete DINOv2.
    """
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise ConfigError("DINOv2 needs transformers: pip install 'unmask[dinov2]'") from error
    folder = _find_dinov2(path)
    shown = escape_line(str(path or DINOV2[0]))
    try:
        with silence_transformers(), link_plain_files(folder, [CONFIG, MODEL]) as own:
            loaded: Any = Dinov2Model.from_pretrained(
                own, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except list_transformers_errors() as error:
        reason = escape_line((str(error).strip() or type(error).__name__).splitlines()[0])
        raise CheckpointError(
            f"{shown}: no DINOv2 can be loaded ({reason}); name a folder with config.json and model.safetensors"
        ) from error
    network, info = loaded
    wrong = sorted(str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind])
    if wrong:  # transformers fills missing tensors with noise and ignores the others
        raise CheckpointError(
            f"{shown} is not a DINOv2: {len(wrong)} tensors do not fit, first {escape_line(wrong[0])}"
        )
    return Dinov2Features(network.float().requires_grad_(False).eval())


def _find_dinov2(path: Path | str | None) -> Path:
    """Return the folder of a DINOv2; one that is named on the Hub is downloaded at its revision."""
    if path is not None and Path(path).is_dir():
        return Path(path)
    repo, _, revision = str(path).partition("@") if path is not None else (DINOV2[0], "", DINOV2[1])
    shown = escape_line(str(path or repo))
    if not revision:
        raise CheckpointError(f"{shown}: no such folder; give one, or OWNER/NAME@REVISION to pin a commit of the Hub")
    try:
        folder = download_hub_folder(repo, ["config.json", "model.safetensors"], revision=revision)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or give dinov2=DIR with a local copy") from error
    weights = folder / "model.safetensors"
    if path is None and hash_file(weights) != DINOV2_SHA256:
        raise CheckpointError(f"{escape_line(str(weights))} is not the published file: delete it, and run again")
    return folder
