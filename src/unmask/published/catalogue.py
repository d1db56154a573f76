"""The models whose weights are public: where they are, how they were sampled, and what they are reported to reach."""

from dataclasses import dataclass
from functools import partial

import torch

from unmask.decoding import presets
from unmask.decoding.presets import Preset
from unmask.decoding.sampling import Sampling
from unmask.pretrained.families import AMUSED_SIZES, FAMILIES, GOOGLE_SIZES, TITOK_SIZES, VALEOAI_SIZES, Size
from unmask.recipes.spec import ModelSpec
from unmask.storage.download import PublishedFile


@dataclass(frozen=True, kw_only=True)
class File:
    """A published file of a family: `page` is where a person gets it, `name` what it is called there.

    `source` is how to fetch it, and None where no hash is published to check it by.
    """

    family: str
    page: str
    name: str
    source: PublishedFile | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A generator and its tokenizer. `preset` says how it was sampled; aMUSEd's, which draws texts, has no score."""

    about: str
    licence: str
    data: str
    size: Size
    model: File
    tokenizer: File
    sampling: Sampling
    preset: Preset | None = None

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        assert self.size.model is not None
        return ModelSpec(
            tokenizer=self.size.tokenizer, model=self.size.model, sampling=self.sampling, trained_on=self.data
        )

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the generator and of the tokenizer."""
        with torch.device("meta"):
            parts = (self.size.build(), self.size.tokenizer.build())
        return tuple(sum(p.numel() for p in part.parameters()) for part in parts)  # type: ignore[return-value]


def _hub(family: str, repo: str, path: str, size: int | None = None, sha256: str | None = None) -> File:
    source = PublishedFile(repo=repo, path=path, size=size, sha256=sha256) if sha256 else None
    return File(family=family, page=f"https://huggingface.co/{repo}", name=path, source=source)


def _google(family: str, name: str) -> File:
    url = f"https://storage.googleapis.com/maskgit-public/checkpoints/{name}"
    return File(family=family, page=url, name=name, source=PublishedFile(url=url))


def _valeoai(size: Size, file: File, preset: Preset, pixels: int) -> Published:
    return Published(
        about=f"the reproduction of MaskGIT (Besnier and Chen 2023, arXiv 2310.14400), {pixels}x{pixels}",
        licence="MIT", data="ImageNet", size=size, model=file, preset=preset, sampling=preset.sampling,
        tokenizer=_hub("taming-vqgan", "llvictorll/Maskgit-pytorch", "pretrained_maskgit/VQGAN/last.ckpt", 957_954_257,
                       "e38a3aed"),
    )  # fmt: skip


def _halton(name: str, pixels: int, preset: Preset) -> Published:
    sizes = FAMILIES["halton-maskgit"].sizes
    place = ["tiny", "small", "base", "large"].index(name) + (len(sizes) // 2 if pixels == 384 else 0)
    return Published(
        about=f"Halton-MaskGIT {name} (Besnier et al. 2025, arXiv 2503.17076), {pixels}x{pixels}",
        licence="MIT", data="ImageNet", size=sizes[place], preset=preset, sampling=preset.sampling,
        model=_hub("halton-maskgit", "llvictorll/Halton-MaskGIT", f"ImageNet_{pixels}_{name}.pth"),
        tokenizer=_hub("llamagen-vq16", "FoundationVision/LlamaGen", "vq_ds16_c2i.pt", None, "109aa8af"),
    )  # fmt: skip


def _titok(name: str, place: int, preset: Preset) -> Published:
    return Published(
        about=f"TiTok {name.upper()} (Yu et al. 2024, arXiv 2406.07550), 256x256 as a row of tokens",
        licence="Apache-2.0", data="ImageNet", size=TITOK_SIZES[place], preset=preset, sampling=preset.sampling,
        model=_hub("titok-uvit" if place == 2 else "titok-bert", "fun-research/TiTok", f"generator_titok_{name}.bin"),
        tokenizer=_hub("titok-tokenizer", "fun-research/TiTok", f"tokenizer_titok_{name}.bin"),
    )  # fmt: skip


def _maskgit(place: int, pixels: int, preset: Preset) -> Published:
    return Published(
        about=f"Google's MaskGIT (Chang et al. 2022, arXiv 2202.04200), {pixels}x{pixels}",
        licence="Apache-2.0", data="ImageNet", size=GOOGLE_SIZES[place], preset=preset, sampling=preset.sampling,
        model=_google("google-maskgit", f"maskgit_imagenet{pixels}_checkpoint"),
        tokenizer=_google("google-vqgan", f"tokenizer_imagenet{pixels}_checkpoint"),
    )  # fmt: skip


def _amused(place: int, pixels: int) -> Published:
    repo, file = f"amused/amused-{pixels}", "diffusion_pytorch_model.safetensors"
    return Published(
        about=f"aMUSEd (Patil et al. 2024, arXiv 2401.01808), {pixels}x{pixels} from texts",
        licence="openrail++", data="LAION (see its page)", size=AMUSED_SIZES[place], sampling=presets.AMUSED_SAMPLING,
        model=_hub("amused", repo, f"transformer/{file}"), tokenizer=_hub("amused-vqvae", repo, f"vqvae/{file}"),
    )  # fmt: skip


_WEIGHTS = partial(_hub, "valeoai-v1", "llvictorll/Maskgit-pytorch")
MODELS: dict[str, Published] = {
    "besnier-256": _valeoai(
        VALEOAI_SIZES[0],
        _WEIGHTS("pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_256.pth", 2_090_306_069, "74b38fa1"),
        presets.REPORT_256,
        256,
    ),
    "besnier-512": _valeoai(
        VALEOAI_SIZES[1],
        _WEIGHTS("pretrained_maskgit/MaskGIT/MaskGIT_ImageNet_512.pth", 2_116_055_573, "fa1e1286"),
        presets.REPORT_512,
        512,
    ),
    "halton-tiny-256": _halton("tiny", 256, presets.HALTON_TINY_256),
    "halton-small-256": _halton("small", 256, presets.HALTON_SMALL_256),
    "halton-base-256": _halton("base", 256, presets.HALTON_BASE_256),
    "halton-small-384": _halton("small", 384, presets.HALTON_SMALL_384),
    "halton-base-384": _halton("base", 384, presets.HALTON_BASE_384),
    "halton-large-384": _halton("large", 384, presets.HALTON_LARGE_384),
    "maskgit-256": _maskgit(0, 256, presets.GOOGLE_256),
    "maskgit-512": _maskgit(1, 512, presets.GOOGLE_512),
    "titok-l32": _titok("l32", 0, presets.TITOK_L32_256),
    "titok-b64": _titok("b64", 1, presets.TITOK_B64_256),
    "titok-s128": _titok("s128", 2, presets.TITOK_S128_256),
    "amused-256": _amused(0, 256),
    "amused-512": _amused(1, 512),
}
