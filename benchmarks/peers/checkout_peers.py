"""Checkouts of code that pip cannot install: valeoai/Maskgit-pytorch, valeoai/Halton-MaskGIT, taming-transformers."""

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from peer import Peer
from sizes import Size
from stubs import stub_packages
from torch import Tensor, nn

NOT_NEEDED = (
    *("torchvision", "omegaconf", "webdataset", "torch.utils.tensorboard", "tqdm"),
    *("Network.Taming", "Network.vq_model", "Dataset", "Metrics", "Utils.viz"),
)
MODULES = ("Network", "Trainer", "Sampler", "Utils", "taming")


class CheckoutPeer(Peer):
    """A peer whose files lie in `folder`."""

    package = ""
    folder: Path

    @classmethod
    def describe_version(cls) -> str:
        """Return the commit, or the name of a folder without git."""
        if not (cls.folder / ".git").exists():
            return f"the files in {cls.folder.name}"
        command = ["git", "-C", str(cls.folder), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    @contextmanager
    def import_files(self, *stubs: str) -> Iterator[None]:
        """Import modules of the folder inside this block, and none of another checkout with the same names."""
        for name in [name for name in sys.modules if name.split(".")[0] in MODULES]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        try:
            with stub_packages(*stubs):
                yield
        finally:
            sys.path.remove(str(self.folder))


class ValeoaiPeer(CheckoutPeer):
    """valeoai's network without guidance, with one class. Its samplers keep the mask's logit and clamp at the end."""

    def prepare(self) -> None:
        """Cast the weights, and the logits back: the sampler of v1 refuses the probabilities of bfloat16."""
        super().prepare()
        self.replace_forward(lambda *args, **kwargs: self.forward(*args, **kwargs).float())

    def finish(self, tokens: Tensor) -> Tensor:
        """Stand in for its VQGAN, which gets the sampled tokens."""
        self.sampled = tokens
        return torch.zeros(1)

    def name_arguments(self) -> SimpleNamespace:
        """Return what its trainer reads from the command line."""
        return SimpleNamespace(device="cpu", mask_value=self.size.codes, codebook_size=self.size.codes, use_ema=False)

    def predict(self, visible: Tensor) -> Tensor:
        """Return logits [batch * cells, codes + 1]."""
        none = torch.zeros(len(visible), dtype=torch.long)
        return self.network(visible, none, none.bool()).flatten(0, 1)

    def answer_free(self, logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        return F.pad(logits, (0, 1), value=-math.inf)


class ValeoaiV1(ValeoaiPeer):
    """The first version, of the reproduction report. Its loss counts all tokens."""

    name = "maskgit-pytorch v1"

    def build(self, size: Size) -> nn.Module:
        with self.import_files(*NOT_NEEDED):
            from Network.transformer import MaskTransformer
            from Trainer import vit

        vit.tqdm = lambda steps, **_: steps
        trainer = vit.MaskGIT.__new__(vit.MaskGIT)
        trainer.args, trainer.patch_size = self.name_arguments(), size.side
        trainer.ae = SimpleNamespace(decode_code=self.finish)
        trainer.vit = MaskTransformer(
            img_size=16 * size.side,
            hidden_dim=size.dim,
            codebook_size=size.codes,
            depth=size.depth,
            heads=size.heads,
            mlp_dim=size.hidden,
            dropout=0.0,
            nclass=1,
        )
        self.trainer = trainer
        return trainer.vit

    def sample(self) -> Tensor:
        rows = self.size.batch
        labels = torch.zeros(rows, dtype=torch.long)
        self.trainer.sample(nb_sample=rows, labels=labels, w=0, step=self.size.steps)
        return self.sampled.flatten(1).clamp(max=self.size.codes - 1)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        grid = tokens.unflatten(1, (self.size.side, self.size.side))
        visible, _ = self.trainer.get_mask_code(grid, value=self.size.codes)
        return F.cross_entropy(self.predict(visible), tokens.flatten(), label_smoothing=0.1)


class HaltonMaskgit(ValeoaiPeer):
    """The second version, in its Halton order."""

    name = "halton-maskgit halton"
    sampler_file, sampler_name = "halton_sampler", "HaltonSampler"

    def build(self, size: Size) -> nn.Module:
        with self.import_files(*NOT_NEEDED):
            from Network.transformer import Transformer
            from Utils.masking_scheduler import get_mask_code

            sampler = import_module(f"Sampler.{self.sampler_file}")
        self.get_mask_code = get_mask_code
        self.sampler = getattr(sampler, self.sampler_name)(w=0, step=size.steps)
        return Transformer(
            input_size=size.side,
            hidden_dim=size.dim,
            codebook_size=size.codes,
            depth=size.depth,
            heads=size.heads,
            mlp_dim=size.hidden,
            nclass=1,
            register=0,
        )

    def sample(self) -> Tensor:
        trainer = SimpleNamespace(
            args=self.name_arguments(),
            input_size=self.size.side,
            vit=self.network,
            ae=SimpleNamespace(decode_code=self.finish),
            autocast=nullcontext(),
        )
        rows = self.size.batch
        self.sampler(trainer, nb_sample=rows, labels=torch.zeros(rows, dtype=torch.long), verbose=False)
        return self.sampled.flatten(1)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        grid = tokens.unflatten(1, (self.size.side, self.size.side))
        visible, _, _ = self.get_mask_code(grid, value=self.size.codes)
        return F.cross_entropy(self.predict(visible), tokens.flatten())


class HaltonMaskgitConfidence(HaltonMaskgit):
    """The second version, in MaskGIT's order."""

    name, trains = "halton-maskgit confidence", False
    sampler_file, sampler_name = "confidence_sampler", "ConfidenceSampler"


class TamingPeer(CheckoutPeer):
    """The autoregressive model before MaskGIT: as many passes as tokens, each with a cache of the earlier ones."""

    name, can_be_freed = "taming-transformers", False

    def build(self, size: Size) -> nn.Module:
        with self.import_files("transformers"):
            from taming.modules.transformer import mingpt

        self.sample_with_past = mingpt.sample_with_past
        return mingpt.GPT(size.codes, size.cells, n_layer=size.depth, n_head=size.heads, n_embd=size.dim)

    def replace_forward(self, forward: Any) -> None:
        """Count the passes with a cache, too."""
        super().replace_forward(forward)
        cached = self.module.forward_with_past

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.passes += 1
            return cached(*args, **kwargs)

        self.module.forward_with_past = counted

    def sample(self) -> Tensor:
        start = torch.zeros(self.size.batch, 1, dtype=torch.long)
        return self.sample_with_past(start, self.module, self.size.cells)

    def compute_loss(self, tokens: Tensor) -> Tensor:
        before = F.pad(tokens[:, :-1], (1, 0))
        return self.network(before, targets=tokens)[1]


def find_checkout_peers(folder: Path) -> Sequence[type[Peer]]:
    """Return the peers that a checkout holds, by its files; none if it is another one."""
    kinds: dict[str, tuple[type[CheckoutPeer], ...]] = {
        "Trainer/vit.py": (ValeoaiV1,),
        "Sampler/halton_sampler.py": (HaltonMaskgitConfidence, HaltonMaskgit),
        "taming/modules/transformer/mingpt.py": (TamingPeer,),
    }
    for file, peers in kinds.items():
        if (folder / file).is_file():
            return [type(peer.__name__, (peer,), {"folder": folder.resolve()}) for peer in peers]
    return []
