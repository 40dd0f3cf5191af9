"""Texts of a source whose law is known, so that the truth stands beside what heads and values say.

The prompt tells the last token of the text, the *goal*, and how the text begins; the answer goes on as the source does
and has to end in the goal: ``"C:ABBBAC" -> "CACCBC"``. Texts are drawn from the source as they are, and the goal is
read off their end. So the demonstrations' law is the source's own given where it ends, in closed form by
``worldmtp.exact.GoalTexts``, and whoever follows it earns 1: reinforcement has no reason to leave it.

Left out: a reward for likely tokens. Its best policy says the likeliest one each time and is far from the source.
"""

from bisect import bisect
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from worldmtp.choices import check_choice
from worldmtp.envs.task import Example, Score
from worldmtp.exact import GoalTexts, Source, block_hmm, bounded_dyck, cycle, mess3, two_senses

SOURCES: Mapping[str, tuple[Callable[..., Source], str]] = {
    "mess3": (mess3, "ABC"),
    "markov": (cycle, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "factorial": (two_senses, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "block": (block_hmm, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    "dyck": (bounded_dyck, ""),
}
"""Sources by name, and what their tokens are written with: the first characters, of brackets the pairs."""

_BRACKETS = ("([{<", ")]}>")
_END = "."
_MOST_DRAWS = 1000


@runtime_checkable
class KnownLaw(Protocol):
    """A task whose answers are texts of a source: a run in it shows the truth beside what heads say."""

    law: GoalTexts

    def parts(self, prompt: str) -> tuple[str, str]:
        """Return the goal, a symbol, and the source's text that a prompt begins with; the prompt ends with it."""
        ...


class ExactWorld:
    """Go on as the source does, and end in the goal; 1 for a possible text of the right length that does, else 0.

    Args:
        source: "mess3", "markov", "factorial", "block" or "dyck".
        source_kwargs: of the function of ``worldmtp.exact`` that makes it.
        prefix_length: tokens of the source in the prompt.
        answer_length: tokens of the answer, the goal included.
        separator: what stands behind the goal.

    Raises:
        ValueError: no such source, a keyword that it does not take, one with more tokens than there are characters, a
            length below 1, or a separator that is a symbol or not one character.
    """

    probe_bound = 0.0

    def __init__(
        self,
        source: str,
        source_kwargs: Mapping[str, Any] | None = None,
        prefix_length: int = 12,
        answer_length: int = 8,
        separator: str = ":",
    ) -> None:
        check_choice("source", source, SOURCES)
        make, characters = SOURCES[source]
        for name in source_kwargs or {}:
            check_choice(f"source_kwargs of {source}", name, signature(make).parameters)
        made = make(**dict(source_kwargs or {}))
        symbols = _symbols(made.num_symbols, characters)
        self.law = GoalTexts(made, symbols, prefix_length, answer_length)
        if len(separator) != 1 or separator in symbols:
            raise ValueError(f"separator={separator!r} must be one character and none of the symbols {symbols!r}.")
        self._separator = separator
        edges = made.transitions.permute(1, 0, 2).flatten(1)  # (state, symbol * state)
        self._edges = edges.cumsum(dim=1).tolist()
        self._start = made.start.cumsum(dim=0).tolist()
        possible = made.transitions.permute(1, 0, 2).numpy() > 0
        self._next = [[frozenset(np.flatnonzero(row).tolist()) for row in of_state] for of_state in possible]
        self._first = frozenset(np.flatnonzero(made.start.numpy() > 0).tolist())

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        """Draw a text; brackets that are all closed within the prefix are drawn again, since nothing is left to say."""
        law = self.law
        for _ in range(_MOST_DRAWS):
            text = self._draw(rng, law.prefix_length + law.answer_length)
            prefix, answer = text[: law.prefix_length], text[law.prefix_length :]
            if _END not in prefix:
                return Example(prompt=f"{answer[-1]}{self._separator}{prefix}", answer=answer)
        raise ValueError(f"none of {_MOST_DRAWS} texts goes on beyond prefix_length={law.prefix_length}; lower it.")

    def score(self, example: Example, text: str, ids: Int64[np.ndarray, " tokens"]) -> Score:
        """1 where the text is possible, ends in the goal and is as long as asked for.

        ``possible`` is 1 for what the source may say behind this prefix, ``reached`` for the goal at the right place;
        the reason tells what is wrong: "length", "impossible" or "missed".
        """
        goal, prefix = self.parts(example.prompt)
        possible = self._is_possible(prefix + text)
        reached = len(text) == self.law.answer_length and text[-1] == goal
        exact = possible and reached
        is_long = len(text) == self.law.answer_length
        reason = "ok" if exact else "length" if not is_long else "missed" if possible else "impossible"
        components = {"possible": float(possible), "reached": float(reached)}
        return Score(value=float(exact), components=components, reason=reason, exact=exact)

    def parts(self, prompt: str) -> tuple[str, str]:
        """Return goal and prefix of a prompt.

        Raises:
            ValueError: it is none of this task's.
        """
        law = self.law
        goal, separator, prefix = prompt[:1], prompt[1:2], prompt[2:]
        if (
            separator != self._separator
            or len(prefix) != law.prefix_length
            or not set(goal + prefix) <= set(law.symbols)
        ):
            raise ValueError(
                f"the prompt {prompt!r} is none of this source's; expected a goal, {self._separator!r} and "
                f"{law.prefix_length} of {law.symbols!r}."
            )
        return goal, prefix

    def _draw(self, rng: np.random.Generator, length: int) -> str:
        chances = rng.random(length + 1).tolist()
        state = _pick(self._start, chances[0])
        num_states, tokens = len(self._start), []
        for chance in chances[1:]:
            token, state = divmod(_pick(self._edges[state], chance), num_states)
            tokens.append(self.law.symbols[token])
        return "".join(tokens)

    def _is_possible(self, text: str) -> bool:
        """Return whether the source may say this: some states are left after each token."""
        left = self._first
        for character in text:
            token = self.law.symbols.find(character)
            if token < 0:
                return False
            left = frozenset().union(*(self._next[state][token] for state in left))
            if not left:
                return False
        return True


def _symbols(num_symbols: int, characters: str) -> str:
    """Return what tokens are written with; without characters they are brackets, and the end a full stop."""
    if not characters:
        num_kinds = (num_symbols - 1) // 2
        if num_kinds > len(_BRACKETS[0]):
            raise ValueError(f"num_kinds={num_kinds} exceeds the {len(_BRACKETS[0])} kinds of brackets there are.")
        return "".join(kind[:num_kinds] for kind in _BRACKETS) + _END
    if num_symbols > len(characters):
        raise ValueError(f"the source has {num_symbols} tokens and there are {len(characters)} characters for them.")
    return characters[:num_symbols]


def _pick(cumulative: list[float], chance: float) -> int:
    """Return the place that a number of [0, 1) falls on; rounding leaves the last sum below 1."""
    return min(bisect(cumulative, chance), len(cumulative) - 1)
