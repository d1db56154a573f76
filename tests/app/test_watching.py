"""What the page shows of a sampling: the same images as without it, and confidences that can be computed by hand."""

import pytest
import torch

from unmask.app.generating import Wish, stream_wish
from unmask.app.watching import Watcher, draw_maps
from unmask.decoding.sampling import Adaptive, Ancestral, ReMDM, Sampling
from unmask.errors import ConfigError
from unmask.method.rand import seeded
from unmask.method.sampling.decode import decode
from unmask.method.schedules import Cosine, ratios
from unmask.pipelines.image import Pipeline

SAMPLINGS = {
    "parallel": Sampling(steps=5),
    "remask": Sampling(steps=6, remask=True),
    "ancestral": Sampling(steps=6, sampler=Ancestral()),
    "remdm": Sampling(steps=8, sampler=ReMDM()),
    "adaptive": Sampling(steps=16, sampler=Adaptive()),
    "blocks": Sampling(steps=8, block=4),
}


@pytest.fixture(scope="module")
def pipeline(runs):
    return Pipeline.from_pretrained(runs / "one", device="cpu")


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_watching_changes_nothing(pipeline, sampling):
    recording, steps = stream_wish(pipeline, Wish(labels=("3", "7"), num=3, seed=4), sampling)
    for _ in steps:
        pass
    plain = pipeline.generate(["3", "7", "3"], seed=4, sampling=sampling, output="tokens")
    assert torch.equal(recording.tokens[-1], plain.cpu())
    assert len(recording.frames) == len(recording.sure) == len(recording.steps)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_the_order_says_when_each_token_got_its_final_value(pipeline, sampling):
    recording, steps = stream_wish(pipeline, Wish(num=2), sampling)
    for _ in steps:
        pass
    for row in range(2):
        for place in range(16):
            shown = recording.steps.index(int(recording.order[row, place]))
            final = recording.tokens[-1][row, place]
            assert all(tokens[row, place] == final for tokens in recording.tokens[shown:])
            assert recording.masked[shown - 1][row, place] or sampling.remask
    assert recording.order.min() >= 1


def test_confidence_is_the_probability_when_a_token_was_revealed():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(1, 4, 3)
    watcher = Watcher(mask_id=3)
    canvas = torch.tensor([[3, 3, 1, 3]])
    states = decode(watcher.watch(lambda tokens, t: logits), canvas, ratios(Cosine(), 3), mask_id=3, rand=seeded(0, 1))
    p = torch.tensor([0.5, 0.3, 0.2])
    for number, state in enumerate(states):
        sure = watcher.measure(state)[0]
        for place, token in enumerate(state.tokens[0].tolist()):
            given = place == 2
            masked = 0.0 if number == 0 else 0.5
            expected = 1.0 if given else masked if token == 3 else p[token].item()
            assert sure[place].item() == pytest.approx(expected, abs=1e-6)


def test_maps_show_the_past_only(pipeline):
    recording, steps = stream_wish(pipeline, Wish(num=1), Sampling(steps=5))
    for _ in steps:
        pass
    first, last = draw_maps(recording, 1), draw_maps(recording, len(recording.frames) - 1)
    assert first[0].size == last[0].size
    assert first[1].tobytes() != last[1].tobytes()


@pytest.mark.parametrize("num", [0, 17, -1])
def test_a_number_of_images_beyond_the_page_is_refused(pipeline, num):
    with pytest.raises(ConfigError, match="take 1 to 16"):
        stream_wish(pipeline, Wish(num=num), Sampling())


def test_a_class_that_is_not_there_is_refused_with_a_hint(pipeline):
    with pytest.raises(ConfigError, match="no class"):
        stream_wish(pipeline, Wish(labels=("seven",)), Sampling())
