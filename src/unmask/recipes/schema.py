"""Recipes as data: what an experiment on pictures, on text, or of a tokenizer consists of."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from unmask.data.sources.choice import Codes, PictureSource
from unmask.data.text.sources import HubText, TextFile
from unmask.decoding.sampling import FromCritic, Sampling
from unmask.method.critic import WithCritic
from unmask.method.models.transformer import TransformerConfig
from unmask.method.objectives import MaskedDiffusion, MaskGIT, Objective
from unmask.metrics.features import ClassifierConfig
from unmask.pretrained.amused import Amused
from unmask.pretrained.networks import GeneratorConfig, LearnedConfig
from unmask.tokenizers.losses import TokenizerLoss
from unmask.tokenizers.lpips import LpipsFiles
from unmask.tokenizers.pixels import Pixels
from unmask.tokenizers.text import BPE, Bytes, Characters
from unmask.tokenizers.vqgan import VQGAN
from unmask.training.loop import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about an experiment. With `conditional`, model.num_classes is taken from the data set's classes.

    Pictures are tokenized as the run starts, by Pixels; Codes were made before, and bring their tokenizer with them.
    `unigram` starts the head at the tokens' own frequencies, so the first loss is their entropy instead of log K.
    `classes` are the names of the data set's, `tokenizer_sha256` tells a learned tokenizer: both are filled in from it.
    `init`: a run, an export or a published model to start from; "" is one that has to be named.
    """

    data: PictureSource | Codes
    tokenizer: Pixels | LearnedConfig
    model: GeneratorConfig | Amused = TransformerConfig()
    objective: Objective | WithCritic = MaskGIT()
    training: TrainConfig = TrainConfig()
    sampling: Sampling = Sampling()
    classifier: ClassifierConfig = ClassifierConfig(channels=1, num_classes=10)
    conditional: bool = True
    """Whether to learn classes, where the data has some."""
    unigram: bool = True
    """Whether the head starts at the tokens' own frequencies."""
    classes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    init: str | None = None
    """A run, an export, one of unmask models or hf-hub:OWNER/NAME to start from."""

    def __post_init__(self) -> None:
        _check_parts(self.objective, self.model, self.sampling)


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Everything about a tokenizer's training. `flip`: mirror half of the pictures.

    `perceptual` names the network whose features the reconstructions are to share: a classifier, trained on the same
    pictures if they have class labels, or the published LPIPS; null is none. `classifier` judges them later.
    """

    data: PictureSource
    tokenizer: VQGAN
    loss: TokenizerLoss = TokenizerLoss()
    perceptual: ClassifierConfig | LpipsFiles | None = None
    classifier: ClassifierConfig = ClassifierConfig(channels=3, num_classes=10)
    flip: bool = True
    training: TrainConfig = TrainConfig()


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """Everything about an experiment on text, which becomes rows of `tokenizer.context` tokens.

    `packing`: a "stream" of documents, one after another with an end token between, cut into rows; or "documents", one
    a row, which needs a `padded` model. `documents` counts those of the corpus, `text_sha256` tells its tokens and
    `tokenizer_sha256` the tokenizer: all are filled in from the data. `unigram` and `init` as in Recipe.
    """

    data: TextFile | HubText
    tokenizer: Characters | Bytes | BPE
    packing: Literal["stream", "documents"] = "stream"
    model: TransformerConfig = TransformerConfig()
    objective: Objective | WithCritic = MaskedDiffusion()
    training: TrainConfig = TrainConfig()
    sampling: Sampling = Sampling()
    unigram: bool = True
    documents: Annotated[int, tyro.conf.Suppress] = 0
    text_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    tokenizer_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    init: str | None = None

    def __post_init__(self) -> None:
        if self.packing == "documents" and not self.model.padded:
            raise ValueError("packing documents: rows end early, so --model.padded is needed")
        if self.model.num_classes:
            raise ValueError(f"model.num_classes {self.model.num_classes}: text has no classes; leave it at 0")
        _check_parts(self.objective, self.model, self.sampling)

    @property
    def opens(self) -> bool:
        """Whether a text begins after an end token: so in a stream of many documents."""
        return self.packing == "stream" and self.documents > 1


def _check_parts(objective: Objective | WithCritic, model: GeneratorConfig | Amused, sampling: Sampling) -> None:
    """ValueError for a part of the network that nothing trains, or that is asked for and not there."""
    judged = isinstance(objective, WithCritic)
    generator = objective.generator if isinstance(objective, WithCritic) else objective
    if not isinstance(model, TransformerConfig):
        if judged or generator.self_condition or isinstance(sampling.priority, FromCritic):
            raise ValueError(f"{type(model).__name__} has no critic and no self-conditioning: our own network has")
        return
    if model.critic == "only":
        raise ValueError('model.critic "only" predicts no tokens: it is for `critic.Critic`, not for a recipe')
    if judged != (model.critic in ("head", "separate")):
        raise ValueError(f'model.critic "{model.critic}": "head" or "separate" goes with the objective WithCritic')
    if bool(generator.self_condition) != model.self_condition:
        raise ValueError(
            f"objective.self_condition {generator.self_condition} and model.self_condition {model.self_condition}: "
            "a share above 0 and the layer go together"
        )
    if isinstance(sampling.priority, FromCritic) and not judged:
        raise ValueError("sampling.priority FromCritic: this model has no critic; train it with WithCritic")


AnyKind = Recipe | TokenizerRecipe | TextRecipe
