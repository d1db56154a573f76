"""Other sites, other names of this machine, odd names of folders and classes, and whoever sends slowly."""

import errno
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import anyio
import pytest
import torch
from starlette.datastructures import Headers
from toy_page import IMAGE, Page, copy_models, open_page, read_end, tell

from unmask.app import guard
from unmask.app.guard import Refusal, check_origin, read_body
from unmask.app.models import list_choices
from unmask.app.sessions import measure_bytes
from unmask.app.space import write_readme
from unmask.app.studio import say
from unmask.app.tabs.wishes import show_classes
from unmask.app.writing import TextRecording
from unmask.errors import ConfigError
from unmask.method.sampling.decode import State
from unmask.recipes.reading import read_config
from unmask.tokenizers.text import ByteTokenizer

FOREIGN = "another site's page may not use this one"
ODD = ["<img src=x onerror=alert(1)>", "</script>", "a\nb", "-rf", "a b\"'`$(id)"]
"""Names of folders that would harm a page which takes them for programs."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A page that others in the network can reach; its runs have odd names."""
    root = copy_models(tmp_path_factory.mktemp("odd"))
    for name in [*(odd.replace("/", "%") for odd in ODD), os.fsdecode(b"\xff\xfe")]:
        shutil.copytree(root / IMAGE, root / name)
    with open_page(root, tmp_path_factory.mktemp("log"), host="0.0.0.0") as served:
        yield served


@pytest.fixture
def neighbour(opened):
    """A page of it."""
    with Page(opened.address) as found:
        yield found


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    "path", ["/", "/theme.css", "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a"]
)
def test_a_page_of_another_site_loads_no_part_of_this_one(page, path, site):
    """A script, an image or a frame sends no Origin, so the browser's own word counts."""
    for mode in ("no-cors", "cors"):
        answer = page.client.get(path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode})
        assert (answer.status_code, answer.text) == (403, FOREIGN)


def test_a_link_from_another_site_opens_the_page(page):
    assert (
        page.client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200
    )


def test_no_header_makes_a_foreign_page_ours(page):
    """gradio lets pages of other ports of this machine send any header."""
    event = page.write("generate-stop", {})
    for origin in ("http://localhost:3000", "http://[", "null", "http://", "https://evil.example"):
        headers = {"Origin": origin, "X-Forwarded-Host": origin.partition("://")[2] or "null"}
        answer = page.client.post("/gradio_api/run/predict", json=event, headers=headers)
        assert (answer.status_code, answer.text) == (403, FOREIGN)


def test_each_answer_says_that_it_asks_nobody_else(page):
    for path in ("/", "/theme.css", "/nowhere"):
        headers = page.client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'self'" in headers["Content-Security-Policy"]
        assert "http" not in headers["Content-Security-Policy"]


def test_a_name_that_leads_to_an_open_page_is_refused(neighbour):
    """With --host 0.0.0.0 too, a site could give its own name to an address in this network."""
    port = neighbour.address.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example"):
        answer = neighbour.client.get("/", headers={"Host": host, "Origin": f"http://{host}"})
        assert (answer.status_code, "this page is not at" in answer.text) == (400, True)
    for host in (f"192.168.1.5:{port}", f"[fd00::1]:{port}", "localhost", os.uname().nodename):
        assert neighbour.client.get("/", headers={"Host": host}).status_code == 200


def test_a_proxy_names_the_site():
    headers = {"Host": "10.0.0.7:7860", "X-Forwarded-Host": "someone.hf.space", "Origin": "https://someone.hf.space"}
    check_origin(Headers(headers), (), proxied=True)
    check_origin(Headers({"Host": "someone.hf.space", "Origin": "https://someone.hf.space"}), (), proxied=True)
    with pytest.raises(Refusal, match="another site"):
        check_origin(Headers(headers | {"Origin": "https://evil.example"}), (), proxied=True)
    with pytest.raises(Refusal, match="another site"):
        check_origin(Headers(headers), ())


def test_folders_with_odd_names_are_shown_as_text(neighbour):
    choices = [name for _, name in neighbour.parts[neighbour.ids["model"]]["props"]["choices"]]
    assert len(choices) == 2 + len(ODD)  # no browser can name the one that is no Unicode
    assert ODD[0] not in neighbour.client.get("/").text
    for name in choices:
        assert "tokens, " in tell(neighbour.run("model", {"model": name}, "change"))[-1]


def test_a_named_folder_that_no_browser_can_name_is_refused(models, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(models / IMAGE, folder)
    with pytest.raises(ConfigError, match=r"\\udcff: a browser takes no path that is not Unicode"):
        list_choices([str(folder)], tmp_path, published=False)


def test_a_folder_that_goes_away_is_left_out(models, monkeypatch):
    stat, seen = type(models).stat, []

    def stat_late(path, **options):
        if path == models / IMAGE / "model.safetensors":
            seen.append(path)
            if len(seen) > 1:
                raise FileNotFoundError(errno.ENOENT, "gone")
        return stat(path, **options)

    monkeypatch.setattr(type(models), "stat", stat_late)
    assert [choice.kind for choice in list_choices(root=models, published=False)] == ["text"]


def test_photos_and_texts_count_among_what_is_kept():
    photo = torch.zeros(3, 40, 50, dtype=torch.uint8)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    text = TextRecording(tokenizer=ByteTokenizer(8), front=0, whole=True, steps=1, last=1)
    text.states.append(State(tokens=tokens, revealed=tokens == 0, step=0, t=0.0))
    assert measure_bytes({"edit photo": photo, "text": [text]}) == 6000 + 16 * 8 + 16


def test_a_space_tells_its_training_data_in_one_line():
    assert "data: photos\\n# not a heading\n" in write_readme("mine", "photos\n# not a heading")


def test_half_a_character_is_refused(page, models):
    """Else the message with it could not be sent, and the page would wait."""
    for values in ({"generate-labels": ["\ud800"]}, {"generate-prompt": "\udfff"}):
        answer = page.join("generate-start", {"model": (models / IMAGE).as_posix()} | values)
        assert (answer.status_code, "surrogate" in answer.text) == (400, True)
    assert json.loads(json.dumps(say("a \ud800 <b>")).encode()).count("a ? &lt;b&gt;") == 1


def test_a_class_name_that_is_no_unicode_is_a_number(models):
    spec = read_config(models / IMAGE / "config.json")
    spec = replace(spec, classes=("a\ud800", "<b>", *map(str, range(2, 10))))
    [update] = show_classes(SimpleNamespace, spec, many=True).values()
    assert update["choices"][:3] == ["0", "<b>", "2"]


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch):
    monkeypatch.setattr(guard, "MOST_SECONDS", 0.05)
    with pytest.raises(Refusal, match="send it again"):
        anyio.run(read_body, Headers({}), anyio.sleep_forever, 10)


def test_a_page_with_a_model_starts_no_demo(page, models):
    """Its button is hidden, but on a public page anybody could send the event, and train on that machine."""
    assert read_end(page.run("demo-start")) == "there is a model already: choose it above"
    assert not (models / "demo").exists()
