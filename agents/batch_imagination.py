"""Imagination for batches that another trainer has sampled: texts in, advantages by token out.

The agent's estimators of ``imagination.use`` in their order: what is imagined of a fresh batch is measured and used
before anything trains on it (``imagined_advantages``), and heads and critics learn from it afterwards (``learn``). All
arithmetic is the agent's own. An estimator is shown the batch as a ``Rollout``; only the packing is done here.

A trainer that takes one advantage a token has no place for the all-action term of ``counterfactual``,

    sum_a eta A^(s_t, a) grad pi(a|s_t).

It gets that term's sample at the token taken, eta A^(s_t, a_t) grad log pi(a_t|s_t), which has the same expectation, as
a_t was drawn from pi. With S = sum_l A^(s_l, a_l) the advantage of a token is

    G - b - eta S + eta A^(s_t, a_t):

the return without what the critic knows of the *other* tokens of the answer. It is as unbiased as the agent's, for any
critic, and has more variance, by that of the sample; ``baseline`` has no such term and is the agent's to the digit.

Left out: scored completions, which need the environment; and more processes than one, whose heads would part.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldmtp.agents.advantages import advantage_scale
from worldmtp.agents.config import ImaginationConfig, PPOConfig, WorldModelConfig
from worldmtp.agents.imagination.counterfactual import control_plan
from worldmtp.agents.imagination.critic import LiveTokens
from worldmtp.agents.imagination.estimators import make_estimator, random_streams, root_agreement
from worldmtp.agents.imagination.imagined_returns import Acting, Turns, acted_states
from worldmtp.agents.ppo import AdvantagePlan, policy_stats
from worldmtp.agents.rollout import Rollout, padded, reply_mask, trimmed
from worldmtp.agents.world_learning import WorldModelLearner
from worldmtp.checkpoint import capture_rng, restore_rng
from worldmtp.decoding.trunk import evaluation_mode
from worldmtp.dynamics import acting_policy, check_horizon, make_world_model
from worldmtp.model import MTPModel

USES = ("counterfactual", "baseline")
_NO_EOS = -1
"""Searches alone ask which token ends a text."""


@dataclass(frozen=True)
class SampledTexts:
    """A batch of prompts with what the policy, and a world, wrote after them; padded on either side.

    ``logprobs`` and ``rewards`` stand at the tokens that the policy chose, and are zero elsewhere. ``truncated`` texts
    were cut off. Texts of one ``group`` answer one prompt.
    """

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"]
    decision_mask: Bool[Tensor, "batch time"]
    logprobs: Float[Tensor, "batch time"]
    rewards: Float[Tensor, "batch time"]
    truncated: Bool[Tensor, " batch"]
    group: Int[Tensor, " batch"]


def as_rollout(texts: SampledTexts, max_steps: int) -> tuple[Rollout, Int[Tensor, "batch step"]]:
    """Return texts as the agent's rollout of ``max_steps`` steps, and where each step stands among the texts' tokens.

    Raises:
        ValueError: a text has no decision, or more than ``max_steps``; or a reward stands at none.
    """
    decides, counts = texts.decision_mask, texts.decision_mask.sum(dim=1)
    if bool((counts == 0).any()) or int(counts.max()) > max_steps:
        raise ValueError(
            f"texts have {sorted(set(counts.tolist()))} tokens of the policy, expected 1 to max_steps={max_steps}; "
            "leave texts without one out, or raise max_steps to the most tokens that an answer may have."
        )
    if bool((texts.rewards[~decides] != 0).any()):
        raise ValueError("rewards stand at tokens that the policy did not choose; put them at the choice before.")
    to_left = (~texts.attention_mask).long().argsort(dim=1, stable=True)
    decided = decides.gather(1, to_left)
    action_index = (~decided).long().argsort(dim=1, stable=True)[:, :max_steps]
    origin = to_left.gather(1, action_index)
    steps = torch.arange(origin.shape[1], device=origin.device)
    step_mask, last = steps < counts[:, None], steps == counts[:, None] - 1

    def at_steps(values: Tensor) -> Tensor:
        return torch.where(step_mask, values.gather(1, origin), torch.zeros_like(values[:, :1]))

    rollout = Rollout(
        input_ids=texts.input_ids.gather(1, to_left),
        attention_mask=texts.attention_mask.gather(1, to_left),
        prompt_length=action_index[:, 0],
        action_index=torch.where(step_mask, action_index, 0),
        actions=at_steps(texts.input_ids),
        step_mask=step_mask,
        logprobs=at_steps(texts.logprobs),
        rewards=at_steps(texts.rewards),
        terminated=last & ~texts.truncated[:, None],
        truncated=last & texts.truncated[:, None],
        group=texts.group,
        exact=torch.zeros_like(texts.truncated),
    )
    return padded(trimmed(rollout), 0, max_steps), origin


def sampled_advantages(plan: AdvantagePlan, actions: Int[Tensor, "batch step"]) -> Float[Tensor, "batch step"]:
    """Return a plan's advantages with the sample of its all-action term at the actions taken, where it has one."""
    if plan.live_ids.shape[-1] == 0:
        return plan.advantages
    live = LiveTokens(plan.live_ids, plan.live_logprobs, torch.isfinite(plan.live_logprobs))
    return plan.advantages + torch.where(live.taken(actions), plan.live_advantages, 0.0).sum(dim=-1)


class BatchImagination:
    """The estimator that ``imagination.use`` names, for whoever samples and updates by itself.

    Before each batch is sampled, ``learn`` from the last one; then ``imagined_advantages`` of the new one, which are to
    be divided by ``scale``; then train. ``learn`` trains the MTP heads and the world heads as ``world_model`` says,
    never the trunk, and leaves the gradients that are being accumulated alone.

    Args:
        model: the policy.
        imagination: with ``use`` of "counterfactual" or "baseline".
        ppo: its returns and scaling; no more of it is read.
        world_model: how the heads learn.
        temperature: of sampling.
        max_steps: the most tokens of an answer; positions are read as shares of it.
        seed: of what is imagined and learnt.
        turns: the rules that end the policy's turn, where a world replies.
        micro_batch_size: texts whose logits are in memory at once; None is all.

    Raises:
        TypeError: the model is not an MTPModel, or its heads are blind to actions where ``counterfactual`` asks them.
        ValueError: another use; scored completions, or norms of gradients, are asked for; the horizon is beyond the
            heads; or ``counterfactual`` is to discount, or to bootstrap.
    """

    def __init__(
        self,
        model: MTPModel,
        imagination: ImaginationConfig,
        ppo: PPOConfig,
        world_model: WorldModelConfig,
        temperature: float,
        max_steps: int,
        seed: int,
        turns: Turns | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        if not isinstance(model, MTPModel):
            raise TypeError(f"model is a {type(model).__name__}, expected an MTPModel.")
        check_batch_use(imagination)
        self.model = model
        self.scale = 1.0
        """What the advantages last returned are to be divided by; the root mean square of those without a critic."""
        self._config, self._ppo = imagination, ppo
        self._max_steps, self._temperature, self._micro_batch_size = max_steps, temperature, micro_batch_size
        self._generators = random_streams(seed)
        self._learner = WorldModelLearner(model, world_model, ppo, temperature)
        self._world_model = make_world_model(world_model.backend, model, self._generators["placebo"])
        check_horizon(self._world_model, imagination.horizon)
        self._acting = Acting(acting_policy(temperature), model.config.value_range, turns)
        unscaled, imagining = replace(ppo, scale_advantages=False), self._generators["imagination"]
        self._estimator = make_estimator(
            model, self._world_model, self._acting, imagination, unscaled, imagining, None, _NO_EOS
        )
        self._fresh: Rollout | None = None
        self._num_batches = 0

    @torch.no_grad()
    def imagined_advantages(self, texts: SampledTexts) -> tuple[Float[Tensor, "batch time"], dict[str, float]]:
        """Return the advantages of the policy's tokens, zero at all others, and the agent's metrics of imagination.

        Call it once a batch, before anything trains on it. Texts without a decision have no part in it.

        Raises:
            ValueError: the texts do not fit ``max_steps``, or a world replied and ``turns`` are not given.
        """
        kept = texts.decision_mask.any(dim=1)
        advantages = torch.zeros_like(texts.rewards)
        if not bool(kept.any()):
            self.scale = 1.0
            return advantages, {}
        rollout, origin = as_rollout(SampledTexts(**{k: v[kept] for k, v in vars(texts).items()}), self._max_steps)
        self._check_replies(rollout)
        with evaluation_mode(self.model):
            plan, metrics = self._read(rollout)
        self._fresh = rollout
        self._num_batches += 1
        # The scale is that of the plan without its critic, as the agent's is: a skilled critic shrinks the advantages.
        plain = control_plan(plan, rollout).advantages
        self.scale = (
            advantage_scale(plain, rollout, self._ppo.min_advantage_scale) if self._ppo.scale_advantages else 1.0
        )
        taken = sampled_advantages(plan, rollout.actions)[:, : origin.shape[1]].to(advantages.dtype)
        mask = rollout.step_mask[:, : origin.shape[1]]
        advantages[kept] = advantages[kept].scatter_add(1, origin, torch.where(mask, taken, 0.0))
        return advantages, metrics

    def _read(self, rollout: Rollout) -> tuple[AdvantagePlan, dict[str, float]]:
        """Read and measure a fresh batch, from one pass of the trunk, in the agent's order."""
        features = self.model.trunk_features(rollout.input_ids, rollout.attention_mask)
        num_likely = self._estimator.num_likely
        read = (self._temperature, num_likely, features, self._micro_batch_size)
        stats = policy_stats(self.model, None, rollout, *read)
        states = acted_states(self._world_model, rollout, features)
        plan, metrics = self._estimator.estimate(rollout, stats, states)
        horizon, imagining = self._config.horizon, self._generators["imagination"]
        metrics |= root_agreement(
            self._world_model, self._acting, rollout, states, stats.values, horizon, self._ppo, imagining
        )
        imagined = metrics.get("imagination/imagined_tokens", 0.0) + len(rollout) * horizon
        metrics["imagination/imagined_tokens"] = imagined
        metrics["imagination/imagined_to_real_ratio"] = imagined / rollout.num_tokens
        metrics |= self._learner.measure(rollout, self._generators["world_model"], features, self._num_batches)
        return plan, {name: value for name, value in metrics.items() if not name.startswith("losses/")}

    def learn(self) -> dict[str, float]:
        """Train heads and critics on the batch last estimated, once; return their metrics, none where that is done.

        Raises:
            FloatingPointError: a loss is not finite; the model is left as it was before that step.
        """
        if self._fresh is None:
            return {}
        fresh, self._fresh = self._fresh, None
        heads = nn.ModuleList([self.model.heads, self.model.world_heads])
        with evaluation_mode(self.model), gradients_kept(heads), torch.enable_grad():
            metrics = self._learner.learn(fresh, self._generators["world_model"])
            return metrics | self._estimator.learn()

    def _check_replies(self, rollout: Rollout) -> None:
        if self._acting.turns is None and bool(reply_mask(rollout).any()):
            raise ValueError(
                "a world or a tool wrote tokens between the policy's, and without turns nobody can tell where "
                "imagination has to stop; give turns=Turns(eos_id, max_turn), the rules that end the policy's turn."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the model, the batch not yet learnt from included."""
        return {
            "estimator": self._estimator.state_dict(),
            "learner": self._learner.state_dict(),
            "generators": capture_rng(self._generators),
            "num_batches": self._num_batches,
            "fresh": None if self._fresh is None else dict(vars(self._fresh)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: it is of another use, or of critics that read other features.
        """
        self._estimator.load_state_dict(state["estimator"])
        self._learner.load_state_dict(state["learner"])
        restore_rng(self._generators, state["generators"])
        self._num_batches = int(state["num_batches"])
        self._fresh = None if state["fresh"] is None else Rollout(**state["fresh"]).to(self.model.device)


def check_batch_use(imagination: ImaginationConfig) -> None:
    """Raise unless these settings ask for what can be had of a batch that was sampled elsewhere.

    Raises:
        ValueError: they do not; the message says what to set.
    """
    if imagination.use not in USES:
        raise ValueError(
            f"imagination={imagination.use} acts in the agent's own loop; set imagination=counterfactual or baseline, "
            "which make advantages of a batch, or imagination=off."
        )
    if imagination.completions != "none":
        raise ValueError(
            f"imagination.completions={imagination.completions} asks the environment's scorer, which is the agent's "
            "own; set imagination.completions=none."
        )
    if imagination.gradient_norm_every:
        raise ValueError(
            f"imagination.gradient_norm_every={imagination.gradient_norm_every} measures the agent's own update; set 0."
        )


@contextmanager
def gradients_kept(module: nn.Module) -> Iterator[None]:
    """Give the parameters no gradient inside, and afterwards those that they had before.

    What is trained inside neither drops the gradients that somebody accumulates nor leaves any of its own to be added.
    """
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
