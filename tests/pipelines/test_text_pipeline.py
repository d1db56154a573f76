"""Writing and filling holes: what is given stays, what cannot be is refused, and no text depends on its batch."""

import pytest
import torch

from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.figures.texts import find_unmasking_steps, group_runs, render_frames, render_page
from unmask.method.masking import ABSENT
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.sampling.priorities import Halton, Random, Raster
from unmask.pipelines.text import TextPipeline
from unmask.tokenizers.text import ByteTokenizer, CharacterTokenizer

ALPHABET = "\n abcdefghijklmnopqrstuvwxyzT.:"
CONTEXT = 24


def pipeline(*, opens: bool = False, padded: bool = False, sampling: Sampling | None = None) -> TextPipeline:
    tokenizer = CharacterTokenizer(ALPHABET, CONTEXT)
    torch.manual_seed(0)
    model = MaskedTransformer(
        TransformerConfig(dim=16, depth=1, heads=2, padded=padded), tokenizer.vocab_size, (CONTEXT,)
    )
    torch.nn.init.normal_(model.head.weight, std=1.0)
    return TextPipeline(model.eval(), tokenizer, sampling or Sampling(steps=4, priority=Random()), opens=opens)


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_prompt_stays_and_the_rest_is_written(opens, padded):
    made = pipeline(opens=opens, padded=padded).generate("the end", num=5, length=20)
    assert all(text.startswith("the end") for text in made)
    assert all(len(text) <= 20 - opens for text in made)
    assert len(set(made)) == 5


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_holes_are_filled_and_nothing_else_changes(opens, padded):
    filled = pipeline(opens=opens, padded=padded).infill("The [MASK:3] dog[MASK] ran[MASK:2]", num=6)
    ends = CharacterTokenizer(ALPHABET, CONTEXT).end_id
    assert len(set(filled)) == 6
    for text in filled:
        assert text.startswith("The ")
        assert " dog" in text
        assert " ran" in text
        assert len(text) <= len("The ... dog. ran..")
    canvas = pipeline(opens=opens).mask_text("The [MASK:3]")
    assert (canvas.tokens == ends + 1).sum() == 3
    assert (canvas.tokens[0] == ends) == opens
    assert (canvas.tokens[-1] == ends) == opens


def test_a_text_is_the_same_whatever_its_batch():
    made = pipeline().generate("the ", num=7, batch=7, seed=3)
    assert made == pipeline().generate("the ", num=7, batch=2, seed=3)
    assert made != pipeline().generate("the ", num=7, batch=7, seed=4)


def test_an_order_that_knows_its_grid_is_fitted_to_the_canvas():
    own = pipeline(sampling=Sampling(steps=3, priority=Halton((CONTEXT,))))
    assert own.infill("a[MASK:4]")[0].startswith("a")


def test_what_no_text_is_made_of_is_never_drawn():
    tokenizer = CharacterTokenizer(ALPHABET, CONTEXT)
    tokenizer.unused = tuple(range(3, tokenizer.vocab_size))
    torch.manual_seed(0)
    model = MaskedTransformer(TransformerConfig(dim=16, depth=1, heads=2), tokenizer.vocab_size, (CONTEXT,))
    made = TextPipeline(model, tokenizer, Sampling(steps=2), opens=False).generate(num=20)
    assert set("".join(made)) <= set(ALPHABET[:3])


def test_a_canvas_that_ends_early_hides_what_is_behind_it():
    """A padded model sees no tokens there, another one masked ones; both as a full canvas would have them."""
    for padded, fill in ((True, ABSENT), (False, len(ALPHABET) + 1)):
        own = pipeline(padded=padded)
        short = torch.randint(0, 9, (2, 10), generator=torch.Generator().manual_seed(1))
        whole = torch.cat([short, short.new_full((2, CONTEXT - 10), fill)], 1)
        torch.testing.assert_close(own.predict()(short, 0.0), own.model(whole)[:, :10])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no hole", "no mask to fill"),
        ("an [MASK:0] hole", "empty hole"),
        ("far [MASK:30] too long", "model's context of 24"),
        ("a [MASK:99999999999999999999]", "longer than this model's context"),
        ("x" * 40 + "[MASK]", "context is 24"),
        ("Ω[MASK]", "U+03A9"),
    ],
)
def test_bad_templates_are_one_clear_line(text, said):
    with pytest.raises(Exception, match=said.replace("+", r"\+")) as caught:
        pipeline().infill(text)
    assert "\n" not in str(caught.value)


def test_bad_prompts_and_lengths_are_one_clear_line():
    with pytest.raises(ConfigError, match="leaves none to write"):
        pipeline().generate("a" * CONTEXT)
    with pytest.raises(ConfigError, match="or raise the length"):
        pipeline().generate("aaaa", length=3)
    with pytest.raises(ConfigError, match="context holds 1 to 24"):
        pipeline().generate(length=25)


def test_frames_and_page_show_each_token_in_the_step_that_revealed_it():
    own = pipeline(sampling=Sampling(steps=4, priority=Raster()))
    canvas = own.make_canvas("<b>".replace("<", "T").replace(">", "."), 11)
    states = list(own.stream_states(canvas.tokens[None]))
    when = find_unmasking_steps(states)
    assert when.tolist()[:3] == [0, 0, 0]
    assert when.tolist()[3:] == sorted(when.tolist()[3:])
    shown = list(render_frames(states, own.tokenizer, canvas.front))
    assert [frame.count("·") for frame in shown] == [8, *(int((when > i).sum()) for i in range(1, 5))]
    assert shown[0].startswith("Tb.")
    text = render_page(states, own.tokenizer, canvas.front, "a <title>", 1)
    assert "a &lt;title&gt;" in text
    assert text.count("data-step=") == len(set(when.tolist()) - {0}), "neighbours of one step share a span"
    assert "http" not in text


def test_a_character_of_several_tokens_is_shown_whole():
    tokenizer = ByteTokenizer(8)
    ids = torch.tensor([*"aé".encode(), 256, *"ï".encode(), 257, 257])
    assert list(group_runs(ids, [0, 1, 1, 1, 2, 2, 3, 3], tokenizer, 0)) == [
        (0, "a"),
        (1, "é⏹"),
        (2, "ï"),
        (None, "··"),
    ]
