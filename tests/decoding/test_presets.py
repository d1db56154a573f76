"""Published settings: the counts that they really reveal, the guidance that they really use, and recipes that build."""

import math
import time
from dataclasses import fields, replace

import pytest
import torch

from unmask.cli import main
from unmask.cli.flags import SamplingFlags, choose_sampling
from unmask.cli.parsing import parse
from unmask.cli.training import TrainFlags
from unmask.decoding.names import OUR_SAMPLINGS, UNSCORED, describe_expected, list_schedules
from unmask.decoding.names import PRESETS as NAMED
from unmask.decoding.presets import GOOGLE_256, GOOGLE_512, REPORT_256, REPORT_512, make_sound_wrapper
from unmask.decoding.sampling import Sampling, ValeoaiV1
from unmask.errors import ConfigError
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.schedules import Arccos, Cosine, Power, count_reveals
from unmask.pipelines.image import Pipeline
from unmask.recipes.reading import find_recipe, list_recipes, load_recipe
from unmask.recipes.schema import Recipe, TokenizerRecipe
from unmask.recipes.spec import ModelSpec
from unmask.storage.config import from_json, to_json
from unmask.tokenizers.pixels import Pixels

PRESETS = {"report 256": REPORT_256, "report 512": REPORT_512, "google 256": GOOGLE_256, "google 512": GOOGLE_512}
every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)


def revealed(sampling, tokens, unknown=None):
    """Tokens per step of a row with so many unknown ones."""
    counts = count_reveals(torch.tensor([tokens if unknown is None else unknown]), sampling.ratios(tokens))
    return counts[:, 0].tolist()


# -- what is revealed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "tokens", "counts"), [
    (REPORT_256, 256, [1, 18, 26, 32, 38, 43, 48, 50]),
    (REPORT_512, 1024, [1, 26, 38, 46, 54, 61, 67, 73, 79, 84, 89, 94, 99, 104, 109]),
    (GOOGLE_256, 256, [5, 15, 24, 31, 39, 45, 48, 49]),
    (GOOGLE_512, 1024, [9, 26, 43, 60, 74, 88, 101, 112, 120, 126, 132, 133]),
])  # fmt: skip
def test_the_counts_are_those_of_the_original_code(preset, tokens, counts):
    height, width = preset.size
    assert height * width == tokens * 16**2
    assert len(counts) == preset.sampling.steps
    assert revealed(preset.sampling, tokens) == counts


def by_the_report(tokens, steps, curve):
    """Compute the rule of the original code, in plain Python."""
    values = [curve(1 - s / (steps - 1)) for s in range(steps)]
    counts = [max(1, round(v / sum(values) * tokens)) for v in values]
    counts[-1] += tokens - sum(counts)
    return counts


CURVES = {
    Arccos(): lambda r: math.acos(r) / (math.pi / 2),
    Cosine(): lambda r: math.cos(r * math.pi / 2),
    Power(1.0): lambda r: 1 - r,
    Power(2.0): lambda r: 1 - r**2,
}


@pytest.mark.parametrize("shape", CURVES, ids=str)
@pytest.mark.parametrize(("tokens", "steps"), [(256, 8), (256, 12), (1024, 15), (64, 5), (49, 2)])
def test_the_density_is_followed_on_any_canvas(shape, tokens, steps):
    sampling = Sampling(steps=steps, schedule=ValeoaiV1(shape=shape))
    assert revealed(sampling, tokens) == by_the_report(tokens, steps, CURVES[shape])


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (1, 5), (16, 16), (16, 40), (256, 1), (256, 200)])
def test_any_number_of_steps_reveals_everything(tokens, steps):
    sampling = Sampling(steps=steps, schedule=ValeoaiV1())
    for unknown in {1, tokens // 3, tokens} - {0}:
        counts = revealed(sampling, tokens, unknown)
        assert len(counts) == steps
        assert sum(counts) == unknown


def test_a_hole_follows_the_same_curve():
    half = revealed(REPORT_256.sampling, 256, 128)
    assert all(abs(2 * h - w) <= 3 for h, w in zip(half, revealed(REPORT_256.sampling, 256), strict=True))


def test_other_schedules_do_not_depend_on_the_canvas():
    sampling = Sampling(steps=5, schedule=Power(2.0))
    assert sampling.ratios(7) == sampling.ratios(4096) == [1 - (i / 5) ** 2 for i in range(1, 5)] + [0.0]


# -- how they are guided ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "w"), [(REPORT_256, 3.0), (REPORT_512, 2.8)])
def test_guidance_rises_as_in_the_report(preset, w):
    """(1 + w_i) c - w_i u with w_i = w i / T is u + s (c - u) with s = 1 + w_i."""
    steps = preset.sampling.steps
    for i in range(steps):
        assert preset.sampling.scale(i / steps) == pytest.approx(1 + w * i / steps)


@pytest.mark.parametrize(("preset", "noise"), [(REPORT_256, 4.5), (REPORT_512, 7.0)])
def test_noise_falls_as_in_the_report(preset, noise):
    """r_temp (1 - i / T) on the log-confidence in step i."""
    steps = preset.sampling.steps
    bound = preset.sampling.bind_order(preset.sampling.priority, steps)
    assert bound.noises == pytest.approx([noise * (1 - i / steps) for i in range(steps)])


def test_the_noise_of_a_preset_can_be_changed(spec):
    sampling = choose_sampling(SamplingFlags(preset="besnier-256-8", noise=9.0), spec)
    assert sampling.bind_order(sampling.priority, 8).noises == pytest.approx([9.0 * (1 - i / 8) for i in range(8)])


def test_google_uses_no_guidance():
    assert {p.sampling.scale(t / 8) for p in (GOOGLE_256, GOOGLE_512) for t in range(8)} == {1.0}


@every_preset
def test_a_preset_is_plain_data_and_samples(preset):
    assert from_json(Sampling, to_json(preset.sampling)) == preset.sampling
    tokenizer = Pixels(size=(8, 8), patch=2, levels=2)
    config = load_recipe("digits").model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedTransformer(config, tokenizer.vocab_size, tokenizer.grid).eval()
    pipeline = Pipeline(model, tokenizer, preset.sampling)
    states = pipeline.collect_states(num=2)
    assert len(states) == preset.sampling.steps + 1
    assert not (states[-1].tokens == model.mask_id).any()
    counts = [int(s.revealed[0].sum()) for s in states[1:]]
    assert counts == revealed(preset.sampling, 16)
    assert preset.expected.fid > 1
    assert preset.source.startswith("arXiv")


GIVEN = {
    "sampler": "ancestral",
    "block": 2,
    "preset": "besnier-256-8",
    "steps": 3,
    "order": "halton",
    "noise": 0.5,
    "schedule": "pow3",
    "temperature": 0.5,
    "guidance": 3.0,
    "ramp": "cosine",
    "top_k": 2,
    "top_p": 0.3,
}


@pytest.fixture(scope="module")
def spec():
    tokenizer = Pixels(size=(8, 8), patch=2, levels=4)
    model = replace(load_recipe("digits").model, num_classes=10, depth=1)
    return ModelSpec(tokenizer=tokenizer, model=model, sampling=load_recipe("digits").sampling)


@pytest.fixture(scope="module")
def pipeline(spec):
    tokenizer = spec.tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedTransformer(spec.model, tokenizer.vocab_size, tokenizer.grid).eval()
        for zero in (parameter for parameter in model.parameters() if not parameter.any()):
            torch.nn.init.normal_(zero, std=0.3)
    return Pipeline(model, tokenizer, spec.sampling)


def test_every_sampling_flag_changes_the_sampling(pipeline, spec):
    assert set(GIVEN) == {field.name for field in fields(SamplingFlags)}
    plain = choose_sampling(SamplingFlags(), spec)
    assert plain == pipeline.sampling
    for name, value in GIVEN.items():
        assert choose_sampling(SamplingFlags(**{name: value}), spec) != plain, name


@pytest.mark.parametrize("name", NAMED)
def test_a_preset_is_the_sampling_but_for_other_flags(pipeline, spec, name):
    preset = NAMED[name]
    sampling, there = choose_sampling(SamplingFlags(preset=name), spec), preset.sampling.fit_to(pipeline.model.grid)
    assert sampling == there
    assert not torch.equal(pipeline.generate(num=10, sampling=sampling), pipeline.generate(num=10))
    mixed = choose_sampling(SamplingFlags(preset=name, steps=3, temperature=0.5), spec)
    assert mixed == replace(there, steps=3, temperature=0.5)
    assert name.endswith(f"-{preset.size[0]}-{preset.sampling.steps}")


def test_a_preset_says_what_is_published_for_it(capsys):
    assert describe_expected("besnier-256-8") == (
        "preset besnier-256-8: published FID 6.80, IS 214.0 for ImageNet at 256x256 (arXiv 2310.14400, tables 2 and 3)"
    )
    assert {name: describe_expected(name).split(" (")[0].split("published ")[1] for name in NAMED} == {
        "besnier-256-8": "FID 6.80, IS 214.0 for ImageNet at 256x256",
        "besnier-512-15": "FID 7.26, IS 223.0 for ImageNet at 512x512",
        "maskgit-256-8": "FID 6.18, IS 182.1 for ImageNet at 256x256",
        "maskgit-512-12": "FID 7.32, IS 156.0 for ImageNet at 512x512",
        "halton-tiny-256-32": "FID 10.20 for ImageNet at 256x256",
        "halton-small-256-32": "FID 6.40 for ImageNet at 256x256",
        "halton-base-256-32": "FID 4.17 for ImageNet at 256x256",
        "halton-small-384-32": "FID 6.11 for ImageNet at 384x384",
        "halton-base-384-32": "FID 4.15 for ImageNet at 384x384",
        "halton-large-384-32": "FID 2.59 for ImageNet at 384x384",
        "titok-l32-256-8": "FID 2.77 for ImageNet at 256x256",
        "titok-b64-256-8": "FID 2.48 for ImageNet at 256x256",
        "titok-s128-256-64": "FID 1.97 for ImageNet at 256x256",
    }
    with pytest.raises(SystemExit):
        main(["sample", "RUN", "--help"])
    told = capsys.readouterr().out
    assert all(name in " ".join(told.replace("│", " ").split()) for name in (*NAMED, *UNSCORED, *OUR_SAMPLINGS))
    assert describe_expected("besnier-nov23-256-8").endswith(
        "without published scores (github.com/valeoai/Maskgit-pytorch since November 2023)"
    )
    with pytest.raises(ConfigError, match="did you mean maskgit-256-8"):
        describe_expected("maskgit-256")


def test_the_help_names_every_schedule(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "RUN", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    names = [name for name in list_schedules(256) if not name.startswith(("valeoai-v1-", "google-", "x-transformers-"))]
    aliases = {"uniform", "pow2", "pow0.5"}  # of linear, square and root
    examples = {"valeoai-v1-SHAPE", "google-SHAPE", "x-transformers-SHAPE"}
    assert [name for name in {*names, *examples} - aliases if name not in told] == []


def test_our_own_preset_stands_beside_the_published_ones(spec):
    for name, sampling in OUR_SAMPLINGS.items():
        assert choose_sampling(SamplingFlags(preset=name), spec) == sampling
        assert name == f"ours-{sampling.steps}"
        assert "without published scores" in describe_expected(name)


# -- recipes ----------------------------------------------------------------------------------------------------------


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "count", "grid"), [
    ("imagenet256", 172_446_976, (16, 16)), ("imagenet512", 173_036_800, (32, 32)),
])  # fmt: skip
def test_the_imagenet_recipes_have_the_sizes_that_they_say(name, count, grid):
    start = time.perf_counter()
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = MaskedTransformer(recipe.model, recipe.tokenizer.vocab_size, recipe.tokenizer.grid)
        tokenizer = recipe.tokenizer.build()
    assert time.perf_counter() - start < 10
    assert parameters(model) == count
    assert parameters(tokenizer) == 72_141_699  # "72.142M" in the report
    assert (model.grid, model.vocab_size, model.mask_id) == (grid, 1024, 1024)
    assert recipe.model.dim * recipe.model.mlp_ratio == 3072
    assert model.blocks[0].mlp.up.weight.shape == (3072, 768)
    assert from_json(Recipe, to_json(recipe)) == recipe


def test_the_512_recipe_goes_on_from_the_256_one():
    """Same network and same tokenizer but for the number of cells."""
    small, large = load_recipe("imagenet256"), load_recipe("imagenet512")
    assert small.model == large.model
    with torch.device("meta"):
        shapes = [{n: p.shape for n, p in r.tokenizer.build().named_parameters()} for r in (small, large)]
    assert shapes[0] == shapes[1]
    assert (large.training.steps, large.training.batch_size) == (750_000, 128)


def test_the_tokenizer_recipe_is_the_one_that_the_generator_names():
    recipe = find_recipe("imagenet256-tokenizer", TokenizerRecipe)
    assert recipe.tokenizer == load_recipe("imagenet256").tokenizer
    first = next(s for s in range(249_990, 250_010) if s >= recipe.loss.start * recipe.training.steps)
    assert first == 250_001  # disc_start of the source
    assert recipe.training.optimizer.learning_rate == pytest.approx(1.08e-4)
    assert recipe.data.size > recipe.tokenizer.size[0]  # room for random crops
    assert from_json(TokenizerRecipe, to_json(recipe)) == recipe


def test_presets_are_no_recipes():
    assert {"imagenet256", "imagenet512"} <= set(list_recipes())
    assert "imagenet256-tokenizer" in list_recipes(TokenizerRecipe)
    assert not any("preset" in name for name in list_recipes())


def test_the_flags_keep_the_reports_schedule(tmp_path):
    default = TrainFlags(recipe=load_recipe("imagenet256"), out=tmp_path)
    flags = parse(TrainFlags, ["--sampling.steps", "12"], "train imagenet256", default)
    assert flags.recipe.sampling.schedule == ValeoaiV1(shape=Arccos())
    assert revealed(flags.recipe.sampling, 256) == by_the_report(256, 12, CURVES[Arccos()])


def test_the_wrapper_s_settings_in_our_sampler(pipeline):
    """18 steps, linear or cosine, with a temperature that falls from just below 1 to greedy, and that matters."""
    plain = make_sound_wrapper()
    assert plain.ratios(18) == pytest.approx([(17 - i) / 18 for i in range(18)])
    assert plain.list_temperatures(18) == pytest.approx([1 - (i + 1) / 18 for i in range(18)])
    assert make_sound_wrapper(Cosine()).ratios(18)[0] > plain.ratios(18)[0]
    images = pipeline.generate(num=10, sampling=plain)
    assert not torch.equal(images, pipeline.generate(num=10, sampling=replace(plain, annealing=None)))
