"""The folder of a Space runs alone: its app.py answers a browser behind a proxy, and generates."""

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from toy_page import EARLIER, Page, read_end

from unmask.app.space import write_space
from unmask.errors import ConfigError

SITE = "someone-digits.hf.space"


def find_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def run_app(folder):
    """Run app.py from another folder, with no other unmask in sight."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(find_port()), "OMP_NUM_THREADS": "1", "SPACE_ID": "someone/digits"}
    command = [sys.executable, str(folder / "app.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder.parent) as process:
        try:
            yield process.stdout.readline().strip(), environment["GRADIO_SERVER_PORT"]
        finally:
            process.kill()


def test_a_space_generates(tmp_path):
    space = tmp_path / "space"
    write_space(EARLIER / "run", space)
    assert {path.name for path in space.iterdir()} == {"app.py", "requirements.txt", "README.md", "model", "unmask"}
    head = dict(re.findall(r"^(\w+): (.*)$", (space / "README.md").read_text().split("---")[1], re.M))
    assert head["sdk"] == "gradio"
    assert re.fullmatch(r"6\.\d+\.\d+", head["sdk_version"])
    assert head["app_file"] == "app.py"
    requirements = (space / "requirements.txt").read_text().split("\n")
    assert f"gradio=={head['sdk_version']}" in requirements
    assert [line for line in requirements if re.match(r"torch\W", line)]
    assert not [line for line in requirements if "pytest" in line or "/" in line]
    with run_app(space) as (address, port):
        assert address.endswith(f":{port}/")
        headers = {"Host": "10.1.2.3:7860", "X-Forwarded-Host": SITE, "Origin": f"https://{SITE}"}
        with Page(f"http://127.0.0.1:{port}", **headers) as page:
            assert read_end(page.run("generate-start", {"model": "model"})) == "done: step 8"
            choices = [c["props"]["choices"] for c in page.config["components"] if c["props"].get("elem_id") == "model"]
            assert choices == [[["model", "model"]]]
            assert str(space) not in json.dumps(page.config)
            other = page.client.post("/gradio_api/run/predict", json={}, headers={"Origin": "https://evil.example"})
            assert other.status_code == 403


def test_a_space_is_written_again_and_other_files_are_kept(tmp_path):
    write_space(EARLIER / "export", tmp_path / "space")
    write_space(EARLIER / "text_export", tmp_path / "space")
    assert "text" in (tmp_path / "space/model/config.json").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/app.py").write_text("print('mine')")
    with pytest.raises(ConfigError, match=r"app\.py"):
        write_space(EARLIER / "export", tmp_path / "mine")
    assert (tmp_path / "mine/app.py").read_text() == "print('mine')"
    assert not (tmp_path / "mine/model").exists()
