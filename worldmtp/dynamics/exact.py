"""A token MDP small enough to enumerate, and the exact world model of it, against which estimators are tested.

A state is a prefix of at most ``horizon`` tokens over ``vocab_size``; the episode ends (terminated) after ``horizon``
tokens or when ``eos`` is drawn. Rewards are any table over (prefix, action). Prefixes are numbered breadth first: the
empty prefix is node 0 and the children of node n are n * V + 1 ... n * V + V.

Memory is V^horizon: V = 5, horizon = 5 are 3,906 nodes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.dynamics.protocol import Prediction, resolve_roots
from worldmtp.dynamics.states import StateTable
from worldmtp.model.trunk import TrunkFeatures


@dataclass(frozen=True)
class TokenMDP:
    """An enumerable token MDP; ``rewards[n, a]`` is paid for action a in prefix n. Undiscounted."""

    vocab_size: int
    horizon: int
    rewards: Float[Tensor, "prefix vocab"]
    eos: int | None = None

    def __post_init__(self) -> None:
        if self.rewards.shape != (self.num_prefixes, self.vocab_size):
            raise ValueError(
                f"rewards has shape {tuple(self.rewards.shape)}; {self.vocab_size} tokens and horizon {self.horizon} "
                f"need {(self.num_prefixes, self.vocab_size)}, one row per prefix in breadth-first order."
            )

    @property
    def num_prefixes(self) -> int:
        """Number of prefixes in which the agent acts: (V^horizon - 1) / (V - 1)."""
        return sum(self.vocab_size**length for length in range(self.horizon))

    def child(self, prefixes: Int[Tensor, "*#batch"], actions: Int[Tensor, "*#batch"]) -> Int[Tensor, "*#batch"]:
        """Return the prefixes one token longer."""
        return prefixes * self.vocab_size + 1 + actions

    def ends(self) -> Bool[Tensor, "prefix vocab"]:
        """Return whether each action in each prefix ends the episode."""
        prefixes = torch.arange(self.num_prefixes)[:, None]
        actions = torch.arange(self.vocab_size)[None, :]
        ended = self.child(prefixes, actions) >= self.num_prefixes
        return ended | (actions == self.eos) if self.eos is not None else ended

    def action_values(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, "prefix vocab"]:
        """Return Q^pi by backward induction, Q(s, a) = r(s, a) + V(sa)."""
        probs = logits.softmax(dim=-1)
        ends = self.ends()
        q_values = self.rewards.clone()
        for prefix in reversed(range(self.num_prefixes)):
            for action in torch.nonzero(~ends[prefix])[:, 0].tolist():
                following = prefix * self.vocab_size + 1 + action
                q_values[prefix, action] += (probs[following] * q_values[following]).sum()
        return q_values

    def episodes(self) -> "Episodes":
        """Return every episode there is."""
        ends = self.ends()
        open_rows: list[tuple[int, list[int], list[int]]] = [(0, [], [])]
        finished: list[tuple[list[int], list[int]]] = []
        while open_rows:
            prefix, visited, actions = open_rows.pop()
            for action in range(self.vocab_size):
                row = ([*visited, prefix], [*actions, action])
                if ends[prefix, action]:
                    finished.append(row)
                else:
                    open_rows.append((prefix * self.vocab_size + 1 + action, *row))
        shape = (len(finished), self.horizon)
        prefixes, taken = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for index, (visited, actions) in enumerate(finished):
            prefixes[index, : len(visited)] = torch.tensor(visited)
            taken[index, : len(actions)] = torch.tensor(actions)
            mask[index, : len(actions)] = True
        rewards = torch.where(mask, self.rewards[prefixes, taken], 0.0)
        return Episodes(prefixes=prefixes, actions=taken, step_mask=mask, rewards=rewards)

    def policy_gradient(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, "prefix vocab"]:
        """Return dJ / dlogits of a tabular softmax policy: occupancy(s) pi(a|s) (Q(s, a) - V(s)).

        Sutton et al. 2000, theorem 1, with the softmax derivative written out; no automatic differentiation.
        """
        probs = logits.softmax(dim=-1)
        q_values = self.action_values(logits)
        ends = self.ends()
        occupancy = torch.zeros(self.num_prefixes, dtype=logits.dtype)
        occupancy[0] = 1.0
        for prefix in range(self.num_prefixes):
            for action in torch.nonzero(~ends[prefix])[:, 0].tolist():
                occupancy[prefix * self.vocab_size + 1 + action] = occupancy[prefix] * probs[prefix, action]
        state_values = (probs * q_values).sum(dim=-1, keepdim=True)
        return occupancy[:, None] * probs * (q_values - state_values)


@dataclass(frozen=True)
class Episodes:
    """All episodes of a TokenMDP; ``prefixes[:, t]`` is the state of ``actions[:, t]``."""

    prefixes: Int[Tensor, "episode time"]
    actions: Int[Tensor, "episode time"]
    step_mask: Bool[Tensor, "episode time"]
    rewards: Float[Tensor, "episode time"]

    def probability(self, logits: Float[Tensor, "prefix vocab"]) -> Float[Tensor, " episode"]:
        """Return the probability of each episode under a tabular softmax policy."""
        logprobs = logits.log_softmax(dim=-1)[self.prefixes, self.actions]
        return torch.where(self.step_mask, logprobs, 0.0).sum(dim=1).exp()


@dataclass(frozen=True)
class PrefixState(StateTable):
    """States of an ExactWorldModel: prefix numbers, and of the arriving transition its reward and whether it ended."""

    prefixes: Int[Tensor, " state"]
    arriving_reward: Float[Tensor, " state"]
    ended: Bool[Tensor, " state"]

    @property
    def latent(self) -> Float[Tensor, "state 1"]:
        """The prefix's number: all there is to know."""
        return self.prefixes[:, None].to(self.arriving_reward.dtype)


class ExactWorldModel:
    """The true dynamics, rewards, ends and values of a TokenMDP under a tabular policy.

    There is no limit to its horizon: after the end nothing happens.
    """

    action_conditional = True
    max_horizon: int | None = None
    models_replies = False

    def __init__(self, mdp: TokenMDP, logits: Float[Tensor, "prefix vocab"]) -> None:
        self._mdp = mdp
        self._logits = logits
        self._values = (logits.softmax(dim=-1) * mdp.action_values(logits)).sum(dim=-1)
        self._ends = mdp.ends()

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        root_rows: Int[Tensor, " root"] | None = None,
        root_positions: Int[Tensor, " root"] | None = None,
        features: TrunkFeatures | None = None,
    ) -> PrefixState:
        """Return the numbers of prefixes, of which position -1 is the empty one; see ``WorldModel.encode``."""
        root_rows, root_positions = resolve_roots(attention_mask, root_rows, root_positions)
        prefixes = torch.zeros_like(root_rows)
        for position in range(input_ids.shape[1]):
            longer = self._mdp.child(prefixes, input_ids[root_rows, position])
            prefixes = torch.where(position <= root_positions, longer, prefixes)
        zeros = torch.zeros(len(prefixes), dtype=self._logits.dtype)
        return PrefixState(prefixes, zeros, torch.zeros(len(prefixes), dtype=torch.bool))

    def step(self, state: PrefixState, tokens: Int[Tensor, " state"]) -> PrefixState:
        """Append a token; an ended episode stays ended and pays nothing."""
        at = state.prefixes.clamp(max=self._mdp.num_prefixes - 1)
        reward = torch.where(state.ended, 0.0, self._mdp.rewards[at, tokens])
        ended = state.ended | self._ends[at, tokens]
        return PrefixState(torch.where(ended, at, self._mdp.child(at, tokens)), reward, ended)

    def predict(self, state: PrefixState, with_logits: bool = True) -> Prediction:
        """Return the true logits, reward, continuation and value."""
        return Prediction(
            logits=self._logits[state.prefixes] if with_logits else None,
            reward=state.arriving_reward,
            continuation=(~state.ended).to(self._logits.dtype),
            value=torch.where(state.ended, 0.0, self._values[state.prefixes]),
        )
