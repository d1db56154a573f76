"""aMUSEd's network as published: names, shapes and formulas on plain tensors, with nothing of the package but sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.pretrained.amused import Amused, Prompt


def published(config: Amused, codes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, from the pattern that they follow."""
    d, k, facts = config.dim, config.block_dim, config.pooled_dim + 5 * config.micro_dim
    shapes: dict[str, tuple[int, ...]] = {
        "encoder_proj": (d, config.text_dim), "encoder_proj_layer_norm": (d,),
        "embed.embeddings": (codes + config.spare + 1, k), "embed.layer_norm": (k,), "embed.conv": (k, k, 1, 1),
        "cond_embed.linear_1": (d, facts), "cond_embed.linear_2": (d, d),
        "project_to_hidden_norm": (k,), "project_to_hidden": (d, k),
        "project_from_hidden_norm": (d,), "project_from_hidden": (k, d),
        "mlm_layer.conv1": (k, k, 1, 1), "mlm_layer.layer_norm": (k,), "mlm_layer.conv2": (codes, k, 1, 1),
    }  # fmt: skip
    for name in ("down_block.downsample", "up_block.upsample") if config.halved else ():
        shapes |= {f"{name}.norm": (k,), f"{name}.conv": (k, k, 2, 2)}
    projections = ("to_q", "to_k", "to_v", "to_out.0")
    for stage in ("down_block", "up_block"):
        for i in range(config.blocks):
            conv, attention = f"{stage}.res_blocks.{i}.", f"{stage}.attention_blocks.{i}."
            shapes |= {conv + "depthwise": (k, 1, 3, 3), conv + "norm": (k,), conv + "cond_embeds_mapper": (2 * k, d)}
            shapes |= {conv + "channelwise_linear_1": (4 * k, k), conv + "channelwise_linear_2": (k, 4 * k)}
            shapes |= {attention + "kv_mapper": (k, d), attention + "norm1": (k,), attention + "norm2": (k,)}
            shapes |= {f"{attention}attn{n}.{part}": (k, k) for n in (1, 2) for part in projections}
    for i in range(config.depth):
        layer = f"transformer_layers.{i}."
        shapes |= {f"{layer}attn{n}.{part}": (d, d) for n in (1, 2) for part in projections}
        shapes |= {f"{layer}norm{n}.norm": (d,) for n in (1, 2, 3)}
        shapes |= {f"{layer}norm{n}.linear": (2 * d, d) for n in (1, 2, 3)}
        shapes |= {layer + "ff.net.0.proj": (2 * config.mlp_dim, d), layer + "ff.net.2": (d, config.mlp_dim)}
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    for stage in ("down_block", "up_block"):
        for i in range(config.blocks):
            named |= {f"{stage}.res_blocks.{i}.channelwise_norm.{n}": (1, 1, 1, 4 * k) for n in ("gamma", "beta")}
    return named


def reference(
    w: dict[str, Tensor], config: Amused, grid: tuple[int, int], tokens: Tensor, prompt: Prompt, but: str = ""
) -> Tensor:
    """Logits [b, l, K]; `but` names a peculiarity to replace with what is ordinary."""
    kind = w["embed.conv.weight"].dtype
    eps = 1e-5 if but == "eps" else 1e-6

    def rms(name: str, x: Tensor) -> Tensor:
        return x * w[name + ".weight"] / (x.square().mean(-1, keepdim=True) + eps).sqrt()

    def centred(name: str, x: Tensor) -> Tensor:
        return rms(name, x - x.mean(-1, keepdim=True))

    def lin(name: str, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, w[name + ".weight"].flatten(1))

    def gelu(x: Tensor) -> Tensor:
        return x / 2 * (1 + torch.erf(x / 2**0.5)) if but != "tanh" else F.gelu(x, approximate="tanh")

    def attend(name: str, x: Tensor, context: Tensor, heads: int) -> Tensor:
        q, k, v = (
            lin(f"{name}.to_{part}", y).unflatten(-1, (heads, -1))
            for part, y in (("q", x), ("k", context), ("v", context))
        )
        p = (torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        return lin(name + ".to_out.0", torch.einsum("bhij,bjhd->bihd", p, v).flatten(2))

    def modulate(name: str, x: Tensor) -> Tensor:
        a, b = lin(name, c / (1 + (-c).exp())).unflatten(1, (2, -1)).unbind(1)
        if but == "shift first":
            a, b = b, a
        shape = (len(a), *[1] * (x.ndim - 2), -1)
        return x * (1 + a.view(shape)) + b.view(shape)

    def conv_block(stage: str, i: int, x: Tensor) -> Tensor:
        name, (h, wide) = f"{stage}.res_blocks.{i}.", x.shape[1:3]
        padded, kernel = F.pad(x, (0, 0, 1, 1, 1, 1)), w[name + "depthwise.weight"]
        y = sum(padded[:, i : i + h, j : j + wide] * kernel[:, 0, i, j] for i in range(3) for j in range(3))
        y = gelu(lin(name + "channelwise_linear_1", rms(name + "norm", y)))
        length = y.square().sum((1, 2), keepdim=True).sqrt()
        if but == "norm per cell":
            length = y.abs()
        gamma, beta = (w[f"{name}channelwise_norm.{n}"] for n in ("gamma", "beta"))
        y = gamma * (y * length / (length.mean(-1, keepdim=True) + 1e-6)) + beta + (0 if but == "no skip" else y)
        y = lin(name + "channelwise_linear_2", y)
        y = (
            x + modulate(name + "cond_embeds_mapper", y)
            if but == "branch"
            else modulate(name + "cond_embeds_mapper", x + y)
        )
        name, y = f"{stage}.attention_blocks.{i}.", y.flatten(1, 2)
        context = lin(name + "kv_mapper", text if but == "no silu" else text / (1 + (-text).exp()))
        first = rms(name + "norm1", y)
        y = y + attend(name + "attn1", first, first if but == "self" else context, config.block_heads)
        y = y + attend(name + "attn2", rms(name + "norm2", y), context, config.block_heads)
        return y.unflatten(1, (h, wide))

    def layer(i: int, x: Tensor) -> Tensor:
        name = f"transformer_layers.{i}."
        y = modulate(name + "norm1.linear", rms(name + "norm1.norm", x))
        x = x + attend(name + "attn1", y, y, config.heads)
        x = x + attend(name + "attn2", modulate(name + "norm2.linear", rms(name + "norm2.norm", x)), text, config.heads)
        last = rms if but == "rms" else centred
        value, gate = lin(name + "ff.net.0.proj", modulate(name + "norm3.linear", last(name + "norm3.norm", x))).chunk(
            2, -1
        )
        if but == "gate first":
            value, gate = gate, value
        return x + lin(name + "ff.net.2", value * gelu(gate))

    half = config.micro_dim // 2
    angles = prompt.micro.to(kind)[..., None] / 10_000 ** (torch.arange(half, dtype=kind) / half)
    waves = [angles.sin(), angles.cos()] if but == "sines first" else [angles.cos(), angles.sin()]
    facts = torch.cat([prompt.pooled, torch.cat(waves, -1).flatten(1)], 1)
    c = lin("cond_embed.linear_2", F.silu(lin("cond_embed.linear_1", facts)))
    text = rms("encoder_proj_layer_norm", lin("encoder_proj", prompt.hidden))
    table, codes = w["embed.embeddings.weight"], len(w["mlm_layer.conv2.weight"])
    rows = tokens if but == "mask row K" else torch.where(tokens == codes, len(table) - 1, tokens)
    x = lin("embed.conv", rms("embed.layer_norm", table[rows])).unflatten(1, grid)
    if config.halved:
        x, kernel = rms("down_block.downsample.norm", x), w["down_block.downsample.conv.weight"]
        x = sum(torch.einsum("bhwi,oi->bhwo", x[:, i::2, j::2], kernel[..., i, j]) for i in (0, 1) for j in (0, 1))
    for i in range(config.blocks):
        x = conv_block("down_block", i, x)
    shape, x = x.shape[1:3], lin("project_to_hidden", rms("project_to_hidden_norm", x.flatten(1, 2)))
    for i in range(config.depth):
        x = layer(i, x)
    x = lin("project_from_hidden", rms("project_from_hidden_norm", x)).unflatten(1, shape)
    for i in range(config.blocks):
        x = conv_block("up_block", i, x)
    if config.halved:
        x = torch.einsum("bhwi,iokl->bhkwlo", rms("up_block.upsample.norm", x), w["up_block.upsample.conv.weight"])
        x = x.flatten(3, 4).flatten(1, 2)
    return lin("mlm_layer.conv2", rms("mlm_layer.layer_norm", lin("mlm_layer.conv1", x))).flatten(1, 2)
