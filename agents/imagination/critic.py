"""The critic ladder: small networks of growing appetite, each admitted only by its skill on batches it never saw.

A rung is a two-layer perceptron from features of (state, candidate token) to the return of the episode, trained by
binary cross-entropy on returns scaled to [0, 1], from a replay of the actions really taken. Every rung learns; the
highest one whose r2 on fresh batches beats that of the rungs below serves. Each rung's features contain those below:

    0   surprisals: the log-probability of *every* alternative is in the logits of the real forward, at no cost
    1   + readings: the world model is stepped by the candidate and goes on greedily
    2   + the imagined latents themselves

``completions.py`` adds a rung 3, of surprisals and of imagined answers scored by the task.

A few hundred weights on the policy's own surprisals beat a critic with a trunk of its own at the sizes measured so far
(docs/results.md), which is why the ladder starts there.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldmtp.agents.advantages import RunningMean, RunningSlope
from worldmtp.agents.config import ImaginationConfig
from worldmtp.agents.imagination.imagined_returns import Acting, border_fraction
from worldmtp.agents.ppo import LikelyTokens
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import TAIL
from worldmtp.dynamics import ImaginedRollout, LatentState, WorldModel, check_action_conditional, imagine


@dataclass(frozen=True)
class LiveTokens:
    """The tokens worth asking about in each state, most likely first.

    If ``has_tail``, the last place, of id ``TAIL``, is that of all tokens that have none of their own.
    """

    ids: Int[Tensor, "batch step live"]
    logprobs: Float[Tensor, "batch step live"]
    mask: Bool[Tensor, "batch step live"]
    has_tail: bool = False

    @property
    def is_tail(self) -> Bool[Tensor, "batch step live"]:
        """The place of the tail, where some token is in it."""
        return (self.ids == TAIL) & self.mask

    def taken(self, actions: Int[Tensor, "batch step"]) -> Bool[Tensor, "batch step live"]:
        """Return where the action taken stands among them: at the tail, or nowhere, if it was left out."""
        own = (self.ids == actions[..., None]) & self.mask
        return own | (self.is_tail & ~own.any(dim=-1, keepdim=True))

    def without_tail(self) -> "LiveTokens":
        """Return the tokens that have a place of their own."""
        if not self.has_tail:
            return self
        return LiveTokens(self.ids[..., :-1], self.logprobs[..., :-1], self.mask[..., :-1])


def live_tokens(
    likely: LikelyTokens, step_mask: Bool[Tensor, "batch step"], min_probability: float, tail: bool
) -> LiveTokens:
    """Return the likely tokens of more than ``min_probability``, and the ``tail`` of all others as one action more.

    The likeliest token is always live.
    """
    mask = likely.logprobs.exp() > min_probability
    mask[..., 0] = True
    live = LiveTokens(ids=likely.ids, logprobs=likely.logprobs, mask=mask & step_mask[..., None])
    if not tail:
        return live
    others = torch.cat([likely.logprobs.masked_fill(mask, float("-inf")), likely.rest[..., None]], dim=-1)
    logprob = others.logsumexp(dim=-1, keepdim=True)
    return LiveTokens(
        ids=torch.cat([live.ids, torch.full_like(live.ids[..., :1], TAIL)], dim=-1),
        logprobs=torch.cat([live.logprobs, logprob], dim=-1),
        mask=torch.cat([live.mask, torch.isfinite(logprob) & step_mask[..., None]], dim=-1),
        has_tail=True,
    )


@dataclass(frozen=True)
class ImaginedFeatures:
    """Features of candidates, flattened over (batch, step, live) where the live mask is true."""

    readings: Float[Tensor, "candidate readings"]
    latents: Float[Tensor, "candidate hidden"]
    num_steps: int
    """Imagined steps paid for."""
    border_fraction: float
    """Share of the candidates after which the policy's turn ended before the horizon."""


def surprisal_features(
    entropy: Float[Tensor, "batch step"], live: LiveTokens, rollout: Rollout
) -> Float[Tensor, "batch step live features"]:
    """Return log pi of the candidate, its sum and minimum so far, entropy, progress, and whether it is likeliest.

    Where the live tokens have a tail, whether the candidate is the tail follows: its log pi is that of many tokens.
    The past enters through the actions really taken before t, so a feature of (s_t, a) never looks at a_t or later.
    """
    taken = torch.where(rollout.step_mask, rollout.logprobs, 0.0)
    zeros = torch.zeros_like(taken[:, :1])
    before = torch.cat([zeros, taken.cumsum(dim=1)[:, :-1]], dim=1)  # no subtraction: its rounding would look at a_t
    least = torch.cat([zeros, taken.cummin(dim=1).values[:, :-1]], dim=1)
    steps = rollout.actions.shape[1]
    progress = torch.arange(steps, dtype=taken.dtype, device=taken.device) / steps
    candidate = live.logprobs.clamp_min(-20.0)
    shape = candidate.shape
    columns = [
        candidate,
        before[..., None] + candidate,
        torch.minimum(least[..., None], candidate),
        entropy[..., None].expand(shape),
        progress[None, :, None].expand(shape),
        (torch.arange(shape[-1], device=taken.device) == 0).to(taken.dtype).expand(shape),
    ]
    if live.has_tail:
        columns.append(live.is_tail.to(taken.dtype))
    return torch.stack(columns, dim=-1)


def num_surprisals(tail: bool) -> int:
    """Return the number of columns of rung 0."""
    return 6 + tail


@torch.no_grad()
def imagined_features(
    world_model: WorldModel[Any],
    acting: Acting,
    rollout: Rollout,
    states: LatentState,
    live: LiveTokens,
    horizon: int,
    chunk_states: int,
) -> ImaginedFeatures:
    """Step by each live token, then greedily on to ``horizon``; return what is read at every imagined state.

    Where the candidate or a later token ends the policy's turn, imagination stands still: what follows is a reply.
    ``states`` are the rollout's ``acted_states``.

    Raises:
        TypeError: the world model is blind to actions.
    """
    check_action_conditional(world_model)
    rows, steps, _ = torch.nonzero(live.mask, as_tuple=True)
    candidates = live.ids[live.mask]
    number = rollout.step_mask.flatten().cumsum(dim=0).view_as(rollout.step_mask) - 1
    root = number[rows, steps]
    turn = acting.room(rollout, rows, steps)
    readings, latents, onwards = [], [], []
    for chunk in torch.arange(len(rows), device=rows.device).split(chunk_states):
        state = world_model.step(states.select(root[chunk]), candidates[chunk])
        room = turn.select(chunk).after(candidates[chunk]) if turn is not None else None
        if horizon > 1:
            onwards.append(imagine(world_model, state, horizon - 1, acting.policy, None, room))
        readings.append(_readings(world_model, state, onwards[-1] if onwards else None))
        latents.append(state.latent)
    return ImaginedFeatures(
        torch.cat(readings),
        torch.cat(latents),
        num_steps=len(rows) * horizon,
        border_fraction=border_fraction(onwards) if onwards else 0.0,
    )


def _readings(world_model: WorldModel[Any], state: LatentState, onwards: ImaginedRollout | None) -> Tensor:
    """Return reward, continuation and value on arrival, then log-prob, entropy and value of each greedy step."""
    arrived = world_model.predict(state, with_logits=False)
    columns = [arrived.reward, arrived.continuation, arrived.value]
    if onwards is not None:
        carried = arrived.continuation[:, None] * onwards.alive
        collected = arrived.reward + (carried * onwards.rewards).sum(dim=1)
        columns += [
            *(carried * onwards.logprobs.clamp_min(-20.0)).unbind(dim=1),
            *(carried * onwards.entropies).unbind(dim=1),
            *(carried * onwards.values[:, 1:]).unbind(dim=1),
            collected,
        ]
    return torch.stack(columns, dim=-1)


def num_readings(horizon: int) -> int:
    """Return the number of columns of rung 1."""
    return 3 if horizon == 1 else 3 + 3 * (horizon - 1) + 1


class RungCritic(nn.Module):
    """Q^(s, a) as a share of the return range: features -> logit."""

    def __init__(
        self, num_features: int, hidden_size: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.inner = nn.Linear(num_features, hidden_size, dtype=dtype)
        self.outer = nn.Linear(hidden_size, 1, dtype=dtype)
        for parameter, fan_in in ((self.inner.weight, num_features), (self.outer.weight, hidden_size)):
            nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """Return the logit of the scaled return."""
        return self.outer(torch.tanh(self.inner(features)))[..., 0]


class Rung:
    """A critic, its optimiser, its replay, and its skill so far."""

    def __init__(
        self,
        num_features: int,
        config: ImaginationConfig,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._device = torch.device(device)
        self.num_features = num_features
        self.critic = RungCritic(num_features, config.critic_hidden_size, generator, dtype).to(self._device)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_learning_rate)
        self.slope = RunningSlope(decay=config.slope_decay)
        self.skill = RunningMean(decay=config.slope_decay)
        self.num_measured = 0
        self._replay: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.critic_replay_iterations)

    def remember(self, features: Float[Tensor, "sample features"], targets: Float[Tensor, " sample"]) -> None:
        """Keep the actions really taken, with their returns in [0, 1]."""
        weight = self.critic.inner.weight
        self._replay.append((features.detach().to(weight), targets.detach().to(weight)))

    @property
    def num_remembered(self) -> int:
        """Samples in the replay. Batches may bring none: a nearly uniform policy rarely takes a live token."""
        return sum(len(targets) for _, targets in self._replay)

    def train(self, num_updates: int, batch_size: int, generator: torch.Generator) -> float | None:
        """Train on uniform samples of the replay; return the mean loss, or None where there was no step."""
        if self.num_remembered == 0 or num_updates == 0:
            return None
        features = torch.cat([kept for kept, _ in self._replay])
        targets = torch.cat([kept for _, kept in self._replay])
        total = 0.0
        for _ in range(num_updates):
            rows = torch.randint(len(targets), (min(batch_size, len(targets)),), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(self.critic(features[rows]), targets[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach())
        return total / num_updates

    def measure(self, r2: float, correction: Float[Tensor, " episode"], target: Float[Tensor, " episode"]) -> None:
        """Add the skill on a fresh batch, after the batch has been used."""
        self.skill.update(r2)
        self.slope.update(correction, target)
        self.num_measured += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "slope": self.slope.state_dict(),
            "skill": self.skill.state_dict(),
            "num_measured": self.num_measured,
            "replay": [list(kept) for kept in self._replay],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.slope.load_state_dict(state["slope"])
        self.skill.load_state_dict(state["skill"])
        self.num_measured = int(state["num_measured"])
        self._replay.clear()
        for features, targets in state["replay"]:
            self.remember(features, targets)


def serving_rung(rungs: list[Rung], min_batches: int) -> int | None:
    """Return the rung that serves, by the skill of past batches; None keeps the gate shut.

    Climbing from the lowest, a rung is admitted where its r2 is positive and above the best of those below it.
    """
    serving, best = None, 0.0
    for index, rung in enumerate(rungs):
        if rung.num_measured >= min_batches and rung.skill.mean > best:
            serving, best = index, rung.skill.mean
    return serving
