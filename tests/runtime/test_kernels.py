"""Which type and which kernel each kind of device gets."""

import pytest
import torch

from unmask.runtime import kernels
from unmask.runtime.kernels import choose_dtype, move_all, multiply_all, packs_linear

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
OTHERS = (torch.float64, torch.float16, torch.int8)


@pytest.fixture
def cpu(monkeypatch):
    """Give this process a CPU of the given capabilities, as torch and oneDNN report them."""

    def pretend(capability, *, bf16=False, amx=False, onednn_bf16=False, onednn=True):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn_bf16)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    return pretend


@pytest.mark.parametrize(
    ("capability", "facts", "fast", "packed"),
    [
        ("DEFAULT", {}, FLOAT32, set()),
        ("AVX2", {}, FLOAT32, set()),
        ("AVX2", {"onednn_bf16": True}, FLOAT32, {BFLOAT16}),  # AVX2 with VNNI
        ("AVX2", {"bf16": True}, FLOAT32, set()),  # the variables of torch and oneDNN forbid what the CPU has
        ("AVX2", {"bf16": True, "onednn_bf16": True}, FLOAT32, {BFLOAT16}),
        ("AVX512", {"bf16": True}, FLOAT32, {FLOAT32}),
        ("AVX512", {}, FLOAT32, {FLOAT32}),
        ("AVX512", {"onednn_bf16": True}, FLOAT32, {FLOAT32, BFLOAT16}),
        ("AVX512", {"onednn_bf16": True, "bf16": True}, BFLOAT16, {FLOAT32, BFLOAT16}),
        ("AVX512", {"onednn_bf16": True, "amx": True}, BFLOAT16, {FLOAT32, BFLOAT16}),
        ("AVX512", {"onednn_bf16": True, "bf16": True, "amx": True, "onednn": False}, BFLOAT16, set()),
    ],
)
def test_each_cpu_gets_what_is_fast_on_it(cpu, capability, facts, fast, packed):
    """In float32 only with AVX-512: without it torch's own product was 1.34 times as fast (24x768, 257 tokens)."""
    cpu(capability, **facts)
    assert choose_dtype(CPU) == fast
    assert {dtype for dtype in (FLOAT32, BFLOAT16, *OTHERS) if packs_linear(dtype)} == packed


@pytest.mark.parametrize(
    ("limit", "fast"),
    [("AVX512_CORE", FLOAT32), ("avx512_core_vnni", FLOAT32), ("AVX2", FLOAT32), ("AVX512_CORE_BF16", BFLOAT16),
     ("AVX512_CORE_AMX", BFLOAT16), ("ALL", BFLOAT16), ("DEFAULT", BFLOAT16), ("", BFLOAT16)],
)  # fmt: skip
def test_a_limit_of_onednn_below_bfloat16_counts(cpu, monkeypatch, limit, fast):
    """oneDNN says that it supports bfloat16 with any AVX-512: it emulates it, at 0.4 times the rate of float32."""
    cpu("AVX512", bf16=True, amx=True, onednn_bf16=True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_dtype(CPU) == fast


@pytest.mark.parametrize("facts", [{}, {"bf16": True, "amx": True}])
def test_cuda_is_fast_in_bfloat16_whatever_the_cpu(cpu, facts):
    cpu("AVX2", **facts)
    assert choose_dtype(CUDA) == BFLOAT16


def test_a_device_without_a_measurement_gets_float32(cpu):
    cpu("AVX512", bf16=True, amx=True)
    assert choose_dtype(torch.device("meta")) == FLOAT32


# -- a torch without its private functions --


@pytest.fixture
def without(monkeypatch, caplog):
    """Give this process a torch without the private functions that the project calls."""
    kernels._log_missing.cache_clear()
    for owner, names in (
        (torch, ("_foreach_mul_", "_foreach_lerp_")),
        (torch.cpu, ("_is_avx512_bf16_supported", "_is_amx_tile_supported")),
        (torch.ops, ("mkldnn",)),
    ):
        for name in names:
            monkeypatch.delattr(owner, name)
    yield caplog
    kernels._log_missing.cache_clear()


def test_missing_functions_are_replaced_and_named_once(without, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object(), raising=False)  # or torch would load it again
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for _ in range(2):
        assert choose_dtype(CPU) == FLOAT32
        assert not packs_linear(FLOAT32)
        multiply_all([torch.ones(2)], 2.0)
        move_all([torch.ones(2)], [torch.zeros(2)], 0.5)
    names = [record.getMessage().split(" has no ")[1].split(":")[0] for record in without.records]
    assert len(names) == len({record.getMessage() for record in without.records})
    assert {name.split(".")[-1] for name in names} >= {
        "_foreach_mul_", "_foreach_lerp_", "_is_avx512_bf16_supported", "_is_amx_tile_supported",
        "_is_mkldnn_bf16_supported",
    }  # fmt: skip
    assert all(record.getMessage().startswith(f"torch {torch.__version__} has no ") for record in without.records)


def test_the_replacements_compute_the_same_bits(request):
    def compute():
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(shape, generator=generator) for shape in [(3,), (2, 5), ()]]
        targets = [torch.randn(tensor.shape, generator=generator) for tensor in tensors]
        multiply_all(tensors, 0.37)
        move_all(tensors, targets, 0.013)
        return tensors

    fast = compute()
    request.getfixturevalue("without")
    assert all(torch.equal(a, b) for a, b in zip(fast, compute(), strict=True))
