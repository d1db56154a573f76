"""The tab Text: each step is shown as it was, all text is escaped, and the lines to copy write the same."""

import html
import re
import shlex
from pathlib import Path

import pytest
from toy_studio import (
    CONTEXT,
    REQUEST,
    click,
    list_defaults,
    make_studio,
    open_tab,
    write_image_run,
    write_text_run,
)

from unmask.app.studio import choose_settings
from unmask.app.tabs.text import TextControls, make_text_tab
from unmask.app.writing import TextWish, decode_texts, stream_texts, write_text_downloads, write_text_lines
from unmask.cli import main
from unmask.errors import ConfigError, ShortageError
from unmask.figures.texts import MASKED_CHARACTER
from unmask.pipelines.text import TextPipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_text_run(tmp_path_factory.mktemp("text") / "run")


@pytest.fixture(scope="module")
def pipeline(run):
    return TextPipeline.from_pretrained(run, device="cpu")


def write_all(pipeline, wish, settings):
    sampling = choose_settings(pipeline.sampling, pipeline.model.grid, settings)
    recording, steps = stream_texts(pipeline, wish, sampling)
    assert list(steps) == list(range(len(recording.states)))
    return recording


WISHES = [
    TextWish(text="the end", num=3, seed=4),
    TextWish(text="", num=1, length=12),
    TextWish(text="-a b", num=2, length=20),
    TextWish(text="The [MASK:3] dog[MASK] 'ran'\n[MASK:2]", num=4, seed=1),
    TextWish(text="[MASK:5]", num=1),
]


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.text or "nothing")
@pytest.mark.parametrize("settings", [{}, {"steps": 7, "order": "raster", "temperature": 0.8, "top_k": 9}])
def test_command_and_python_write_the_texts_of_the_page(run, pipeline, tmp_path, capsys, wish, settings):
    recording = write_all(pipeline, wish, settings)
    texts = decode_texts(pipeline, recording)
    assert len(texts) == wish.num
    plain, page = write_text_downloads(tmp_path, recording, texts)
    command, python = write_text_lines(str(run), wish, settings)

    space: dict = {}
    exec(python, space)  # noqa: S102 - the line is what is tested
    assert space["texts"] == texts

    capsys.readouterr()
    words = shlex.split(command)
    assert words[:2] == ["unmask", "infill" if wish.has_masks else "generate"]
    main([*words[1:], "--device", "cpu"])
    assert capsys.readouterr().out == Path(plain).read_text(encoding="utf-8")
    assert all(html.escape(text.split("\n")[0][:4]) in read_words(Path(page).read_text("utf-8")) for text in texts)


def read_words(page):
    """The text of a page, escaped, without its tags."""
    return re.sub(r"<[^>]*>", "", page)


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.text or "nothing")
def test_each_step_is_shown_as_it_was(pipeline, wish):
    recording = write_all(pipeline, wish, {})
    for number, state in enumerate(recording.states):
        shown = recording.render(number)
        masked = int((state.tokens == pipeline.model.mask_id).sum())
        assert shown.count(MASKED_CHARACTER) == masked
        steps = {int(step) for step in re.findall(r'data-step="(\d+)"', shown)}
        assert steps <= set(range(1, number + 1))
        assert number in steps or number == 0
    assert masked == 0


def test_given_text_has_no_colour_and_each_new_token_that_of_its_step(pipeline):
    recording = write_all(pipeline, TextWish(text="The [MASK:4] end"), {"steps": 4})
    shown = recording.render(len(recording.states) - 1)
    assert "<span>The " in shown
    colours = dict(re.findall(r'data-step="(\d+)" style="color:(rgb\([\d,]+\))"', shown))
    assert colours["1"] == "rgb(214,69,65)"
    assert colours[str(len(recording.states) - 1)] == "rgb(30,100,200)"


def test_all_text_is_escaped(pipeline):
    evil = "<b>&'\"</b>"
    recording = write_all(pipeline, TextWish(text=f"{evil}[MASK:3]"), {})
    for number in range(len(recording.states)):
        shown = recording.render(number)
        assert html.escape(evil) in shown
        assert "<b>" not in shown
        assert set(re.findall(r"</?([a-z]+)", shown)) == {"style", "div", "p", "span"}


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (TextWish(text="a [mask:3] b"), "no mask to fill"),
        (TextWish(text="a [MASK:3] [MASK 4]"), "is no mask"),
        (TextWish(text="[MASK:0]"), "empty hole"),
        (TextWish(text="[MASK:999]"), "context"),
        (TextWish(text="a" * CONTEXT), "leaves none to write"),
        (TextWish(text="A!"), "A"),
        (TextWish(num=5), "5 texts: take 1 to 4"),
    ],
)
def test_what_cannot_be_is_one_sentence(run, pipeline, tmp_path, wish, told):
    studio = make_studio(tmp_path, text=run)
    blocks, tab = open_tab(studio, make_text_tab)
    shown = click(
        blocks, "write_texts", str(run), wish.text, wish.num, wish.length, wish.seed, *list_defaults(tab.settings)
    )
    assert 'role="alert"' in shown["text-status"]
    assert told in html.unescape(shown["text-status"])
    assert "\n" not in shown["text-status"]
    assert "this failed" not in shown["text-status"]
    assert "text-command" not in shown


def test_too_many_tokens_for_the_memory_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr("unmask.runtime.shortage.measure_free_memory", lambda: 100)
    with pytest.raises(ShortageError, match="take fewer texts"):
        stream_texts(pipeline, TextWish(), pipeline.sampling)


def test_a_number_that_is_none_is_refused(pipeline):
    with pytest.raises(ConfigError, match="guid"):
        choose_settings(pipeline.sampling, pipeline.model.grid, {"steps": 0, "guid": 1})


def test_a_length_of_the_whole_context_is_none():
    for length, expected in ((CONTEXT, None), (CONTEXT + 9, None), (0, None), (CONTEXT - 1, CONTEXT - 1)):
        assert TextControls.read("", 1, length, 0, context=CONTEXT).length == expected


# -- the tab -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tab(run, tmp_path):
    studio = make_studio(tmp_path, text=run, image=write_image_run(tmp_path / "image"))
    return studio, *open_tab(studio, make_text_tab)


def press(tab, name, text, **options):
    _, blocks, parts = tab
    return click(blocks, "write_texts", str(name), text, 2, CONTEXT, 3, *list_defaults(parts.settings), **options)


def test_texts_appear_step_by_step_and_the_slider_goes_back(run, pipeline, tab):
    _, blocks, _ = tab
    seen: list = []
    shown = press(tab, run, "the ", before_step=lambda now: seen.append(now.get("text-result")))
    assert "done" in shown["text-status"]
    steps = [page for page in seen if page is not None]
    dots = [page.count(MASKED_CHARACTER) for page in steps]
    assert dots[0] == 2 * (CONTEXT - 4)
    assert dots == sorted(dots, reverse=True)
    assert dots[-1] == 0
    assert shown["text-step"]["maximum"] == len(steps) - 2  # the last one is shown once more, at the end
    back = click(blocks, "scrub", 1)
    assert back["text-result"].count(MASKED_CHARACTER) == dots[1]
    assert click(blocks, "scrub", 99)["text-result"] == shown["text-result"]
    for kind in ("txt", "html"):
        assert Path(shown[f"text-{kind}"]["value"]).is_file()
    made = pipeline.generate("the ", num=2, seed=3, steps=8)
    assert Path(shown["text-txt"]["value"]).read_text() == "".join(f"{text}\n{'-' * 50}\n" for text in made)


def test_a_stopped_text_can_be_stepped_through_and_not_downloaded(run, tab):
    studio, blocks, _ = tab

    def stop(shown):
        if "step 2 of" in shown["text-status"]:
            studio.sessions.find(REQUEST.session_hash).stop.set()

    shown = press(tab, run, "the ", before_step=stop)
    assert "stopped after step 2" in shown["text-status"]
    assert shown["text-txt"]["value"] is None
    assert MASKED_CHARACTER in click(blocks, "scrub", 2)["text-result"]


def test_an_image_model_writes_no_text(tab, tmp_path):
    assert "this is an image model" in press(tab, tmp_path / "image", "a")["text-status"]


def test_the_length_is_that_of_the_model(tab, pipeline):
    _, _, parts = tab
    shown = {block.elem_id: value for block, value in parts.show(pipeline.spec).items()}
    assert shown["text-length"]["maximum"] == CONTEXT
    assert shown["text-steps"]["value"] == pipeline.sampling.steps
