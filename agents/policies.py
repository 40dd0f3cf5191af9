"""Who acts in a text environment: the trunk with its cache, or a world model's own logits.

A policy sees observations and infos as the environment returns them and answers with one token a row and its
log-probability, exactly as sampled.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from worldmtp.agents.action_masks import allowed_tokens, forbid
from worldmtp.agents.alarm import weights_versions
from worldmtp.agents.queues import ActedStep, QueuePolicy, TokenQueues, YieldCount
from worldmtp.decoding.drafts import make_drafter
from worldmtp.decoding.lean import make_runner
from worldmtp.decoding.sampling import SamplingConfig
from worldmtp.decoding.session import DecodingSession
from worldmtp.dynamics import check_temperature
from worldmtp.model import MTPModel
from worldmtp.model.categorical import draw
from worldmtp.model.precision import full_precision


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
    Where the environment wrote tokens of its own, the session is extended by them, and tokens that were decided before
    they came are thrown away: a conversation is read once, whatever its length, and no act takes more than one forward
    of the trunk. A row that stands still gets the same token again and, when others need more, leaves the session.

    The session is filled anew from the observation where a text is not the known one and what was written behind it (a
    row was reset), where a row that had left goes on, where all rows stand still (their next episodes have the prompts
    of the last ones), and where the trunk's weights are seen to have changed (``weights_versions``; make a new policy
    after changes it does not see), so that tokens that wait are not those of weights that are gone.

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
        self._queues: TokenQueues | None = None
        self._versions: tuple[int, ...] = ()
        self._yielded = YieldCount()

    @property
    def tokens_per_forward(self) -> float:
        """Mean number of tokens that a round gave a row; NaN before the first round."""
        return self._yielded.tokens_per_round

    @property
    def num_rounds(self) -> int:
        """Rounds of drafts that rows had."""
        return self._yielded.num_rounds

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
        if queues is None or not is_same or not queues.follow(tokens, lengths):
            self._generator, self._versions = generator, versions
            queues = self._queues = self._fill(tokens, lengths, generator, allowed)
        return queues.take(tokens, lengths, allowed)

    def _fill(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        generator: torch.Generator | None,
        allowed: Bool[np.ndarray, "row vocab"] | None,
    ) -> TokenQueues:
        model, longest = self._model, int(lengths.max())
        sampling = SamplingConfig(do_sample=True, temperature=self._temperature)
        drafter = make_drafter(model, self._draft, self._num_draft, None)
        policy = QueuePolicy(sampling, generator)
        policy.allow(allowed)
        # A row that has no room left is asked for a token too, which nobody takes.
        session = DecodingSession(model, make_runner(model), drafter, policy, tokens.shape[1] + 1)
        input_ids = torch.from_numpy(tokens[:, :longest].copy()).to(model.device)  # the environment writes on in them
        mask = (torch.arange(longest)[None] < torch.from_numpy(lengths)[:, None]).to(model.device)
        return TokenQueues(session, policy, session.prefill(input_ids, mask), tokens, lengths, self._yielded)


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
