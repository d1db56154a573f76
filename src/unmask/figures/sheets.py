"""Contact sheets: rows of small pictures, each under a title."""

from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from unmask.figures.images import INK, PAPER, load_font
from unmask.storage.files import escape_line

GAP = 4  # pixels


def draw_sheet(rows: Sequence[tuple[str, UInt8[Tensor, "_ 3 h w"]]]) -> Image.Image:
    """Draw each row of pictures under its title, all of the same height; a title that is too long is cut."""
    font, size = load_font(16)
    head = round(size * 1.6)
    height = rows[0][1].shape[2]
    width = GAP + max(len(tiles) * (tiles.shape[3] + GAP) for _, tiles in rows)
    page = Image.new("RGB", (max(width, 40 * size // 2), GAP + len(rows) * (head + height + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (title, tiles) in enumerate(rows):
        y = GAP + number * (head + height + GAP)
        text = escape_line(title)
        while len(text) > 1 and draw.textlength(text, font) > page.width - 2 * GAP:
            text = text[:-2] + "…"
        draw.text((GAP, y + head // 2), text, INK, font, anchor="lm")
        for place, tile in enumerate(tiles):
            at = (GAP + place * (tile.shape[2] + GAP), y + head)
            page.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), at)
    return page
