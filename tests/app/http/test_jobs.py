"""What a page asks for: limits, wrong values, unusable models; each is one sentence, and the server lives on."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from toy_page import IMAGE, TEXT, Page, read_end, tell

DONE = "done: step 8"
CLICKS = int(os.environ.get("CLICKS", "2000"))
"""With 10,000 instead, the memory rose by as little."""


@pytest.fixture
def name(models):
    """The name of the image model."""
    return (models / IMAGE).as_posix()


@pytest.fixture(autouse=True)
def _lives_on(request):
    """After each test, a new page gets its images."""
    yield
    served, models = request.getfixturevalue("served"), request.getfixturevalue("models")
    with Page(served.address) as after:
        assert read_end(after.run("generate-start", {"model": (models / IMAGE).as_posix()})) == DONE


UNUSABLE = [
    ({"generate-steps": 257}, "greater than maximum value 256"),
    ({"generate-steps": -3}, "less than minimum value 1"),
    ({"generate-steps": 10**30}, "greater than maximum"),
    ({"generate-num": 17}, "greater than maximum value 16"),
    ({"generate-num": 0}, "less than minimum"),
    ({"generate-num": 1e308}, "greater than maximum"),
    ({"generate-seed": 10**40}, "must have at most 18 digits"),
    ({"generate-labels": ["nobody"]}, "no class nobody"),
    ({"generate-labels": ["99"]}, "no class 99"),
    ({"generate-labels": ["-1"]}, "no class -1"),
    ({"generate-prompt": "a" * 1001}, "the prompt has 1,001 characters: take at most 1,000"),
    ({"model": "/etc"}, "not in the list of choices"),
    ({"model": "../../../etc"}, "not in the list of choices"),
    ({"model": None}, "choose a model first"),
]


def test_a_value_that_cannot_be_used_is_told(page, name):
    for values, said in UNUSABLE:
        assert said in read_end(page.run("generate-start", {"model": name} | values))


def test_odd_types_change_nothing(page, name):
    for value in ("NaN", "Infinity", '{"a": 1}', "[1]", '"x"', "true", "null", "1e999", "[[[]]]"):
        for part in ("generate-steps", "generate-num", "generate-seed", "generate-labels", "model"):
            answer = page.join("generate-start", {"model": name, part: json.loads(value)})
            assert answer.status_code in (200, 400, 422)
            if answer.status_code == 200:
                with page.listen() as messages:
                    assert [*messages][-1]["msg"] == "close_stream"


def test_events_that_are_not_there_change_nothing(page, name):
    event = page.write("generate-start", {"model": name})
    odd: list[dict] = [{"fn_index": number} for number in (9999, -1, None)] + [{"trigger_id": "x"}, {"batched": True}]
    odd += [{"data": data} for data in ([], None, {"a": 1}, event["data"] * 50)]
    for change in odd:
        answer = httpx.post(f"{page.address}/gradio_api/queue/join", json=event | change)
        assert answer.status_code in (200, 400, 422, 500)


def test_a_text_model_is_told_where_to_go(page, models):
    assert "use the tab Text" in read_end(page.run("generate-start", {"model": (models / TEXT).as_posix()}))


@contextmanager
def another_model(served, models, name):
    """A copy of the model that the page offers after a refresh."""
    shutil.copytree(models / IMAGE, models / name)
    try:
        with Page(served.address) as page:
            page.run("model-refresh")
            yield page, (models / name).as_posix()
    finally:
        shutil.rmtree(models / name, ignore_errors=True)
        with Page(served.address) as page:
            page.run("model-refresh")


def test_a_refresh_finds_new_models_and_forgets_deleted_ones(served, models, page):
    with another_model(served, models, "new") as (opened, name):
        assert read_end(opened.run("generate-start", {"model": name})) == DONE
    assert name in json.dumps(opened.config) or name not in json.dumps(page.config)
    assert "not in the list" in read_end(page.run("generate-start", {"model": name}))


def test_a_model_that_was_deleted_while_the_page_is_open_is_told(served, models):
    with another_model(served, models, "gone") as (page, name):
        assert read_end(page.run("generate-start", {"model": name})) == DONE
        shutil.rmtree(models / "gone")
        said = read_end(page.run("generate-start", {"model": name}))
        assert "gone: no config.json there" in said
        assert "gone" in tell(page.run("model", {"model": name}, "change"))[-1]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing"])
def test_damaged_weights_are_told(served, models, damage):
    with another_model(served, models, damage) as (page, name):
        weights = Path(name) / "model.safetensors"
        if damage == "missing":
            weights.unlink()
        else:
            weights.write_bytes({"cut": weights.read_bytes()[:-100], "empty": b"", "text": b"no weights" * 99}[damage])
        messages = page.run("generate-start", {"model": name})
        assert damage in read_end(messages)
        assert "this failed" not in read_end(messages)


def test_a_model_that_does_not_fit_into_memory_is_told(served, models):
    with another_model(served, models, "large") as (page, name), served.turn(free=1000):
        assert "this needs at least" in read_end(page.run("generate-start", {"model": name}))


def test_images_that_do_not_fit_into_memory_are_told(served, page, name):
    page.run("generate-start", {"model": name})
    with served.turn(free=1000):
        assert "take fewer images at once" in read_end(page.run("generate-start", {"model": name, "generate-num": 16}))


def test_two_pages_get_their_own_results(served, name):
    def generate(seed: int) -> str:
        with Page(served.address) as page:
            said = page.run("generate-start", {"model": name, "generate-seed": seed, "generate-num": 1})
            assert read_end(said) == DONE
            scrubbed = page.run("generate-step", {"generate-step": 8}, "input")
            return find_image(json.dumps(scrubbed[-2]["output"]["data"]))

    with ThreadPoolExecutor(3) as pool:
        together = [*pool.map(generate, range(3))]
    assert together == [*map(generate, range(3))]
    assert len({*together}) == 3


def find_image(text: str) -> str:
    """The hash of the first image of an answer, by which gradio names its file."""
    return text[text.index("/unmask-app-") :].split("/")[2]


def test_stop_ends_a_job_at_its_next_step(served, page, name):
    with served.turn(slow=0.5):
        page.join("generate-start", {"model": name})
        with page.listen() as messages:
            seen = []
            for message in messages:
                seen.append(message)
                if "step 1 of 8" in json.dumps(message):
                    assert page.press_stop("generate-stop") == "stopping at the next step"
    assert read_end(seen) in ("stopped after step 1", "stopped after step 2", "stopped after step 3")


def test_a_page_that_was_killed_frees_the_model(served, page, name):
    """Its connections break in the middle of a job; the next page does not wait for the rest of it."""
    with served.turn(slow=0.5), Page(served.address) as killed:
        killed.join("generate-start", {"model": name, "generate-steps": 16})
        with killed.client.stream("GET", f"/gradio_api/heartbeat/{killed.name}"), killed.listen() as messages:
            for message in messages:
                if "step 1 of 16" in json.dumps(message):
                    break
        killed.client.close()
        started = time.monotonic()
        page.join("generate-start", {"model": name, "generate-steps": 1})
        with page.listen() as messages:
            assert read_end([*messages]) == "done: step 1"
    assert time.monotonic() - started < 6  # 14 steps of the killed page would take 7 seconds


def test_a_page_that_was_killed_leaves_no_downloads(served, page, name):
    before = {*served.folder.glob("downloads/*")}
    with page.client.stream("GET", f"/gradio_api/heartbeat/{page.name}"):
        page.run("generate-start", {"model": name})
        assert {*served.folder.glob("downloads/*")} - before
    page.client.close()
    ends = time.monotonic() + 10
    while {*served.folder.glob("downloads/*")} - before and time.monotonic() < ends:
        time.sleep(0.1)
    assert not {*served.folder.glob("downloads/*")} - before


def test_more_than_sixteen_waiting_jobs_are_refused(served, name):
    with served.turn(slow=0.3), Page(served.address) as page:
        answers = [page.join("generate-start", {"model": name}) for _ in range(25)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) >= 25 - 16 - 2
        assert "Queue is full" in refused[0].text
        with page.listen() as messages:
            next(messages)  # then this page goes, and its jobs with it


def test_thousands_of_clicks_leave_the_server_as_it_was(served, name):
    """Hammer start, slider and stop, and read no answer; the memory stays, and a page afterwards gets its images."""
    with Page(served.address) as page:
        page.run("generate-start", {"model": name})
        events = [
            ("/gradio_api/queue/join", page.write("generate-step", {"generate-step": 3}, "input")),
            ("/gradio_api/queue/join", page.write("generate-start", {"model": name, "generate-steps": 1})),
            ("/gradio_api/run/predict", page.write("generate-stop", {})),
        ]

        def click(number: int) -> int:
            route, event = events[number % 3]
            return page.client.post(route, json=event).status_code

        with ThreadPoolExecutor(4) as pool:
            first = [*pool.map(click, range(CLICKS // 5))]
            before = served.memory
            rest = [*pool.map(click, range(CLICKS))]
        print(f"{CLICKS} clicks: {before / 1e6:.0f} to {served.memory / 1e6:.0f} MB")
        assert {*first, *rest} <= {200, 429, 503}
        assert 429 in rest or 503 in rest
        assert served.memory - before < 100e6
        with page.listen() as messages:
            next(messages)


def test_results_that_were_dropped_are_told(page):
    said = read_end(page.run("generate-step", {"generate-step": 1}, "input"))
    assert said == "the server no longer keeps this result: generate it again"
