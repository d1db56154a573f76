"""Choose types and kernels by what a device computes fast. Every such choice of a whole program is made here.

| device              | choose_dtype | packs_linear                                        |
|---------------------|--------------|-----------------------------------------------------|
| CUDA                | bfloat16     | never: only a CPU has the layout                    |
| CPU, AMX            | bfloat16     | float32 and bfloat16                                |
| CPU, AVX-512 bf16   | bfloat16     | float32 and bfloat16                                |
| CPU, AVX-512        | float32      | float32, and bfloat16 if oneDNN has kernels for it  |
| CPU, AVX2 and older | float32      | bfloat16 if oneDNN has kernels for it               |

Linear layers multiply 8-bit integers only if the user asks for it, on a CPU (`check_int8`).

Without oneDNN in torch nothing is packed. `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA`, with which torch and oneDNN
use fewer instructions than the CPU has, lower the row. The choices were measured with these benchmarks:

* bfloat16 against float32, and packed against plain layers: `benchmarks/cpus.py`, also with fewer instructions.
* Muon, which takes `choose_dtype`: `benchmarks/muon.py`. A CPU without bfloat16 instructions emulates them, 17 times as
  slow as float32.
* Packed linear layers: `benchmarks/published.py`. In float32 they are up to twice as fast with AVX-512, and 1.3 times
  as slow without it.

Attention and convolutions choose between two formulas by device and shape, in `method/models/layers.py`
(`benchmarks/attention.py`) and `tokenizers/vqgan.py`.

Some of these need functions of torch that are private. A torch without one of them is named in one line of the log, and
the program goes on without it.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from unmask.errors import ConfigError

PACKING = ("ops.mkldnn._is_mkldnn_bf16_supported", "ops.mkldnn._reorder_linear_weight", "ops.mkldnn._linear_pointwise")
"""What packed layers need of torch, all or nothing."""

INT8 = ("ops.onednn.qlinear_prepack", "ops.onednn.qlinear_pointwise")
"""What layers of 8-bit integers need of torch (`runtime/int8.py`)."""

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of `ONEDNN_MAX_CPU_ISA` below the instructions for bfloat16; with AVX-512 oneDNN emulates them, slowly."""


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 on CUDA and on CPUs whose instructions for it torch and oneDNN use, else float32."""
    fast = device.type == "cuda" or (device.type == "cpu" and _computes_bfloat16())
    return torch.bfloat16 if fast else torch.float32


def packs_linear(dtype: torch.dtype) -> bool:
    """Return whether linear layers of this type are faster on this CPU in the layout of oneDNN (`runtime/packed.py`).

    In bfloat16 that is where oneDNN has kernels for it, in float32 only with AVX-512; other types have no kernel.
    """
    if not torch.backends.mkldnn.is_available() or not all(
        find_private(name, "linear layers are not packed") for name in PACKING
    ):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX512"


def check_int8(device: torch.device) -> None:
    """Raise ConfigError if this device or this torch cannot multiply 8-bit integers."""
    if device.type != "cpu":
        raise ConfigError(f"dtype int8 on {device.type}: it is for CPUs only; give device cpu, or leave the dtype out")
    if not torch.backends.mkldnn.is_available() or not all(
        find_private(name, "dtype int8 is refused") for name in INT8
    ):
        raise ConfigError(
            f"dtype int8: torch {torch.__version__} has no oneDNN kernels for it here; leave the dtype out"
        )


def multiply_all(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply each tensor by `factor`, in place, in one call where torch can."""
    multiply = find_private("_foreach_mul_", "tensors are multiplied one at a time")
    if multiply is not None:
        multiply(tensors, factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def move_all(tensors: Sequence[Tensor], targets: Sequence[Tensor], share: float) -> None:
    """Move each tensor by `share` of the way to its target, in place, in one call where torch can."""
    move = find_private("_foreach_lerp_", "tensors are averaged one at a time")
    if move is not None:
        move(tensors, targets, share)
        return
    for tensor, target in zip(tensors, targets, strict=True):
        tensor.lerp_(target, share)


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError if torch.compile cannot work on this device for want of a C++ compiler."""
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ConfigError("compiling for a CPU needs a C++ compiler: install g++, or do not compile")


def compile_blocks(network: nn.Module) -> None:
    """Compile each block of a network: what is compiled for one serves all that are alike."""
    for blocks in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            block.compile(dynamic=False)


@contextmanager
def skip_compiled(network: nn.Module) -> Iterator[None]:
    """Run blocks without their compiled code: each new shape would be compiled first, and evaluation has many."""
    if all(getattr(module, "_compiled_call_impl", None) is None for module in network.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def find_private(path: str, otherwise: str) -> Callable[..., Any] | None:
    """Return a private function of torch by its path, such as `cpu._is_amx_tile_supported`, or None if it is gone.

    The first time that it is missing, one line of the log says so and what happens `otherwise`.
    """
    try:
        found: Callable[..., Any] = attrgetter(path)(torch)
    except AttributeError:
        _log_missing(path, otherwise)
        return None
    return found


@cache
def _log_missing(path: str, otherwise: str) -> None:
    logging.getLogger(__name__).warning("torch %s has no %s: %s", torch.__version__, path, otherwise)


def _computes_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16, and no variable of the environment forbids their use."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY lowers it
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BFLOAT16:
        return False
    supports = find_private(PACKING[0], "bfloat16 counts as fast by the instructions of the CPU alone")
    if torch.backends.mkldnn.is_available() and supports is not None and not supports():  # ONEDNN_MAX_CPU_ISA lowers it
        return False
    # torch.cpu.get_capabilities is public, but newer than the oldest torch that this project supports.
    names = ("cpu._is_avx512_bf16_supported", "cpu._is_amx_tile_supported")
    facts = [find_private(name, "such CPUs compute in float32") for name in names]
    return any(fact is not None and fact() for fact in facts)
