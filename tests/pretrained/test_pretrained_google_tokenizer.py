"""Google's flax files: the tokenizer equals the one in the torch file, and both files together generate images."""

from dataclasses import replace

import pytest
import torch
from test_pretrained_flax import flax_bytes, read
from test_pretrained_google import LABELS, SMALL, TOKENS, K, loaded, weights
from test_pretrained_maskgit_vqgan import loaded as loaded_vqgan
from test_pretrained_maskgit_vqgan import published, random_weights
from torch import Tensor

from unmask.method.guidance import guided
from unmask.method.rand import Rand
from unmask.method.sampling.decode import decode
from unmask.method.schedules import Cosine, ratios
from unmask.pretrained.google import translate_tokenizer
from unmask.pretrained.maskgit_vqgan import MASKGIT_VQGAN_256, MaskGITVQGAN

VQ = MaskGITVQGAN(size=(8, 12), width=32, multipliers=(1, 2, 2), blocks=2, codes=K, dim=6)
Tensors = dict[str, Tensor]

# -- the tokenizer in flax's format -----------------------------------------------------------------------------------


def execution_order(config: MaskGITVQGAN, half: str) -> list[str]:
    """Return the layers of the torch file in the order in which flax runs and counts them."""
    levels = len(config.multipliers)
    if half == "encoder":
        blocks = [f"down.{i}.block.{j}" for i in range(levels) for j in range(config.blocks)]
        return ["conv_in", *blocks, *(f"mid.{j}" for j in range(config.blocks)), "norm_out", "conv_out"]
    found = ["conv_in", *(f"mid.{j}" for j in range(config.blocks))]
    for i in reversed(range(levels)):
        found += [f"up.{i}.block.{j}" for j in range(config.blocks)] + ([f"up.{i}.upsample_conv"] if i else [])
    return [*found, "norm_out", "conv_out"]


def as_flax(config: MaskGITVQGAN, p: Tensors) -> dict:
    """Return the weights of the torch file as the tree that flax would store."""
    tree: dict = {"quantizer": {"codebook": p["quantize.embedding.weight"]}}
    parts = {"norm1": "GroupNorm_0", "norm2": "GroupNorm_1", "conv1": "Conv_0", "conv2": "Conv_1",
             "nin_shortcut": "Conv_2"}  # fmt: skip
    for half in ("encoder", "decoder"):
        counts = {"ResBlock": 0, "Conv": 0, "GroupNorm": 0}
        for layer in execution_order(config, half):
            kind = "GroupNorm" if "norm" in layer else "Conv" if "conv" in layer else "ResBlock"
            node = tree.setdefault(half, {})[f"{kind}_{counts[kind]}"] = {}
            counts[kind] += 1
            for name, t in p.items():
                if not name.startswith(f"{half}.{layer}."):
                    continue
                *inner, end = name.removeprefix(f"{half}.{layer}.").split(".")
                place = node.setdefault(parts[inner[0]], {}) if inner else node
                key = "kernel" if t.ndim == 4 else "scale" if end == "weight" else "bias"
                place[key] = t.permute(2, 3, 1, 0) if t.ndim == 4 else t
    return tree


@pytest.mark.parametrize("config", [VQ, replace(VQ, multipliers=(1, 1, 2), blocks=1), MASKGIT_VQGAN_256])
def test_both_formats_of_the_tokenizer_are_the_same(config, tmp_path):
    small = config is not MASKGIT_VQGAN_256
    shapes = published(config)
    p = {k: t.float() for k, t in random_weights(shapes).items()} if small else {}
    with torch.device("meta"):
        p = p or {name: torch.empty(shape) for name, shape in shapes.items()}
    tree = as_flax(config, p)
    flat = read(flax_bytes({"params": tree}), tmp_path) if small else dict(leaves(tree))
    found: Tensors = {}
    for name, tensor in flat.items():
        found |= translate_tokenizer(config, name, tensor)
    with torch.device("meta"):
        model = config.build()
    model.load_state_dict(found, strict=True, assign=True)  # compares all names and shapes
    if small:
        other, images = (
            loaded_vqgan(config, p),
            torch.rand(2, 3, *config.size, generator=torch.Generator().manual_seed(0)),
        )
        tokens = other.encode(images)
        assert torch.equal(model.encode(images), tokens)
        assert torch.equal(model.to(memory_format=torch.contiguous_format).decode(tokens), other.decode(tokens))


def leaves(tree: dict, way: str = "") -> list[tuple[str, Tensor]]:
    return [
        found
        for key, node in tree.items()
        for found in (leaves(node, f"{way}{key}/") if isinstance(node, dict) else [(f"{way}{key}", node)])
    ]


def test_foreign_layers_of_a_tokenizer_stay_unknown():
    with torch.device("meta"):
        own = VQ.build().state_dict()
    strange = ["encoder/ResBlock_8/Conv_0/kernel", "decoder/ResBlock_8/Conv_0/kernel", "decoder/Conv_4/kernel",
               "encoder/Conv_2/kernel", "encoder/ResBlock_0/Conv_3/kernel", "critic/Conv_0/kernel"]  # fmt: skip
    for name in strange:
        assert not set(translate_tokenizer(VQ, name, torch.zeros(3, 3, 1, 1))) & set(own)


# -- from files to pictures -------------------------------------------------------------------------------------------


def test_published_files_become_pictures(tmp_path):
    flat = read(flax_bytes({"params": unflattened({n: t.float() for n, t in weights().items()})}), tmp_path)
    model = loaded(SMALL, flat)
    tree = as_flax(VQ, {name: t.float() for name, t in random_weights(published(VQ)).items()})
    tokenizer, found = VQ.build(), {}
    for name, tensor in read(flax_bytes(tree), tmp_path).items():
        found |= translate_tokenizer(VQ, name, tensor)
    tokenizer.load_state_dict(found, strict=True)
    assert (model.vocab_size, model.grid, model.mask_id) == (tokenizer.vocab_size, tokenizer.grid, K)
    rand = Rand(seed=0, rows=torch.arange(3), num_rows=3)
    with torch.no_grad():
        *_, state = decode(guided(model, LABELS), TOKENS, ratios(Cosine(), 4), mask_id=K, rand=rand)
        with pytest.raises(ValueError, match="without a null class"):
            guided(model, LABELS, scale=2.0)(TOKENS, 0.0)
    assert ((state.tokens >= 0) & (state.tokens < K)).all()
    assert torch.equal(state.tokens[TOKENS < K], TOKENS[TOKENS < K])
    images = tokenizer.decode(state.tokens)
    assert images.shape == (3, 3, 8, 12)
    assert images.abs().max() <= 1
    assert images.std() > 0.01


def unflattened(flat: Tensors) -> dict:
    tree: dict = {}
    for name, tensor in flat.items():
        *way, last = name.split("/")
        node = tree
        for key in way:
            node = node.setdefault(key, {})
        node[last] = tensor
    return tree
