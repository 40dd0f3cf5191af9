"""Queues of decided tokens, one a row, between a decoding session and an environment that takes one at a time.

    known text      what was observed, the token that was handed out, and what the session decided behind it
    observation     as far as it goes, the known text; from some token on it may be what the environment wrote

            last act     token           queue
        a dog sat     |  on     |  the   mat   .           known
        a dog sat        on     |  ?  where  >             observed: "on" was taken, and the world replied

Everything behind the first token that is not the known one is the environment's. The queue there is of another text and
is thrown away; the session is extended by what was written. All rows that need a token, because their queue is empty or
because the environment wrote, get it in one forward.

**Draws.** Without drafts they are those of a session that is filled anew whenever the environment writes in any row:
one for each row of the environment, in its order, and then one for each row that is left. So episodes are the same,
however the cache came about; rows that have left draw for nobody.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.agents.action_masks import forbid
from worldmtp.decoding.cache import CachedTexts, IntArray, moves_into_holes
from worldmtp.decoding.sampling import DecodingPolicy, SamplingConfig
from worldmtp.decoding.session import DecodingSession, Round


@dataclass(frozen=True)
class ActedStep:
    """One decision of every row: the tokens, and their log-probabilities by the policy.

    ``behaviour_logprobs`` are by the distribution that they were drawn from; None where that is the policy.
    """

    actions: Int[Tensor, " row"]
    logprobs: Float[Tensor, " row"]
    behaviour_logprobs: Float[Tensor, " row"] | None = None


class QueuePolicy(DecodingPolicy):
    """The policy over the tokens that each row of the session may write next, and the order in which rows draw."""

    def __init__(self, sampling: SamplingConfig, generator: torch.Generator | None) -> None:
        super().__init__(sampling, generator)
        self._allowed: Bool[np.ndarray, "row vocab"] | None = None
        self._seats: tuple[int, Int[Tensor, " row"]] | None = None

    def allow(self, allowed: Bool[np.ndarray, "row vocab"] | None) -> None:
        """Set the mask of the session's rows for the next token; None allows everything."""
        self._allowed = allowed

    def seat(self, num_draws: int, seats: Int[Tensor, " row"]) -> None:
        """Make ``num_draws`` rows draw from now on; row r of those that choose gets what number ``seats[r]`` draws."""
        self._seats = num_draws, seats

    def processed(
        self, logits: Float[Tensor, "row place vocab"], texts: CachedTexts, num_before: int = 0
    ) -> Float[Tensor, "row place vocab"]:
        """Return the processed logits, with forbidden tokens cut away."""
        found = super().processed(logits, texts, num_before)
        if self._allowed is None:
            return found
        return forbid(found, torch.from_numpy(self._allowed).to(found.device)[:, None])

    def choose(
        self, processed: Float[Tensor, "*place vocab"], log_probs: Float[Tensor, "*place vocab"]
    ) -> Int[Tensor, "*place"]:
        """Draw tokens, or take the most likely ones; rows draw at their seats."""
        if self._seats is None or not self.draws:
            return super().choose(processed, log_probs)
        num_draws, seats = self._seats
        seated = log_probs.new_zeros((num_draws, *log_probs.shape[1:]))  # who is not there draws any token
        seated[seats] = log_probs
        return super().choose(seated, seated)[seats]


@dataclass
class YieldCount:
    """Tokens that rows got, and the rounds they took."""

    num_tokens: int = 0
    num_rounds: int = 0

    @property
    def tokens_per_round(self) -> float:
        """Tokens per round and row; NaN where there was no round."""
        return self.num_tokens / self.num_rounds if self.num_rounds else float("nan")


class TokenQueues:
    """The texts of all rows as far as they are decided, and the session that decides more of them."""

    _order: IntArray
    _limit: int

    def __init__(
        self,
        session: DecodingSession,
        policy: QueuePolicy,
        first: Round,
        tokens: np.ndarray,
        lengths: np.ndarray,
        yielded: YieldCount,
    ) -> None:
        num_rows, self._width = tokens.shape
        self._session = session
        self._policy = policy
        self._yielded = yielded
        self._known = lengths.copy()
        self._shared = lengths
        # A round may run past an episode's end by its drafts.
        room = session.texts.capacity + 1
        self._texts = np.zeros((num_rows, room), dtype=np.int64)
        self._texts[:, : self._width] = tokens
        self._logprobs = torch.zeros((num_rows, room), dtype=first.log_policy.dtype, device=first.tokens.device)
        self._rows = np.arange(num_rows)
        self._last = np.full(num_rows, -1)
        self._all_may_draw(lengths)
        self._put(first, self._rows)

    def follow(self, tokens: np.ndarray, lengths: np.ndarray) -> bool:
        """Return whether observed texts go on from the known ones, and every row can get its next token."""
        if tokens.shape != (len(self._known), self._width) or (lengths == self._last).all():
            return False
        # A shorter text is a new episode; that its prompt is the old one does not make its text the old one.
        if (lengths < self._last).any():
            return False
        places = np.arange(self._width)
        is_other = (tokens != self._texts[:, : self._width]) | (places >= self._known[:, None])
        is_other &= places < lengths[:, None]
        self._shared = np.where(is_other.any(axis=1), is_other.argmax(axis=1), lengths)
        # The token that was handed out is taken before the environment writes.
        if (self._shared < np.minimum(self._last + 1, lengths)).any():
            return False
        return not (self._lacks(lengths) & (lengths < self._width)).any()

    def take(self, tokens: np.ndarray, lengths: np.ndarray, allowed: Bool[np.ndarray, "row vocab"] | None) -> ActedStep:
        """Return each row's token after its first ``lengths``, one of those allowed, where ``follow`` said so."""
        needs = self._needs(lengths)
        if (self._shared < lengths).any() or self._lacks(lengths).any():
            self._extend(tokens, lengths, needs, allowed)
        elif needs.any():
            self._advance(lengths, needs, allowed)
        self._last = lengths.copy()
        device = self._logprobs.device
        places = torch.from_numpy(lengths).to(device)[:, None]
        actions = torch.from_numpy(np.take_along_axis(self._texts, lengths[:, None], axis=1)[:, 0]).to(device)
        return ActedStep(actions, self._logprobs.gather(1, places)[:, 0])

    def _needs(self, lengths: np.ndarray) -> np.ndarray:
        """Return the rows whose next token is not decided: the environment wrote, or the queue is empty."""
        return (self._shared < lengths) | (lengths == self._known)

    def _lacks(self, lengths: np.ndarray) -> np.ndarray:
        """Return the rows that need a token and have left the session."""
        return self._needs(lengths) & ~np.isin(np.arange(len(lengths)), self._rows)

    def _extend(
        self, tokens: np.ndarray, lengths: np.ndarray, needs: np.ndarray, allowed: Bool[np.ndarray, "row vocab"] | None
    ) -> None:
        """Take in what the environment wrote; every row that needs its next token gets it."""
        is_full = self._lacks(lengths)  # nothing can be written there any more
        self._drop((lengths == self._last) & ~needs)
        self._all_may_draw(lengths)
        rows, width = self._rows, self._width
        takes_part, starts = needs[rows], np.where(needs, self._shared, self._known)[rows]
        counts = np.where(takes_part, lengths[rows] - starts, 0)
        self._texts[needs, :width] = tokens[needs]
        self._known[needs] = lengths[needs]
        self._known[is_full] += 1
        if not takes_part.any():
            return
        places = starts[:, None] + np.arange(counts.max())
        written = torch.from_numpy(np.take_along_axis(tokens[rows], places.clip(max=width - 1), axis=1))
        self._prepare(rows[takes_part], allowed)
        emission = self._session.extend(written.to(self._logprobs.device), counts, starts, takes_part)
        self._put(emission, rows[takes_part])

    def _advance(self, lengths: np.ndarray, needs: np.ndarray, allowed: Bool[np.ndarray, "row vocab"] | None) -> None:
        """Run a round of the session."""
        is_done = ((lengths == self._last) & ~needs) | (self._known >= self._limit)
        self._order = _compacted(self._order, is_done[self._order])
        self._drop(is_done)
        if not len(self._rows):
            return
        self._prepare(self._rows, allowed)
        emission = self._session.advance()
        self._yielded.num_tokens += int(emission.counts.sum())
        self._yielded.num_rounds += len(emission.counts)
        self._put(emission, self._rows)

    def _drop(self, is_done: Bool[np.ndarray, " row"]) -> None:
        """Let rows leave the session."""
        leaves = is_done[self._rows]
        if leaves.any():
            self._session.drop(leaves)
            self._rows = _compacted(self._rows, leaves)

    def _all_may_draw(self, lengths: np.ndarray) -> None:
        """Seat the rows as a session is that is filled anew, with room for one token more than the longest text has."""
        self._order = np.arange(len(lengths))
        self._limit = max(self._width, int(lengths.max()) + 1)

    def _prepare(self, rows: IntArray, allowed: Bool[np.ndarray, "row vocab"] | None) -> None:
        """Tell the policy what the session's rows may write, and where those draw that choose."""
        self._policy.allow(None if allowed is None else allowed[self._rows])
        if not self._session.max_drafts:
            seats = np.zeros(len(self._known), dtype=np.int64)
            seats[self._order] = np.arange(len(self._order))
            self._policy.seat(len(self._order), torch.from_numpy(seats[rows]).to(self._logprobs.device))

    def _put(self, emission: Round, rows: IntArray) -> None:
        """Append a round's tokens to the rows that they are of."""
        known, tokens, logprobs = self._known[rows], emission.tokens.cpu().numpy(), emission.logprobs
        for step in range(tokens.shape[1]):
            is_new = step < emission.counts
            here, places = rows[is_new], known[is_new] + step
            self._texts[here, places] = tokens[is_new, step]
            index = torch.from_numpy(is_new).to(logprobs.device)
            where = (torch.from_numpy(here).to(logprobs.device), torch.from_numpy(places).to(logprobs.device))
            self._logprobs[where] = logprobs[index, step]
        self._known[rows] = known + emission.counts


def _compacted(rows: IntArray, is_done: Bool[np.ndarray, " row"]) -> IntArray:
    """Return the rows that are not done, in the order in which a session keeps them."""
    sources, targets = moves_into_holes(is_done)
    rows = rows.copy()
    rows[targets] = rows[sources]
    return rows[: int((~is_done).sum())]
