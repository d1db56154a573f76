"""This project's own rows: two unmasking orders of one network, and the partition network."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from peer import SEED, Peer
from sizes import Size
from torch import Tensor, nn

from unmask.method.guidance import guided
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition import PartitionTransformer
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.objectives import MaskGIT
from unmask.method.partitioning import Partition
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Confidence, Halton
from unmask.method.schedules import Cosine, ratios
from unmask.runtime.int8 import round_layers
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.packed import pack
from unmask.runtime.provenance import describe_version

CHOSEN = choose_dtype(torch.device("cpu"))
TRAINING_CAST = "float32" if CHOSEN is torch.float32 else "autocast"


class Ours(Peer):
    """`MaskedTransformer` in MaskGIT's order, in the type and layout that sampling chooses on this CPU."""

    name, package = "unmask confidence", ""
    sampling_casts = ("packed",)
    training_casts = (TRAINING_CAST,)
    objective: MaskGIT | Partition = MaskGIT()
    layers: ClassVar[TransformerConfig] = TransformerConfig()
    """What the network is, but for its size."""

    @classmethod
    def describe_version(cls) -> str:
        return describe_version()

    def build(self, size: Size) -> nn.Module:
        config = replace(self.layers, dim=size.dim, depth=size.depth, heads=size.heads)
        return fill_head(config.build(size.codes, (size.side, size.side)))

    def prepare(self) -> None:
        if self.cast == "packed":
            pack(self.module.to(CHOSEN).eval())

    def choose_order(self) -> Confidence | Halton:
        """Return the unmasking order."""
        return Confidence()

    def sample(self) -> Tensor:
        size = self.size
        canvas = torch.full((size.batch, size.cells), size.codes)
        states = decode(
            guided(self.network, None),
            canvas,
            ratios(Cosine(), size.steps),
            mask_id=size.codes,
            rand=seeded(SEED, size.batch),
            priority=self.choose_order(),
        )
        *_, last = states
        return last.tokens

    def compute_loss(self, tokens: Tensor) -> Tensor:
        loss = self.objective(self.network, tokens, None, mask_id=self.size.codes, rand=seeded(SEED, len(tokens)))
        return loss.total / loss.count

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        tokens, _, *places = args
        logits = logits[: len(tokens)]
        return logits[places[0]] if places else logits


class OursPlain(Ours):
    """The same order with the layers of BERT: no gate, no rotary positions, no norm of queries and keys."""

    name, can_be_freed = "unmask plain layers", False
    layers = TransformerConfig(gated=False, qk_norm=False, rotary=False)


class OursHalton(Ours):
    """The same network in Halton order: a step predicts only the places that it reveals."""

    name, trains = "unmask halton", False

    def choose_order(self) -> Confidence | Halton:
        return Halton((self.size.side, self.size.side))


class OursInt8(OursHalton):
    """The network in Halton order, with linear layers rounded to 8-bit integers, as `--dtype int8` does."""

    name, can_be_freed, sampling_casts = "unmask halton int8", False, ("int8",)

    def prepare(self) -> None:
        if self.cast == "int8":
            pack(round_layers(self.module.to(CHOSEN).eval()))


class OursPartition(OursHalton):
    """The network without mask tokens, with as many blocks and in Halton order."""

    name, trains, can_be_freed = "unmask partition", True, False
    objective = Partition()

    def build(self, size: Size) -> nn.Module:
        half = size.depth // 2
        config = PartitionConfig(
            dim=size.dim, encoder_depth=max(1, half), decoder_depth=max(1, size.depth - half), heads=size.heads
        )
        return fill_head(config.build(size.codes, (size.side, size.side)))


def fill_head(model: MaskedTransformer | PartitionTransformer) -> nn.Module:
    """Give the head random weights; it starts at zero."""
    assert isinstance(model.head, nn.Linear)
    nn.init.normal_(model.head.weight, std=0.02)
    return model
