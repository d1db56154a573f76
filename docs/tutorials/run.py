"""Run the tutorials as notebooks, and write each as Markdown with its outputs and pictures, and as a notebook file.

    python docs/tutorials/run.py OUT [NAME ...]     (make tutorials: all of them into build/tutorials)

A tutorial is a jupytext Markdown file of this folder. It runs in a temporary folder, which is removed afterwards. OUT
receives NAME.md, its pictures in the folder NAME, and NAME.ipynb. A cell that shows a picture says in its first line
what it shows: ```python alt="Ten digits".
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode

HERE = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in HERE.glob("[0-9]_*.md")))
NOTEBOOKS_ON_GITHUB = ""
"""Where Colab finds the executed notebooks: OWNER/NAME/blob/BRANCH/FOLDER. While it is empty there is no badge."""
SECONDS = 300
"""Time limit of one notebook."""
TEMPLATE = """{%- extends 'markdown/index.md.j2' -%}
{%- block data_png %}
![{{ cell.metadata.alt }}]({{ output.metadata.filenames['image/png'] | path2url }})
{% endblock data_png -%}
"""


class TutorialError(Exception):
    """A tutorial did not run to its end; the text names it, the cell and the cause."""


def read_tutorial(name: str) -> NotebookNode:
    """Read a tutorial as a notebook, with a Colab badge below its title if the notebooks have an address."""
    notebook = jupytext.read(HERE / f"{name}.md")
    if NOTEBOOKS_ON_GITHUB:
        colab = "https://colab.research.google.com"
        address = f"{colab}/github/{NOTEBOOKS_ON_GITHUB}/{name}.ipynb"
        title, _, rest = notebook.cells[0].source.partition("\n")
        badge = f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({address})"
        notebook.cells[0].source = f"{title}\n\n{badge}\n{rest}"
    return notebook


def execute(notebook: NotebookNode, name: str, seconds: float = SECONDS) -> None:
    """Run all cells in a temporary folder; their outputs are put into the notebook.

    Raises:
        TutorialError: A cell failed, the notebook took longer than `seconds`, or a picture has no text beside it.
    """
    end, place = time.monotonic() + seconds, [0]
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout_func=lambda cell: max(1, round(end - time.monotonic())),
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            on_cell_execute=lambda cell, cell_index: place.__setitem__(0, cell_index),
        )
        try:
            client.execute(env=make_environment())
        except CellTimeoutError as error:
            why = f"the notebook took longer than {seconds:g} seconds"
            raise TutorialError(f"{describe_cell(notebook, name, place[0])}: {why}") from error
        except (CellExecutionError, DeadKernelError) as error:
            raise TutorialError(f"{describe_cell(notebook, name, place[0])}: {strip_ansi(str(error))}") from error
    for index, cell in enumerate(notebook.cells):
        pictures = [output.data for output in cell.get("outputs", ()) if "image/png" in output.get("data", ())]
        for data in pictures:
            data.pop("image/jpeg", None)  # Pillow gives a notebook each picture in both formats
        if pictures and not cell.metadata.get("alt"):
            why = 'it shows a picture and does not say what: write ```python alt="..."'
            raise TutorialError(f"{describe_cell(notebook, name, index)}: {why}")


def make_environment() -> dict[str, str]:
    """Return the environment of a notebook: without progress bars, and with the command `unmask`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "TTY_COMPATIBLE": "0", "PATH": path}  # rich reads the first one


def describe_cell(notebook: NotebookNode, name: str, index: int) -> str:
    """Name a cell by its number among the code cells and by its first line."""
    number = sum(cell.cell_type == "code" for cell in notebook.cells[: index + 1])
    return f"{name}, code cell {number} ({notebook.cells[index].source.splitlines()[0]})"


def export(notebook: NotebookNode, name: str, out: Path) -> None:
    """Write an executed notebook as OUT/NAME.ipynb, OUT/NAME.md, and its pictures into the folder OUT/NAME."""
    out.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out / f"{name}.ipynb")
    exporter = MarkdownExporter(
        extra_loaders=[DictLoader({"tutorial.md.j2": TEMPLATE})], template_file="tutorial.md.j2"
    )
    text, found = exporter.from_notebook_node(notebook, {"output_files_dir": name, "unique_key": "picture"})
    text = text.replace("```bash\n%%bash\n", "```bash\n")
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    for earlier in (out / name).glob("picture_*"):
        earlier.unlink()
    for path, data in found["outputs"].items():
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_bytes(data)


def main(arguments: list[str]) -> int:
    """Run the tutorials named, or all; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"tutorials to run: {', '.join(NAMES)}; default all")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="time limit of one notebook (default %(default)s)"
    )
    flags = parser.parse_args(arguments)
    unknown = [name for name in flags.names if name not in NAMES]
    if unknown:
        parser.error(f"no tutorial {unknown[0]}: there are {', '.join(NAMES)}")
    failures = []
    for name in flags.names or NAMES:
        notebook, start = read_tutorial(name), time.monotonic()
        try:
            execute(notebook, name, flags.seconds)
        except TutorialError as error:
            failures.append(error)
            print(error, file=sys.stderr)
        else:
            export(notebook, name, flags.out)
            print(f"{name}: {time.monotonic() - start:.0f} seconds, {flags.out / name}.md")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
