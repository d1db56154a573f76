"""Tokens per step by the name of a code base, as `unmask schedule` prints them."""

from unmask.decoding import counts
from unmask.decoding.names import list_shapes
from unmask.errors import ConfigError, look_up

SHAPED = {
    "google": counts.count_google,
    "valeoai-v1": counts.count_valeoai_v1,
    "halton-confidence": counts.count_halton_confidence,
    "x-transformers": counts.count_x_transformers,
    "muse": counts.count_muse,
}
"""Styles that take any shape."""
FIXED = {
    "halton": (counts.count_halton, "arccos"),
    "nanofm": (counts.count_nanofm, "constant"),
    "llada": (counts.count_llada, "linear"),
    "4m": (counts.count_fourm, "cosine"),
    "amused": (counts.count_amused, "cosine"),
    "titok": (counts.count_titok, "arccos"),
}
"""Styles with one shape, and its name."""


def count_tokens(style: str, shape: str | None, tokens: int, steps: int) -> list[int]:
    """Return the tokens per step of a style; a style with one shape refuses others."""
    if style in FIXED:
        count, only = FIXED[style]
        if shape not in (None, only):
            raise ConfigError(f"--style {style} has one shape, {only}: leave --shape out")
        return count(tokens, steps)
    if style not in SHAPED:
        look_up(dict.fromkeys([*SHAPED, *FIXED]), style, "style")
    return SHAPED[style](tokens, steps, look_up(list_shapes(tokens), shape or "cosine", "shape"))
