"""Training the world model: MTP heads and world heads on replayed real episodes; the trunk is never touched.

Latent h^k_i has read token i + k - 1 and so stands for the state that ends there. At every depth it is asked for the
token after it, for the reward of the transition that arrived in that state and whether the episode went on, and for the
return from there on. What is known of each state is put on the time axis once (``StateTargets``) and shifted by k - 1
for depth k.

    time            p      p      a_0       a_1      a_2 = EOS
    reward of               -      r_0       r_1      r_2
    went on                 -      1         1        0
    return from there on   G_0     G_1       G_2      0
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from worldmtp.agents.advantages import monte_carlo_returns
from worldmtp.agents.config import PPOConfig, WorldModelConfig
from worldmtp.agents.gradient_steps import check_finite, clipped_step, summed
from worldmtp.agents.ppo import check_eval_mode
from worldmtp.agents.rollout import Rollout, action_mask, padded, state_index
from worldmtp.model import IGNORE_INDEX, MTPModel
from worldmtp.model.precision import check_trained_weights, full_precision
from worldmtp.model.trunk import TrunkFeatures
from worldmtp.model.world_heads import two_hot_cross_entropy
from worldmtp.objective import MTPObjective
from worldmtp.objective.loss import MultiTokenLoss, evaluation_plan, multi_token_loss
from worldmtp.objective.objective import LossTerms
from worldmtp.objective.policy_losses import masked_mean
from worldmtp.tracking.late_numbers import LateNumbers

_MEASURED_EPISODES = 64
_CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class StateTargets:
    """What is known of the state that ends at each token."""

    rewards: Float[Tensor, "batch time"]
    continues: Bool[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]
    arrived_mask: Bool[Tensor, "batch time"]
    """An action of the policy led here: reward and continuation are known."""
    return_mask: Bool[Tensor, "batch time"]
    """The return from here on is known."""


def state_targets(rollout: Rollout, config: PPOConfig) -> StateTargets:
    """Return what is known along a rollout's step axis, on its time axis.

    A truncated episode that goes on in value has an unknown return after its last token; it is masked. Where the
    environment writes tokens after an action, the return from that action on is the one from the next state on.
    """
    to_go = monte_carlo_returns(rollout, config)
    goes_on = rollout.truncated & config.bootstrap_truncated
    ends = rollout.terminated | (rollout.truncated & ~goes_on)
    after = torch.cat([to_go[:, 1:], torch.zeros_like(to_go[:, :1])], dim=1)
    known = ~goes_on.any(dim=1)
    length = rollout.input_ids.shape[1]
    shape = (len(rollout), length + 1)
    # Steps that are not there write to a column that is cut off.
    arrive = torch.where(rollout.step_mask, rollout.action_index, length)
    depart = torch.where(rollout.step_mask, state_index(rollout)[:, :-1], length)

    def on_time_axis(values: Tensor, at: Tensor) -> Tensor:
        return torch.zeros(shape, dtype=values.dtype, device=values.device).scatter(1, at, values)[:, :length]

    arrived = on_time_axis(rollout.step_mask, arrive)
    departed = on_time_axis(rollout.step_mask, depart)
    return StateTargets(
        rewards=on_time_axis(rollout.rewards, arrive),
        continues=on_time_axis(~ends, arrive),
        returns=torch.where(departed, on_time_axis(to_go, depart), on_time_axis(after, arrive)),
        arrived_mask=arrived,
        return_mask=(departed | arrived) & known[:, None],
    )


class EpisodeReplay:
    """The last ``capacity`` rollouts, on the host; sampling is uniform over episodes. O(time) ids per episode.

    Rollouts may differ in length: what is sampled is as long as the longest of those it comes from.
    """

    def __init__(self, capacity: int) -> None:
        self._rollouts: deque[Rollout] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return sum(len(rollout) for rollout in self._rollouts)

    def add(self, rollout: Rollout) -> None:
        """Keep a rollout, dropping the oldest beyond capacity."""
        self._rollouts.append(rollout.to("cpu"))

    def sample(self, num_episodes: int, generator: torch.Generator) -> Rollout:
        """Return episodes sampled with replacement.

        Raises:
            ValueError: nothing was added yet.
        """
        if not self._rollouts:
            raise ValueError("the replay is empty; add a rollout before sampling from it.")
        drawn = torch.randint(len(self), (num_episodes,), generator=generator)
        start, parts = 0, []
        for rollout in self._rollouts:
            inside = drawn[(drawn >= start) & (drawn < start + len(rollout))] - start
            if len(inside):
                parts.append(rollout.select(inside))
            start += len(rollout)
        num_tokens = max(part.input_ids.shape[1] for part in parts)
        num_steps = max(part.actions.shape[1] for part in parts)
        return Rollout.cat([padded(part, num_tokens, num_steps) for part in parts])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"rollouts": [dict(vars(kept)) for kept in self._rollouts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._rollouts.clear()
        self._rollouts.extend(Rollout(**kept).to("cpu") for kept in state["rollouts"])


class WorldModelLearner:
    """Replay, optimiser and losses of the heads that imagine.

    ``temperature`` is that of acting. Imagination divides all logits by it, the trunk's and the heads', so heads learn
    tokens that were drawn at it from logits divided by it: otherwise they would be sharpened twice.

    Raises:
        ValueError: depths leap over tokens, so a latent stands for no state that ends in a known token.
    """

    def __init__(self, model: MTPModel, config: WorldModelConfig, ppo: PPOConfig, temperature: float) -> None:
        if model.config.stride != 1:
            raise ValueError(
                f"stride={model.config.stride}: reward and value of the states in between would have no latent; use "
                "heads with stride=1 in reinforcement."
            )
        self._model = model
        self._config = config
        self._ppo = ppo
        self._temperature = temperature
        self._replay = EpisodeReplay(config.replay_iterations)
        groups = [[*model.heads.parameters()], [*model.world_heads.parameters()]]
        check_trained_weights("WorldModelLearner", [weight for group in groups for weight in group])
        rates = zip(groups, (config.learning_rate, config.world_heads_learning_rate), strict=True)
        self.optimizer = torch.optim.Adam([{"params": group, "lr": rate} for group, rate in rates])
        learns = bool(config.ce_coef or config.kl_coef)
        self._tokens_coef = float(learns)
        self._num_updates = 0
        terms = LossTerms(ce=config.ce_coef, kl=config.kl_coef) if learns else LossTerms()
        self._objective = MTPObjective(terms=terms)

    def learn(self, rollout: Rollout, generator: torch.Generator) -> dict[str, float]:
        """Add a rollout to the replay and train; return the metrics' means over the updates.

        Raises:
            FloatingPointError: a loss or its gradient is not finite; its step was not applied (``clipped_step``).
            ValueError: the model is in training mode.
        """
        check_eval_mode(self._model)
        self._replay.add(rollout)
        config, late = self._config, LateNumbers(check_finite)
        for _ in range(config.num_updates):
            self._set_learning_rate()
            episodes = self._replay.sample(config.batch_size_episodes, generator).to(self._model.device)
            with frozen(self._model.trunk):
                loss, metrics = self.losses(episodes)
            late.add(metrics)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clipped_step(self.optimizer, config.max_grad_norm, "world_model/grad_norm", late)
            self._num_updates += 1
        return {name: value / config.num_updates for name, value in summed(late.take()).items()}

    def _set_learning_rate(self) -> None:
        """Set the rate of the next step, by the steps that were taken."""
        done = self._num_updates
        warmth = min(1.0, (done + 1) / self._config.warmup_updates) if self._config.warmup_updates else 1.0
        self.optimizer.param_groups[0]["lr"] = self._config.learning_rate * warmth

    def losses(self, rollout: Rollout) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the world model's loss on episodes, and its parts."""
        config = self._config
        latents = self._latents(rollout)
        next_tokens = self._next_tokens(latents, rollout, self._objective)
        targets = state_targets(rollout, self._ppo)
        parts: dict[str, list[Tensor]] = {"reward": [], "continuation": [], "value": []}
        for depth, latent in enumerate(latents, start=1):
            read = latent.detach() if config.detach_world_heads else latent
            for name, value in self._world_losses(read, _ahead(targets, depth - 1)).items():
                parts[name].append(value)
        means = {name: torch.stack(values).mean() for name, values in parts.items()}
        loss = (
            self._tokens_coef * next_tokens.total / max(len(next_tokens.depths), 1)
            + config.reward_coef * means["reward"]
            + config.continuation_coef * means["continuation"]
            + config.value_coef * means["value"]
        )
        metrics = {"world_model/loss": loss.detach()}
        metrics |= {f"world_model/{name}_loss": value.detach() for name, value in means.items()}
        metrics |= _per_target("ce", next_tokens, next_tokens.sums.ce)
        if config.kl_coef:
            metrics |= _per_target("kl_trunk", next_tokens, next_tokens.sums.kl)
        return loss, metrics

    @torch.no_grad()
    def measure(
        self, rollout: Rollout, generator: torch.Generator, features: TrunkFeatures | None = None, iteration: int = 0
    ) -> dict[str, float]:
        """Return what the heads know of a rollout that they have not learnt from.

        Nothing where there are no heads, or the iteration is none of those that measure, every ``measure_every``-th.

        ``depth_{k}/agreement`` is the share of the policy's tokens, k ahead, of which head and trunk have the same
        greedy choice. ``action_shuffle_loss_ratio`` is the next-token loss with the texts of other rows over the loss
        with the real ones; 1 means that the heads ignore the actions. ``features``, the trunk's of this rollout's text,
        save its forward where they are at hand.
        """
        if self._model.config.depth == 1:
            return {}
        rollout = rollout.select(torch.arange(min(len(rollout), _MEASURED_EPISODES)))
        others = torch.randperm(len(rollout), generator=generator)  # drawn always: measuring moves no draw of learning
        if iteration % self._config.measure_every:
            return {}
        if features is None:
            features = self._model.trunk_features(rollout.input_ids, rollout.attention_mask)
        features = features.map(lambda hidden: hidden[: len(rollout)])

        def latents_with(actions_from: Tensor) -> list[Tensor]:
            return self._model.latents(actions_from, rollout.attention_mask, features=features)

        # The trunk reads the real text; only the heads get other actions.
        latents = latents_with(rollout.input_ids)
        shuffled = latents_with(rollout.input_ids[others])
        real, wrong = (self._next_tokens(each, rollout, MTPObjective()).total for each in (latents, shuffled))
        ratio = float(wrong / real.clamp_min(1e-8))
        greedy = self._next_tokens(latents, rollout, MTPObjective(), self._greedy_tokens(latents[0], rollout))
        agreement = _per_target("agreement", greedy, greedy.sums.top1_hits)
        asked = {
            f"world_model/depth_{k}/agreement" for k, n in zip(greedy.depths, greedy.sums.counts, strict=True) if n
        }
        return {"world_model/action_shuffle_loss_ratio": ratio} | {tag: float(agreement[tag]) for tag in sorted(asked)}

    def _greedy_tokens(self, hidden: Tensor, rollout: Rollout) -> Tensor:
        """Return the trunk's likeliest token wherever the policy wrote one, and the text elsewhere."""
        rows, places = action_mask(rollout).nonzero(as_tuple=True)
        states = hidden[rows, places - 1]
        likeliest = [self._model.logits_of(chunk).argmax(dim=-1) for chunk in states.split(_CHUNK_TOKENS)]
        return rollout.input_ids.index_put((rows, places), torch.cat(likeliest))

    def _latents(self, rollout: Rollout) -> list[Tensor]:
        """Return latents of depths 1..K, with gradients of the heads alone."""
        with torch.no_grad():
            features = self._model.trunk_features(rollout.input_ids, rollout.attention_mask)
        return self._model.latents(rollout.input_ids, rollout.attention_mask, features=features)

    def _next_tokens(
        self, latents: list[Tensor], rollout: Rollout, objective: MTPObjective, targets: Tensor | None = None
    ) -> MultiTokenLoss:
        """Return the loss of the policy's own tokens at depths 2..K, of ``targets`` in their place where given.

        Heads and teacher are at the temperature of acting. ``total`` sums the depths' means per target.
        """
        tokens = rollout.input_ids if targets is None else targets
        return multi_token_loss(
            self._model,
            TrunkFeatures(latents[0]),
            rollout.input_ids,
            tokens.masked_fill(~action_mask(rollout), IGNORE_INDEX),
            objective,
            evaluation_plan(len(latents)),
            rollout.attention_mask,
            latents=dict(enumerate(latents, start=1)),
            transform=lambda raw: self._model.policy_logits(raw) / self._temperature,
            per_target=True,
        )

    def _world_losses(self, latent: Tensor, targets: StateTargets) -> dict[str, Float[Tensor, ""]]:
        heads = self._model.world_heads
        world = heads(latent)
        reward = two_hot_cross_entropy(world.reward_logits, targets.rewards, heads.reward_bins)
        value = two_hot_cross_entropy(world.value_logits, targets.returns, heads.value_bins)
        continuation = functional.cross_entropy(
            full_precision(world.continuation_logits).transpose(1, 2), targets.continues.long(), reduction="none"
        )
        return {
            "reward": masked_mean(reward, targets.arrived_mask),
            "continuation": masked_mean(continuation, targets.arrived_mask),
            "value": masked_mean(value, targets.return_mask),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the replay; the model is saved by whoever owns it."""
        return {"optimizer": self.optimizer.state_dict(), "replay": self._replay.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, of a time too when all heads were one group of the optimiser."""
        saved, own = state["optimizer"], self.optimizer.param_groups
        if len(saved["param_groups"]) == 1:
            (group,) = saved["param_groups"]
            places = iter(group["params"])
            saved = saved | {
                "param_groups": [group | {"params": [*islice(places, len(each["params"]))]} for each in own]
            }
        self.optimizer.load_state_dict(saved)
        self._num_updates = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        self._replay.load_state_dict(state["replay"])


@contextmanager
def frozen(trunk: PreTrainedModel) -> Iterator[None]:
    """Give the trunk's parameters no gradient inside; the embedding and LM head that the heads share are included."""
    trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _per_target(name: str, loss: MultiTokenLoss, sums: Tensor) -> dict[str, Float[Tensor, ""]]:
    """Return each depth's mean; zero where it has no target."""
    means = sums / loss.sums.counts.clamp(min=1)
    return {f"world_model/depth_{k}/{name}": mean for k, mean in zip(loss.depths, means, strict=True)}


def _ahead(targets: StateTargets, offset: int) -> StateTargets:
    """Return the targets of the state ``offset`` tokens later; what lies beyond the text is masked."""

    def shifted(values: Tensor) -> Tensor:
        return torch.cat([values[:, offset:], torch.zeros_like(values[:, :offset])], dim=1)

    return StateTargets(**{name: shifted(values) for name, values in vars(targets).items()})
