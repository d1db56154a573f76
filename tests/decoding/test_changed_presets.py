"""Published samplers with a changed flag: steps, noise, scale and temperature follow the formula of the original."""

import math

import pytest
import torch

from unmask.decoding.presets import AMUSED_SAMPLING
from unmask.decoding.sampling import Sampling
from unmask.decoding.settings import change_sampling
from unmask.errors import ConfigError
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.ramps import CosineRamp, Interval, LinearRamp
from unmask.method.rand import seeded
from unmask.pipelines.editing import stream_inpainting
from unmask.pipelines.image import Pipeline
from unmask.published.catalogue import MODELS
from unmask.tokenizers.pixels import Pixels

GRID = (16, 16)


def noises(sampling: Sampling) -> list[float]:
    return list(sampling.bind_order(sampling.priority, sampling.steps).noises)


def scales(sampling: Sampling) -> list[float]:
    return [sampling.guidance(step / sampling.steps) for step in range(sampling.steps)]


def change(name: str, **flags: object) -> Sampling:
    return change_sampling(Sampling(), GRID, {"preset": name, **flags})


def test_the_report_at_four_steps_has_its_formula():
    """r_temp (1 - i/T), which a stretched list of eight would make 3.94, 2.81, 1.69, 0.56."""
    assert noises(change("besnier-256-8", steps=4)) == pytest.approx([4.5, 3.375, 2.25, 1.125])
    assert noises(change_sampling(MODELS["besnier-256"].sampling, GRID, {"steps": 4}))[0] == 4.5


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 30])
def test_every_rule_is_recomputed(steps):
    i = range(steps)
    later = change("besnier-nov23-256-8", steps=steps)
    last = max(1, steps - 1)
    assert noises(later) == pytest.approx([4.5 * (1 - k / last) for k in i])
    assert scales(later) == pytest.approx([1 + 3 * k / last for k in i])
    amused = change_sampling(AMUSED_SAMPLING, GRID, {"steps": steps})
    assert noises(amused) == pytest.approx(torch.linspace(2, 0, steps).tolist(), abs=1e-6)
    titok = change("titok-l32-256-8", steps=steps)
    left = [1 - (k + 1) / steps for k in i]
    wanted = [9.5 * x * (0.5 + 0.8 * x) for x in left]
    assert noises(titok) == pytest.approx(wanted)
    assert titok.list_temperatures(steps) == pytest.approx(wanted)
    halton = change("halton-quickstart-384-32", steps=steps)
    multiplied = torch.linspace(1, 1.2, steps).tolist()
    assert halton.list_temperatures(steps) == pytest.approx([1 / x for x in multiplied])
    assert set(scales(halton)) == {3.0}


def test_the_code_since_november_2023_ends_with_all_guidance_and_no_noise():
    for name, steps, w in (("besnier-nov23-256-8", 8, 3.0), ("besnier-nov23-512-15", 15, 2.8)):
        later = change(name)
        assert scales(later)[0] == 1
        assert scales(later)[-1] == pytest.approx(1 + w)
        assert noises(later)[-1] == 0
        assert len(noises(later)) == steps


def test_a_scale_is_the_end_of_the_ramp():
    """w = 2 is s = 3."""
    assert scales(change("besnier-256-8", guidance=3.0)) == pytest.approx([1 + k / 4 for k in range(8)])
    assert scales(change("besnier-nov23-256-8", guidance=3.0))[-1] == pytest.approx(3.0)
    assert change("titok-s128-256-64", guidance=2.0).scale == CosineRamp(2.0, power=3.0)
    assert change("halton-base-256-32", guidance=2.0).scale == Interval(2.0)


def test_a_ramp_can_be_chosen():
    assert set(scales(change("besnier-256-8", guidance=3.0, ramp="constant"))) == {3.0}
    assert set(scales(change("besnier-256-8", ramp="constant"))) == {4.0}
    assert change("halton-base-256-32", ramp="linear").scale == LinearRamp(1.7)
    assert change("titok-s128-256-64", ramp="cosine").scale == CosineRamp(6.9, power=3.0)
    with pytest.raises(ConfigError, match="did you mean linear"):
        change("besnier-256-8", ramp="liner")


def test_noise_changes_the_number_and_keeps_the_rule():
    assert noises(change("besnier-256-8", noise=7.0, steps=4)) == pytest.approx([7.0, 5.25, 3.5, 1.75])
    titok = change("titok-l32-256-8", noise=2.0)
    assert list(titok.list_temperatures(8)) == pytest.approx(noises(titok))  # one number there
    assert change("titok-l32-256-8", noise=2.0, temperature=3.0).temperature == 3.0
    assert noises(change_sampling(AMUSED_SAMPLING, GRID, {"noise": 3.0})) == pytest.approx(
        torch.linspace(3, 0, 12).tolist(), abs=1e-6
    )


def test_a_temperature_is_a_factor_of_the_rule():
    halton = change("halton-quickstart-384-32", temperature=0.5)
    assert halton.list_temperatures(32)[0] == 0.5
    assert halton.list_temperatures(32)[-1] == pytest.approx(0.5 / 1.2)


def test_the_report_s_confidence_is_that_of_the_tempered_logits():
    """vit.py: softmax(logit * sm_temp) gives the token and its confidence."""
    sampling = change("besnier-256-8", temperature=1 / 1.3, noise=0.0)
    g = torch.Generator().manual_seed(0)
    logits, sample = torch.randn(2, 9, 5, generator=g), torch.randint(5, (2, 9), generator=g)
    order = sampling.bind_order(sampling.priority, 8)
    score = order(logits, sample, masked=sample >= 0, t=0.5, rand=seeded(0, 2))
    wanted = (logits * 1.3).log_softmax(-1).gather(-1, sample[..., None])[..., 0]
    torch.testing.assert_close(score, wanted)


def reveal(sampling: Sampling, unknown: list[int], tokens: int = 256) -> list[list[int]]:
    """The tokens that each step of each row reveals, when so many of its tokens are unknown."""
    canvas = torch.zeros(len(unknown), tokens, dtype=torch.long)
    for row, number in enumerate(unknown):
        canvas[row, :number] = 3
    states = sampling.run(
        lambda canvas, t: torch.zeros(*canvas.shape, 3),
        canvas,
        mask_id=3,
        rand=seeded(0, len(unknown)),
        priority=sampling.priority,
    )
    counts = [0] * sampling.steps
    rows = [counts.copy() for _ in unknown]
    for state in states:
        for row, shown in enumerate(state.revealed.sum(1).tolist()):
            if state.step:
                rows[row][state.step - 1] = shown
    return rows


def test_google_and_amused_count_each_hole_in_float32():
    """With the cosine at 2/3, 127 of 256 and 15 of 32 stay masked; exact arithmetic has 128 and 16."""
    for name in ("maskgit-256", "amused-256"):
        sampling = change_sampling(MODELS[name].sampling, GRID, {"steps": 12})
        whole, half, few, none = reveal(sampling, [256, 32, 5, 0])
        assert whole[7:9] == [28, 30]
        assert half[:9] == [1, 1, 1, 2, 2, 3, 3, 4, 3]
        assert sum(few) == 5
        assert sum(none) == 0


def test_halton_counts_round_as_the_original_at_side_32():
    """In float64, 45 and 90 steps of 1,024 tokens differ."""
    for steps in (45, 90):
        known, wanted = 0, []
        for index in range(steps):
            r = 1 - (torch.arccos(torch.tensor((index + 1) / steps)) / (math.pi * 0.5))
            after = max(index + 1, int(r * 1024))
            wanted.append(after - known)
            known = after
        assert reveal(change("halton-base-256-32", steps=steps).fit_to((32, 32)), [1024], 1024)[0] == wanted
        exact = [max(s + 1, int(1024 * (1 - math.acos((s + 1) / steps) / (math.pi / 2)))) for s in range(steps)]
        assert wanted != [b - a for a, b in zip([0, *exact], exact, strict=False)]


@pytest.mark.parametrize("name", ["besnier-nov23-256-8", "titok-l32-256-8", "halton-quickstart-384-32"])
def test_an_early_stop_keeps_the_rules_of_the_full_run(name):
    """The first steps of 8 are those of the full run; the last one fills the rest."""
    tokenizer = Pixels(size=(8, 8), patch=2, levels=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedTransformer(TransformerConfig(num_classes=3, dim=16, depth=1), tokenizer.vocab_size, (4, 4))
    pipeline = Pipeline(model.eval(), tokenizer, change_sampling(Sampling(), (4, 4), {"preset": name, "steps": 8}))
    images, hole = torch.zeros(2, 1, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool)
    full, cut = (
        [state.tokens for state in stream_inpainting(pipeline, images, hole, torch.tensor([0, 1]), stop=stop)]
        for stop in (None, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(full, cut[:-1], strict=False))
    assert (cut[-1] < model.mask_id).all()


def test_a_sampler_that_cannot_anneal_takes_a_temperature_instead():
    with pytest.raises(ValueError, match=r"takes one temperature.*: give one"):
        change("titok-l32-256-8", sampler="entropy-bound")
    changed = change("titok-l32-256-8", sampler="entropy-bound", temperature=0.9)
    assert (changed.temperature, changed.annealing) == (0.9, None)
