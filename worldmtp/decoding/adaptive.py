"""How many tokens to draft, found out while decoding: the length with the most tokens a second, which may be none.

Drafting pays where a forward over several tokens costs little more than one over one: large models, few rows. It does
not where the trunk is small or the batch large (96.6 % acceptance at a third of the speed has been reported), so the
choice is by the clock. A round of g drafts takes t(g) seconds and gives 1 + a_1 + .. + a_g tokens a row, a_j being the
share of rounds whose first j drafts were accepted; the chosen g has the largest quotient. Times are medians of the last
rounds at about that many rows; a length that was not tried yet has its time interpolated between those that were. The
longest is tried first, which tells all a_j, and none next; now and then the length that was tried least has its turn.

Texts keep the trunk's law whatever is chosen, and greedy texts are the same. But what is chosen depends on the clock,
and how many random numbers are drawn on what is chosen: equal seeds do not give equal samples.
"""

import logging
from collections import Counter, defaultdict, deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from worldmtp.decoding.limits import as_integer

_LOG = logging.getLogger(__name__)


@runtime_checkable
class LengthChooser(Protocol):
    """What ``generate`` asks for a length before a round, and tells the outcome after it."""

    def choose(self, num_rows: int, max_length: int) -> int:
        """Return the length of the next round's drafts, from 0 to ``max_length``."""
        ...

    def observe(
        self,
        num_rows: int,
        length: int,
        seconds: float,
        num_accepted: Int[np.ndarray, " row"],
        num_drafted: Int[np.ndarray, " row"],
    ) -> None:
        """Take in a round: how long it took, and how many drafts of each row were made and accepted."""
        ...


def length_chooser(num_draft: Any, can_choose: bool, draft: Any = "mtp") -> tuple[LengthChooser | None, int | None]:
    """Return the chooser that ``num_draft`` names or is, or the length that it fixes.

    Raises:
        TypeError: it is neither an integer nor a chooser.
        ValueError: another name, or drafts whose length cannot be chosen: trees, and those of three phases.
    """
    if num_draft is None:
        return None, None
    if not isinstance(num_draft, (str, LengthChooser)):
        return None, as_integer("num_draft", num_draft, "a number of tokens, 'auto' or an AdaptiveLength")
    if isinstance(num_draft, str) and num_draft != "auto":
        raise ValueError(f"num_draft={num_draft!r} is unknown; give a number of tokens, or 'auto'.")
    if not can_choose:
        raise ValueError("num_draft='auto' chooses the length of merged chains; leave tree and three_phase out.")
    if isinstance(draft, str) and draft == "none":
        raise ValueError(f"num_draft={num_draft!r} chooses a length and draft='none' drafts nothing; leave one out.")
    return (AdaptiveLength() if isinstance(num_draft, str) else num_draft), None


def tokens_per_round(chances: Float[np.ndarray, " draft"]) -> Float[np.ndarray, " length"]:
    """Return the expected tokens of a row in a round of 0, 1, 2, .. drafts, from their cumulative acceptance."""
    return 1.0 + np.concatenate([[0.0], np.cumsum(chances)])


class AdaptiveLength:
    """A ``LengthChooser`` by the clock; passed to many calls of ``generate``, it learns only once.

    Args:
        num_trials: rounds that the longest draft, and none, are tried for before anything is chosen.
        revisit_every: rounds at about as many rows after which the length that was tried least is tried.
        memory: a round's weight in the acceptance after one more round.
    """

    def __init__(self, num_trials: int = 2, revisit_every: int = 50, memory: float = 0.99) -> None:
        for name, value in (("num_trials", num_trials), ("revisit_every", revisit_every)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not 0 < memory <= 1:
            raise ValueError(f"memory={memory} must lie in (0, 1].")
        self._num_trials, self._revisit_every, self._memory = num_trials, revisit_every, memory
        self._drafted, self._accepted = np.zeros(0), np.zeros(0)
        # (power of two nearest to the rows, length) -> seconds of the last rounds; lengths compare within one such.
        self._seconds: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._num_rounds: dict[int, Counter[int]] = defaultdict(Counter)
        self._has_said = False

    def choose(self, num_rows: int, max_length: int) -> int:
        """Return a length to try, or the fastest known one.

        Raises:
            ValueError: ``max_length`` is negative.
        """
        if max_length < 0:
            raise ValueError(f"max_length={max_length} must not be negative.")
        size = _size_class(num_rows)
        for length in (max_length, 0):
            if len(self._seconds[size, length]) < self._num_trials:
                return length
        if sum(self._num_rounds[size].values()) % self._revisit_every == self._revisit_every - 1:
            return min(range(max_length, -1, -1), key=self._num_rounds[size].__getitem__)
        seconds = self._round_seconds(size, max_length)
        best = int(np.argmax(tokens_per_round(self.acceptance(max_length)) / seconds))
        if best == 0 and max_length and not self._has_said:
            self._has_said = True
            _LOG.info(
                "drafting is switched off at %d rows: a round takes %.2f ms without and %.2f ms with %d drafts, of "
                "which %.2f are accepted on average.",
                num_rows,
                1e3 * seconds[0],
                1e3 * seconds[max_length],
                max_length,
                float(self.acceptance(max_length).sum()),
            )
        return best

    def observe(
        self,
        num_rows: int,
        length: int,
        seconds: float,
        num_accepted: Int[np.ndarray, " row"],
        num_drafted: Int[np.ndarray, " row"],
    ) -> None:
        """Update times and acceptance."""
        size = _size_class(num_rows)
        self._seconds[size, length].append(seconds)
        self._num_rounds[size][length] += 1
        if length > len(self._drafted):
            missing = np.zeros(length - len(self._drafted))
            self._drafted, self._accepted = (np.append(kept, missing) for kept in (self._drafted, self._accepted))
        place = np.arange(len(self._drafted))
        # A row that could have had a draft and got none, as look-ups do, counts as one that was refused.
        was_asked = place < length
        self._drafted = np.where(was_asked, self._memory * self._drafted + len(num_accepted), self._drafted)
        is_accepted = (place < num_accepted[:, None]) & (place < num_drafted[:, None])
        accepted = self._memory * self._accepted + is_accepted.sum(axis=0)
        self._accepted = np.where(was_asked, accepted, self._accepted)

    def acceptance(self, max_length: int) -> Float[np.ndarray, " draft"]:
        """Return the share of rounds whose first 1, 2, .. drafts were accepted; later rounds count more."""
        known = min(max_length, len(self._drafted))
        chances = self._accepted[:known] / np.maximum(self._drafted[:known], 1e-9)
        return np.append(chances, np.zeros(max_length - known))

    def _round_seconds(self, size: int, max_length: int) -> Float[np.ndarray, " length"]:
        tried = [length for length in range(max_length + 1) if self._seconds.get((size, length))]
        medians = [float(np.median(self._seconds[size, length])) for length in tried]
        return np.interp(np.arange(max_length + 1), tried, medians)


def _size_class(num_rows: int) -> int:
    return num_rows.bit_length()
