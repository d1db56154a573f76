"""Model cards: what a saved model is, what it learned from, how it is sampled and how it scored, as README.md."""

import re
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from unmask.pretrained.conditions import takes_prompts
from unmask.published.catalogue import MODELS
from unmask.published.store import CONVERSION_REPORT
from unmask.recipes.reading import has_config, read_config
from unmask.recipes.schema import Recipe, TextRecipe
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.storage.config import load_json
from unmask.storage.layout import CONFIG, MODEL, REPORT

CARD_METRICS = (
    "frechet", "frechet_floor", "frechet_limit", "precision", "recall", "density", "coverage", "class_accuracy",
    "num_samples", "num_reference", "features", "seed", "commit",
)  # fmt: skip
"""The entries of a report.json that go onto the card."""
SHOWN_NAMES = 100
"""Most names of classes on the card."""
SAMPLING_FACTS = ("steps", "schedule", "priority", "scale")
"""The fields of the sampling that go onto the card in any case."""


def write_model_card(spec: ModelSpec | TextModelSpec, *, name: str, licence: str | None, measured: Path | None) -> str:
    """Return a model card in Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        spec: What the model is.
        name: What to load it by.
        licence: Its licence; by default that of the published model with this network and tokenizer, if there is one.
        measured: The model's folder, which may hold a report.json on it, a report on its conversion, and its recipe.
    """
    if isinstance(spec, TextModelSpec):
        task, call = "text-generation", f'print(unmask.load("{name}").generate("Once", num=1)[0])'
        title = "A masked generative transformer for text"
    else:
        theirs = (
            m.licence for m in MODELS.values() if (m.size.model, m.size.tokenizer) == (spec.model, spec.tokenizer)
        )
        licence = licence or next(theirs, None)
        prompts = takes_prompts(spec.model)
        has_classes = getattr(spec.model, "num_classes", 0) > 0
        task = "text-to-image" if prompts else "" if has_classes else "unconditional-image-generation"
        example = ', prompts=["a cat"]' if prompts else ""
        call = f'images = unmask.load("{name}"{example})(num=4)  # PIL images'
        title = "A masked generative transformer for {}x{} images".format(*spec.tokenizer.size)
    lines = [
        *("---", "library_name: unmask", *([f"pipeline_tag: {task}"] if task else []), "tags:", "- maskgit"),
        *([] if task else ["- class-conditional-image-generation"]),
        *([f"license: {licence}"] if licence else []),
        *("---", "", f"# {title}", "", "```python", "import unmask", "", call, "```", ""),
        f"* Network: {describe_config(spec.model)}",
        f"* Tokenizer: {describe_config(spec.tokenizer)}",
        f"* Training data: {spec.trained_on or 'not stated'}{_name_converted_file(measured)}",
        f"* Training: {_describe_training(measured)}",
    ]
    if isinstance(spec, ModelSpec):
        lines.append(f"* Classes: {_list_classes(spec.classes)}")
    lines += [
        f"* Sampling: {describe_fields(spec.sampling, always=SAMPLING_FACTS)}",
        f"* Licence: {licence or 'not stated'}",
    ]
    metrics = _read_metrics(measured)
    if metrics:
        lines += ["", "| metric | value |", "| --- | ---: |"]
        lines += [f"| {metric} | {_format_value(value)} |" for metric, value in metrics.items()]
    return "\n".join(lines) + "\n"


def _list_classes(classes: tuple[str, ...]) -> str:
    if len(classes) > SHOWN_NAMES:
        return f"{len(classes):,}, from {classes[0]} to {classes[-1]}"
    return ", ".join(classes) or "by number"


def describe_config(config: Any) -> str:
    """Return a configuration in words: its type, and the fields that differ from their defaults."""
    kind, parts = name_type(type(config).__name__), describe_fields(config)
    return f"{kind} ({parts})" if parts else kind


def describe_fields(config: Any, always: Collection[str] = ()) -> str:
    """Return the fields that differ from their defaults, and those of `always`, in words."""
    parts = []
    for field in fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", " ")
        if value == field.default and field.name not in always:
            continue
        if isinstance(value, bool):
            parts.append(name if value else f"not {name}")
        else:
            parts.append(f"{name} {_format_value(value)}")
    return ", ".join(parts)


def name_type(name: str) -> str:
    """Return the name of a class in words: "linear ramp" for LinearRamp; MaskGIT and VQGAN stay."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", name).removesuffix(" Config").split()
    return " ".join(word if sum(map(str.isupper, word)) > 1 else word.lower() for word in words)


def _format_value(value: Any) -> str:
    if is_dataclass(value):
        return describe_config(value)
    if isinstance(value, tuple):
        shown = value if len(value) <= 4 else (value[0], "...", value[-1])
        return "x".join(map(_format_value, shown)) if all(isinstance(x, int) for x in value) and len(value) <= 3 else (
            ", ".join(x if isinstance(x, str) else _format_value(x) for x in shown)
        )  # fmt: skip
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name_converted_file(folder: Path | None) -> str:
    """Return the name of the published file that the model was converted from, without its folder; "" if none was."""
    report = None if folder is None else folder / f"{Path(MODEL).stem}-{CONVERSION_REPORT}"
    if report is None or not report.is_file():
        return ""
    first = (report.read_text(encoding="utf-8").splitlines() or [""])[0]
    return f"; converted from {Path(first.removeprefix('source: ')).name}"


def _describe_training(folder: Path | None) -> str:
    recipe = read_config(folder / CONFIG) if folder is not None and has_config(folder) else None
    if not isinstance(recipe, Recipe | TextRecipe):
        return "not stated"
    training = recipe.training
    return f"{describe_config(recipe.objective)}, {training.steps:,} steps of {training.batch_size}"


def _read_metrics(folder: Path | None) -> dict[str, object]:
    if folder is None or not (folder / REPORT).is_file():
        return {}
    numbers = load_json(folder / REPORT)
    return {name: numbers[name] for name in CARD_METRICS if name in numbers}
