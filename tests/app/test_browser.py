"""The page in a real Chromium: it generates, steps back, works by keyboard alone, and asks nobody else for anything.

`UNMASK_SCREENSHOTS=docs/images pytest tests/app/test_browser.py` writes pictures of it there.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("the browser test needs chromium (apt-get install chromium)", allow_module_level=True)

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDTHS = {"wide": 1280, "narrow": 390}
PATIENCE = 60_000
"""Milliseconds to wait for the page."""
INPUTS = {"textbox", "combobox", "slider", "spinbutton", "checkbox", "radio", "button", "tab", "switch", "listbox"}
"""Roles of what a reader can operate."""


class Visit:
    """A page in the browser, with what it asked for and complained of."""

    def __init__(self, browser, address: str, width: int):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("response", self._check_answer)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.complaints.append(said.text))
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
            self.page.screenshot(path=Path(folder) / f"app-{name}.png", full_page=True, scale="css")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=WIDTHS)
def visit(request, browser, shown):
    """A visit at each width; nothing is asked of others, and nothing complains."""
    opened = Visit(browser, shown.address, WIDTHS[request.param])
    opened.width = request.param
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
    with open_page(root, folder, models=[] if runs else [str(root / IMAGE)]) as opened:
        yield opened


def check_layout(visit: Visit) -> None:
    assert not visit.is_wider_than_its_window()
    assert visit.find_nameless() == []


def generate(visit: Visit) -> None:
    """Generate, and go back to the first step by the slider's keys."""
    visit.page.click("#generate-start")
    visit.await_text("#generate-status", "done: step")
    visit.page.wait_for_selector("#generate-order img")
    last = visit.read_image("#generate-canvas")
    visit.save(f"generate-{visit.width}")
    visit.page.locator("#generate-step input[type=range]").focus()
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("Tab")
    visit.await_text("#generate-status", "step 0 of")
    assert visit.read_image("#generate-canvas") != last


def test_generate_and_go_back(visit):
    check_layout(visit)
    generate(visit)
    check_layout(visit)
    assert "unmask sample" in visit.page.inner_text("#generate-command")


def test_every_tab_fits_and_names_its_inputs(visit):
    tabs = visit.page.get_by_role("tab").all_inner_texts()
    assert "Generate" in tabs
    for name in tabs:
        visit.open_tab(name)
        folds = visit.page.locator("button.label-wrap:not(.open):visible")
        while folds.count():
            folds.first.click()
        check_layout(visit)
        if name != "Generate":  # which is shown with its result
            visit.save(f"{name.lower()}-{visit.width}")


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


def test_an_input_without_a_name_is_found(visit):
    visit.page.evaluate("document.body.append(document.createElement('input'))")
    assert [text[:13] for text in visit.find_nameless()] == ["textbox INPUT"]
    visit.page.evaluate("document.querySelector('.gradio-container').style.minWidth = '3000px'")
    assert visit.is_wider_than_its_window()
