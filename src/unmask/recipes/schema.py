"""Recipes as data: what an experiment on pictures, on text, or of a tokenizer consists of."""

from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from unmask.data.sources.choice import Codes, PictureSource
from unmask.data.sources.description import describe_source
from unmask.data.text.sources import HubText, TextFile
from unmask.decoding.sampling import FromCritic, Sampling
from unmask.method.critic import WithCritic
from unmask.method.models.configs import TransformerConfig
from unmask.method.models.partition_config import PartitionConfig
from unmask.method.objectives import MaskedDiffusion, MaskGIT, Objective
from unmask.method.partitioning import Partition
from unmask.metrics.configs import ClassifierConfig
from unmask.pretrained.networks import AnyGeneratorConfig
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.tokenizers.configs import VQGAN, LpipsFiles, TokenizerLoss
from unmask.training.configs import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe(ModelSpec):
    """An experiment on images: a model spec plus data and training.

    With `conditional`, model.num_classes is taken from the classes of the data. Images are tokenized as the run starts
    if the tokenizer is Pixels; a token dataset (`Codes`) brings its tokenizer with it.
    """

    data: PictureSource | Codes
    """Where the images are."""
    model: AnyGeneratorConfig = TransformerConfig()
    """The network."""
    objective: Objective | Partition | WithCritic = MaskGIT()
    """What training minimizes."""
    training: TrainConfig = TrainConfig()
    """Steps, batch, optimizer and checkpoints."""
    classifier: ClassifierConfig = ClassifierConfig(channels=1, num_classes=10)
    """The classifier that measures the samples."""
    conditional: bool = True
    """Learn classes, where the data has some."""
    unigram: bool = True
    """Start the head at the frequencies of the tokens: the first loss is their entropy, not log K."""
    init: str | None = None
    """Model to start from: a run, an export, one of unmask models, hf-hub:OWNER/NAME; if unset, start from scratch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_parts(self.objective, self.model, self.sampling)

    @property
    def spec(self) -> ModelSpec:
        """What leaves the machine: the fields of a spec alone, and a sentence on the data."""
        return replace(super().spec, trained_on=self.trained_on or describe_source(self.data))


@dataclass(frozen=True, kw_only=True)
class MeasuredModel(ModelSpec):
    """A model that was not trained here, with the data to measure it against."""

    data: PictureSource | Codes
    """Where the images are."""
    classifier: ClassifierConfig = Recipe.classifier
    """The classifier that measures the samples."""

    @property
    def conditional(self) -> bool:
        """Whether it knows classes."""
        from unmask.pretrained.conditions import takes_prompts

        return not takes_prompts(self.model) and self.model.num_classes > 0


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Everything about a tokenizer's training.

    `perceptual` may be a classifier, trained on the same pictures if they have class labels, or the published LPIPS.
    """

    data: PictureSource
    """Where the images are."""
    tokenizer: VQGAN
    """The network and its quantizer."""
    loss: TokenizerLoss = TokenizerLoss()
    """What training minimizes."""
    perceptual: ClassifierConfig | LpipsFiles | None = None
    """The network whose features the reconstructions shall share; None is none."""
    classifier: ClassifierConfig = ClassifierConfig(channels=3, num_classes=10)
    """The classifier that measures the reconstructions."""
    flip: bool = True
    """Mirror half of the training images."""
    training: TrainConfig = TrainConfig()
    """Steps, batch, optimizer and checkpoints."""


@dataclass(frozen=True, kw_only=True)
class TextRecipe(TextModelSpec):
    """An experiment on text: a text model spec plus data and training."""

    data: TextFile | HubText
    """Where the text is."""
    objective: Objective | Partition | WithCritic = MaskedDiffusion()
    """What training minimizes."""
    training: TrainConfig = TrainConfig()
    """Steps, batch, optimizer and checkpoints."""
    unigram: bool = True
    """Start the head at the frequencies of the tokens."""
    text_sha256: Annotated[str | None, tyro.conf.Suppress] = None
    """Digest of the tokenized corpus, filled in from the data."""
    init: str | None = None
    """Model to start from: a run or an export; if unset, start from scratch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_parts(self.objective, self.model, self.sampling)

    @property
    def spec(self) -> TextModelSpec:
        """What leaves the machine: the fields of a spec alone, and a sentence on the data."""
        return replace(super().spec, trained_on=self.trained_on or describe_source(self.data))


def _check_parts(objective: Objective | Partition | WithCritic, model: AnyGeneratorConfig, sampling: Sampling) -> None:
    """ValueError for a part of the network that nothing trains, or that is asked for and not there."""
    judged = isinstance(objective, WithCritic)
    generator = objective.generator if isinstance(objective, WithCritic) else objective
    if isinstance(generator, Partition) and not isinstance(model, PartitionConfig):
        raise ValueError(f"objective Partition trains a PartitionConfig, not {type(model).__name__}: use MaskGIT")
    if isinstance(model, PartitionConfig) and sampling.remask:
        raise ValueError("sampling.remask: a partition model predicts no token that is known; set remask to False")
    remembers = 0.0 if isinstance(generator, Partition) else generator.self_condition
    if not isinstance(model, TransformerConfig):
        if judged or remembers or isinstance(sampling.priority, FromCritic):
            raise ValueError(f"{type(model).__name__} has no critic and no self-conditioning: MaskedTransformer has")
        return
    if model.critic == "only":
        raise ValueError('model.critic "only" predicts no tokens: it is for `critic.Critic`, not for a recipe')
    if judged != (model.critic in ("head", "separate")):
        raise ValueError(f'model.critic "{model.critic}": "head" or "separate" goes with the objective WithCritic')
    if bool(remembers) != model.self_condition:
        raise ValueError(
            f"objective.self_condition {remembers} and model.self_condition {model.self_condition}: "
            "a share above 0 and the layer go together"
        )
    if isinstance(sampling.priority, FromCritic) and not judged:
        raise ValueError("sampling.priority FromCritic: this model has no critic; train it with WithCritic")


AnyRecipe = Recipe | TokenizerRecipe | TextRecipe
