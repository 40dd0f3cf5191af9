"""Token strips: what the heads predicted, under what happened, aligned by the token they speak of.

    realized   2 + 3 = 5 <eos>     prompt and replies grey, answer blue
    depth 1            5 <eos>     each said at the token before
    depth 2              <eos>     each said two tokens before

A cell is green where prediction and realized token agree and red where they do not, the deeper the more probable the
prediction was. Colour is not the only sign: a wrong cell is also underlined. ``strip_blocks`` lays a strip out on a
grid of characters; ``render_strip`` draws that for TensorBoard, and the report writes it as a table.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

_AGREE: Colour = (96, 178, 118)
_DISAGREE: Colour = (222, 106, 96)
_TEXT: Colour = (28, 30, 34)
_MUTED: Colour = (120, 124, 132)
_PROMPT_FILL: Colour = (238, 239, 242)
_REALIZED_FILL: Colour = (212, 224, 241)
_EMPTY_FILL: Colour = (250, 250, 251)
_BACKGROUND: Colour = (255, 255, 255)
# A softmax in float32 may exceed 1 by this much.
_ROUNDING = 1e-5
# The second row is how byte-level BPE and SentencePiece write a blank.
_BLANKS = {**{" ": "␣", "\n": "⏎", "\t": "⇥"}, **{"Ġ": "␣", "▁": "␣", "Ċ": "⏎"}}


@dataclass(frozen=True)
class StripRow:
    """One row of predictions; entry i speaks of token i, None where nothing was predicted of it."""

    label: str
    tokens: tuple[str | None, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TokenStrip:
    """A realized text, prompt first, with rows of predictions of the same length.

    ``replies`` are the places behind the prompt that the world wrote, and not who answers.
    """

    tokens: tuple[str, ...]
    prompt_length: int
    rows: tuple[StripRow, ...]
    caption: str = ""
    replies: frozenset[int] = frozenset()

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


@dataclass(frozen=True)
class StripCell:
    """A token as it is shown; empty where nothing was predicted. ``is_changed`` is beside another strip."""

    text: str
    fill: Colour
    is_wrong: bool = False
    is_changed: bool = False


@dataclass(frozen=True)
class StripBlock:
    """The tokens of a strip that stand side by side: a line of cells for each label, columns as wide as ``widths``."""

    lines: tuple[tuple[str, tuple[StripCell, ...]], ...]
    widths: tuple[int, ...]


def visible(text: str) -> str:
    """Return the text with visible blanks, and with escapes for characters that cannot be printed."""
    return "".join(_BLANKS.get(character) or _printable(character) for character in text)


def shade(agrees: bool, probability: float) -> Colour:
    """Return green or red, from nearly white at probability 0 to full at 1."""
    full = _AGREE if agrees else _DISAGREE
    weight = 0.12 + 0.88 * min(1.0, probability)
    red, green, blue = (
        round(background + weight * (channel - background))
        for background, channel in zip(_BACKGROUND, full, strict=True)
    )
    return red, green, blue


def strip_blocks(
    strip: TokenStrip, max_characters: int, show: Callable[[str], str] = visible
) -> tuple[StripBlock, ...]:
    """Lay out a strip in blocks of at most ``max_characters``, labels included; each column has one blank of its own.

    A token that is wider than that gets a block to itself.
    """
    lines = [("realized", tuple(_realized_cell(strip, place, show) for place in range(len(strip.tokens))))]
    lines += [(row.label, _predicted_cells(strip, row, show)) for row in strip.rows]
    widths = [1 + max(len(cells[place].text) for _, cells in lines) for place in range(len(strip.tokens))]
    room = max_characters - label_width(strip)
    starts, used = [0], 0
    for place, width in enumerate(widths):
        if place > starts[-1] and used + width > room:
            starts.append(place)
            used = 0
        used += width
    ends = [*starts[1:], len(widths)]
    return tuple(
        StripBlock(tuple((label, cells[first:last]) for label, cells in lines), tuple(widths[first:last]))
        for first, last in zip(starts, ends, strict=True)
    )


def label_width(strip: TokenStrip) -> int:
    """Return the characters of the column of labels, a blank included."""
    return 1 + max(len(label) for label in ("realized", *(row.label for row in strip.rows)))


def render_strip(
    strip: TokenStrip, *, font_size_pixels: int = 16, max_width_pixels: int = 1200
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the strip as an RGB picture with PIL; a text wider than ``max_width_pixels`` is broken into blocks."""
    from PIL import Image, ImageDraw

    font = _font(font_size_pixels)
    character, margin = font.getlength("0"), font_size_pixels // 2
    gap, height = max(1, font_size_pixels // 8), round(font_size_pixels * 1.6)
    max_characters = int((max_width_pixels - 2 * margin) / character)
    blocks = strip_blocks(strip, max_characters, lambda text: _drawable(visible(text), font))
    caption = _drawable(strip.caption, font)
    labels = label_width(strip)
    columns = max(labels + max(sum(block.widths) for block in blocks), len(caption))
    num_lines = len(blocks) * (1 + len(strip.rows)) + bool(caption)
    size = 2 * margin + round(columns * character), (len(blocks) + 1) * margin + num_lines * (height + gap)
    image = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(image)
    top = margin
    if caption:
        draw.text((margin, top), caption, font=font, fill=_MUTED)
        top += height + gap
    for block in blocks:
        for label, cells in block.lines:
            draw.text((margin, top + height // 2), label, font=font, fill=_MUTED, anchor="lm")
            column = labels
            for cell, width in zip(cells, block.widths, strict=True):
                left, right = (margin + round((column + end) * character) for end in (0, width))
                bottom = top + height - 1
                draw.rectangle((left, top, right - gap - 1, bottom), fill=cell.fill)
                middle = (left + right - gap) // 2, top + height // 2
                draw.text(middle, cell.text, font=font, fill=_TEXT, anchor="mm")
                if cell.is_wrong:
                    underline = bottom - max(2, height // 10) + 1
                    draw.rectangle((left, underline, right - gap - 1, bottom), fill=_DISAGREE)
                column += width
            top += height + gap
        top += margin
    return np.array(image, dtype=np.uint8)


def _realized_cell(strip: TokenStrip, place: int, show: Callable[[str], str]) -> StripCell:
    is_answer = place >= strip.prompt_length and place not in strip.replies
    return StripCell(show(strip.tokens[place]), _REALIZED_FILL if is_answer else _PROMPT_FILL)


def _predicted_cells(strip: TokenStrip, row: StripRow, show: Callable[[str], str]) -> tuple[StripCell, ...]:
    return tuple(
        StripCell("", _EMPTY_FILL)
        if token is None
        else StripCell(show(token), shade(token == realized, probability), token != realized)
        for token, realized, probability in zip(row.tokens, strip.tokens, row.probabilities, strict=True)
    )


def _printable(character: str) -> str:
    return character if character.isprintable() else f"<{ord(character):X}>"


@functools.lru_cache(maxsize=8)
def _font(size_pixels: int) -> "FreeTypeFont":
    """Return DejaVu Sans Mono from matplotlib's data: PIL's own default font has ASCII only."""
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return ImageFont.truetype(str(path), size_pixels)


def _drawable(text: str, font: "FreeTypeFont") -> str:
    """Return the text with escapes for characters that the font lacks."""
    return "".join(character if _has_glyph(character, font) else f"<{ord(character):X}>" for character in text)


@functools.lru_cache(maxsize=4096)
def _has_glyph(character: str, font: "FreeTypeFont") -> bool:
    missing = bytes(font.getmask("\U0010ffff"))
    return character.isprintable() and bytes(font.getmask(character)) != missing
