"""`unmask data`: what there is in a dataset of images, before anything is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from unmask.cli.flag_types import show_default
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.data.sources.choice import Folder, PictureSource
from unmask.data.sources.detection import identify_source
from unmask.errors import ConfigError
from unmask.runtime.progress import show_progress


@dataclass(frozen=True, kw_only=True)
class SurveyFlags:
    data: PictureSource
    size: int = 64
    """Edge in pixels that you mean to train at; smaller pictures are counted, as they would be enlarged."""
    sheet: Annotated[Path | None, show_default("no sheet")] = None
    """Also write a contact sheet with some pictures of each class, such as sheet.png."""


def run_data(arguments: list[str]) -> None:
    """Run `unmask data`."""
    usage = "data DIR, where DIR is a folder of images, an .npz file, .tar files or a saved dataset of Hugging Face"
    example = SurveyFlags(data=Folder(path=""))
    name, rest = split_positional(arguments, usage)
    source = example.data if rest == ["--help"] else identify_source(name)
    flags = parse(SurveyFlags, rest, f"data {name}", SurveyFlags(data=source))
    from unmask.data.survey import choose_tiles, describe_survey, survey_source
    from unmask.figures.images import find_image_format, write_picture
    from unmask.figures.sheets import draw_sheet

    if flags.size < 1:
        raise ConfigError(f"--size {flags.size}: use at least 1 pixel")
    if flags.sheet is not None:
        find_image_format(flags.sheet)
        if flags.sheet.exists():
            raise ConfigError(f"--sheet {flags.sheet}: there is a file already, and it is kept; give another name")
    with catch_value_errors(), catch_disk_errors(Path(name)):
        with show_progress(shown=True) as progress:
            survey = survey_source(flags.data, progress)
        print("\n".join(describe_survey(survey, flags.size)))
        if flags.sheet is not None:
            write_picture(draw_sheet(choose_tiles(survey)), flags.sheet)
            print(f"wrote {flags.sheet}")
