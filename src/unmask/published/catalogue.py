"""The models whose weights are public: where they are, how they were sampled, and what they are reported to reach."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from unmask.decoding import presets
from unmask.decoding.presets import Preset
from unmask.decoding.sampling import Sampling
from unmask.pretrained.conditions import EXTRA_FILES, OPTIONAL_EXTRA_FILES
from unmask.pretrained.families import AMUSED_SIZES, FAMILIES, GOOGLE_SIZES, TITOK_SIZES, VALEOAI_SIZES, Size
from unmask.published.files import File
from unmask.recipes.spec import ModelSpec

IMAGENET = "ImageNet"
"""The dataset whose class names `read_imagenet_classes` knows."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A generator and its tokenizer. `preset` says how it was sampled; aMUSEd's, which draws texts, has no score."""

    about: str
    """What it is, in a line."""
    licence: str
    """The licence of the weights."""
    data: str
    """What it was trained on."""
    size: Size
    """Its networks."""
    parameters: tuple[int, int]
    """Parameters of the generator and of the tokenizer."""
    model: File
    """The file of the generator."""
    tokenizer: File
    """The file of the tokenizer."""
    sampling: Sampling
    """How it was sampled."""
    preset: Preset | None = None
    """The sampling with its scores; None for a model without a score on ImageNet."""
    extras: tuple[File, ...] = field(default=())
    """Files that are copied: the text encoder of aMUSEd."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        assert self.size.model is not None
        return ModelSpec(
            tokenizer=self.size.tokenizer,
            model=self.size.model,
            sampling=self.sampling,
            classes=read_imagenet_classes() if self.data == IMAGENET else (),
            trained_on=self.data,
        )


@cache
def read_imagenet_classes() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes, by their number.

    The names are those of torchvision (torchvision/models/_meta.py): short, and each of them once. A line has ten.
    """
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(name for line in lines for name in line.split("; "))


def _hub(family: str, repo: str, name: str, size: int | None = None, sha256: str | None = None) -> File:
    return File(family=family, repo=repo, name=name, size=size, sha256=sha256)


def _google(family: str, name: str) -> File:
    url = f"https://storage.googleapis.com/maskgit-public/checkpoints/{name}"
    return File(family=family, url=url, name=name)


BESNIER = "llvictorll/Maskgit-pytorch"


def _valeoai(place: int, pixels: int, parameters: int, preset: Preset, size: int, sha256: str) -> Published:
    return Published(
        about=f"the reproduction of MaskGIT (Besnier and Chen 2023, arXiv 2310.14400), {pixels}x{pixels}",
        licence="MIT", data=IMAGENET, size=VALEOAI_SIZES[place], parameters=(parameters, 72_141_699),
        preset=preset, sampling=preset.sampling,
        model=_hub("valeoai-v1", BESNIER, f"pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_{pixels}.pth", size, sha256),
        tokenizer=_hub("taming-vqgan", BESNIER, "pretrained_maskgit/VQGAN/last.ckpt", 957_954_257, "e38a3aed"),
    )  # fmt: skip


def _halton(name: str, pixels: int, parameters: int, preset: Preset) -> Published:
    sizes = FAMILIES["halton-maskgit"].sizes
    place = ["tiny", "small", "base", "large"].index(name) + (len(sizes) // 2 if pixels == 384 else 0)
    return Published(
        about=f"Halton-MaskGIT {name} (Besnier et al. 2025, arXiv 2503.17076), {pixels}x{pixels}",
        licence="MIT", data=IMAGENET, size=sizes[place], parameters=(parameters, 71_883_403),
        preset=preset, sampling=preset.sampling,
        model=_hub("halton-maskgit", "llvictorll/Halton-MaskGIT", f"ImageNet_{pixels}_{name}.pth"),
        tokenizer=_hub("llamagen-vq16", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", None, "109aa8af"),
    )  # fmt: skip


def _titok(name: str, place: int, parameters: tuple[int, int], preset: Preset) -> Published:
    return Published(
        about=f"TiTok {name.upper()} (Yu et al. 2024, arXiv 2406.07550), 256x256 as a row of tokens",
        licence="Apache-2.0", data=IMAGENET, size=TITOK_SIZES[place], parameters=parameters,
        preset=preset, sampling=preset.sampling,
        model=_hub("titok-uvit" if place == 2 else "titok-bert", "fun-research/TiTok", f"generator_titok_{name}.bin"),
        tokenizer=_hub("titok-tokenizer", "fun-research/TiTok", f"tokenizer_titok_{name}.bin"),
    )  # fmt: skip


def _maskgit(place: int, pixels: int, parameters: int, preset: Preset) -> Published:
    return Published(
        about=f"Google's MaskGIT (Chang et al. 2022, arXiv 2202.04200), {pixels}x{pixels}",
        licence="Apache-2.0", data=IMAGENET, size=GOOGLE_SIZES[place], parameters=(parameters, 54_515_587),
        preset=preset, sampling=preset.sampling,
        model=_google("google-maskgit", f"maskgit_imagenet{pixels}_checkpoint"),
        tokenizer=_google("google-vqgan", f"tokenizer_imagenet{pixels}_checkpoint"),
    )  # fmt: skip


def _amused(place: int, pixels: int, parameters: int) -> Published:
    repo, file = f"amused/amused-{pixels}", "diffusion_pytorch_model.safetensors"
    return Published(
        about=f"aMUSEd (Patil et al. 2024, arXiv 2401.01808), {pixels}x{pixels} from texts",
        licence="openrail++", data="LAION (see its page)", size=AMUSED_SIZES[place],
        parameters=(parameters, 146_244_675), sampling=presets.AMUSED_SAMPLING,
        model=_hub("amused", repo, f"transformer/{file}"), tokenizer=_hub("amused-vqvae", repo, f"vqvae/{file}"),
        extras=tuple(
            File(family="", repo=repo, name=name, optional=name in OPTIONAL_EXTRA_FILES) for name in EXTRA_FILES
        ),
    )  # fmt: skip


MODELS: dict[str, Published] = {
    "besnier-256": _valeoai(0, 256, 173_902_336, presets.REPORT_256, 2_090_306_069, "74b38fa1"),
    "besnier-512": _valeoai(1, 512, 175_278_592, presets.REPORT_512, 2_116_055_573, "fa1e1286"),
    "halton-tiny-256": _halton("tiny", 256, 23_031_424, presets.HALTON_TINY_256),
    "halton-small-256": _halton("small", 256, 69_344_768, presets.HALTON_SMALL_256),
    "halton-base-256": _halton("base", 256, 142_224_640, presets.HALTON_BASE_256),
    "halton-small-384": _halton("small", 384, 69_508_608, presets.HALTON_SMALL_384),
    "halton-base-384": _halton("base", 384, 142_470_400, presets.HALTON_BASE_384),
    "halton-large-384": _halton("large", 384, 479_984_640, presets.HALTON_LARGE_384),
    "maskgit-256": _maskgit(0, 256, 172_456_960, presets.GOOGLE_256),
    "maskgit-512": _maskgit(1, 512, 173_046_784, presets.GOOGLE_512),
    "titok-l32": _titok("l32", 0, (177_201_664, 641_054_735), presets.TITOK_L32_256),
    "titok-b64": _titok("b64", 1, (177_226_240, 204_814_095), presets.TITOK_B64_256),
    "titok-s128": _titok("s128", 2, (294_990_848, 83_674_639), presets.TITOK_S128_256),
    "amused-256": _amused(0, 256, 603_489_280),
    "amused-512": _amused(1, 512, 608_209_408),
}
