"""Token strips: what the heads predicted, under what happened, aligned by the token they speak of.

    realized   2 + 3 = 5 <eos>     prompt grey, answer blue
    depth 1            5 <eos>     each said at the token before
    depth 2              <eos>     each said two tokens before

A cell is green where prediction and realized token agree and red where they do not, the deeper the more probable the
prediction was. Colour is not the only sign: a wrong cell is also underlined. Drawn with PIL, in milliseconds.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

_AGREE: Colour = (96, 178, 118)
_DISAGREE: Colour = (222, 106, 96)
# A softmax in float32 may exceed 1 by this much.
_ROUNDING = 1e-5
_TEXT: Colour = (28, 30, 34)
_MUTED: Colour = (120, 124, 132)
_PROMPT_FILL: Colour = (238, 239, 242)
_REALIZED_FILL: Colour = (212, 224, 241)
_EMPTY_FILL: Colour = (250, 250, 251)
_BACKGROUND: Colour = (255, 255, 255)

# The second row is how byte-level BPE and SentencePiece write a blank.
_BLANKS = {
    **{" ": "␣", "\n": "⏎", "\t": "⇥"},
    **{"Ġ": "␣", "▁": "␣", "Ċ": "⏎"},
}


@dataclass(frozen=True)
class StripRow:
    """One row of predictions; entry i speaks of token i, None where nothing was predicted of it."""

    label: str
    tokens: tuple[str | None, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TokenStrip:
    """A realized text, prompt first, with rows of predictions of the same length."""

    tokens: tuple[str, ...]
    prompt_length: int
    rows: tuple[StripRow, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.prompt_length <= len(self.tokens):
            raise ValueError(
                f"prompt_length={self.prompt_length} lies outside 0..{len(self.tokens)}, the text's length."
            )
        for row in self.rows:
            if not len(row.tokens) == len(row.probabilities) == len(self.tokens):
                raise ValueError(
                    f"Row {row.label!r} has {len(row.tokens)} tokens and {len(row.probabilities)} probabilities for a "
                    f"text of {len(self.tokens)} tokens; align every row by target, None where nothing was predicted."
                )
            outside = [
                p
                for token, p in zip(row.tokens, row.probabilities, strict=True)
                if token is not None and not 0 <= p <= 1 + _ROUNDING
            ]
            if outside:
                raise ValueError(f"Row {row.label!r} has the probability {outside[0]}, outside [0, 1].")


def render_strip(
    strip: TokenStrip, *, font_size_pixels: int = 16, max_width_pixels: int = 1200
) -> UInt8[np.ndarray, "height width 3"]:
    """The strip as an RGB picture; a text wider than ``max_width_pixels`` is broken into blocks of lines."""
    from PIL import Image, ImageDraw

    font = _font(font_size_pixels)
    canvas = _Canvas.fitted(strip, font, font_size_pixels, max_width_pixels)
    image = Image.new("RGB", (canvas.width, canvas.height), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    top = canvas.margin
    if strip.caption:
        draw.text((canvas.margin, top), _legible(strip.caption, font), font=font, fill=_MUTED)
        top += canvas.row_height + canvas.gap
    for first, last in canvas.blocks:
        _draw_block(draw, strip, canvas, font, first, last, top)
        top += canvas.block_height + canvas.margin
    return np.array(image, dtype=np.uint8)


def visible(text: str, font: "FreeTypeFont") -> str:
    """The text with blanks made visible and characters that the font lacks written as escapes."""
    return "".join(_BLANKS.get(character) or _glyph(character, font) for character in text)


def shade(agrees: bool, probability: float) -> Colour:
    """Green or red, from nearly white at probability 0 to full at 1."""
    full = _AGREE if agrees else _DISAGREE
    weight = 0.12 + 0.88 * min(1.0, probability)
    red, green, blue = (
        round(background + weight * (channel - background))
        for background, channel in zip(_BACKGROUND, full, strict=True)
    )
    return red, green, blue


@dataclass(frozen=True)
class _Canvas:
    """Where things stand, in pixels."""

    margin: int
    gap: int
    row_height: int
    label_width: int
    cell_widths: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    block_height: int
    width: int
    height: int

    @classmethod
    def fitted(cls, strip: TokenStrip, font: "FreeTypeFont", font_size_pixels: int, max_width_pixels: int) -> "_Canvas":
        margin, gap = font_size_pixels // 2, max(1, font_size_pixels // 8)
        row_height = round(font_size_pixels * 1.6)
        label_width = margin + max(round(font.getlength(label)) for label in _labels(strip))
        columns = [
            [strip.tokens[place], *(row.tokens[place] for row in strip.rows)] for place in range(len(strip.tokens))
        ]
        cell_widths = tuple(
            round(font_size_pixels * 0.7)
            + max(round(font.getlength(visible(token, font))) for token in column if token is not None)
            for column in columns
        )
        room = max_width_pixels - 2 * margin - label_width
        blocks = _break_lines(cell_widths, gap, room)
        widest = max((sum(cell_widths[first:last]) + gap * (last - first) for first, last in blocks), default=0)
        block_height = (1 + len(strip.rows)) * (row_height + gap)
        caption_height = row_height + gap if strip.caption else 0
        caption_width = round(font.getlength(_legible(strip.caption, font)))
        return cls(
            margin=margin,
            gap=gap,
            row_height=row_height,
            label_width=label_width,
            cell_widths=cell_widths,
            blocks=blocks,
            block_height=block_height,
            width=2 * margin + max(label_width + widest, caption_width),
            height=margin + caption_height + max(1, len(blocks)) * (block_height + margin),
        )


def _draw_block(
    draw: "ImageDraw", strip: TokenStrip, canvas: _Canvas, font: "FreeTypeFont", first: int, last: int, top: int
) -> None:
    """Tokens ``first`` to ``last`` of every row."""
    for line, label in enumerate(_labels(strip)):
        left = canvas.margin
        row_top = top + line * (canvas.row_height + canvas.gap)
        middle = row_top + canvas.row_height // 2
        draw.text((left, middle), label, font=font, fill=_MUTED, anchor="lm")
        left += canvas.label_width
        row = strip.rows[line - 1] if line > 0 else None
        for place in range(first, last):
            token = strip.tokens[place] if row is None else row.tokens[place]
            right, bottom = left + canvas.cell_widths[place] - 1, row_top + canvas.row_height - 1
            draw.rectangle((left, row_top, right, bottom), fill=_fill(strip, row, place))
            if token is not None:
                shown = visible(token, font)
                draw.text(((left + right) // 2, middle), shown, font=font, fill=_TEXT, anchor="mm")
            if row is not None and token is not None and token != strip.tokens[place]:
                thickness = max(2, canvas.row_height // 10)
                draw.rectangle((left, bottom - thickness + 1, right, bottom), fill=_DISAGREE)
            left = right + 1 + canvas.gap


def _fill(strip: TokenStrip, row: StripRow | None, place: int) -> Colour:
    if row is None:
        return _PROMPT_FILL if place < strip.prompt_length else _REALIZED_FILL
    token = row.tokens[place]
    if token is None:
        return _EMPTY_FILL
    return shade(token == strip.tokens[place], row.probabilities[place])


def _labels(strip: TokenStrip) -> list[str]:
    return ["realized", *(row.label for row in strip.rows)]


def _break_lines(widths: tuple[int, ...], gap: int, room: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of cells that fit into ``room``; a cell wider than that gets a line of its own."""
    blocks: list[tuple[int, int]] = []
    first, used = 0, 0
    for place, width in enumerate(widths):
        if place > first and used + width > room:
            blocks.append((first, place))
            first, used = place, 0
        used += width + gap
    if first < len(widths):
        blocks.append((first, len(widths)))
    return tuple(blocks)


@functools.lru_cache(maxsize=8)
def _font(size_pixels: int) -> "FreeTypeFont":
    """DejaVu Sans Mono from matplotlib's data: PIL's own default font has ASCII only."""
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return ImageFont.truetype(str(path), size_pixels)


def _legible(text: str, font: "FreeTypeFont") -> str:
    return "".join(_glyph(character, font) for character in text)


@functools.lru_cache(maxsize=4096)
def _glyph(character: str, font: "FreeTypeFont") -> str:
    missing = bytes(font.getmask("\U0010ffff"))
    if character.isprintable() and bytes(font.getmask(character)) != missing:
        return character
    return f"<{ord(character):X}>"
