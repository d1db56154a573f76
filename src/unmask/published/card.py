"""A model card: what a saved model is, what it learned from, how it is sampled and what was measured, as README.md."""

from pathlib import Path

from unmask.data.sources.choice import Codes
from unmask.pretrained.amused import Amused
from unmask.published.catalogue import MODELS
from unmask.recipes.schema import Recipe
from unmask.storage.config import load_json

FIGURES = ("frechet", "frechet_floor", "frechet_limit", "precision", "recall", "density", "coverage", "class_accuracy",
           "num_samples", "num_reference", "features", "seed", "commit")  # fmt: skip
"""What of a report.json goes onto the card."""


def model_card(recipe: Recipe, source: Path | None, licence: str | None, name: str) -> str:
    """Markdown with the front matter that the Hugging Face hub reads; `source` is the folder that the model was of.

    `name` is what to load it by. Without a `licence` that of the published model of this network and tokenizer, if
    there is one.
    """
    theirs = (
        m.licence for m in MODELS.values() if (m.size.model, m.size.tokenizer) == (recipe.model, recipe.tokenizer)
    )
    licence = licence or next(theirs, None)
    texts = isinstance(recipe.model, Amused)
    task, call = ("text-to-image", ', prompts=["a cat"]') if texts else ("unconditional-image-generation", "")
    front = ["---", "library_name: unmask", f"pipeline_tag: {task}", "tags:", "- maskgit"]
    front += [f"license: {licence}"] if licence else []
    height, width = recipe.tokenizer.size
    lines = [
        *front,
        "---",
        "",
        f"# A masked generative transformer for pictures of {height}x{width}",
        "",
        "```python",
        "import unmask",
        f'images = unmask.load("{name}"{call}).generate(num=4)',
        "```",
        "",
        f"* Network: `{recipe.model}`",
        f"* Tokenizer: `{recipe.tokenizer}`",
        f"* Training data: {_data(recipe, source)}",
        f"* Classes: {', '.join(recipe.classes) if recipe.classes else 'by number'}",
        f"* Training: {_training(recipe)}",
        f"* Sampling: `{recipe.sampling}`",
        f"* Licence: {licence or 'not stated'}",
    ]
    figures = _measured(source)
    if figures:
        lines += ["", "| measured | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in figures.items())]
    return "\n".join(lines) + "\n"


def _training(recipe: Recipe) -> str:
    if recipe.data == Codes(path=""):
        return "elsewhere; see its publisher"
    return f"`{recipe.objective}`, {recipe.training.steps:,} steps of {recipe.training.batch_size}"


def _data(recipe: Recipe, source: Path | None) -> str:
    """The pictures' source; of a converted model, where it came from."""
    if isinstance(recipe.data, Codes) and not recipe.data.path:
        report = None if source is None else source / "model-conversion.txt"
        if report is not None and report.is_file():
            first = (report.read_text(encoding="utf-8").splitlines() or [""])[0]
            return f"see its publisher; converted from {Path(first.removeprefix('source: ')).name}"
        return "see its publisher"
    return f"`{recipe.data}`"


def _measured(source: Path | None) -> dict[str, object]:
    report = None if source is None else source / "report.json"
    if report is None or not report.is_file():
        return {}
    numbers = load_json(report)
    return {name: numbers[name] for name in FIGURES if name in numbers}
