"""Choose types and kernels by what a device computes fast. Every such choice of a whole program is made here.

| device              | choose_dtype | packs_linear                                        |
|---------------------|--------------|-----------------------------------------------------|
| CUDA                | bfloat16     | never: only a CPU has the layout                    |
| CPU, AMX            | bfloat16     | float32 and bfloat16                                |
| CPU, AVX-512 bf16   | bfloat16     | float32 and bfloat16                                |
| CPU, AVX-512        | float32      | float32, and bfloat16 if oneDNN has kernels for it  |
| CPU, AVX2 and older | float32      | bfloat16 if oneDNN has kernels for it               |

Without oneDNN in torch nothing is packed. `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA`, with which torch and oneDNN
use fewer instructions than the CPU has, lower the row. The choices were measured with these benchmarks:

* bfloat16 against float32: `benchmarks/precision.py`.
* Muon, which takes `choose_dtype`: `benchmarks/muon.py`. A CPU without bfloat16 instructions emulates them, 17 times as
  slow as float32.
* Packed linear layers: `benchmarks/published.py`. In float32 they are up to twice as fast with AVX-512, and 1.3 times
  as slow without it.

Attention and convolutions choose between two formulas by device and shape, in `method/models/layers.py`
(`benchmarks/attention.py`) and `tokenizers/vqgan.py`.
"""

import torch


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 on CUDA and on CPUs whose instructions for it torch and oneDNN use, else float32."""
    fast = device.type == "cuda" or (device.type == "cpu" and _computes_bfloat16())
    return torch.bfloat16 if fast else torch.float32


def _computes_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16, and no variable of the environment forbids their use."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY lowers it
        return False
    if torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # ONEDNN_MAX_CPU_ISA
        return False
    # torch.cpu.get_capabilities is public, but newer than the oldest torch that this project supports.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def packs_linear(dtype: torch.dtype) -> bool:
    """Return whether linear layers of this type are faster on this CPU in the layout of oneDNN (`runtime/packed.py`).

    In bfloat16 that is where oneDNN has kernels for it, in float32 only with AVX-512; other types have no kernel.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX512"
