"""Show the metrics of a report.json as a table of at most 80 columns, with what each metric means."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unmask.cli.tables import TABLE_WIDTH


@dataclass(frozen=True)
class ReportLine:
    """A line of the table: where a report keeps the metric, and how to show it."""

    title: str
    key: str
    """The entry of the report; "a.b" is the entry b inside the entry a."""
    form: str
    meaning: str
    beside: str = ""
    """The entry with the value to compare with; by default the one of the same name that ends in _floor."""


IMAGE_LINES = (
    ReportLine("class accuracy", "class_accuracy", "{:.1%}", "samples of the right class", "classifier_test_accuracy"),
    ReportLine("  inpainted", "inpaint_class_accuracy", "{:.1%}", "images, part masked", "classifier_test_accuracy"),
    ReportLine("Frechet distance", "frechet", "{:.3f}", "to held-out images; less is better"),
    ReportLine("  extrapolated", "frechet_infinity", "{:.3f}", "for infinitely many samples"),
    ReportLine("  tokenizer bound", "frechet_limit", "{:.3f}", "real images after the tokenizer", "frechet_floor"),
    ReportLine("KID", "kid", "{:.5f}", "kernel distance; less is better"),
    ReportLine("precision", "precision", "{:.3f}", "samples that look real"),
    ReportLine("recall", "recall", "{:.3f}", "real images that samples resemble"),
    ReportLine("density", "density", "{:.3f}", "precision, less moved by outliers"),
    ReportLine("coverage", "coverage", "{:.3f}", "recall, less moved by outliers"),
    ReportLine("Inception score", "inception_score", "{:.2f}", "certain and varied; more is better"),
    ReportLine(
        "nearest image", "nearest_train.samples", "{:.3g}", "to training; 0 is a copy", "nearest_train.held_out"
    ),
    ReportLine(
        "exact copies",
        "nearest_train.exact_copies",
        "{:.1%}",
        "of training images",
        "nearest_train.held_out_exact_copies",
    ),
    ReportLine("validation loss", "validation_loss", "{:.4f}", "nats per masked token"),
)
TOKENIZER_LINES = (
    ReportLine("rFID", "rfid", "{:.3f}", "Frechet distance to the originals; less is better"),
    ReportLine("PSNR", "psnr", "{:.2f}", "dB; more is better"),
    ReportLine("SSIM", "ssim", "{:.4f}", "likeness of structure; 1 is equal"),
    ReportLine("absolute error", "mean_absolute_error", "{:.4f}", "mean over the values, which span [-1, 1]"),
    ReportLine("codebook use", "usage", "{:.1%}", "share of the codebook that occurs"),
    ReportLine("perplexity", "perplexity", "{:.1f}", "size of an evenly used codebook", "vocab_size"),
    ReportLine("bits per image", "bits_per_image", "{:.0f}", "tokens times log2 of the codebook size"),
)


def format_report(numbers: Mapping[str, object]) -> str:
    """Return the metrics of `unmask evaluate` as a table, and what they were measured on."""
    rows = [*_list_rows(numbers, IMAGE_LINES)]
    lines = [*_align(("metric", "value", "baseline", "meaning"), rows), ""]
    if any(row[2] for row in rows):
        lines.append("baseline: as many real training images, or held-out images for accuracy")
    lines.append(f"{numbers['num_samples']:,} samples of seed {numbers['seed']}" + (
        f" against {numbers['num_reference']:,} held-out images" if "num_reference" in numbers else ""
    ))  # fmt: skip
    if "class_shares" in numbers:
        lines.append("the shares of the classes differ between sets: class_shares in report.json")
    return "\n".join([*lines, *_list_conditions(numbers)])


def format_tokenizer_report(numbers: Mapping[str, object]) -> str:
    """Return the metrics of `unmask evaluate-tokenizer` as a table, and what they were measured on."""
    rows = [*_list_rows(numbers, TOKENIZER_LINES)]
    lines = [*_align(("metric", "value", "at most", "meaning"), rows), ""]
    lines.append(f"{numbers['num_pictures']:,} held-out images, {numbers['tokens_per_image']:,} tokens each")
    return "\n".join([*lines, *_list_conditions(numbers)])


def _list_rows(numbers: Mapping[str, object], lines: Sequence[ReportLine]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the cells of the metrics that the report has."""
    for line in lines:
        value, baseline = _find(numbers, line.key), _find(numbers, line.beside or f"{line.key}_floor")
        if value is None:
            continue
        form = "{:,}" if isinstance(baseline, int) else line.form
        yield line.title, line.form.format(value), "" if baseline is None else form.format(baseline), line.meaning


def _find(numbers: Mapping[str, object], key: str) -> object | None:
    name, _, inner = key.partition(".")
    found = numbers.get(name)
    return found.get(inner) if inner and isinstance(found, Mapping) else found


def _align(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with numbers to the right and texts to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        f"{title:{widths[0]}}  {value:>{widths[1]}}  {baseline:>{widths[2]}}  {meaning}".rstrip()
        for title, value, baseline, meaning in (head, *rows)
    ]


def _list_conditions(numbers: Mapping[str, object]) -> list[str]:
    """Return lines on the features and on what was not measured, and why."""
    lines = [f"features: {numbers['features']}"] if "features" in numbers else []
    left_out = numbers.get("left_out")
    if isinstance(left_out, Mapping):
        lines += [f"not measured: {name}: {why}" for name, why in left_out.items()]
    return [part for line in lines for part in textwrap.wrap(line, TABLE_WIDTH, subsequent_indent="  ")]
