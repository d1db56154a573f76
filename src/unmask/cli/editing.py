"""`unmask inpaint`: fill a hole in one's own photo, extend its canvas, or draw another class into a part of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from unmask.cli.flags import OutputFlags, SamplingFlags, WeightsFlags, choose_sampling, fetch_model
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.data.holes import Cells
from unmask.data.masks import find_turn, make_rectangle, read_cutout, read_mask, read_photo
from unmask.decoding.sampling import Sampling
from unmask.errors import ConfigError
from unmask.evaluation import gallery
from unmask.figures import images as figures
from unmask.pipelines import editing
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import resolve_filled_labels
from unmask.pipelines.load import load_image_pipeline
from unmask.pretrained.conditions import check_prompts
from unmask.storage.files import escape_line
from unmask.storage.outputs import check_file, choose_free

COMPARISON_SIZE = 512  # pixels of the longer side of each picture in the comparison
USAGE = "inpaint RUN PHOTO, where RUN is as unmask sample has it, with --mask, --alpha, --box or --extend"


@dataclass(frozen=True, kw_only=True)
class InpaintFlags(OutputFlags):
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(default_factory=SamplingFlags)
    mask: Path | None = None
    """The region: an image of the photo's size, white where to fill."""
    alpha: bool = False
    """The region: where the photo itself is transparent."""
    box: tuple[int, int, int, int] | None = None
    """The region: a rectangle, as x y width height in pixels."""
    extend: tuple[int, int, int, int] | None = None
    """The region: this many new pixels around the photo, as left top right bottom."""
    published: Annotated[WeightsFlags, tyro.conf.arg(name="")] = field(default_factory=WeightsFlags)
    label: str | None = None
    """The class to fill in, by its name or number; by default none."""
    prompt: str | None = None
    """For a text-to-image model, in place of a label: what to fill in."""
    variants: int = 4
    """How many variants to sample."""
    out: Path | None = None
    """By default inpainted.png, or inpainted_2.png where that is taken; with several variants inpainted-1.png and so
    on. inpainted-compare.png shows all. JPEG alters every pixel."""
    seed: int = 0
    feather: int = 0
    """Blend the result into its surroundings over this many pixels inside the border of the region."""
    cells: str = "any"
    """Which tokens to sample: those with any or all of their pixels in the region, or a share such as 0.5."""
    dilate: int = 0
    """And this many cells around them; 1 suits a convolutional tokenizer."""
    context: float = 0.5
    """What the model sees on each side of the region, in sizes of the region."""
    stop: int | None = None
    """End after this many of the steps: the last one fills the rest."""
    gif: Path | None = None
    """Also animate the decoding, as .gif or .webp."""


def run_inpaint(arguments: list[str]) -> None:
    """fill a masked region of a photo of any size, extend its canvas, or replace a part"""
    name, rest = split_positional(arguments, USAGE)
    path, rest = ("PHOTO", rest) if rest == ["--help"] else split_positional(rest, USAGE)
    flags = parse(InpaintFlags, rest, f"inpaint {name} {path}")
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
    fetch_model(opened)
    pipeline = load_image_pipeline(opened, prompts=texts)
    chosen = "0" if texts else flags.label
    classes, empty = ((), ()) if texts else (pipeline.classes, pipeline.empty_classes)
    label = None if chosen is None else int(resolve_filled_labels(chosen, classes, empty)[0])
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


def read_hole(path: Path, flags: InpaintFlags) -> tuple[UInt8[Tensor, "3 h w"], Bool[Tensor, "h w"]]:
    """Read the photo and its masked region, from the one flag that says where it is."""
    given = {"--mask": flags.mask is not None, "--alpha": flags.alpha}
    given |= {"--box": flags.box is not None, "--extend": flags.extend is not None}
    if sum(given.values()) != 1:
        found = " and ".join(name for name, there in given.items() if there) or "no hole"
        raise ConfigError(f"{found} given: say where the hole is with one of {', '.join(given)}")
    if flags.alpha:
        return read_cutout(path)
    photo = read_photo(path)
    height, width = photo.shape[1:]
    if flags.mask is not None:
        turn = find_turn(path, flags.mask)
        if turn is not None:
            print(
                f"{escape_line(str(flags.mask))} has the size of the photo as stored, so it is turned upright with it"
            )
        return photo, read_mask(flags.mask, (height, width), turn)
    if flags.box is not None:
        return photo, make_rectangle((height, width), *flags.box)
    assert flags.extend is not None
    return editing.extend_canvas(photo, *flags.extend)


def choose_cells(cells: str, dilate: int) -> Cells:
    """`--cells` and `--dilate`."""
    try:
        return Cells(share={"any": 0.0, "all": 1.0}[cells] if cells in ("any", "all") else float(cells), dilate=dilate)
    except ValueError as error:
        raise ConfigError(f"--cells {cells}: any, all, or a share between 0 and 1 such as 0.5") from error


def write_variant(picture: Image.Image, out: Path, suffix: str) -> None:
    """Written beside `out`, and said."""
    path = name_variant(out, suffix)
    figures.write_picture(picture, path)
    print(f"wrote {path}")


def name_variant(out: Path, suffix: str) -> Path:
    """Return the file of a variant, or of the comparison, beside `out`."""
    return out.with_name(f"{out.stem}{suffix}{out.suffix}")


def draw_side_by_side(
    photo: UInt8[Tensor, "3 h w"], hole: Bool[Tensor, "h w"], edited: UInt8[Tensor, "v 3 h w"]
) -> Image.Image:
    """Side by side: the photo, its hole, and each variant; large ones shrunk, small ones enlarged."""
    height, width = photo.shape[1:]
    factor = min(1.0, COMPARISON_SIZE / max(height, width))
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    pictures = [F.interpolate(x[None].float(), size, mode="area") for x in (photo, *edited)]
    hidden = F.interpolate(hole[None, None].float(), size, mode="area")[0] >= 0.5
    images = torch.cat(pictures) / 127.5 - 1
    shown = figures.overlay_mask(images[:1], hidden.flatten(1), size)
    titles = ["photo", "hole", *([f"{i}" for i in range(1, len(edited) + 1)] if len(edited) > 1 else ["filled"])]
    scale = max(1, 112 // size[1])
    gap = -(-4 // scale)
    return figures.draw_grid(
        torch.cat([images[:1], shown, images[1:]]), len(titles), scale=scale, gap=gap, labels=titles
    )


def draw_frames(
    pipeline: Pipeline,
    photo: UInt8[Tensor, "3 h w"],
    hole: Bool[Tensor, "h w"],
    label: int | None,
    sampling: Sampling,
    cells: Cells,
    flags: InpaintFlags,
) -> list[Image.Image]:
    """Draw every step of the decoding as the model sees it, the variants side by side."""
    window = editing.choose_window(hole, pipeline.tokenizer.size, flags.context)
    images, hidden = editing.view_window(pipeline, photo, hole, window)
    states = editing.stream_inpainting(
        pipeline,
        images,
        hidden,
        None if label is None else torch.tensor([label]),
        seed=flags.seed,
        sampling=sampling,
        cells=cells,
        variants=flags.variants,
        stop=flags.stop,
    )
    return gallery.draw_decoding(pipeline, list(states), figures.choose_scale(images))
