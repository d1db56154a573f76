"""The pipeline with random weights: the same images whatever the batch, holes filled and nothing else touched."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from unmask.data.sources.choice import Digits
from unmask.decoding.rules import Line
from unmask.decoding.sampling import Ancestral, Sampling
from unmask.errors import CheckpointError, ConfigError
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.ramps import Interval
from unmask.method.sampling.priorities import Confidence, Halton
from unmask.method.schedules import Power
from unmask.pipelines.image import Pipeline
from unmask.pipelines.load import export_model
from unmask.published.opening import open_model
from unmask.recipes.reading import write_config
from unmask.recipes.schema import Recipe
from unmask.storage.config import to_json
from unmask.storage.weights import write_weights
from unmask.tokenizers.pixels import Pixels

TOKENIZER = Pixels(size=(8, 8), patch=2, levels=4)
LEVELS = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0])


def recipe(**model):
    config = TransformerConfig(**{"dim": 16, "depth": 1, "heads": 2, "num_classes": 10, **model})
    return Recipe(data=Digits(), tokenizer=TOKENIZER, model=config, sampling=Sampling(steps=5))


def random_model(config):
    """Random weights, the zero ones too, so that samples depend on class and neighbours."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedTransformer(config, TOKENIZER.vocab_size, TOKENIZER.grid)
        for p in model.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.3)
    return model.eval()


def saved(folder, given):
    """A folder with what a finished run leaves."""
    folder.mkdir()
    write_config(given, folder)
    write_weights(dict(random_model(given.model).named_parameters()), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("pipeline") / "run", recipe())


@pytest.fixture(scope="module")
def pipeline(run):
    return Pipeline.from_pretrained(run, device="cpu")


def pictures(num):
    """Noise of full precision, which the tokenizer cannot give back."""
    return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


# -- generating --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 8, 19])
def test_a_sample_does_not_depend_on_the_batch(pipeline, batch):
    assert torch.equal(pipeline.generate(num=20, seed=5, batch=batch), pipeline.generate(num=20, seed=5))


def test_the_first_samples_are_the_same_when_more_are_asked_for(pipeline):
    labels = torch.arange(12) % 10
    assert torch.equal(pipeline.generate(labels[:4], seed=1), pipeline.generate(labels, seed=1)[:4])


def test_seeds_labels_and_every_option_change_the_images(pipeline):
    labels, base = torch.zeros(8, dtype=torch.long), pipeline.sampling
    images = pipeline.generate(labels)
    assert not torch.equal(images, pipeline.generate(labels, seed=1))
    assert not torch.equal(images, pipeline.generate(labels + 1))
    changes = {
        "steps": 2,
        "schedule": Power(3.0),
        "priority": Halton(pipeline.model.grid),
        "temperature": 0.5,
        "annealing": Line(start=1.0, end=0.1),
        "scale": Interval(4.0),
        "top_k": 3,
        "top_p": 0.2,
        "remask": True,
        "sampler": Ancestral(),
        "block": 4,
    }
    for name, value in changes.items():
        assert not torch.equal(images, pipeline.generate(labels, sampling=replace(base, **{name: value}))), name
    assert changes.keys() == to_json(base).keys() - {"type"}


def test_images_are_of_the_tokenizers_values_and_run_through_the_classes(pipeline):
    images = pipeline.generate(num=23)
    assert images.shape == (23, 1, 8, 8)
    assert float((images[..., None] - LEVELS).abs().min(-1).values.max()) < 1e-6
    assert pipeline.cycle_labels(23).tolist() == [i % 10 for i in range(23)]
    assert torch.equal(images, pipeline.generate(torch.arange(23) % 10))


def test_the_history_ends_in_the_image(pipeline):
    states = pipeline.collect_states(num=6, seed=2)
    assert len(states) == 6  # the blank canvas and five steps
    assert bool((states[0].tokens == pipeline.model.mask_id).all())
    assert torch.equal(TOKENIZER.decode(states[-1].tokens), pipeline.generate(num=6, seed=2))
    revealed = torch.stack([s.revealed for s in states]).sum(0)
    assert bool((revealed == 1).all())


# -- repairing ---------------------------------------------------------------------------------------------------------


def all_holes():
    """Nothing, one pixel, a half, a ragged shape, everything."""
    hole = torch.zeros(5, 8, 8, dtype=torch.bool)
    hole[1, 3, 5] = True
    hole[2, :, 4:] = True
    hole[3] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.3
    hole[4] = True
    return hole


@pytest.mark.parametrize("labels", [None, torch.arange(5)])
def test_only_the_holes_change_whatever_their_shapes(pipeline, labels):
    images, hole = pictures(5), all_holes()
    before = images.clone(), hole.clone()
    repaired = pipeline.fill(images, hole, labels, seed=4)
    inside = hole[:, None]
    assert torch.equal(repaired[~inside], images[~inside])
    assert float((repaired[inside][:, None] - LEVELS).abs().min(-1).values.max()) < 1e-6
    assert torch.equal(images, before[0])
    assert torch.equal(hole, before[1])


def test_each_image_is_repaired_as_if_it_were_alone(pipeline):
    """Row 0 has the same noise alone; the holes of the other rows are not its business."""
    images, labels = pictures(5), torch.arange(5)
    for row in range(5):
        order = [row, *(i for i in range(5) if i != row)]
        hole = all_holes()[order]
        together = pipeline.fill(images[order], hole, labels[order], seed=4)
        alone = pipeline.fill(images[row : row + 1], hole[:1], labels[row : row + 1], seed=4)
        assert torch.equal(together[:1], alone)


def test_a_hole_as_large_as_the_image_is_generating(pipeline):
    labels = torch.tensor([3, 1])
    hole = torch.ones(2, 8, 8, dtype=torch.bool)
    assert torch.equal(pipeline.fill(pictures(2), hole, labels, seed=9), pipeline.generate(labels, seed=9))


def test_a_token_with_any_pixel_in_the_hole_is_masked(pipeline):
    images, hole = pictures(5), all_holes()
    tokens, masked = pipeline.mask_images(images, hole)
    expected = hole.view(5, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).flatten(3).any(-1).flatten(1)
    assert torch.equal(masked, expected)
    assert torch.equal(tokens == pipeline.model.mask_id, masked)
    assert torch.equal(tokens[~masked], TOKENIZER.encode(images)[~masked])


# -- loading and refusing ----------------------------------------------------------------------------------------------


def test_a_run_and_its_export_give_identical_images(run, pipeline, tmp_path):
    export_model(open_model(run), tmp_path / "deep/export")
    written = sorted(p.name for p in (tmp_path / "deep/export").iterdir())
    assert written == ["README.md", "config.json", "manifest.json", "model.safetensors"]
    loaded = Pipeline.from_pretrained(tmp_path / "deep/export", device="cpu")
    assert loaded.sampling == pipeline.sampling
    assert torch.equal(loaded.generate(num=15, seed=3), pipeline.generate(num=15, seed=3))


def test_the_files_decide_and_not_the_random_state(run, pipeline):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        again = Pipeline.from_pretrained(run, device="cpu")
        images = again.generate(num=4)
    assert torch.equal(images, pipeline.generate(num=4))
    assert not torch.equal(before, torch.zeros_like(before))


@pytest.mark.parametrize("labels", [[10], [3, 400]])
def test_labels_that_the_model_does_not_have_are_refused(pipeline, labels):
    with pytest.raises(ConfigError, match=f"no class {max(labels)}: this model's labels go from 0 to 9"):
        pipeline.generate(torch.tensor(labels))


@pytest.mark.parametrize(
    "none",
    [
        lambda p: p.generate([]),
        lambda p: p.generate(num=0),
        lambda p: p.generate(num=2, batch=0),
        lambda p: p.generate(num=2, batch=-1),
        lambda p: p.sample_range(3, 3),
        lambda p: p.sample_range(-1, 3),
        lambda p: p.collect_states([]),
        lambda p: p.collect_states(num=0),
    ],
)
def test_no_images_are_refused_in_words(pipeline, none):
    with pytest.raises(ConfigError, match="at least"):
        none(pipeline)


def test_an_unconditional_model_takes_no_labels(tmp_path):
    plain = Pipeline.from_pretrained(saved(tmp_path / "run", recipe(num_classes=0)), device="cpu")
    assert plain.cycle_labels(3) is None
    assert plain.generate(num=3).shape == (3, 1, 8, 8)
    with pytest.raises(ConfigError, match="unconditional"):
        plain.generate(torch.tensor([0]))


@pytest.mark.parametrize("change", [{"dim": 32}, {"depth": 2}, {"num_classes": 3}, {"gated": False}])
def test_weights_of_another_architecture_are_refused(run, tmp_path, change):
    folder = saved(tmp_path / "run", recipe())
    write_config(recipe(**change), folder)
    with pytest.raises(CheckpointError, match=r"does not fit the model in config\.json"):
        Pipeline.from_pretrained(folder)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Pipeline.from_pretrained(tmp_path)
    folder = saved(tmp_path / "run", recipe())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        Pipeline.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        Pipeline.from_pretrained(folder)
    (folder / "config.json").write_text('{"no": "recipe"}')
    with pytest.raises(ConfigError):
        Pipeline.from_pretrained(folder)


def test_a_model_and_a_tokenizer_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="not made for each other"):
        Pipeline(random_model(recipe().model), Pixels(size=(8, 8), patch=2, levels=3), Sampling())


def test_noise_of_the_confidence_order_is_an_option_that_matters(pipeline):
    still = replace(pipeline.sampling, priority=Confidence(0.0))
    assert not torch.equal(pipeline.generate(num=8, sampling=still), pipeline.generate(num=8))
