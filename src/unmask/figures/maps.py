"""Heat maps of a canvas: one value per token, such as how sure the model was of it."""

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from unmask.errors import ConfigError
from unmask.figures.images import INK, PAPER, draw_grid, load_font


def draw_heat_map(
    values: Float[Tensor, "n l"], token_grid: tuple[int, int], columns: int, *, scale: int = 12
) -> Image.Image:
    """Draw a value in [0, 1] for each token of each canvas, from dark (0) to bright (1), with a colour bar below.

    Args:
        values: One row per canvas; values outside of [0, 1] are clipped.
        token_grid: Height and width of the token grid.
        columns: Canvases per row.
        scale: Edge in pixels of a cell.

    Raises:
        ConfigError: The grid does not hold as many tokens.
    """
    rows, width = token_grid
    if rows * width != values.shape[1]:
        raise ConfigError(f"{values.shape[1]} values do not fit token grid {token_grid}")
    shades = _shade(values.clamp(0, 1).cpu())
    cells = shades.reshape(-1, rows, width, 3).permute(0, 3, 1, 2)
    picture = draw_grid(cells, columns, scale=scale)
    font, size = load_font(picture.height // 22)
    page = Image.new("RGB", (max(picture.width, size * 12), picture.height + 2 * size), PAPER)
    page.paste(picture, ((page.width - picture.width) // 2, 0))
    draw, middle = ImageDraw.Draw(page), picture.height + size
    room = round(font.getlength("100 %")) + size // 2
    bar = draw_grid(_shade(torch.linspace(0, 1, 64)).T[None, :, None, :], 1, scale=1, gap=0)
    page.paste(bar.resize((page.width - 2 * room, size), Image.Resampling.NEAREST), (room, middle - size // 2))
    draw.text((room - size // 4, middle), "0 %", INK, font, anchor="rm")
    draw.text((page.width - room + size // 4, middle), "100 %", INK, font, anchor="lm")
    return page


def _shade(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n 3"]:
    """Return colours in [-1, 1] for values in [0, 1]."""
    import matplotlib  # not at the top: most pictures need no plot

    return torch.tensor(matplotlib.colormaps["magma"](values.numpy())[..., :3]).float() * 2 - 1
