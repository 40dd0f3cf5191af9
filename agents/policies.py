"""Who acts in a text environment: the trunk with its cache, or a world model's own logits.

A policy sees observations and infos as the environment returns them and answers with one token a row and its
log-probability, exactly as sampled.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldmtp.agents.action_masks import allowed_tokens, forbid
from worldmtp.agents.alarm import weights_versions
from worldmtp.decoding.cache import CachedTexts
from worldmtp.decoding.drafts import make_drafter
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.sampling import DecodingPolicy, SamplingConfig
from worldmtp.decoding.session import DecodingSession, Round
from worldmtp.dynamics import check_temperature
from worldmtp.model import MTPModel
from worldmtp.model.categorical import draw
from worldmtp.model.precision import full_precision


@dataclass(frozen=True)
class ActedStep:
    """One decision of every row."""

    actions: Int[Tensor, " row"]
    logprobs: Float[Tensor, " row"]


@runtime_checkable
class ActingPolicy(Protocol):
    """What a rollout needs of a policy."""

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return one token a row, the most likely one where there is no generator."""
        ...


def sample_step(logits: Float[Tensor, "row vocab"], temperature: float, generator: torch.Generator | None) -> ActedStep:
    """Sample from softmax(logits / temperature), or take the most likely token where there is no generator.

    Raises:
        FloatingPointError: a row's logits are NaN or all infinite.
    """
    log_policy = (full_precision(logits) / temperature).log_softmax(dim=-1)
    if bool(torch.isnan(log_policy).any()):
        raise FloatingPointError("the policy's logits are not finite while acting; its weights have overflowed.")
    actions = draw(log_policy, generator)
    return ActedStep(actions, log_policy.gather(1, actions[:, None])[:, 0])


class TrunkPolicy:
    """The language model itself: a decoding session whose verified tokens wait in a queue for each row.

    As long as the environment appends just the tokens handed out, an act takes one from each queue, and a round of the
    session fills those that are empty: with ``draft="none"`` one token a row, with drafts as many as are accepted.
    Where the environment wrote tokens of its own or reset a row, or the trunk's weights are seen to have changed
    (``weights_versions``; make a new policy after changes it does not see), the session is filled anew from the
    observation, so that tokens that wait are not those of weights that are gone. A
    row that stands still gets the same token again and, when others need more, leaves the session.

    ``draft`` and ``num_draft`` are those of ``worldmtp.decoding.generate``; the law is that of the trunk with any.

    Where ``infos`` has an ``action_mask``, tokens that it forbids have probability zero. It is of the next token alone,
    so that drafts, which decide later ones too, are refused.
    """

    def __init__(
        self,
        model: MTPModel,
        temperature: float,
        draft: str | nn.Module = "none",
        num_draft: int | None = None,
    ) -> None:
        check_temperature(temperature)
        self._model = model
        self._temperature = temperature
        self._draft, self._num_draft = draft, num_draft
        self._generator: torch.Generator | None = None
        self._queues: _Queues | None = None
        self._versions: tuple[int, ...] = ()
        self._yielded = YieldCount()

    @property
    def tokens_per_forward(self) -> float:
        """Mean number of tokens that a round gave a row; NaN before the first round."""
        return self._yielded.tokens_per_round

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return one token a row.

        Raises:
            ValueError: if there is an action mask and this policy drafts.
        """
        allowed = allowed_tokens(infos)
        if allowed is not None and self._draft != "none":
            raise ValueError(
                f"draft={self._draft!r} decides tokens whose action mask is not known yet; act with draft='none' in an "
                "environment that masks actions."
            )
        tokens, lengths = obs["tokens"], obs["length"][:, 0]
        queues, versions = self._queues, weights_versions(self._model.trunk)
        is_same = generator is self._generator and versions == self._versions
        if queues is None or not is_same or not queues.agree(tokens, lengths):
            self._generator, self._versions = generator, versions
            queues = self._queues = self._fill(tokens, lengths, generator, allowed)
        return queues.take(lengths, allowed)

    def _fill(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        generator: torch.Generator | None,
        allowed: Bool[np.ndarray, "row vocab"] | None,
    ) -> "_Queues":
        model, longest = self._model, int(lengths.max())
        sampling = SamplingConfig(do_sample=True, temperature=self._temperature)
        drafter = make_drafter(model, self._draft, self._num_draft, None)
        policy = _MaskedPolicy(sampling, generator)
        policy.allow(allowed)
        session = DecodingSession(model, make_runner(model), drafter, policy, max(tokens.shape[1], longest + 1))
        input_ids = torch.from_numpy(tokens[:, :longest].copy()).to(model.device)  # the environment writes on in them
        mask = (torch.arange(longest)[None] < torch.from_numpy(lengths)[:, None]).to(model.device)
        return _Queues(session, policy, session.prefill(input_ids, mask), tokens, lengths, self._yielded)


class _MaskedPolicy(DecodingPolicy):
    """The policy over the tokens that each row of the session may write next."""

    def __init__(self, sampling: SamplingConfig, generator: torch.Generator | None) -> None:
        super().__init__(sampling, generator)
        self._allowed: Bool[np.ndarray, "row vocab"] | None = None

    def allow(self, allowed: Bool[np.ndarray, "row vocab"] | None) -> None:
        """Set the mask of the session's rows for the next token; None allows everything."""
        self._allowed = allowed

    def processed(
        self, logits: Float[Tensor, "row place vocab"], texts: CachedTexts, num_before: int = 0
    ) -> Float[Tensor, "row place vocab"]:
        """Return the processed logits, with forbidden tokens cut away."""
        found = super().processed(logits, texts, num_before)
        if self._allowed is None:
            return found
        return forbid(found, torch.from_numpy(self._allowed).to(found.device)[:, None])


@dataclass
class YieldCount:
    """Tokens that rows got, and the rounds they took."""

    num_tokens: int = 0
    num_rounds: int = 0

    @property
    def tokens_per_round(self) -> float:
        """Tokens per round and row; NaN where there was no round."""
        return self.num_tokens / self.num_rounds if self.num_rounds else float("nan")


class _Queues:
    """The texts of all rows as far as they are decided, and the session that decides more of them."""

    def __init__(
        self,
        session: DecodingSession,
        policy: _MaskedPolicy,
        first: Round,
        tokens: np.ndarray,
        lengths: np.ndarray,
        yielded: YieldCount,
    ) -> None:
        num_rows, width = tokens.shape
        self._session = session
        self._policy = policy
        self._yielded = yielded
        self._start = lengths.copy()
        self._known = lengths.copy()
        self._limit = session.capacity
        # A round may run past an episode's end by its drafts.
        room = session.texts.capacity + 1
        self._texts = np.zeros((num_rows, room), dtype=np.int64)
        self._texts[:, :width] = tokens
        self._logprobs = torch.zeros((num_rows, room), dtype=first.log_policy.dtype, device=first.tokens.device)
        self._rows = np.arange(num_rows)
        self._last = np.full(num_rows, -1)
        self._put(first)

    def agree(self, tokens: np.ndarray, lengths: np.ndarray) -> bool:
        """Return whether the observed texts are prefixes of the known ones and every row can get its next token."""
        if len(tokens) != len(self._start) or tokens.shape[1] > self._texts.shape[1]:
            return False
        if bool(((lengths < self._start) | (lengths > self._known)).any()):
            return False
        if bool((lengths < self._last).any()):
            return False  # a new episode; that its prompt is the old one does not make its text the old one
        is_text = np.arange(tokens.shape[1]) < lengths[:, None]
        needs = np.nonzero(lengths == self._known)[0]
        return bool((tokens == self._texts[:, : tokens.shape[1]])[is_text].all() and np.isin(needs, self._rows).all())

    def take(self, lengths: np.ndarray, allowed: Bool[np.ndarray, "row vocab"] | None) -> ActedStep:
        """Return each row's token after its first ``lengths``, one of those allowed."""
        needs = lengths == self._known
        if needs.any():
            self._leave((lengths == self._last) & ~needs)
            self._policy.allow(None if allowed is None else allowed[self._rows])
            emission = self._session.advance()
            self._yielded.num_tokens += int(emission.counts.sum())
            self._yielded.num_rounds += len(emission.counts)
            self._put(emission)
        self._last = lengths.copy()
        device = self._logprobs.device
        places = torch.from_numpy(lengths).to(device)[:, None]
        actions = torch.from_numpy(np.take_along_axis(self._texts, lengths[:, None], axis=1)[:, 0]).to(device)
        return ActedStep(actions, self._logprobs.gather(1, places)[:, 0])

    def _leave(self, stands_still: np.ndarray) -> None:
        """Drop rows that need no more of the session: those that stand still, and those that are full."""
        # The newest token is text that is not cached yet.
        is_done = stands_still[self._rows] | (self._session.texts.num_cached + 1 >= self._limit)
        if is_done.any():
            sources, targets = self._session.drop(is_done)
            self._rows[targets] = self._rows[sources]
            self._rows = self._rows[: len(self._session.texts)]

    def _put(self, emission: Round) -> None:
        """Append a round's tokens to the rows that are in the session."""
        known, rows = self._known[self._rows], torch.from_numpy(self._rows)
        tokens, logprobs = emission.tokens.cpu().numpy(), emission.logprobs
        for step in range(tokens.shape[1]):
            is_new = step < emission.counts
            here, places = self._rows[is_new], known[is_new] + step
            self._texts[here, places] = tokens[is_new, step]
            index = torch.from_numpy(is_new).to(logprobs.device)
            where = (rows[is_new].to(logprobs.device), torch.from_numpy(places).to(logprobs.device))
            self._logprobs[where] = logprobs[index, step]
        self._known[self._rows] = known + emission.counts


class LatentPolicy:
    """A world model's own policy logits, read from ``infos["policy_logits"]`` of an ImaginedVectorEnv.

    ``temperature`` is that of the policy that acts in the real environment: at another one, another policy is imagined.
    Tokens that ``infos["action_mask"]`` forbids have probability zero.
    """

    def __init__(self, temperature: float) -> None:
        check_temperature(temperature)
        self._temperature = temperature

    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return one token a row.

        Raises:
            KeyError: the environment imagines nothing.
        """
        if "policy_logits" not in infos:
            raise KeyError(
                "infos has no 'policy_logits': LatentPolicy acts in an ImaginedVectorEnv; use TrunkPolicy elsewhere."
            )
        logits, allowed = torch.from_numpy(infos["policy_logits"]), allowed_tokens(infos)
        if allowed is not None:
            logits = forbid(logits, torch.from_numpy(allowed))
        return sample_step(logits, self._temperature, generator)
