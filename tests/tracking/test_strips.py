"""Token strips: colours where they belong, alignment, and text that can be read."""

import math

import numpy as np
import pytest

from worldmtp.tracking import StripRow, TokenStrip, render_strip
from worldmtp.tracking.strips import StripBlock, StripCell, shade, strip_blocks, visible

NAN = math.nan


def strip(predicted, probability, tokens=("a", "b"), **options):
    return TokenStrip(
        tokens=tokens, prompt_length=1, rows=(StripRow("depth 1", (None, predicted), (NAN, probability)),), **options
    )


def count(image, colour):
    return int(np.all(image == np.array(colour, dtype=np.uint8), axis=-1).sum())


def test_agreement_is_green_disagreement_red_and_underlined():
    green, red = (96, 178, 118), (222, 106, 96)
    agreeing, differing = render_strip(strip("b", 1.0)), render_strip(strip("c", 1.0))
    assert count(agreeing, green) > 100
    assert count(agreeing, red) == 0
    assert count(differing, red) > 100
    assert count(differing, green) == 0
    # At a low probability the cell is pale, so the full red left is the underline.
    unsure = render_strip(strip("c", 0.0))
    assert 0 < count(unsure, red) < count(differing, red) / 3


def test_shade_goes_from_pale_to_full():
    assert shade(True, 1.0) == (96, 178, 118)
    # .12 of the way from white: 255 + .12 * (96 - 255) = 235.9, 255 - 9.24 = 245.8, 255 - 16.4 = 238.6
    assert shade(True, 0.0) == (236, 246, 239)
    assert shade(False, 0.3) != shade(False, 0.4)


def test_predictions_stand_under_the_token_they_speak_of():
    image = render_strip(
        TokenStrip(
            tokens=("aaaa", "b", "cccccccc"),
            prompt_length=1,
            rows=(StripRow("k", (None, None, "cccccccc"), (NAN, NAN, 1.0)),),
        )
    )
    columns = np.flatnonzero(np.all(image == np.array((96, 178, 118), dtype=np.uint8), axis=-1).any(axis=0))
    answer = np.flatnonzero(np.all(image == np.array((212, 224, 241), dtype=np.uint8), axis=-1).any(axis=0))
    # The answer has two cells, b and c; the green cell ends where the second ends and starts after the first starts.
    assert columns[-1] == answer[-1]
    assert columns[0] > answer[0]


def test_a_long_text_is_broken_into_lines():
    tokens = tuple("abcdefghij" * 10)
    wide = TokenStrip(tokens=tokens, prompt_length=5, rows=())
    one_line = render_strip(wide, max_width_pixels=10_000)
    broken = render_strip(wide, max_width_pixels=400)
    assert broken.shape[1] <= 400
    assert broken.shape[0] > 3 * one_line.shape[0]


def test_blanks_and_what_cannot_be_printed_are_visible():
    assert visible("a b\n\tĠthe") == "a␣b⏎⇥␣the"
    assert visible("é漢\x00") == "é漢<0>"


def test_a_picture_escapes_what_its_font_lacks():
    """The escape <6F22> of the character is four characters wider than one that the font has."""
    known, unknown = (render_strip(TokenStrip((token,), 1, ())).shape[1] for token in ("é", "漢"))
    assert unknown - known == pytest.approx(5 * 16 * 0.602, abs=1.5)  # DejaVu Sans Mono is .602 em wide


def test_a_strip_is_laid_out_in_blocks_with_every_label():
    agreeing = StripCell("cc", shade(True, 1.0))
    wrong = StripCell("␣", shade(False, 0.5), is_wrong=True)
    grey, blue, empty = (238, 239, 242), (212, 224, 241), (250, 250, 251)
    laid = strip_blocks(
        TokenStrip(("a", "b", "cc"), 1, (StripRow("depth 1", (None, " ", "cc"), (NAN, 0.5, 1.0)),)), max_characters=13
    )
    # "realized " takes 9 of the 13 characters, "a " and "b " two each; "cc " would be the 14th to 16th.
    assert laid == (
        StripBlock(
            (("realized", (StripCell("a", grey), StripCell("b", blue))), ("depth 1", (StripCell("", empty), wrong))),
            (2, 2),
        ),
        StripBlock((("realized", (StripCell("cc", blue),)), ("depth 1", (agreeing,))), (3,)),
    )


def test_captions_keep_their_blanks_and_empty_strips_render():
    with_caption = render_strip(strip("b", 0.5, caption="worst of 64"))
    assert with_caption.shape[0] > render_strip(strip("b", 0.5)).shape[0]
    assert render_strip(TokenStrip(tokens=(), prompt_length=0, rows=())).ndim == 3


def test_misaligned_input_is_refused():
    with pytest.raises(ValueError, match=r"Row 'depth 1' has 2 tokens and 2 probabilities for a text of 3 tokens"):
        strip("b", 0.5, tokens=("a", "b", "c"))
    render_strip(strip("b", 1.0000001))  # a rounding error of float32 is not
    with pytest.raises(ValueError, match=r"probability 1.5, outside"):
        strip("b", 1.5)
    with pytest.raises(ValueError, match=r"prompt_length=3 lies outside 0..2"):
        TokenStrip(tokens=("a", "b"), prompt_length=3, rows=())
