"""A page of `unmask app` without a browser: what a browser sends over HTTP, and what it gets."""

import html
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

EARLIER = Path(__file__).parents[1] / "fixtures/earlier"
IMAGE, TEXT = "digits", "letters"
"""Names of the two models of `copy_models`."""
SAID = re.compile(r'<p role=\\?"(status|alert)\\?"[^>]*>(.*?)</p>', re.DOTALL)


def copy_models(root: Path) -> Path:
    """Copy a tiny image model and a tiny text model below `root`."""
    shutil.copytree(EARLIER / "export", root / IMAGE)
    shutil.copytree(EARLIER / "text_export", root / TEXT)
    return root


@dataclass(frozen=True, kw_only=True)
class Served:
    """A server in a process of its own: types are not checked there, as gradio reads signatures."""

    address: str
    folder: Path
    process: "subprocess.Popen[str]"
    log: Path
    knobs: Path

    @contextmanager
    def turn(self, **values: float) -> Iterator[None]:
        """Turn knobs of `PROGRAM`: `slow`, seconds of a step, and `free`, bytes of free memory."""
        self.knobs.write_text(json.dumps(values))
        try:
            yield
        finally:
            self.knobs.write_text("{}")

    @property
    def memory(self) -> int:
        """Resident bytes of the server."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


PROGRAM = """
import json, os, sys, time
from pathlib import Path
from unmask.app import watching
from unmask.runtime import shortage
knobs = Path(sys.argv[2])
def read(name):
    return json.loads(knobs.read_text()).get(name)
measure, free = watching.Watcher.measure, shortage.measure_free_memory
def measure_slowly(self, state):
    time.sleep(read("slow") or 0)
    return measure(self, state)
watching.Watcher.measure = measure_slowly
shortage.measure_free_memory = lambda: free() if read("free") is None else read("free")
PREPARE
from unmask.app.server import serve
with serve(root=Path(sys.argv[1]), **json.loads(sys.argv[3])) as served:
    print(served.address, os.environ["GRADIO_TEMP_DIR"], flush=True)
    sys.stdin.read()
"""


@contextmanager
def open_page(root: Path, folder: Path, prepare: str = "", **arguments: Any) -> Iterator[Served]:
    """Serve a page; its log and its knobs are in `folder`.

    Args:
        root: Where its models are.
        folder: An own folder.
        prepare: Python to run before.
        arguments: Those of `serve`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    knobs, log = folder / "knobs.json", folder / "log.txt"
    knobs.write_text("{}")
    given = json.dumps({"published": False, **arguments})
    command = [sys.executable, "-c", PROGRAM.replace("PREPARE", prepare), str(root), str(knobs), given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as errors, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
    ) as process:  # fmt: skip
        try:
            said = process.stdout.readline().split()  # type: ignore[union-attr]
            assert said, log.read_text()
            yield Served(address=said[0].rstrip("/"), folder=Path(said[1]), process=process, log=log, knobs=knobs)
        finally:
            process.stdin.close()  # type: ignore[union-attr]
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


class Page:
    """An open page: its components by `elem_id`, and its events."""

    def __init__(self, address: str, **headers: str):
        self.address, self.name = address.rstrip("/"), secrets.token_hex(6)
        self.client = httpx.Client(base_url=self.address, headers=headers, timeout=30)
        text = self.client.get("/").text
        self.config = json.JSONDecoder().raw_decode(text[text.index("window.gradio_config = ") + 23 :])[0]
        self.parts = {c["id"]: c for c in self.config["components"]}
        self.ids = {c["props"].get("elem_id"): c["id"] for c in self.config["components"]}

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def find(self, name: str, event: str = "click") -> dict[str, Any]:
        """The event of a component."""
        wanted = [self.ids[name], event]
        return next(d for d in self.config["dependencies"] if wanted in [list(t) for t in d["targets"]])

    def write(self, name: str, values: dict[str, Any], event: str = "click") -> dict[str, Any]:
        """What a browser sends for an event; `values` by `elem_id` replace those that the page shows."""
        found = self.find(name, event)
        named = {self.ids[key]: value for key, value in values.items()}
        data = [named.get(i, self.parts[i]["props"].get("value")) for i in found["inputs"]]
        return {"data": data, "fn_index": found["id"], "session_hash": self.name, "trigger_id": self.ids[name]}

    def join(self, name: str, values: dict[str, Any] | None = None, event: str = "click") -> httpx.Response:
        """Put an event into the queue."""
        sent = json.dumps(self.write(name, values or {}, event))
        return self.client.post("/gradio_api/queue/join", content=sent, headers={"Content-Type": "application/json"})

    @contextmanager
    def listen(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages to this page."""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.name}) as answer:
            yield (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))

    def run(self, name: str, values: dict[str, Any] | None = None, event: str = "click") -> list[dict[str, Any]]:
        """Run an event to its end, and return its messages."""
        answer = self.join(name, values, event)
        assert answer.status_code == 200, answer.text
        with self.listen() as messages:
            return list(messages)

    def press_stop(self, name: str) -> str:
        """Press a button that does not wait in the queue."""
        return tell(self.client.post("/gradio_api/run/predict", json=self.write(name, {})).json())[-1]


def tell(messages: Any) -> list[str]:
    """The sentences that the page shows, in their order."""
    return [html.unescape(text) for _, text in SAID.findall(json.dumps(messages, ensure_ascii=False))]


def read_end(messages: list[dict[str, Any]]) -> str:
    """The last sentence of an event: of its status, or of gradio's own note."""
    end = next(m for m in messages if m["msg"] == "process_completed")
    if not end["success"]:
        return str(end["output"].get("error"))
    return tell(messages)[-1]
