"""The lines to copy do what the click did; what the controls say is read with care."""

import json
import shlex

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unmask.app.commands import write_command, write_python
from unmask.app.generating import Wish, stream_wish, write_downloads, write_lines
from unmask.app.lessons import LESSONS, draw_schedule, trace_schedule, write_lessons
from unmask.app.settings import MODELS_VALUE, make_settings, parse_number
from unmask.app.studio import choose_settings
from unmask.app.tabs.compare import describe_agreement, run_comparison
from unmask.cli import main
from unmask.cli.command_flags import list_command_flags
from unmask.decoding.named_counts import FIXED, SHAPED, count_tokens
from unmask.decoding.names import list_shapes
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.pipelines.image import Pipeline

SETTINGS = [
    {},
    {"steps": 3, "order": "halton", "schedule": "arccos", "temperature": 0.7},
    {"guidance": 2.5, "ramp": "linear", "noise": 2.0, "top_k": 5, "top_p": 0.9},
    {"sampler": "remdm-rescale", "steps": 9},
]
WISHES = [Wish(num=3, seed=2), Wish(labels=("3", "7"), num=3, seed=5)]


@pytest.fixture(scope="module")
def pipeline(runs):
    return Pipeline.from_pretrained(runs / "one", device="cpu")


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("wish", WISHES)
def test_command_and_python_give_the_images_of_the_page(pipeline, runs, tmp_path, monkeypatch, settings, wish):
    monkeypatch.chdir(tmp_path)
    sampling = choose_settings(pipeline.sampling, pipeline.model.grid, settings)
    recording, steps = stream_wish(pipeline, wish, sampling)
    for _ in steps:
        pass
    command, python = write_lines(str(runs / "one"), pipeline, wish, settings)

    space: dict = {}
    exec(python, space)  # noqa: S102 - the line is what is tested
    page = pipeline.tokenizer.decode(recording.tokens[-1])
    shown = [Image.fromarray(((x[0] + 1) * 127.5).round().to(torch.uint8).numpy()) for x in page]
    assert [image.tobytes() for image in space["images"]] == [image.tobytes() for image in shown]

    main([*shlex.split(command)[1:], "--columns", str(recording.columns), "--device", "cpu"])
    drawn = Image.open(tmp_path / "samples.png")
    small = recording.frames[-1].resize(drawn.size, Image.Resampling.NEAREST)
    assert drawn.convert("RGB").tobytes() == small.convert("RGB").tobytes()


def test_downloads_hold_the_result_and_all_settings(pipeline, tmp_path):
    recording, steps = stream_wish(pipeline, WISHES[1], Sampling(steps=4))
    for _ in steps:
        pass
    picture, animation, text = write_downloads(
        tmp_path, recording, "runs/x", WISHES[1], {"steps": 4}, Sampling(steps=4)
    )
    assert Image.open(picture).convert("RGB").tobytes() == recording.frames[-1].convert("RGB").tobytes()
    with Image.open(animation) as frames:
        assert frames.n_frames == len(recording.frames)
    with open(text) as file:
        said = json.load(file)
    assert (said["labels"], said["seed"], said["changed"]) == (["3", "7"], 5, {"steps": 4})
    assert said["sampling"]["steps"] == 4


@given(st.lists(st.text(max_size=20), max_size=3), st.text(max_size=30))
def test_whatever_is_typed_stays_one_word_of_the_shell_and_a_string_of_python(words, text):
    line = write_command("sample", ["runs/x", *words], {"prompts": [text], "seed": 1})
    assert shlex.split(line) == ["unmask", "sample", "runs/x", *words, "--prompts", text, "--seed", "1"]
    compile(write_python("runs/x", "images = pipe", [text], {"seed": 0}, prompts=[text]), "line", "exec")


def test_the_flags_of_the_lines_exist(pipeline):
    known = {name for flag in list_command_flags("sample") for name in flag.names}
    for settings in SETTINGS:
        line, _ = write_lines("runs/x", pipeline, WISHES[0], settings)
        assert {word for word in shlex.split(line) if word.startswith("--")} <= known


# -- controls ----------------------------------------------------------------------------------------------------------


def test_controls_left_alone_change_nothing():
    import gradio as gr

    with gr.Blocks():
        settings = make_settings(prefix="x")
    values = tuple(
        8 if name == "steps" else MODELS_VALUE if name in ("order", "ramp") else "" for name in settings.controls
    )
    assert settings.read(values, Sampling(steps=8)) == {}
    assert settings.read(values, Sampling(steps=9)) == {"steps": 8}


@pytest.mark.parametrize(
    ("name", "text", "number"), [("temperature", " 1,5 ", 1.5), ("top_k", "3", 3), ("noise", 0, 0)]
)
def test_numbers_are_read(name, text, number):
    assert parse_number(name, text) == number


@pytest.mark.parametrize(("name", "text"), [("temperature", "warm"), ("top_k", "2.5"), ("steps", "nan"), ("top_k", "")])
def test_what_is_no_number_is_refused(name, text):
    with pytest.raises(ConfigError, match=name.replace("_", " ")):
        parse_number(name, text)


def test_numbers_that_sampling_cannot_use_are_refused(pipeline):
    for settings in ({"temperature": -1.0}, {"top_p": 2.0}, {"steps": 0}, {"temperature": float("nan")}):
        with pytest.raises(ConfigError):
            choose_settings(pipeline.sampling, pipeline.model.grid, settings)


# -- compare and learn -------------------------------------------------------------------------------------------------


def test_equal_settings_give_equal_tokens_and_others_are_told_apart(pipeline):
    recordings, steps = run_comparison(pipeline, Wish(num=2), ({}, {}))
    for _ in steps:
        pass
    assert "100% of the tokens are equal" in describe_agreement(recordings)
    recordings, steps = run_comparison(pipeline, Wish(num=2), ({"steps": 2}, {"steps": 7}))
    for _ in steps:
        pass
    assert describe_agreement(recordings).startswith("done in 2 and 7 steps")
    assert [len(recording.frames) for recording in recordings] == [3, 8]


@given(
    st.sampled_from([*SHAPED, *FIXED]), st.sampled_from(list(list_shapes(64))), st.integers(2, 300), st.integers(1, 40)
)
def test_a_drawn_schedule_is_the_one_of_the_command(style, shape, tokens, steps):
    try:
        counts = count_tokens(style, None if style in FIXED else shape, tokens, steps)
    except ValueError:
        return
    drawing = trace_schedule(style, shape, tokens, steps)
    assert drawing.counts == counts
    assert drawing.ratios[0] == 1
    assert drawing.ratios[-1] == pytest.approx(1 - sum(counts) / tokens)
    assert draw_schedule(drawing, "x").count("<rect") == len(counts)


def test_a_curve_is_drawn_where_the_counts_follow_it():
    drawing = trace_schedule("google", "cosine", 1000, 64)
    assert max(abs(a - b) for a, b in zip(drawing.ratios[:-1], drawing.curve[:-1], strict=True)) < 2e-3
    assert trace_schedule("valeoai-v1", "cosine", 100, 8).curve == []


@pytest.mark.parametrize(("tokens", "steps"), [(0, 8), (5000, 8), (64, 0), (64, 257)])
def test_a_schedule_beyond_the_page_is_refused(tokens, steps):
    with pytest.raises(ConfigError, match="take 1 to"):
        trace_schedule("google", "cosine", tokens, steps)


def test_each_lesson_is_two_sentences_with_a_paper():
    for lesson in LESSONS:
        assert lesson.text.count(". ") + lesson.text.endswith(".") >= 2, lesson.setting
        assert lesson.paper.replace(".", "").isdigit()
    assert write_lessons().count("https://arxiv.org/abs/") == len(LESSONS)


def test_a_title_cannot_break_out_of_the_drawing():
    svg = draw_schedule(trace_schedule("google", "cosine", 4, 2), '"><script>')
    assert "<script>" not in svg
    assert svg.startswith("<svg")
