"""Names of unmasking orders, schedules, samplers and presets, for the command line and for Python."""

from unmask.decoding import presets
from unmask.decoding.presets import GOOGLE_256, GOOGLE_512, REPORT_256, REPORT_512, Preset, Unscored
from unmask.decoding.rules import RolledHalton
from unmask.decoding.sampling import (
    Adaptive,
    Ancestral,
    GoogleCounts,
    HaltonCounts,
    Order,
    Parallel,
    ReMDM,
    Reveal,
    Sampling,
    ValeoaiV1,
    XTransformersCounts,
)
from unmask.errors import look_up
from unmask.method.ramps import CosineRamp, Interval, LinearRamp
from unmask.method.sampling.adaptive import EntropyBound, Threshold
from unmask.method.sampling.extra_priorities import MarginRepulsion, Moment
from unmask.method.sampling.priorities import Confidence, Entropy, Halton, Margin, MaxLogit, Random, Raster
from unmask.method.sampling.remasking import Cap, ConfidenceWeighted, Rescale
from unmask.method.schedules import Arccos, Cosine, Exp, Log, Power, Shape, Sigmoid

PRESETS = {
    "besnier-256-8": REPORT_256,
    "besnier-512-15": REPORT_512,
    "maskgit-256-8": GOOGLE_256,
    "maskgit-512-12": GOOGLE_512,
    "halton-tiny-256-32": presets.HALTON_TINY_256,
    "halton-small-256-32": presets.HALTON_SMALL_256,
    "halton-base-256-32": presets.HALTON_BASE_256,
    "halton-small-384-32": presets.HALTON_SMALL_384,
    "halton-base-384-32": presets.HALTON_BASE_384,
    "halton-large-384-32": presets.HALTON_LARGE_384,
    "titok-l32-256-8": presets.TITOK_L32_256,
    "titok-b64-256-8": presets.TITOK_B64_256,
    "titok-s128-256-64": presets.TITOK_S128_256,
}
"""Published presets. A name gives the publisher, the image size and the number of steps."""


UNSCORED = {
    "besnier-nov23-256-8": presets.LATER_REPORT_256,
    "besnier-nov23-512-15": presets.LATER_REPORT_512,
    "halton-quickstart-384-32": presets.HALTON_QUICK_START,
}
"""Presets of published code without published scores."""


OUR_SAMPLINGS = {"ours-8": presets.make_ours(8), "ours-16": presets.make_ours(16)}


SAMPLINGS: dict[str, Sampling] = {
    **{name: preset.sampling for name, preset in PRESETS.items()},
    **{name: preset.sampling for name, preset in UNSCORED.items()},
    **OUR_SAMPLINGS,
}
"""Values of `--preset`."""


def describe_expected(name: str) -> str:
    """Return one line with the published scores of a preset."""
    if name in OUR_SAMPLINGS:
        return f"preset {name}: by unmask, without published scores"
    known: dict[str, Preset | Unscored] = {**PRESETS, **UNSCORED}
    preset = look_up(known, name, "preset")
    if isinstance(preset, Unscored):
        return f"preset {name}: without published scores ({preset.source})"
    fid, score = preset.expected.fid, preset.expected.inception_score
    size = "x".join(map(str, preset.size))
    judged = "" if score is None else f", IS {score:.1f}"
    return f"preset {name}: published FID {fid:.2f}{judged} for ImageNet at {size} ({preset.source})"


SAMPLERS: dict[str, Parallel | Ancestral | ReMDM | Adaptive] = {
    "parallel": Parallel(),
    "remask": Parallel(),
    "ancestral": Ancestral(),
    "remdm-cap": ReMDM(Cap(0.02)),
    "remdm-rescale": ReMDM(Rescale(0.1)),
    "remdm-confidence": ReMDM(ConfidenceWeighted()),
    "entropy-bound": Adaptive(EntropyBound(0.1)),
    "threshold": Adaptive(Threshold(0.9)),
}
"""Values of `--sampler`."""


def list_schedules(length: int) -> dict[str, Reveal]:
    """Return the values of `--schedule`: fractions still masked, or tokens per step as code bases count them."""
    plain = list_shapes(length)
    named: dict[str, Reveal] = dict(plain)
    for name, shape in plain.items():
        named[f"valeoai-v1-{name}"] = ValeoaiV1(shape=shape)
        named[f"google-{name}"] = GoogleCounts(shape=shape)
        named[f"x-transformers-{name}"] = XTransformersCounts(shape=shape)
    return {**named, "halton-maskgit": HaltonCounts()}


def list_orders(grid: tuple[int, ...]) -> dict[str, Order]:
    """Return the values of `--order`, the unmasking orders."""
    return {
        "confidence": Confidence(),
        "confidence-without-noise": Confidence(0.0),
        "halton": Halton(grid),
        "random": Random(),
        "margin": Margin(),
        "margin-repulsion": MarginRepulsion(radius=4 if len(grid) == 1 else 1, grid=grid),
        "entropy": Entropy(),
        "max-logit": MaxLogit(),
        "raster": Raster(),
        "moment": Moment(),
        "halton-rolled": RolledHalton(grid),
    }


def list_shapes(tokens: int) -> dict[str, Shape]:
    """Return the values of `--shape`, which `--schedule` also takes; log and exp depend on the number of tokens."""
    powers = {"uniform": 1.0, "linear": 1.0, "pow2": 2.0, "square": 2.0, "pow3": 3.0, "pow0.5": 0.5, "root": 0.5}
    named_shapes: dict[str, Shape] = {name: Power(exponent) for name, exponent in powers.items()}
    named_shapes |= {"cosine": Cosine(), "arccos": Arccos(), "sigmoid": Sigmoid()}
    return named_shapes if tokens < 2 else named_shapes | {"log": Log(tokens), "exp": Exp(tokens)}


RAMPS: dict[str, type[Interval] | type[LinearRamp] | type[CosineRamp]] = {
    "constant": Interval,
    "linear": LinearRamp,
    "cosine": CosineRamp,
}
"""How guidance rises to its scale, by the values of `--ramp`."""
