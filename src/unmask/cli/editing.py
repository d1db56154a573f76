"""`unmask inpaint`: fill a masked region of a photo, extend its canvas, or replace a part with another class."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unmask.cli.flag_types import show_default
from unmask.cli.flags import (
    CELL_CHOICES,
    Device,
    OutputFlags,
    SamplingFlags,
    WeightsFlags,
    WeightType,
    check_device,
    choose_sampling,
    fetch_model,
    find_dtype,
)
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.errors import ConfigError
from unmask.published.names import MODEL_NAMES
from unmask.storage.outputs import check_file, choose_free

if TYPE_CHECKING:
    from unmask.data.holes import Cells

USAGE = f"inpaint MODEL PHOTO, where MODEL is {MODEL_NAMES}; give --mask, --alpha, --box or --extend too"


@dataclass(frozen=True, kw_only=True)
class InpaintFlags(OutputFlags):
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    mask: Annotated[Path | None, show_default("another region")] = None
    """Region: an image of the photo's size, white where to fill. Give one of mask, alpha, box and extend."""
    alpha: bool = False
    """Region: where the photo itself is transparent."""
    box: Annotated[
        tuple[int, int, int, int] | None, tyro.conf.arg(metavar="X Y WIDTH HEIGHT"), show_default("another region")
    ] = None
    """Region: a rectangle of the photo, in pixels."""
    extend: Annotated[
        tuple[int, int, int, int] | None, tyro.conf.arg(metavar="LEFT TOP RIGHT BOTTOM"), show_default("another region")
    ] = None
    """Region: this many new pixels around the photo, on each side."""
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    label: Annotated[str | None, tyro.conf.arg(metavar="CLASS"), show_default("no class")] = None
    """Class to fill in, by its name or number."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT"), show_default("no text")] = None
    """For a text-to-image model, in place of a label: what to fill in."""
    variants: int = 4
    """Number of variants to sample, at least 1."""
    out: Annotated[Path | None, show_default("inpainted.png, or the next free inpainted_2.png")] = None
    """Picture to write; variants are NAME-1.png and so on, and NAME-compare.png shows all. JPEG alters every pixel."""
    seed: int = 0
    """Seed of the variants."""
    feather: int = 0
    """Blend the result into its surroundings over this many pixels inside the border of the region."""
    cells: Annotated[str, tyro.conf.arg(metavar=CELL_CHOICES)] = "any"
    """Which tokens to sample: those with any pixel in the region, with all, or with this share of them."""
    dilate: int = 0
    """Also sample this many cells around them; 1 suits a convolutional tokenizer."""
    context: float = 0.5
    """What the model sees on each side of the region, in sizes of the region."""
    stop: Annotated[int | None, show_default("after all steps")] = None
    """End after this many of the steps; the last one fills the rest."""
    gif: Annotated[Path | None, show_default("no animation")] = None
    """Also animate the decoding, as .gif or .webp."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    dtype: WeightType = "auto"
    """Number type of weights: auto is bf16 where fast; int8 is faster for wide networks on a CPU, but less exact."""


def run_inpaint(arguments: list[str]) -> None:
    """Run `unmask inpaint`."""
    name, rest = split_positional(arguments, USAGE)
    path, rest = ("", rest) if rest == ["--help"] else split_positional(rest, USAGE)
    flags = parse(InpaintFlags, rest, f"inpaint {name} {path}")
    from PIL import Image

    from unmask.cli.holes import draw_frames, draw_side_by_side, read_hole, write_variant
    from unmask.figures import images as figures
    from unmask.pipelines import editing
    from unmask.pipelines.labels import resolve_filled_labels
    from unmask.pipelines.load import load_image_pipeline
    from unmask.pretrained.conditions import check_prompts

    out = check_outputs(Path(path), flags)
    photo, hole = read_hole(Path(path), flags)
    cells = choose_cells(flags.cells, flags.dilate)
    if flags.label is not None and flags.prompt is not None:
        raise ConfigError("--label and --prompt: a model draws classes or texts, so leave one of them out")
    texts = () if flags.prompt is None else (flags.prompt,)
    opened = flags.published.open(name)
    spec = opened.require_image_spec()
    check_prompts(spec.model, texts, name)
    with catch_value_errors():
        sampling = choose_sampling(flags.sampling, spec)
    chosen = "0" if texts else flags.label
    classes, empty = ((), ()) if texts else (spec.classes, spec.empty_classes)
    label = None if chosen is None else int(resolve_filled_labels(chosen, classes, empty)[0])  # before a download
    check_device(flags.device, flags.dtype)
    fetch_model(opened)
    pipeline = load_image_pipeline(opened, device=flags.device, dtype=find_dtype(flags.dtype), prompts=texts)
    with catch_value_errors(), catch_disk_errors(out.parent):
        edited = editing.edit_photo(
            pipeline,
            photo,
            hole,
            label,
            seed=flags.seed,
            sampling=sampling,
            cells=cells,
            feather=flags.feather,
            variants=flags.variants,
            stop=flags.stop,
            context=flags.context,
        )
        for number, one in enumerate(edited, 1):
            write_variant(Image.fromarray(one.permute(1, 2, 0).numpy()), out, f"-{number}" if len(edited) > 1 else "")
        write_variant(draw_side_by_side(photo, hole, edited), out, "-compare")
        if flags.gif is not None:
            figures.write_animation(draw_frames(pipeline, photo, hole, label, sampling, cells, flags), flags.gif)
            print(f"wrote {flags.gif}")


def check_outputs(photo: Path, flags: InpaintFlags) -> Path:
    """Return the file to write; ConfigError, before the work, if it or another output would replace something."""

    from unmask.cli.holes import name_variant
    from unmask.figures import images as figures

    def list_variants(out: Path) -> list[Path]:
        numbers = [f"-{number}" for number in range(1, flags.variants + 1)] if flags.variants > 1 else [""]
        return [name_variant(out, suffix) for suffix in (*numbers, "-compare")]

    out = choose_free(Path("inpainted.png"), list_variants) if flags.out is None else flags.out
    figures.find_image_format(out)
    inputs = (photo, *(() if flags.mask is None else (flags.mask,)))
    for path in list_variants(out):
        check_file(path, overwrite=flags.overwrite, inputs=inputs)
    if flags.gif is not None:
        figures.find_image_format(flags.gif, animated=True)
        check_file(flags.gif, overwrite=flags.overwrite, inputs=inputs)
    return out


def choose_cells(cells: str, dilate: int) -> "Cells":
    """`--cells` and `--dilate`."""
    from unmask.data.holes import Cells

    try:
        return Cells(share={"any": 0.0, "all": 1.0}[cells] if cells in ("any", "all") else float(cells), dilate=dilate)
    except ValueError as error:
        raise ConfigError(f"--cells {cells}: any, all, or a share between 0 and 1 such as 0.5") from error
