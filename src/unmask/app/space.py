"""Write a folder that runs as a Hugging Face Space: the page, for one model."""

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from unmask.app.server import require_gradio
from unmask.errors import ConfigError
from unmask.pipelines.load import export_model
from unmask.pretrained.conditions import takes_prompts
from unmask.published.opening import OpenedModel, open_model
from unmask.recipes.spec import ModelSpec
from unmask.storage.files import escape_line, write_text
from unmask.storage.layout import README
from unmask.storage.outputs import MARK, check_folder

MODEL_FOLDER = "model"
"""The export in a Space."""
PACKAGE = "unmask"
"""The copy of this package in a Space: it is not on a package index, and a Space installs no wheel of its own."""
APP, REQUIREMENTS = "app.py", "requirements.txt"
SPACE_PROGRAM = f'''"""A model of unmask in the browser ({MARK}: unmask app --space)."""

import os
import threading
from pathlib import Path

from unmask.app.server import serve

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    with serve(["{MODEL_FOLDER}"], host="0.0.0.0", port=port, published=False) as page:
        print(page.address, flush=True)
        threading.Event().wait()
'''


def write_space(model: str | Path, out: Path, *, overwrite: bool = False) -> None:
    """Write a Space: app.py, requirements.txt, README.md, the model's export, and a copy of this package.

    Push the folder to a Space's repository, or run it here with `python app.py`.

    Args:
        model: A run, an export, a published model, or hf-hub:OWNER/NAME.
        out: The folder to write.
        overwrite: Replace files that unmask did not make.

    Raises:
        CheckpointError: There is no such model, or it is damaged.
        ConfigError: It makes neither images nor texts, or `out` holds other files.
        DiskError: `out` cannot be written.
    """
    require_gradio()
    opened = open_model(model)
    spec = opened.require_text_spec("sample") if opened.is_text else opened.require_image_spec()
    names = [APP, REQUIREMENTS, README, PACKAGE]
    is_ours = (out / APP).is_file() and MARK in (out / APP).read_text(encoding="utf-8", errors="replace")
    check_folder(out, names, ours={*names} if is_ours else set(), overwrite=overwrite)
    requirements = list_requirements(opened)
    out.mkdir(parents=True, exist_ok=True)
    export_model(opened, out / MODEL_FOLDER, overwrite=overwrite)
    shutil.rmtree(out / PACKAGE, ignore_errors=True)
    shutil.copytree(Path(__file__).parents[1], out / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    write_text("\n".join(requirements) + "\n", out / REQUIREMENTS)
    title = Path(model).name if Path(model).exists() else str(model)
    write_text(write_readme(title, spec.trained_on), out / README)
    write_text(SPACE_PROGRAM, out / APP)


def list_requirements(opened: OpenedModel) -> list[str]:
    """Return what pip must install: the packages that unmask needs, those of this kind of model, and this gradio."""
    try:
        wanted = metadata.requires("unmask") or []
    except metadata.PackageNotFoundError as error:
        raise ConfigError("unmask is not installed, so its requirements are unknown: pip install it") from error
    extras = ["text"] if opened.is_text else []
    if isinstance(opened.config, ModelSpec) and takes_prompts(opened.config.model):
        extras.append("prompts")
    chosen = []
    for line in wanted:
        package, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra is None or extra[1] in extras:
            chosen.append(package.strip())
    return [*chosen, f"gradio=={metadata.version('gradio')}"]


def write_readme(title: str, trained_on: str | None) -> str:
    """Return the README of a Space, whose head says how to run it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"""---
title: {re.sub(r"[^A-Za-z0-9 ._-]", " ", title).strip() or PACKAGE}
sdk: gradio
sdk_version: {metadata.version("gradio")}
python_version: "{version}"
app_file: {APP}
pinned: false
---

# {escape_line(title)}

A masked generator fills in a canvas of masked tokens in a few parallel steps.

* Training data: {trained_on or "not stated"}
* `{MODEL_FOLDER}/` is the model, `{PACKAGE}/` the program, {REQUIREMENTS} what it needs.
* Run it here: `pip install -r {REQUIREMENTS}`, then `python {APP}`.
"""
