"""A decoding with its reasons, on a terminal or as plain text: marks say what colours do, for who sees none.

Accepted drafts are ✓ and green, refused ones ✗, red and struck out, those not reached – and grey; the trunk's own
tokens are → and cyan.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rich.box import ASCII2, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from worldmtp.cli.writing import Marks, Writing
from worldmtp.decoding.explain import DraftedPlace, DraftedToken, ExplainedRound, Explanation, Fate, Guess

_NARROW = 14
"""Characters of the columns beside the wide one."""
_GAP = 3
"""Characters between columns."""
_STYLES = {
    Fate.ACCEPTED: "green",
    Fate.REFUSED: "red strike",
    Fate.UNREACHED: "bright_black",
    Fate.PAST_THE_END: "bright_black",
}
_OWN = "bold cyan"
_DIM = "bright_black"


def show_explanation(
    explanation: Explanation,
    tokenizer: PreTrainedTokenizerBase,
    draft: str,
    is_sampled: bool,
    marks: Marks,
    console: Console,
) -> None:
    """Print a text's rounds, one forward of the trunk each."""
    writing = Writing(tokenizer, marks)
    console.print(_legend(is_sampled, marks))
    rows = [
        row
        for number, one in enumerate(explanation.rounds, start=1)
        for row in _rows_of(number, one, draft, is_sampled, writing)
    ]
    headers = ("", "what the draft holds likely", "the trunk", "verdict")
    table = _table(headers, marks)
    taken = [
        max(len(headers[0]), *(len(row.label) for row in rows)),
        max(len(headers[2]), *(_width(row.trunk) for row in rows)),
        max(len(headers[3]), *(_width(row.verdict) for row in rows)),
    ]
    left = max(len(headers[1]), console.width - sum(taken) - _GAP * len(headers))
    for row in rows:
        label = Text(row.label, "bold" if row.label.startswith("forward") else "")
        table.add_row(label, row.wide(left), row.trunk, row.verdict, end_section=row.ends_round)
    console.print(table)


def show_side_by_side(
    step_by_step: Explanation,
    parallel: Explanation,
    tokenizer: PreTrainedTokenizerBase,
    draft: str,
    is_sampled: bool,
    conditions: str,
    marks: Marks,
    console: Console,
) -> None:
    """Print two decodings of one prompt, forward by forward, and whether their texts are the same.

    ``conditions`` say what the numbers of forwards depend on.
    """
    writing = Writing(tokenizer, marks)
    width = max(16, (console.width - 18) // 2)
    table = _table(("forward", "step by step (draft none)", f"in parallel (draft {draft})"), marks)
    for index in range(max(len(step_by_step.rounds), len(parallel.rounds))):
        table.add_row(
            str(index + 1),
            *(
                _text_after(explanation.rounds[index], writing, width) if index < len(explanation.rounds) else Text()
                for explanation in (step_by_step, parallel)
            ),
        )
    console.print(table)
    console.print(_comparison(step_by_step, parallel, is_sampled, marks))
    console.print(Text(conditions, _DIM))


def _comparison(step_by_step: Explanation, parallel: Explanation, is_sampled: bool, marks: Marks) -> Text:
    forwards = f"{len(step_by_step.rounds)} forwards of the trunk step by step, {len(parallel.rounds)} in parallel."
    if step_by_step.new_tokens == parallel.new_tokens:
        return Text.assemble((f"{marks.accepted} identical texts", "bold green"), f": {forwards}")
    if is_sampled:
        return Text(f"Other draws of the same law: {forwards}")
    return Text.assemble(
        (f"{marks.refused} the texts differ", "bold red"),
        f", which greedy decoding does only where two tokens tie to rounding: {forwards}",
    )


def _table(headers: Sequence[str], marks: Marks) -> Table:
    table = Table(box=ASCII2 if marks.is_ascii else SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def _width(text: Text) -> int:
    return max(len(line) for line in text.plain.split("\n"))


def _legend(is_sampled: bool, marks: Marks) -> Text:
    rule = "Drafts are accepted by draws that keep the trunk's law."
    if not is_sampled:
        rule = "A draft is accepted where it is the trunk's likeliest."
    return Text.assemble(
        "One forward of the trunk reads the newest token and the drafts behind it, and\n",
        f"says what follows each. {rule}\n",
        (f"{marks.accepted} accepted", _STYLES[Fate.ACCEPTED]),
        "  ",
        (f"{marks.refused} refused", "red"),
        "  ",
        (f"{marks.own} the trunk's own", _OWN),
        (f"  {marks.unreached} not reached", _DIM),
    )


@dataclass(frozen=True)
class _Row:
    """A line of the rounds; its widest column is told the width that the others leave."""

    label: str
    wide: Callable[[int], Text]
    trunk: Text = field(default_factory=Text)
    verdict: Text = field(default_factory=Text)
    ends_round: bool = False


def _rows_of(number: int, one: ExplainedRound, draft: str, is_sampled: bool, writing: Writing) -> list[_Row]:
    rows = [_Row(f"forward {number}", lambda width: _reads(number, one, writing, width))]
    for ahead, place in enumerate(one.places, start=1):
        label = f"depth {ahead + 1}" if draft in ("mtp", "tree") else f"draft {ahead}"
        drafted = [candidate.token for candidate in place.tokens]
        view = _guesses(place.drafter_view, drafted, writing) or [Text("found in the text", _DIM)]
        trunk, verdict = _trunk(place, is_sampled, writing), _verdict(place.tokens, writing)
        rows.append(_Row(f"  {label}", partial(_packed, view), trunk, verdict))
    if one.own is not None:
        said = [one.own_view[0], *([] if one.own.token == one.own_view[0].token else [one.own])]
        own = Text(f"{writing.marks.own} {writing.token(one.own.token)}", _OWN)
        rows.append(_Row("  trunk", lambda width: Text(), _packed(_guesses(said, [], writing)), own))
    rows.append(_Row("  text now", lambda width: _text_after(one, writing, width), ends_round=True))
    return rows


def _reads(number: int, one: ExplainedRound, writing: Writing, width: int) -> Text:
    if number == 1:
        return Text.assemble("reads the prompt ", writing.grown(one.text, [], width - 17))
    drafted = [writing.token(candidate.token) for place in one.places for candidate in place.tokens]
    newest = writing.token(one.text[-1])
    said = f"reads {newest} and the drafts {' '.join(drafted)}" if drafted else f"reads {newest}, no draft"
    return Text(said if len(said) <= width else f"reads {newest} and {len(drafted)} drafts", "bold")


def _text_after(one: ExplainedRound, writing: Writing, width: int) -> Text:
    own = () if one.own is None else (one.own.token,)
    return writing.grown(one.text, [(one.accepted, _STYLES[Fate.ACCEPTED]), (own, _OWN)], width)


def _guesses(guesses: Sequence[Guess], drafted: Sequence[int], writing: Writing) -> list[Text]:
    """Return tokens with their probabilities, those that were drafted in bold."""
    return [
        Text(f"{writing.token(guess.token)} {_percent(guess.probability)}", "bold" if guess.token in drafted else "")
        for guess in guesses
    ]


def _trunk(place: DraftedPlace, is_sampled: bool, writing: Writing) -> Text:
    guesses = list(place.trunk_view[:1])
    if is_sampled:  # whether a draft is accepted hangs on its own probability
        guesses += [
            Guess(candidate.token, candidate.trunk_probability)
            for candidate in place.tokens
            if candidate.trunk_probability is not None and candidate.token != guesses[0].token
        ]
    return _packed(_guesses(guesses, [], writing))


def _verdict(candidates: Sequence[DraftedToken], writing: Writing) -> Text:
    verdicts = []
    for candidate in candidates:
        style = _STYLES[candidate.fate]
        mark = (f"{writing.marks.of(candidate.fate)} ", style.removesuffix(" strike"))
        verdicts.append(Text.assemble(mark, (writing.token(candidate.token), style)))
    return _packed(verdicts)


def _packed(parts: Sequence[Text], width: int = _NARROW) -> Text:
    """Return parts side by side, on further lines where they do not fit, and none broken."""
    lines = [Text()]
    for part in parts:
        if lines[-1] and len(lines[-1]) + 2 + len(part) > width:
            lines.append(Text())
        lines[-1] = Text("  ").join([lines[-1], part]) if lines[-1] else part
    return Text("\n").join(lines)


def _percent(probability: float) -> str:
    return "<1%" if probability < 0.005 else f"{probability:.0%}"
