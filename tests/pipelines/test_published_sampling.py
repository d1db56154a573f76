"""Published models sampled as their code bases do it: counts, noise, guidance and temperature, by hand."""

import json
import math

import pytest
import torch

from unmask.decoding.presets import REPORT_256
from unmask.decoding.sampling import Sampling
from unmask.method.rand import seeded
from unmask.pipelines.image import Pipeline
from unmask.pretrained.families import FAMILIES, choose_tokenizer_dtype
from unmask.published.catalogue import MODELS
from unmask.storage.config import from_json, to_json
from unmask.tokenizers.vqgan import VQGAN


def cosine(n, steps, _):
    """Google's rule (B.1): floor(N cos(pi r/2)) stay masked, one at least, and one fewer than before at most."""
    left, counts = n, []
    for s in range(steps):
        kept = torch.cos(torch.tensor(math.pi / 2 * (s + 1) / steps, dtype=torch.float32)) * n  # in float32
        after = 0 if s == steps - 1 else max(1, min(left - 1, math.floor(kept)))
        counts.append(left - after)
        left = after
    return counts


def arccos(n, steps, _):
    """TiTok's: the same with (2/pi) arccos(r)."""
    left, counts = n, []
    for s in range(steps):
        wanted = math.floor(n * math.acos((s + 1) / steps) * 2 / math.pi)
        after = 0 if s == steps - 1 else max(1, min(left - 1, wanted))
        counts.append(left - after)
        left = after
    return counts


def halton(n, steps, _):
    """Halton-MaskGIT's: int(N (1 - (2/pi) arccos((s+1)/T))) are known after step s, and s + 1 at least."""
    known = [max(s + 1, int(n * (1 - 2 / math.pi * math.acos((s + 1) / steps)))) for s in range(steps)]
    return [a - b for a, b in zip(known, [0, *known], strict=False)]


def density(n, steps, _):
    """The reproduction report's: (2/pi) arccos(r) of r from 1 to 0 is how many tokens a step reveals."""
    values = [2 / math.pi * math.acos(1 - s / (steps - 1)) for s in range(steps)]
    counts = [max(1, round(v / sum(values) * n)) for v in values]
    counts[-1] += n - sum(counts)
    return counts


def constant(s):
    return lambda i, steps: s


def rising(w):
    """(1 + w i/T) c - (w i/T) u."""
    return lambda i, steps: 1 + w * i / steps


def powered(scale, power):
    """TiTok's power-cosine."""
    return lambda i, steps: (1 - math.cos((i / steps) ** power * math.pi)) / 2 * (scale - 1) + 1


def lagged(noise):
    return lambda i, steps: noise * (1 - i / steps)


def falling(noise):
    return lambda i, steps: noise * (1 - (i + 1) / steps)


def annealed(noise):
    """Logits over 0.5 + 0.8 (1 - r) and then + noise (1 - r) Gumbel, as one factor on the logits themselves."""
    return lambda i, steps: noise * (1 - (i + 1) / steps) * (0.5 + 0.8 * (1 - (i + 1) / steps))


def spanned(i, steps):
    return float(torch.linspace(2, 0, steps, dtype=torch.float64)[i])


NONE, ONE = constant(0.0), constant(1.0)
# tokens, steps, tokens revealed, noise on the score, guidance, temperature
PUBLISHED = {
    "besnier-256": (256, 8, density, lagged(4.5), rising(3.0), ONE),
    "besnier-512": (1024, 15, density, lagged(7.0), rising(2.8), ONE),
    "halton-tiny-256": (256, 32, halton, NONE, constant(2.5), ONE),
    "halton-small-256": (256, 32, halton, NONE, constant(2.0), ONE),
    "halton-base-256": (256, 32, halton, NONE, constant(1.7), ONE),
    "halton-small-384": (576, 32, halton, NONE, constant(2.0), ONE),
    "halton-base-384": (576, 32, halton, NONE, constant(1.7), ONE),
    "halton-large-384": (576, 32, halton, NONE, constant(1.5), ONE),
    "maskgit-256": (256, 8, cosine, falling(4.5), ONE, ONE),
    "maskgit-512": (1024, 12, cosine, falling(4.5), ONE, ONE),
    "titok-l32": (32, 8, arccos, annealed(9.5), rising(4.5), annealed(9.5)),
    "titok-b64": (64, 8, arccos, annealed(11.0), rising(3.0), annealed(11.0)),
    "titok-s128": (128, 64, arccos, annealed(2.8), powered(6.9, 3.0), annealed(2.8)),
    "amused-256": (256, 12, cosine, spanned, constant(10.0), ONE),
    "amused-512": (1024, 12, cosine, spanned, constant(10.0), ONE),
}


def test_every_published_model_is_in_the_table():
    assert set(PUBLISHED) == set(MODELS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_sampling_is_plain_data(name):
    sampling = MODELS[name].sampling
    assert from_json(Sampling, json.loads(json.dumps(to_json(sampling)))) == sampling
    assert sampling.fit_to(MODELS[name].size.tokenizer.grid) == sampling  # it is of this grid already


def factor(priority, t):
    """By how much the score of a token changes with its Gumbel noise."""
    logits, sample = torch.zeros(2, 1, 3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.long)
    scores = priority(logits, sample, masked=sample == 0, t=t, rand=seeded(0, 2)).double()
    gumbel = -torch.log(-torch.log(seeded(0, 2)("order", 1)))
    return float((scores[1] - scores[0]) / (gumbel[1] - gumbel[0]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_sampled_as_its_code_does(name):
    """What a decoding really does, by hand: the tokens of every step, and its noise, guidance and temperature."""
    tokens, steps, counts, noise, scale, temperature = PUBLISHED[name]
    sampling, size = MODELS[name].sampling, MODELS[name].size
    assert (sampling.steps, math.prod(size.tokenizer.grid)) == (steps, tokens)
    asked, scored = [], []

    def predict(canvas, t):
        asked.append(t)
        return torch.zeros(*canvas.shape, 3)

    order = sampling.bind_order(sampling.priority, steps)

    def priority(logits, sample, *, masked, t, rand):
        scored.append(t)
        return order(logits, sample, masked=masked, t=t, rand=rand)

    blank = torch.full((2, tokens), 3)
    states = list(sampling.run(predict, blank, mask_id=3, rand=seeded(0, 2), priority=priority))
    found = [state.revealed.sum(1).tolist() for state in states[1:]]
    assert found == [[count] * 2 for count in counts(tokens, steps, None)]
    assert [sampling.scale(t) for t in asked] == pytest.approx([scale(i, steps) for i in range(steps)])
    if not name.startswith("halton"):  # which has no noise, but a place in a list
        wanted = [noise(i, steps) for i in range(steps)]
        assert [factor(order, t) for t in scored] == pytest.approx(wanted, abs=1e-5)
    assert list(sampling.list_temperatures(steps)) == pytest.approx([temperature(i, steps) for i in range(steps)])


def test_the_report_s_model_is_sampled_by_its_preset():
    assert MODELS["besnier-256"].sampling == REPORT_256.sampling
    assert all(model.preset is None or model.sampling == model.preset.sampling for model in MODELS.values())


def types(pipeline):
    model, tokenizer = (next(part.parameters()).dtype for part in (pipeline.model, pipeline.tokenizer))
    return model, tokenizer


def test_the_tokenizer_of_a_published_model_is_float32_unless_asked_otherwise(ready, monkeypatch):
    monkeypatch.setattr("unmask.pipelines.image.choose_dtype", lambda device: torch.bfloat16)
    folder = ready / "toy-32"
    assert types(Pipeline.from_pretrained(folder, device="cpu")) == (torch.bfloat16, torch.float32)
    for dtype in (torch.bfloat16, torch.float32):
        assert types(Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)) == (dtype, dtype)


def test_a_tokenizer_of_one_s_own_keeps_the_type_of_the_model():
    own = VQGAN(size=(32, 32), width=32)
    assert choose_tokenizer_dtype(own, torch.bfloat16) == torch.bfloat16
    for family in FAMILIES.values():
        for size in family.sizes:
            assert choose_tokenizer_dtype(size.tokenizer, torch.bfloat16) == torch.float32
            assert choose_tokenizer_dtype(size.tokenizer, torch.float64) == torch.float64
