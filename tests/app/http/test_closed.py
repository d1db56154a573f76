"""The server gives nothing but its page, to nobody but this machine's browser: routes, hosts, files, sizes."""

import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image
from toy_page import IMAGE, Page, open_page

from unmask.app.guard import Guard
from unmask.app.server import LOCAL

SECRET = "not for the page"


def encode(width: int, height: int, kind: str = "PNG") -> bytes:
    data = BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).save(data, kind)
    return data.getvalue()


def upload(page: Page, name: str, data: bytes, **headers: str) -> httpx.Response:
    return page.client.post("/gradio_api/upload", files={"files": (name, data)}, headers=headers)


@pytest.fixture
def folder(served):
    """Where the page's files are."""
    return served.folder


@pytest.mark.parametrize(
    "path",
    [
        "/config", "/info", "/gradio_api/info", "/gradio_api/openapi.json", "/openapi.json", "/docs", "/redoc",
        "/gradio_api/proxy=https://example.org/", "/gradio_api/proxy=http://127.0.0.1:22/", "/gradio_api/token",
        "/gradio_api/file=http://example.org/a.png", "/gradio_api/file/etc/passwd", "/gradio_api/runs",
        "/gradio_api/dev/reload", "/gradio_api/call/generate/1", "/gradio_api/queue/status", "/gradio_api/vibe-code",
        "/gradio_api/deep_link?session_hash=1", "/gradio_api/stream/1/1/1/playlist-file", "/monitoring",
        "/monitoring/summary", "/gradio_api/custom_component/1/server/a/b", "/gradio_api/run-history/buckets",
        "/static/..%2f..%2fblocks.py", "/static/../../blocks.py", "/assets/%2e%2e/%2e%2e/%2e%2e/blocks.py", "/login",
    ],
)  # fmt: skip
def test_routes_that_the_page_does_not_use_are_closed(page, path):
    answer = page.client.get(path)
    assert answer.status_code in (403, 404)
    assert len(answer.text) < 200


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/call/generate", "/gradio_api/api/predict", "/gradio_api/vibe-edit/", "/gradio_api/process_recording",
     "/gradio_api/cancel", "/gradio_api/stream/1", "/gradio_api/run/generate", "/login", "/"],
)  # fmt: skip
def test_posts_that_the_page_does_not_make_are_refused(page, path):
    assert page.client.post(path, json={"data": [], "session_hash": page.name}).status_code == 404


def test_only_methods_of_a_page_are_answered(page):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert page.client.request(method, "/").status_code == 404


def test_files_of_the_machine_stay_there(page, models, folder, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text(SECRET)
    (folder / "link.txt").symlink_to(outside)
    (folder / "link").symlink_to(tmp_path)
    paths = [
        "/etc/passwd", str(outside), f"{folder}/../{tmp_path.name}/secret.txt", f"{folder}/%2e%2e/%2e%2e/etc/passwd",
        str(models / "digits/model.safetensors"), str(models / "digits/config.json"), f"{folder}/link.txt",
        f"{folder}/link/secret.txt", str(folder), "relative.txt", "pyproject.toml", "%00", "a" * 5000,
        f"file://{outside}", "\\\\server\\share",
    ]  # fmt: skip
    for path in paths:
        answer = page.client.get(f"/gradio_api/file={path}")
        assert answer.status_code == 403, path
        assert answer.text == "this page reads only files that were uploaded to it"  # before gradio looks
    (folder / "own.txt").write_text("mine")
    assert page.client.get(f"/gradio_api/file={folder}/own.txt").text == "mine"


def test_an_event_names_no_file_or_address_of_its_own(page, monkeypatch):
    """Else gradio would open the file, or fetch the address from here."""
    for value in (
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:9/a.png", "meta": {"_type": "gradio.FileData"}},
        {"path": "https://example.org/a.png", "url": "https://example.org/a.png"},
        {"url": "data:image/png;base64,AAAA"},
        [{"background": {"path": "../../etc/passwd"}}],
    ):
        answer = page.join("generate-start", {"generate-prompt": value})
        assert answer.status_code in (400, 403)
        assert re.search("upload", answer.text)


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/theme.css", "/gradio_api/queue/join", "/gradio_api/queue/data?session_hash=a"])
def test_a_foreign_host_is_refused(page, method, path):
    """A name of another site that leads to this machine (DNS rebinding)."""
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[", "localhost@evil.example"):
        answer = page.client.request(method, path, headers={"Host": host})
        assert answer.status_code == 400
        assert method == "HEAD" or "this page is not at" in answer.text


def test_this_machine_has_its_names(page):
    port = page.address.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
        assert page.client.get("/", headers={"Host": host}).status_code == 200


def test_a_page_of_another_site_or_port_is_refused(page):
    event = page.write("generate-stop", {})
    for origin in ("https://evil.example", "http://localhost:3000", "null", "http://127.0.0.1:1"):
        answer = page.client.post("/gradio_api/run/predict", json=event, headers={"Origin": origin})
        assert (answer.status_code, answer.text) == (403, "another site's page may not use this one")
        assert page.client.get("/gradio_api/queue/data?session_hash=a", headers={"Origin": origin}).status_code == 403
    answer = page.client.post("/gradio_api/run/predict", json=event, headers={"Origin": page.address})
    assert answer.status_code == 200


def test_a_websocket_is_refused(page):
    host = page.address.removeprefix("http://")
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
               "Sec-WebSocket-Version": "13", "Host": host}  # fmt: skip
    assert page.client.get("/gradio_api/queue/join", headers=upgrade).status_code in (403, 404)


def test_an_image_is_taken(page, folder):
    for kind in ("PNG", "JPEG", "WEBP"):
        path = Path(upload(page, f"a.{kind.lower()}", encode(30, 20, kind)).json()[0])
        assert path.is_relative_to(folder)
        assert path.is_file()


@pytest.mark.parametrize(
    ("name", "data", "status", "said"),
    [
        ("large.png", encode(4001, 4000), 415, "more than 16000000 pixels"),
        ("a.html", b"<script>alert(1)</script>", 415, "PNG, JPEG"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "PNG, JPEG"),
        ("a.png", b"", 415, "PNG, JPEG"),
        ("a.png", encode(64, 64)[:-20], 415, "PNG, JPEG"),
        ("heavy.png", bytes(20_100_000), 413, "at most 20,010,000 bytes"),
    ],
    ids=["pixels", "html", "svg", "empty", "cut", "bytes"],
)
def test_what_is_no_image_or_a_large_one_is_refused(page, folder, name, data, status, said):
    before = {*folder.rglob("*")}
    answer = upload(page, name, data)
    assert answer.status_code == status
    assert said in answer.text
    assert not [path for path in {*folder.rglob("*")} - before if path.is_file()]


def test_the_largest_image_is_taken(page):
    assert upload(page, "a.png", encode(4000, 4000)).status_code == 200


@pytest.mark.parametrize("name", ["../../../../tmp/x.png", "/etc/x.png", "..", "a\x00b.png", "x" * 400 + ".png"])
def test_an_odd_name_of_a_file_leads_nowhere(page, folder, name):
    answer = upload(page, name, encode(8, 8))
    if answer.status_code == 200:
        assert Path(answer.json()[0]).resolve().is_relative_to(folder)


def test_a_body_without_end_is_cut(page):
    def pour():
        for _ in range(10_000):
            yield bytes(100_000)

    answer = page.client.post("/gradio_api/queue/join", content=pour(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"1", b"[" * 200_000, b'{"data": []}', b'{"data": [], "session_hash": "../../x"}',
     b'{"data": [], "session_hash": 3}', b"\xff\xfe", b"x" * 1_100_000],
)  # fmt: skip
def test_what_is_no_event_is_refused(page, body):
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        answer = page.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413)


def test_an_event_is_limited_in_bytes(page):
    body = b'{"data": [], "session_hash": "abc", "more": [' + b"1, " * 340_000 + b"1]}"
    answer = page.client.post("/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.text) == (
        413, "at most 1,000,000 bytes: take a smaller image or a shorter text",
    )  # fmt: skip


def test_a_long_text_is_refused(page):
    answer = page.join("generate-start", {"generate-prompt": "a" * 20_001})
    assert (answer.status_code, answer.text) == (
        413, "a text may have 20,000 characters, and this one has 20,001: shorten it",
    )  # fmt: skip


def send_painting(page: Page, data: bytes = b"", **said: str) -> httpx.Response:
    form = {"type": "layer", "index": "0", "id": "1", "fn_name": "accept_blobs", "component_id": "0"}
    form |= {"session_hash": page.name} | said
    return page.client.post("/gradio_api/component_server", data=form, files={"file": ("blob", data or encode(9, 9))})


def test_a_painting_is_limited(page):
    assert send_painting(page, index="1000000000").status_code == 413
    assert send_painting(page, encode(4001, 4000)).status_code == 415
    assert send_painting(page, b"<svg/>").status_code == 415
    for said in ({"fn_name": "__init__"}, {"session_hash": "../x"}, {"fn_name": "postprocess"}):
        assert send_painting(page, **said).status_code == 400
    answer = page.client.post("/gradio_api/component_server", json={"data": 1, "component_id": 1, "fn_name": "x"})
    assert answer.status_code == 400


def test_paintings_that_nobody_fetches_are_dropped(tmp_path):
    """An image editor keeps what is sent to it until its event starts, which may be never."""
    editor = SimpleNamespace(blob_storage=dict.fromkeys(map(str, range(100))))
    copied = SimpleNamespace(blob_storage=dict.fromkeys(map(str, range(100))))
    state = SimpleNamespace(blocks_config=SimpleNamespace(blocks={1: copied, 2: SimpleNamespace()}))
    app = SimpleNamespace(state_holder=SimpleNamespace(session_data={"page": state}))
    layer = Guard(lambda *_: None, hosts=(), folder=tmp_path, page=SimpleNamespace(blocks={0: editor}, app=app))
    layer.forget_paintings("page")
    assert list(editor.blob_storage) == list(copied.blob_storage) == [str(i) for i in range(85, 100)]


def test_the_page_asks_for_nothing_from_elsewhere(page):
    text = page.client.get("/").text
    assert "googletagmanager" not in text
    assert {*LOCAL} >= {"127.0.0.1", "localhost"}
    assert '"analytics_enabled":false' in json.dumps(page.config, separators=(",", ":"))


def test_all_files_are_gone_at_the_end(models, tmp_path):
    with open_page(models, tmp_path) as served:
        with Page(served.address) as opened:
            opened.run("generate-start", {"model": str(models / IMAGE)})
        assert [*served.folder.rglob("*.gif")]
        port = int(served.address.rpartition(":")[2])
        said = f"port {port} is in use: give another --port, or leave it out"
        with pytest.raises(AssertionError, match=said), open_page(models, tmp_path / "second", port=port):
            pass
    assert not served.folder.exists()
    assert "Traceback" not in served.log.read_text()


def test_gradio_is_asked_for_in_one_sentence():
    program = "import sys; sys.modules['gradio'] = None\nfrom unmask.app.server import require_gradio\nrequire_gradio()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "the page needs gradio: pip install 'unmask[app]'" in ended.stderr
