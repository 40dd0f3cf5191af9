"""Acting by search: each token is planned in a world model before it is written.

A tree ends with the policy's turn; ``world_search`` goes on through what a world replies.

The policy that learns from what was acted so is the prior, not the search's: a step has the log-probabilities of both.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldmtp.agents.action_masks import allowed_tokens, forbid
from worldmtp.agents.queues import ActedStep
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.search_verification import TrunkVerifier, VerifiedShare
from worldmtp.dynamics import Policy, WorldModel, acting_policy
from worldmtp.dynamics.protocol import Dynamics
from worldmtp.envs import TextVectorEnv
from worldmtp.model.categorical import draw
from worldmtp.search import SearchedPolicy, TurnWorldModel, plan
from worldmtp.search.acting import acting_logprobs
from worldmtp.search.selection import QTransform
from worldmtp.search.turns import TurnState

OnPlan = Callable[[Int[np.ndarray, " row"], SearchedPolicy], None]
"""Is told of the plans of a step: which rows of the environment they are of, and what was found."""


class SearchPolicy:
    """Searches from every state it acts in; an ``ActingPolicy`` of the rows of ``env``.

    Greedy is the search's best token, and sampling draws from ``worldmtp.search.acting``: of both the tree is without
    noise, so that the log-probabilities are those of the draws. Where ``infos`` has an ``action_mask``, what it
    forbids is no action of the root; masks of the nodes below are not known. A search ends with the text, or with the
    policy's turn; see ``TurnWorldModel``. A text is read from its first token on for every act. ``on_plan`` is told of
    every plan. ``q_transform`` is as in ``worldmtp.search.plan``; ``verifier``, which needs one, chooses the best token
    anew.
    """

    def __init__(
        self,
        world_model: WorldModel[Any],
        env: TextVectorEnv,
        temperature: float,
        how: ActingSearch,
        device: torch.device | str = "cpu",
        on_plan: OnPlan | None = None,
        q_transform: QTransform | None = None,
        verifier: TrunkVerifier | None = None,
    ) -> None:
        self._q_transform, self._verifier = q_transform, verifier
        self._how, self._env, self._device, self._on_plan = how, env, device, on_plan
        self._nodes_read = 0
        self._policy = acting_policy(temperature)
        self._world_model = TurnWorldModel(world_model, [env.tokenizer.eos_id], env.eos_terminates, how.tree.discount)
        self._turns = _TurnLengths(env.tokenizer.eos_id)

    @property
    def tokens_read(self) -> int:
        """Tokens that the trunk has read in all searches, beside the texts.

        A node over the trunk is one, over heads none; of a verification every place of its lines.
        """
        return self._nodes_read + (0 if self._verifier is None else self._verifier.tokens_read)

    @property
    def verified_share(self) -> VerifiedShare | None:
        """What verification has changed; None where nothing is verified."""
        return None if self._verifier is None else self._verifier.share

    @torch.no_grad()
    def act(self, obs: dict[str, np.ndarray], infos: dict[str, Any], generator: torch.Generator | None) -> ActedStep:
        """Return one token a row; those of rows that have ended mean nothing and cost nothing."""
        tokens, lengths, dataset = obs["tokens"], obs["length"][:, 0], self._env.dataset
        written = self._turns.observe(tokens, lengths, infos.get("_reply"))
        room = dataset.max_new - (lengths - obs["prompt_length"][:, 0])
        if dataset.max_turn is not None:
            room = np.minimum(room, dataset.max_turn - written)
        step = ActedStep(torch.zeros(len(lengths), dtype=torch.long), torch.zeros(len(lengths)))
        live = np.nonzero(~self._env.done)[0]
        if len(live):
            longest = int(lengths[live].max())
            input_ids = torch.from_numpy(tokens[live, :longest]).to(self._device)
            mask = (torch.arange(longest)[None] < torch.from_numpy(lengths[live])[:, None]).to(self._device)
            left = torch.from_numpy(room[live]).to(self._device)
            state = self._world_model.limited(self._encode(input_ids, mask), left)
            allowed = allowed_tokens(infos)
            rows = None if allowed is None else allowed[live]
            if self._how.dynamics == "oracle":
                self._nodes_read += len(live) * self._how.tree.num_simulations
            chosen, found = planned(
                self._world_model,
                state,
                self._policy,
                self._how,
                rows,
                generator,
                self._q_transform,
                self._verify(left),
            )
            step = acted_rows(chosen, live, len(lengths))
            if self._on_plan is not None:
                self._on_plan(live, found)
        self._turns.answer(tokens, lengths, step.actions.numpy())
        return step

    def _encode(self, input_ids: Int[Tensor, "row length"], mask: Bool[Tensor, "row length"]) -> TurnState:
        """Return the states of texts; a verifier reads them for the search, and goes on behind them."""
        if self._verifier is None:
            return self._world_model.encode(input_ids, mask)
        depth = self._how.tree.depth(self._world_model.max_horizon)
        return self._world_model.encode(input_ids, mask, features=self._verifier.begin(input_ids, mask, depth))

    def _verify(self, room: Int[Tensor, " row"]) -> Callable[[SearchedPolicy], SearchedPolicy] | None:
        if self._verifier is None:
            return None
        assert self._q_transform is not None  # given with a verifier
        parts = room, self._world_model, self._how.tree.discount, self._q_transform
        verifier = self._verifier
        return lambda found: verifier.verified(self._how.rule, found, *parts)


def planned(
    world_model: Dynamics[Any],
    state: Any,
    policy: Policy,
    how: ActingSearch,
    allowed: Bool[np.ndarray, "row known"] | None,
    generator: torch.Generator | None,
    q_transform: QTransform | None,
    verify: Callable[[SearchedPolicy], SearchedPolicy] | None = None,
) -> tuple[ActedStep, SearchedPolicy]:
    """Return a token of each row, the search's best or drawn from what it makes of the policy, and the search.

    The policy's probabilities are among the tokens that are ``allowed``. ``verify`` chooses the best anew.

    Raises:
        ValueError: tokens are to be drawn and verified, and no law is known of what is then written.
    """
    if verify is not None and generator is not None:
        raise ValueError(
            "search.verify chooses the best token anew, and draws are by the search alone; act greedily, or set "
            "search.verify=0."
        )
    logits = world_model.predict(state).logits
    assert logits is not None  # asked for
    invalid = None
    if allowed is not None:
        invalid = forbid(torch.zeros_like(logits), torch.from_numpy(allowed).to(logits.device)).isneginf()
    found = plan(how.rule, world_model, state, policy, how.tree, invalid, q_transform)
    if verify is not None:
        found = verify(found)
    log_policy = policy(logits)
    if invalid is not None:
        log_policy = log_policy.masked_fill(invalid, -torch.inf).log_softmax(dim=-1)
    log_acting = acting_logprobs(how.rule, found, log_policy, q_transform)
    actions = found.actions if generator is None else draw(log_acting, generator)
    chosen = actions[:, None]
    return ActedStep(actions, log_policy.gather(1, chosen)[:, 0], log_acting.gather(1, chosen)[:, 0]), found


def acted_rows(step: ActedStep, rows: Int[np.ndarray, " row"], num_rows: int) -> ActedStep:
    """Return what rows of an environment do, on the host; token 0 where others, which have ended, are asked."""
    assert step.behaviour_logprobs is not None  # a search has acted
    actions, logprobs, behaviour = torch.zeros(num_rows, dtype=torch.long), torch.zeros(num_rows), torch.zeros(num_rows)
    for whole, values in ((actions, step.actions), (logprobs, step.logprobs), (behaviour, step.behaviour_logprobs)):
        whole[rows] = values.to(whole)
    return ActedStep(actions, logprobs, behaviour)


class _TurnLengths:
    """How many tokens of its turn each row has written, read off the texts."""

    def __init__(self, eos_id: int) -> None:
        self._eos_id = eos_id
        self._before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._written = np.zeros(0, dtype=np.int64)

    def observe(self, tokens: np.ndarray, lengths: np.ndarray, replied: np.ndarray | None = None) -> np.ndarray:
        """Return the counts: one more where the last answer, and nothing else, was written and did not end the turn.

        ``replied`` says which rows have just heard a reply, which may be an empty text.
        """
        if self._before is None or self._before[0].shape != tokens.shape:
            self._written = np.zeros_like(lengths)
            return self._written
        old, old_lengths, answers = self._before
        places = np.arange(tokens.shape[1])[None]
        is_same = ((tokens == old) | (places >= old_lengths[:, None])).all(axis=1)
        goes_on = is_same & (lengths == old_lengths + 1) & (answers != self._eos_id)
        if replied is not None:
            goes_on &= ~replied
        self._written = np.where(goes_on, self._written + 1, 0)
        return self._written

    def answer(self, tokens: np.ndarray, lengths: np.ndarray, answers: np.ndarray) -> None:
        """Keep what was observed and answered; the environment writes on in its arrays."""
        self._before = tokens.copy(), lengths.copy(), answers.copy()
