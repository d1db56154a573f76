"""Convert published weights to our names and check that they fit.

The family's rule translates every tensor of the file. The result must match the model, built on the meta device,
exactly. Either everything fits, and a report says what became of each tensor, or one line says what does not fit.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError
from unmask.storage.files import escape_line
from unmask.storage.weights import write_weights

Translate = Callable[[str, Tensor], dict[str, Tensor]]
"""Translates one tensor of the file to our names: {} if we do not need it, several entries if we split it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of every tensor of a file. The last five lists are empty if the file fits.

    Their entries name the tensor, and also its fault where the name alone does not tell.
    """

    source: str
    """The file."""
    parameters: int
    """Number of parameters of the model."""
    dtype: torch.dtype
    """Type of the converted floating-point numbers."""
    matched: tuple[str, ...] = ()
    """Tensors that keep their name."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Published name and ours."""
    split: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Published name and ours, of tensors that became several."""
    dropped: tuple[str, ...] = ()
    """Tensors that the model does not need."""
    same: tuple[str, ...] = ()
    """Tensors of ours that the file holds twice, equal both times."""
    missing: tuple[str, ...] = ()
    """Tensors of ours that the file lacks."""
    extra: tuple[str, ...] = ()
    """Tensors that the model does not know."""
    wrong_shape: tuple[str, ...] = ()
    """Tensors of another shape or type."""
    duplicate: tuple[str, ...] = ()
    """Tensors of ours that the file holds twice, with different values."""
    not_finite: tuple[str, ...] = ()
    """Tensors with NaN, infinity, or a number too large for `dtype`."""

    @property
    def problems(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each kind of fault in words, with its tensors."""
        problems = {
            "missing": self.missing,
            "unknown": self.extra,
            "of another shape or type": self.wrong_shape,
            "there twice and not equal": self.duplicate,
            "with NaN, or too large for the type": self.not_finite,
        }
        return tuple((what, names) for what, names in problems.items() if names)

    @property
    def text(self) -> str:
        """The report as lines of text, for a file beside the weights."""
        kind = str(self.dtype).removeprefix("torch.")
        lines = [f"source: {self.source}", f"parameters: {self.parameters:,} as {kind}"]
        lines += [f"kept under their names: {len(self.matched)}", f"renamed: {len(self.renamed)}"]
        lines += [f"  {theirs} -> {ours}" for theirs, ours in self.renamed]
        lines += [f"split: {len(self.split)}"] + [f"  {theirs} -> {', '.join(ours)}" for theirs, ours in self.split]
        for what, names in (("not needed", self.dropped), ("there twice, and equal", self.same), *self.problems):
            lines += [f"{what}: {len(names)}", *(f"  {name}" for name in names)]
        return "\n".join(map(escape_line, lines)) + "\n"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Weights under our names, as views of the file where possible, and the report of their conversion."""

    weights: dict[str, Tensor]
    report: Report

    def write(self, path: Path, facts: Mapping[str, str] | None = None) -> None:
        """Write the weights as safetensors with `facts` as metadata, completely or not at all. Raises DiskError."""
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
    """Translate the tensors of a file to exactly the parameters and persistent buffers of `model`.

    Args:
        tensors: The tensors of the file.
        translate: The rule of the family.
        model: The network, which may lie on the meta device.
        source: Name of the file for messages.
        dtype: Type of the converted floating-point numbers, float32 or bfloat16.
        family: Name of the family for messages.
        families: Tensor names that tell families apart; a message names the family that the file seems to be of.

    Raises:
        CheckpointError: The file does not fit; the message says how.
        ConfigError: The dtype is neither float32 nor bfloat16.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"weights can be stored as float32 or bfloat16, not {dtype}: choose one of these")
    wanted, tied = _list_wanted(model)
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
    shapes = {name: _describe_difference(found[name], wanted[name]) for name in found if name in wanted}
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
        extra=tuple(_name_both(name, origin[name]) for name in found if name not in wanted),
        wrong_shape=tuple(
            f"{_name_both(n, origin[n])} is {difference}" for n, difference in shapes.items() if difference
        ),
        duplicate=tuple(duplicate),
        not_finite=tuple(_name_both(n, origin[n]) for n in shapes if not shapes[n] and not _is_finite(found[n], dtype)),
    )
    if report.problems:
        raise CheckpointError(escape_line(_describe_problems(report, tensors.keys(), family, families or {})))
    return Converted(weights=_make_storable(found, wanted, dtype), report=report)


def _list_wanted(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return parameters, each once, and persistent buffers; and map the other names of tied parameters to the first."""
    wanted = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in wanted.items()}
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = {name: names[id(parameter)] for name, parameter in every.items() if name not in wanted}
    buffers = {name: value for name, value in model.state_dict().items() if name not in every}
    return wanted | buffers, tied


def _describe_difference(tensor: Tensor, wanted: Tensor) -> str:
    """Describe how shape or type differ, or return "". Any two floating-point types count as equal."""
    alike = tensor.dtype == wanted.dtype or (tensor.is_floating_point() and wanted.is_floating_point())
    if alike and tensor.shape == wanted.shape:
        return ""
    there, here = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (tensor, wanted))
    return f"{there} where the model has {here}"


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Return True if all numbers are finite, and stay finite as `dtype`."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = tensor.aminmax()  # takes no memory; one NaN makes both NaN
    return bool(torch.isfinite(torch.stack([least, most]).to(dtype)).all())


def _make_storable(found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Sort and cast the tensors; copy those that share memory, which a file cannot express."""
    storable: dict[str, Tensor] = {}
    for name in wanted:
        tensor = found[name].detach()
        storable[name] = (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
    taken = 0
    for name, tensor in sorted(storable.items(), key=lambda item: item[1].data_ptr()):
        start = tensor.data_ptr()
        if start < taken:
            storable[name] = tensor.clone()
        taken = max(taken, start + tensor.nbytes)
    return storable


def _name_both(ours: str, theirs: str) -> str:
    """Return our name, with the published one if it differs."""
    return ours if ours == theirs else f"{ours} (from {theirs})"


def _describe_problems(
    report: Report, names: Collection[str], family: str, families: Mapping[str, Collection[str]]
) -> str:
    problems = "; ".join(f"{len(tensors)} {what}, first {tensors[0]}" for what, tensors in report.problems)
    shares = {other: len(set(known) & set(names)) / len(known) for other, known in families.items() if known}
    best = max(shares, key=lambda other: shares[other], default="")
    like = ""
    if best and best != family and shares[best] >= 0.9:
        like = f"; its tensors are those of {best}: convert it as that"
    return f"{report.source}: does not fit{' ' + family if family else ''}: {problems}{like}"
