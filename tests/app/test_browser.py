"""The page in a real Chromium: each tab does its work, also by keyboard alone, and asks nobody else for anything.

`UNMASK_RUNS=runs UNMASK_SCREENSHOTS=docs/images pytest tests/app/test_browser.py` writes pictures of it there, with
the runs `runs/demo` and `runs/shakespeare`.
"""

import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("the browser test needs chromium (apt-get install chromium)", allow_module_level=True)

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {"wide": 1280, "narrow": 390}
ONCE = pytest.mark.parametrize("visit", ["wide"], indirect=True)
"""For what does not depend on the width of the page."""
PATIENCE = 60_000
"""Milliseconds to wait for the page."""
INPUTS = {"textbox", "combobox", "slider", "spinbutton", "checkbox", "radio", "button", "tab", "switch", "listbox"}
"""Roles of what a reader can operate."""

INFILL = "the [MASK:5] dog"
MASKED = "#text-result span.hidden"
"""Masked tokens of a text."""


class Visit:
    """A page in the browser, with what it asked for and complained of."""

    def __init__(self, browser, address: str, width: str):
        self.width = width
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": WIDTHS[width], "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("response", self._check_answer)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.goto(address)
        self.page.wait_for_selector("#generate-start")
        self.await_text("#about", "tokens")

    def _check_answer(self, answer) -> None:
        if answer.status >= 400:
            self.complaints.append(f"{answer.status} {answer.url}")

    def await_text(self, selector: str, text: str) -> None:
        """Wait until an element shows a text."""
        self.page.wait_for_function(
            "([where, text]) => document.querySelector(where)?.innerText.includes(text)", arg=[selector, text]
        )

    def open_tab(self, name: str) -> None:
        """Choose a tab by its title."""
        self.page.get_by_role("tab", name=name, exact=True).click()

    def reach(self, selector: str, most: int = 80) -> None:
        """Press Tab until the focus is on an element, or in it."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("where => !!document.activeElement.closest(where)", selector):
                return
        raise AssertionError(f"{most} presses of Tab do not reach {selector}")

    def read_image(self, selector: str) -> str:
        """The address of an image, which names its content."""
        return str(self.page.locator(f"{selector} img").first.get_attribute("src"))

    def choose(self, selector: str, option: str) -> None:
        """Choose the option of a list whose title ends with a text."""
        self.page.locator(f"{selector} input").first.click()
        self.page.get_by_role("option").filter(has_text=re.compile(f"{option}$")).first.click()

    def step_to_start(self, tab: str) -> None:
        """Move a tab's slider to its first step by the keyboard."""
        self.page.locator(f"#{tab}-step input[type=range]").focus()
        self.page.keyboard.press("Home")
        self.page.keyboard.press("Tab")

    def fetch_pixels(self, selector: str) -> list[np.ndarray]:
        """The pixels of all images in an element."""
        sources = self.page.locator(f"{selector} img").evaluate_all("images => images.map(image => image.src)")
        bodies = [self.page.request.get(source).body() for source in sources]
        return [read_pixels(body) for body in bodies]

    def find_nameless(self) -> list[str]:
        """What a reader can operate, but a screen reader cannot name."""
        client = self.page.context.new_cdp_session(self.page)
        nodes = client.send("Accessibility.getFullAXTree")["nodes"]
        nameless = []
        for node in nodes:
            role = node.get("role", {}).get("value")
            if not node.get("ignored") and role in INPUTS and not node.get("name", {}).get("value", "").strip():
                found = client.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
                nameless.append(f"{role} {found.get('nodeName')} {found.get('attributes')}")
        return nameless

    def is_wider_than_its_window(self) -> bool:
        """Whether it scrolls sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))

    def save(self, name: str) -> None:
        """Write a picture of the page, if pictures are wanted."""
        folder = os.environ.get("UNMASK_SCREENSHOTS")
        if folder:
            shot = self.page.screenshot(full_page=True, scale="css")
            picture = Image.open(BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
            picture.save(Path(folder) / f"app-{name}-{self.width}.png", optimize=True)


@pytest.fixture(scope="module")
def browser():
    """One profile for all tests, so that the scripts of the page are loaded once."""
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened.new_context()
        opened.close()


@pytest.fixture(params=WIDTHS)
def visit(request, browser, shown):
    """A visit at each width; nothing is asked of others, and nothing complains."""
    opened = Visit(browser, shown.address, request.param)
    yield opened
    opened.page.close()
    mine = (shown.address, "data:", "blob:")
    assert [url for url in opened.asked if not url.startswith(mine)] == []
    assert opened.complaints == []


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A page with tiny models, or with those of UNMASK_RUNS for pictures."""
    from toy_page import IMAGE, copy_models, open_page

    folder, runs = tmp_path_factory.mktemp("browser"), os.environ.get("UNMASK_RUNS")
    root = Path(runs) if runs else copy_models(folder / "runs")
    with open_page(root, folder, models=[str(root / ("demo" if runs else IMAGE))]) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A small photo: a ring, like a zero."""
    path = tmp_path_factory.mktemp("picture") / "photo.png"
    x, y = np.meshgrid(*[np.linspace(-1.2, 1.2, 64)] * 2)
    ring = 255 * np.exp(-((np.hypot(x * 1.3, y) - 0.8) ** 2) / 0.04)
    Image.fromarray(ring.astype(np.uint8)).convert("RGB").save(path)
    return path


def read_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def check_layout(visit: Visit) -> None:
    assert not visit.is_wider_than_its_window()
    assert visit.find_nameless() == []


def generate(visit: Visit) -> None:
    """Generate, and go back to the first step by the slider's keys."""
    visit.page.click("#generate-start")
    visit.await_text("#generate-status", "done: step")
    visit.page.wait_for_selector("#generate-order img")
    last = visit.read_image("#generate-canvas")
    visit.save("generate")
    visit.step_to_start("generate")
    visit.await_text("#generate-status", "step 0 of")
    assert visit.read_image("#generate-canvas") != last


def test_generate_and_go_back(visit):
    check_layout(visit)
    generate(visit)
    check_layout(visit)
    assert "unmask sample" in visit.page.inner_text("#generate-command")


@ONCE
def test_compare_two_orders(visit):
    visit.open_tab("Compare")
    visit.choose("#compare-a-unmasking-order", "confidence")
    visit.choose("#compare-b-unmasking-order", "raster")
    visit.page.click("#compare-start")
    visit.await_text("#compare-status", "of the tokens are equal")
    assert re.fullmatch(r"done in \d+ and \d+ steps; \d+% of the tokens are equal",
                        visit.page.inner_text("#compare-status").strip())  # fmt: skip
    orders = [visit.read_image(f"#compare-{side}-order") for side in "ab"]
    assert orders[0] != orders[1]
    last = [visit.read_image(f"#compare-{side}-canvas") for side in "ab"]
    visit.save("compare")
    visit.step_to_start("compare")
    visit.await_text("#compare-status", "step 0")
    first = [visit.read_image(f"#compare-{side}-canvas") for side in "ab"]
    assert first[0] == first[1]  # all is masked on both sides
    assert first[0] not in last
    check_layout(visit)


def paint(visit: Visit) -> None:
    """Paint a stroke over the middle of the photo with the mouse."""
    canvas = visit.page.locator("#edit-editor canvas").first
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), None
    while box != before:  # the editor fits the photo into its frame
        visit.page.wait_for_timeout(300)
        box, before = canvas.bounding_box(), box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(x - 50, y - 10)
    visit.page.mouse.down()
    visit.page.mouse.move(x + 50, y + 20, steps=4)
    visit.page.mouse.up()


def test_paint_over_a_photo_and_fill_it_in(visit, picture):
    visit.open_tab("Edit")
    visit.page.set_input_files("#edit-photo input[type=file]", picture)
    visit.await_text("#edit-status", "choose the region to fill")
    visit.page.wait_for_selector("#edit-editor canvas")
    paint(visit)
    visit.page.click("#edit-start")
    visit.await_text("#edit-status", "done: step")
    visit.page.wait_for_selector("#edit-gallery img")
    visit.save("edit")
    variants = visit.fetch_pixels("#edit-gallery")
    assert len(variants) == 4
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Download mask").click()
    hole = read_pixels(download.value.path().read_bytes())[..., 0] > 0
    assert 0.01 < hole.mean() < 0.5
    before = read_pixels(picture.read_bytes())
    for variant in variants:
        assert np.array_equal(variant[~hole], before[~hole])
    assert any((variant[hole] != before[hole]).any() for variant in variants)
    check_layout(visit)


@ONCE
def test_infill_a_text_and_go_back(visit):
    visit.choose("#model", "letters|shakespeare")
    visit.page.wait_for_function("!document.querySelector('#about').innerText.includes('classes')")
    visit.open_tab("Text")
    visit.page.fill("#text-prompt textarea", INFILL)
    visit.page.click("#text-start")
    visit.await_text("#text-status", "done: step")
    before, after = INFILL.split("[MASK:5]")
    text = visit.page.text_content("#text-result p")
    assert text.startswith(before)
    assert text.endswith(after)
    assert len(text) >= len(before + after) + 5
    assert visit.page.locator(MASKED).count() == 0
    visit.save("text")
    visit.step_to_start("text")
    visit.await_text("#text-status", "step 0 of")
    assert visit.page.text_content(MASKED) == "·" * 5
    check_layout(visit)


def test_every_tab_fits_and_names_its_inputs(visit):
    tabs = visit.page.get_by_role("tab").all_inner_texts()
    assert "Generate" in tabs
    for name in tabs:
        visit.open_tab(name)
        folds = visit.page.locator("button.label-wrap:not(.open):visible")
        while folds.count():
            folds.first.click()
        check_layout(visit)
        if name == "Learn":  # the others are shown with their results
            visit.save("learn")


@ONCE
def test_the_keyboard_is_enough(visit):
    visit.reach("#generate-start")
    visit.page.keyboard.press("Enter")
    visit.await_text("#generate-status", "done: step")
    visit.reach("#generate-step input[type=range]")
    last = visit.read_image("#generate-canvas")
    for _ in range(3):
        visit.page.keyboard.press("ArrowLeft")
    visit.page.keyboard.press("Tab")
    visit.page.wait_for_function("last => document.querySelector('#generate-canvas img').src != last", arg=last)
    assert re.search(r"step \d+ of", visit.page.inner_text("#generate-status"))


@ONCE
def test_an_input_without_a_name_is_found(visit):
    visit.page.evaluate("document.body.append(document.createElement('input'))")
    assert [text[:13] for text in visit.find_nameless()] == ["textbox INPUT"]
    visit.page.evaluate("document.querySelector('.gradio-container').style.minWidth = '3000px'")
    assert visit.is_wider_than_its_window()
