"""Published weights become ours: every tensor of the file is translated by its family's own rule, and what comes out is
compared strictly with the model built on the meta device. Either all fits, and a report says what became of each
tensor, or one line says what does not."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.storage.files import one_line
from unmask.storage.weights import write_weights

Translate = Callable[[str, Tensor], dict[str, Tensor]]
"""One tensor of the file by our names: {} if it is not needed, several if it is split."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of every tensor of a file; the last six lists are empty where all went well.

    Their entries name the tensor, and say what is wrong with it where its name alone does not.
    """

    source: str
    parameters: int
    dtype: torch.dtype
    matched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    dropped: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    """Tensors of ours that the file has twice, equal both times."""
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    duplicate: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What is wrong, in words, with the tensors concerned."""
        said = {
            "missing": self.missing,
            "unknown": self.extra,
            "of another shape or type": self.wrong_shape,
            "there twice and not equal": self.duplicate,
            "with NaN, or too large for the type": self.not_finite,
        }
        return tuple((what, names) for what, names in said.items() if names)

    @property
    def text(self) -> str:
        """Some lines for a file beside the weights."""
        kind = str(self.dtype).removeprefix("torch.")
        lines = [f"source: {self.source}", f"parameters: {self.parameters:,} as {kind}"]
        lines += [f"kept under their names: {len(self.matched)}", f"renamed: {len(self.renamed)}"]
        lines += [f"  {theirs} -> {ours}" for theirs, ours in self.renamed]
        lines += [f"split: {len(self.split)}"] + [f"  {theirs} -> {', '.join(ours)}" for theirs, ours in self.split]
        for what, names in (("not needed", self.dropped), ("there twice, and equal", self.same), *self.problems):
            lines += [f"{what}: {len(names)}", *(f"  {name}" for name in names)]
        return "\n".join(map(one_line, lines)) + "\n"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Weights by our names, views of the file where that is possible, and how they came about."""

    weights: dict[str, Tensor]
    report: Report

    def write(self, path: Path, facts: Mapping[str, str] | None = None) -> None:
        """As safetensors, with `facts` as metadata; whole or not at all. Raises DiskError."""
        write_weights(self.weights, path, facts)


def convert_tensors(
    tensors: Mapping[str, Tensor],
    translate: Translate,
    model: nn.Module,
    *,
    source: str,
    dtype: torch.dtype = torch.float32,
    family: str = "",
    families: Mapping[str, Collection[str]] | None = None,
) -> Converted:
    """Translate the tensors of `source` to exactly the parameters and persistent buffers of `model`.

    Floating-point numbers become `dtype`. `families` are names of tensors that tell families apart; if the file is of
    another than `family`, the CheckpointError says of which.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"weights are kept as float32 or bfloat16, not {dtype}")
    wanted, tied = _wanted(model)
    translated = {name: translate(name, tensor) for name, tensor in tensors.items()}
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    duplicate: list[str] = []
    same: list[str] = []
    for theirs, parts in translated.items():
        for name, tensor in parts.items():
            ours = tied.get(name, name)
            if ours not in found:
                found[ours], origin[ours] = tensor, theirs
                continue
            equal = tensor.dtype == found[ours].dtype and torch.equal(tensor, found[ours])
            (same if equal else duplicate).append(f"{ours} (from {origin[ours]} and {theirs})")
    shapes = {name: _difference(found[name], wanted[name]) for name in found if name in wanted}
    several = [(theirs, tuple(parts)) for theirs, parts in translated.items() if len(parts) > 1]
    single = [(theirs, next(iter(parts))) for theirs, parts in translated.items() if len(parts) == 1]
    report = Report(
        source=source,
        parameters=sum(math.prod(p.shape) for p in model.parameters()),
        dtype=dtype,
        matched=tuple(theirs for theirs, ours in single if theirs == ours),
        renamed=tuple((theirs, ours) for theirs, ours in single if theirs != ours),
        split=tuple(several),
        dropped=tuple(theirs for theirs, parts in translated.items() if not parts),
        same=tuple(same),
        missing=tuple(name for name in wanted if name not in found),
        extra=tuple(_from(name, origin[name]) for name in found if name not in wanted),
        wrong_shape=tuple(f"{_from(n, origin[n])} is {difference}" for n, difference in shapes.items() if difference),
        duplicate=tuple(duplicate),
        not_finite=tuple(_from(n, origin[n]) for n in shapes if not shapes[n] and not _fits(found[n], dtype)),
    )
    if report.problems:
        raise CheckpointError(one_line(_complaint(report, tensors.keys(), family, families or {})))
    return Converted(weights=_plain(found, wanted, dtype), report=report)


def _wanted(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Parameters, each once, and persistent buffers; and the further names of tied ones."""
    wanted = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in wanted.items()}
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = {name: names[id(parameter)] for name, parameter in every.items() if name not in wanted}
    buffers = {name: value for name, value in model.state_dict().items() if name not in every}
    return wanted | buffers, tied


def _difference(tensor: Tensor, wanted: Tensor) -> str:
    """What is wrong with the shape or type of a tensor, or nothing. Any two floating-point types are alike."""
    alike = tensor.dtype == wanted.dtype or (tensor.is_floating_point() and wanted.is_floating_point())
    if alike and tensor.shape == wanted.shape:
        return ""
    there, here = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (tensor, wanted))
    return f"{there} where the model has {here}"


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether all numbers are finite, and stay so as `dtype`."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = tensor.aminmax()  # takes no memory, and both are NaN where there is one
    return bool(torch.isfinite(torch.stack([least, most]).to(dtype)).all())


def _plain(found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In the model's order, of the type asked for; copies where two would share memory, which a file cannot say."""
    plain: dict[str, Tensor] = {}
    for name in wanted:
        tensor = found[name].detach()
        plain[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
    taken = 0
    for name, tensor in sorted(plain.items(), key=lambda item: item[1].data_ptr()):
        start = tensor.data_ptr()
        if start < taken:
            plain[name] = tensor.clone()
        taken = max(taken, start + tensor.nbytes)
    return plain


def _from(ours: str, theirs: str) -> str:
    return ours if ours == theirs else f"{ours} (from {theirs})"


def _complaint(report: Report, names: Collection[str], family: str, families: Mapping[str, Collection[str]]) -> str:
    said = "; ".join(f"{len(tensors)} {what}, first {tensors[0]}" for what, tensors in report.problems)
    shares = {other: len(set(known) & set(names)) / len(known) for other, known in families.items() if known}
    best = max(shares, key=lambda other: shares[other], default="")
    like = ""
    if best and best != family and shares[best] >= 0.9:
        like = f"; its tensors are those of {best}: convert it as that"
    return f"{report.source}: does not fit{' ' + family if family else ''}: {said}{like}"
