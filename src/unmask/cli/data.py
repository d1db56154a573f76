"""`unmask data`: what there is in a dataset of images, before anything is trained."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from unmask.cli.flag_types import show_default
from unmask.cli.parsing import catch_disk_errors, catch_value_errors, parse, split_positional
from unmask.data.sources.choice import Folder, HubImages, PictureSource, Shards
from unmask.data.sources.detection import identify_source
from unmask.errors import ConfigError
from unmask.runtime.progress import show_progress

EDGE = 64
"""The edge in pixels below which images are counted as small, unless --data.size names another."""


@dataclass(frozen=True, kw_only=True)
class SurveyFlags:
    data: PictureSource
    sheet: Annotated[Path | None, show_default("no sheet")] = None
    """Also write a contact sheet with some pictures of each class, such as sheet.png."""


def run_data(arguments: list[str]) -> None:
    """Run `unmask data`."""
    usage = "data DIR, where DIR is a folder of images, an .npz file, .tar files or a saved dataset of Hugging Face"
    example = SurveyFlags(data=Folder(path="", size=EDGE))
    name, rest = split_positional(arguments, usage)
    source = example.data if rest == ["--help"] else identify_source(name)
    if isinstance(source, Folder | Shards | HubImages):
        source = replace(source, size=EDGE)
    elif any(re.match(r"--size(=|$)", word) for word in rest):
        raise ConfigError(f"--size: the images of {name} have one size, so leave it out")
    rest = [re.sub(r"^--size(?==|$)", "--data.size", word) for word in rest]
    with catch_value_errors():
        flags = parse(SurveyFlags, rest, f"data {name}", SurveyFlags(data=source))
    from unmask.data.survey import choose_tiles, describe_survey, survey_source
    from unmask.figures.images import find_image_format, write_picture
    from unmask.figures.sheets import draw_sheet

    if flags.sheet is not None:
        find_image_format(flags.sheet)
        if flags.sheet.exists():
            raise ConfigError(f"--sheet {flags.sheet}: there is a file already, and it is kept; give another name")
    with catch_value_errors(), catch_disk_errors(Path(name)):
        with show_progress(shown=True) as progress:
            survey = survey_source(flags.data, progress)
        print("\n".join(describe_survey(survey, getattr(flags.data, "size", EDGE))))
        if flags.sheet is not None:
            write_picture(draw_sheet(choose_tiles(survey)), flags.sheet)
            print(f"wrote {flags.sheet}")
        if survey.fault is not None:
            raise survey.fault
