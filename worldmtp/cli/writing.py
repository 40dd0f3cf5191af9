"""How tokens and texts look on a terminal, in plain text or on a page, and by which marks kinds are told apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from worldmtp.cli.prompts import decode_text
from worldmtp.decoding.explain import Fate
from worldmtp.search.explain import Spoken

_LONGEST_TOKEN = 12
_DIM = "bright_black"


@dataclass(frozen=True)
class Marks:
    """The characters of a demonstration; plain ones where the terminal's encoding has no others."""

    accepted: str = "✓"
    refused: str = "✗"
    unreached: str = "–"
    own: str = "→"
    space: str = "␣"
    cut: str = "…"
    heard: tuple[str, str] = ("«", "»")
    is_ascii: bool = False

    @classmethod
    def for_encoding(cls, encoding: str) -> "Marks":
        """Return those that can be written in ``encoding``."""
        try:
            "✓✗–→␣…«»".encode(encoding)
        except UnicodeEncodeError:
            return cls("+", "x", "-", ">", "_", "~", ("<<", ">>"), is_ascii=True)
        return cls()

    def of(self, fate: Fate) -> str:
        """Return the mark of a fate."""
        return {Fate.ACCEPTED: self.accepted, Fate.REFUSED: self.refused}.get(fate, self.unreached)


@dataclass(frozen=True)
class Writing:
    """How tokens look."""

    tokenizer: PreTrainedTokenizerBase
    marks: Marks

    def token(self, token: int) -> str:
        """Return a token by itself: escaped, its spaces visible, and not too long."""
        piece: str | None = self.tokenizer.convert_ids_to_tokens([token])[0]
        if piece is None:  # an id of the model that the tokenizer has no text for
            return f"<{token}>"
        if token in self.tokenizer.all_special_ids:
            text = piece
        else:
            text = str(self.tokenizer.decode([token], clean_up_tokenization_spaces=False))
            if piece.startswith("▁") and not text.startswith(" "):  # sentencepiece takes a text's first space away
                text = f" {text}"
        text = _escaped(text, self.marks.is_ascii).replace(" ", self.marks.space)
        return text if len(text) <= _LONGEST_TOKEN else text[: _LONGEST_TOKEN - 1] + self.marks.cut

    def grown(self, before: Sequence[int], parts: Sequence[tuple[Sequence[int], str]], width: int) -> Text:
        """Return a text and what was added to it, part by part in its style; its end if it is wider than ``width``."""
        tokens, old = list(before), self._text(before)
        written = Text(old)
        for part, style in parts:
            tokens += part
            new = self._text(tokens)
            # A character of several tokens changes what stood there already.
            written = Text.assemble(written, (new[len(old) :], style)) if new.startswith(old) else Text(new, style)
            old = new
        return self._end_of(written, width)

    def spoken(self, text: Spoken, width: int | None = None) -> Text:
        """Return a text in which what the world wrote stands between marks; its end if it is wider than ``width``."""
        written = Text()
        for is_heard, part in _by_speaker(text):
            piece = self._text(part)
            written.append(piece.join(self.marks.heard) if is_heard else piece, _DIM if is_heard else "")
        return written if width is None else self._end_of(written, width)

    def path(self, text: Spoken) -> str:
        """Return a text token by token, escaped, what the world wrote between marks."""
        pieces = [("".join(map(self.token, part)), is_heard) for is_heard, part in _by_speaker(text)]
        return "".join(piece.join(self.marks.heard) if is_heard else piece for piece, is_heard in pieces)

    def _end_of(self, written: Text, width: int) -> Text:
        if len(written) <= width:
            return written
        return Text.assemble(self.marks.cut, written[len(written) - width + 1 :])

    def _text(self, tokens: Sequence[int]) -> str:
        ends = set(self.tokenizer.all_special_ids)
        last = self.token(tokens[-1]) if tokens and tokens[-1] in ends else ""
        return _escaped(decode_text(self.tokenizer, tokens), self.marks.is_ascii) + last


def _by_speaker(text: Spoken) -> Iterator[tuple[bool, list[int]]]:
    """Yield the parts of a text: whether the world wrote it, and its tokens."""
    for is_heard, part in groupby(zip(text.tokens, text.is_heard, strict=True), key=lambda one: one[1]):
        yield is_heard, [token for token, _ in part]


def _escaped(text: str, is_ascii: bool) -> str:
    """Return control characters and line ends as a program would write them, and what a plain terminal cannot show."""

    def is_shown(one: str) -> bool:
        return one.isprintable() and (one.isascii() or not is_ascii)

    return "".join(one if is_shown(one) else one.encode("unicode_escape").decode("ascii") for one in text)
