"""Published tensors convert to exactly the tensors of a model, or one line says what does not fit."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.errors import CheckpointError, ConfigError, DiskError
from unmask.pretrained.conversion import convert_tensors
from unmask.storage.foreign.reader import open_foreign
from unmask.storage.weights import load_weights

THEIRS = {"emb.weight": (7, 4), "qkv": (12, 4), "norm.g": (4,), "norm.b": (4,), "scale": (), "loss.x": (3,), "n": (2,)}
FAMILY = {"other": {"cls_emb.weight", "reg_tokens.weight"}, "this": {"emb.weight", "qkv"}}


class Model(nn.Module):
    """A model with a tied head, a split matrix, and two buffers, one of them persistent."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.LayerNorm(4)
        self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("n", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("derived", torch.zeros(5), persistent=False)


def model() -> nn.Module:
    with torch.device("meta"):
        return Model()


def published(**changed: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in THEIRS.items()}
    return {**made, "n": torch.tensor([1, 2]), **changed}


def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name.startswith("loss."):
        return {}
    if name == "qkv":
        return {f"{part}.weight": rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
    ours = {"emb.weight": "embedding.weight", "norm.g": "norm.weight", "norm.b": "norm.bias"}
    return {ours.get(name, name): tensor}


def run(tensors: dict[str, Tensor], **options: object):
    return convert_tensors(tensors, translate, model(), source="x.pth", **options)


def test_what_fits_is_converted_and_reported(tmp_path):
    given = published()
    done = run(given)
    report = done.report
    assert set(report.matched) == {"scale", "n"}
    assert set(report.renamed) == {
        ("emb.weight", "embedding.weight"),
        ("norm.g", "norm.weight"),
        ("norm.b", "norm.bias"),
    }
    assert report.split == (("qkv", ("q.weight", "k.weight", "v.weight")),)
    assert report.dropped == ("loss.x",)
    assert report.parameters == 28 + 48 + 8 + 1
    assert report.problems == ()
    assert "parameters: 85 as float32" in report.text
    assert "  emb.weight -> embedding.weight\n" in report.text
    assert "not needed: 1\n  loss.x\n" in report.text
    done.write(tmp_path / "model.safetensors", {"source": "x"})
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == {n for n in Model().state_dict() if n != "head.weight"}
    assert torch.equal(torch.cat([found["q.weight"], found["k.weight"], found["v.weight"]]), given["qkv"])
    assert (found["n"].dtype, found["scale"].shape) == (torch.int64, ())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["source"] == "x"


def test_the_file_written_is_one_that_load_weights_takes(tmp_path):
    own = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    convert_tensors(dict(own.state_dict()), lambda n, t: {n: t}, own, source="x").write(tmp_path / "x.safetensors")
    other = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    load_weights(other, tmp_path / "x.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floating_point_numbers_become_the_type_asked_for(kind, dtype):
    given = {name: x.to(kind) if x.is_floating_point() else x for name, x in published().items()}
    done = run(given, dtype=dtype)
    assert {x.dtype for n, x in done.weights.items() if n != "n"} == {dtype}
    assert torch.equal(done.weights["norm.bias"], given["norm.b"].to(dtype))
    assert f"as {str(dtype)[6:]}" in done.report.text


def test_weights_in_another_precision_are_refused():
    with pytest.raises(ConfigError, match=r"float32 or bfloat16, not torch.float16"):
        run(published(), dtype=torch.float16)


NAN, BIG = torch.tensor(float("nan")), torch.tensor(1e300, dtype=torch.float64)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gone": ("norm.g", "scale")}, r"2 missing, first scale$"),
        ({"odd": torch.ones(1), "very.odd": torch.ones(1)}, r"2 unknown, first odd$"),
        ({"norm.g": torch.ones(5)}, r"1 .*type, first norm.weight \(from norm.g\) is float32 \[5\] where .* \[4\]$"),
        ({"norm.g": torch.ones(4).long()}, r"1 .*type, first norm.weight \(from norm.g\) is int64 \[4\] where"),
        ({"n": torch.ones(2)}, r"1 of another shape or type, first n is float32 \[2\] where .* int64 \[2\]$"),
        ({"norm.bias": torch.ones(4)}, r"1 there twice and not equal, first norm.bias \(from norm.b and norm.bias\)$"),
        ({"head.weight": torch.ones(7, 4)}, r"1 there twice .* embedding.weight \(from emb.weight and head.weight\)$"),
        ({"scale": NAN}, r"1 with NaN, or too large for the type, first scale$"),
        ({"scale": -NAN.new_tensor(float("inf"))}, r"1 with NaN, or too large"),
        ({"scale": BIG}, r"1 with NaN, or too large"),
        ({"derived": torch.ones(5)}, r"1 unknown, first derived$"),
        ({"odd\n": torch.ones(1), "gone": ("n",)}, r"1 missing, first n; 1 unknown, first odd\\n$"),
    ],
)
def test_what_does_not_fit_is_one_line(changed, said):
    given = published()
    for name in changed.get("gone", ()):
        del given[name]
    given |= {name: tensor for name, tensor in changed.items() if name != "gone"}
    with pytest.raises(CheckpointError, match=said) as caught:
        run(given, family="this", families=FAMILY)
    assert str(caught.value).startswith("x.pth: does not fit this: ")
    assert str(caught.value).isprintable()


def test_one_nan_among_many_is_found_wherever_it_is():
    for at in range(48):
        rows = torch.ones(12, 4)
        rows.view(-1)[at] = float("nan")
        with pytest.raises(CheckpointError, match="1 with NaN"):
            run(published(qkv=rows))


def test_what_is_there_twice_may_be_equal():
    given = published()
    done = run({**given, "head.weight": given["emb.weight"].clone()})
    assert done.report.same == ("embedding.weight (from emb.weight and head.weight)",)
    assert torch.equal(done.weights["embedding.weight"], given["emb.weight"])
    with pytest.raises(CheckpointError, match="twice"):
        run({**given, "head.weight": given["emb.weight"].double()})


def test_the_family_that_a_file_is_of_is_named():
    given = {"cls_emb.weight": torch.ones(3), "reg_tokens.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"its tensors are those of other: convert it as that$"):
        run(given, family="this", families=FAMILY)
    with pytest.raises(CheckpointError) as caught:
        run({"cls_emb.weight": torch.ones(3)}, family="this", families=FAMILY)
    assert "its tensors are" not in str(caught.value)


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    """One published tensor becomes several, permuted and cut; safetensors cannot express shared memory."""
    own = nn.ParameterDict(
        {"a": torch.empty(3, 2), "b": torch.empty(2, 3), "c": torch.empty(3), "d": torch.empty(2, 3)}
    )
    whole = torch.arange(6.0).view(2, 3)

    def split(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {"a": tensor.T, "b": tensor, "c": tensor[1], "d": tensor}

    convert_tensors({"x": whole}, split, own, source="x").write(tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in split("x", whole).items())


def test_nothing_is_copied_that_need_not_be(tmp_path):
    torch.save({"model": published()}, tmp_path / "x.pth")
    given = open_foreign(tmp_path / "x.pth")
    places = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in given.values()]
    for name, tensor in run(given).weights.items():
        assert any(start <= tensor.data_ptr() < end for start, end in places), name


def test_a_file_that_cannot_be_written_is_a_disk_error_and_leaves_nothing(tmp_path):
    done = run(published())
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(DiskError, match=r"x\.safetensors"):
        done.write(tmp_path / "x.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
