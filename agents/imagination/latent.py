"""``imagination=latent``: PPO on tokens that are imagined in the heads' latents, beside PPO on the real answers.

For single-turn text: the episode ends with EOS or with the token budget, and nobody replies. In each iteration, before
anything trains:

    states of real answers -> the world model samples ``horizon`` tokens from each, and reads reward, continuation and
    value off its latents -> lambda-returns -> advantages -> PPO on the real batch, then PPO on the imagined rows

**Imagined by the heads, differentiated by the trunk.** What acts is the trunk's policy at a *text*. The LM head at a
head's latent is another function: its gradient would move the LM head where the trunk never stands and leave the trunk
itself alone, and a gradient through the heads into the trunk would improve what the heads say, not what the trunk does.
So the imagined tokens are read by the trunk, in one forward, for log pi and its gradient; the latents give what no
trunk forward does, the sequence of tokens without sequential decoding, and what they are worth. Imagined rows are
an ordinary ``Rollout`` with an ``AdvantagePlan``, and the update is the agent's own.

**Off-policy.** The first token is the policy's own, later ones come from the heads' distribution q. With the ratios
rho = pi / q, the lambda-return is traced by lambda min(1, rho), as in V-trace (Espeholt et al. 2018, eq. 1, written for
the return of an action). An advantage counts by min(1, product of rho so far), times the probability of being alive.
With true rewards, ends and values and without the cut at one, the expected gradient is the exact one of the return to
the horizon, for any q (tested). With the cut, tokens that the policy would not have said count less.

**Biased, and why.** Rewards, ends and values are the heads' opinion; latents drift from the trunk's with each step;
the cut at one keeps the variance finite and favours paths on which heads and trunk agree. The policy learns to please
the heads where they are wrong. So this is off by default, leashed (ratios are those to the policy that acted the last
real batch, clipped, and a KL to it), and gated by skill (``action_skill``): on fresh real answers, before anything
trains on them, does the model know which of two tokens is worth more? That its values explain returns is no such
skill: they do so without any knowledge of what a token leads to, in a placebo as well.

Advantages are divided by the running range of imagined returns, as in DreamerV3 (Hafner et al. 2023, eq. 7), with a
lower floor: with returns in [0, 1] its floor of one would never divide. The critic learns the lambda-returns too.

Left out: imagining anew after each update. That needs a copy of the weights that acted, for the leash; more starts and
epochs do the same within it. Left out too: PMPO's signs of advantages (Dreamer 4), and a critic of imagination's own.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldmtp.agents.advantages import RunningMean, monte_carlo_returns, plain_plan
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.gates import SkillGate
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.imagination.latent_actor import (
    ActorTargets,
    action_skill,
    actor_targets,
    imagined_rows,
    read_by_trunk,
    rule_ends,
)
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats, PPOAgent
from worldmtp.agents.rollout import Rollout, state_index, trimmed
from worldmtp.agents.world_learning import EpisodeReplay
from worldmtp.dynamics import (
    ImaginedRollout,
    LatentState,
    TurnRoom,
    WorldModel,
    check_action_conditional,
    check_horizon,
    imagine,
)

_RANGE = (0.05, 0.95)
"""Quantiles of the returns between which advantages have size one."""


@dataclass(frozen=True)
class Imagined:
    """Imagined rows and what an update needs of them."""

    rollout: Rollout
    stats: PolicyStats
    plan: AdvantagePlan


class LatentImagination:
    """Imagined rows from the states of real answers, the gate in front of them, and the update on them.

    Nobody replies in the environment (``check_single_turn``).

    Args:
        agent: whose policy acts and learns; the update on imagined rows shares its optimiser.
        world_model: that imagines.
        acting: the policy as it acts.
        eos_id: the token that ends an answer.
        config: of this use, with the horizon.
        ppo: of the real update.
        generator: all that is sampled here.

    Raises:
        ValueError: the horizon is out of range.
        TypeError: the world model is blind to actions.
    """

    def __init__(
        self,
        agent: PPOAgent,
        world_model: WorldModel[Any],
        acting: Acting,
        eos_id: int,
        config: ImaginationConfig,
        ppo: PPOConfig,
        generator: torch.Generator,
    ) -> None:
        check_action_conditional(world_model)
        check_horizon(world_model, config.horizon)
        self._world_model, self._acting, self._eos_id = world_model, acting, eos_id
        self._horizon, self._config, self._ppo = config.horizon, config.latent, ppo
        self._generator = generator
        self._real_agent = agent
        # On the same weights, with the same optimiser; settings and the count of steps are its own.
        self._agent = copy.copy(agent)
        self._agent.config = replace(ppo, kl_coef=self._config.kl_coef, ent_coef=self._config.ent_coef)
        self._agent.num_updates = 0
        self._replay = EpisodeReplay(self._config.replay_iterations)
        self._gate = SkillGate(self._config.gate_batches, self._config.gated)
        self._range = RunningMean(decay=0.99)
        self._pending: Imagined | None = None

    @torch.no_grad()
    def observe(self, rollout: Rollout, stats: PolicyStats, states: LatentState) -> dict[str, float]:
        """Take in a fresh batch, before anything trains on it, and imagine from it where past skill allows.

        ``states`` are the rollout's ``acted_states``. What is imagined waits for ``joined`` or ``update``.
        """
        is_open = self._gate.is_open
        self._replay.add(rollout)
        skill, num_tokens = self._measure(rollout, stats, states)
        self._gate.measure(skill)
        metrics = {"imagination/action_skill": skill, "imagination/gate_open": float(is_open)}
        self._pending = None
        if is_open:
            self._pending, imagined = self._imagine()
            metrics |= imagined
            num_tokens += self._pending.rollout.num_tokens
        return metrics | {"imagination/imagined_tokens": float(num_tokens)}

    def joined(
        self, rollout: Rollout, stats: PolicyStats, plan: AdvantagePlan
    ) -> tuple[Rollout, PolicyStats, AdvantagePlan]:
        """Return the real batch with the imagined rows behind it, where both are to be one update."""
        pending = self._pending
        if pending is None or not self._config.mixed:
            return rollout, stats, plan
        self._pending = None
        return (
            Rollout.cat([rollout, pending.rollout]),
            PolicyStats(
                torch.cat([stats.values, pending.stats.values]),
                torch.cat([stats.ref_logprobs, pending.stats.ref_logprobs]),
            ),
            AdvantagePlan.cat([plan, pending.plan]),
        )

    def update(self, remaining: float) -> dict[str, float]:
        """Train on the imagined rows that wait; return metrics, none where there are none.

        ``remaining`` is as in ``PPOAgent.update``.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return {}
        rollout = trimmed(pending.rollout)
        steps = rollout.actions.shape[1]
        plan = AdvantagePlan(**{name: values[:, :steps] for name, values in vars(pending.plan).items()})
        stats = PolicyStats(pending.stats.values[:, : steps + 1], pending.stats.ref_logprobs[:, :steps])
        metrics = self._agent.update(rollout, stats, plan, self._generator, remaining, self._config.num_epochs)
        names = ("policy", "value", "entropy", "kl_reference", "approx_kl")
        return {f"imagination/losses/{name}": metrics[f"losses/{name}"] for name in names}

    def _measure(self, rollout: Rollout, stats: PolicyStats, states: LatentState) -> tuple[float, int]:
        """Return the skill of ``action_skill`` at states of a fresh batch, and the steps that it took."""
        rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
        chosen = torch.randperm(len(rows), generator=self._generator)[: self._config.num_starts].to(rows.device)
        rows, steps = rows[chosen], steps[chosen]
        ahead = steps[:, None] + torch.arange(self._horizon, device=steps.device)
        places = ahead.clamp(max=rollout.actions.shape[1] - 1)
        inside = ahead < rollout.step_mask.sum(dim=1)[rows, None]
        skill = action_skill(
            self._world_model,
            states.select(chosen),
            rollout.actions[rows].gather(1, places),
            inside,
            monte_carlo_returns(rollout, self._ppo, stats.values)[rows].gather(1, places),
            self._acting.policy,
            self._ppo.gamma,
            self._generator,
        )
        return skill, 2 * int(inside.sum())

    def _imagine(self) -> tuple[Imagined, dict[str, float]]:
        """Return rows imagined by the policy of now from states of recent real answers, and metrics."""
        model, config = self._real_agent.model, self._config
        real = self._replay.sample(config.num_starts, self._generator).to(model.device)
        taken = real.step_mask.sum(dim=1)
        uniform = torch.rand(len(real), generator=self._generator, dtype=torch.float64).to(taken.device)
        steps = (uniform * taken).long()
        every = torch.arange(len(real), device=taken.device)
        root = self._world_model.encode(
            real.input_ids, real.attention_mask, every, state_index(real).gather(1, steps[:, None])[:, 0]
        )
        turn = TurnRoom(self._eos_id, real.actions.shape[1] - steps)
        imagined = imagine(self._world_model, root, self._horizon, self._acting.policy, self._generator, turn)
        rollout = imagined_rows(real, steps, imagined, self._eos_id)
        logprobs, values = read_by_trunk(model, self._acting, rollout, self._ppo.micro_batch_size)
        rollout = replace(rollout, logprobs=logprobs.to(rollout.logprobs.dtype))
        width = min(self._horizon, logprobs.shape[1])
        own = torch.zeros_like(imagined.logprobs)
        own[:, :width] = logprobs[:, :width]
        targets = self._targets(imagined, own, turn)
        returns = targets.returns[imagined.in_turn]
        low, high = torch.quantile(returns.double(), torch.tensor(_RANGE, dtype=torch.float64, device=returns.device))
        self._range.update(float(high - low))
        scale = max(config.min_return_range, self._range.mean)

        def on_steps(part: Tensor) -> Tensor:
            full = torch.zeros_like(rollout.rewards)
            full[:, :width] = torch.where(imagined.in_turn, part, 0.0)[:, :width].to(full.dtype)
            return full

        plan = plain_plan(on_steps(targets.advantages / scale), on_steps(targets.returns))
        metrics = {
            "imagination/path_weight": float(targets.weights[imagined.in_turn].mean()),
            "imagination/return_range": self._range.mean,
        }
        return Imagined(rollout, PolicyStats(values, rollout.logprobs), plan), metrics

    def _targets(self, imagined: ImaginedRollout, logprobs: Tensor, turn: TurnRoom) -> ActorTargets:
        ends = rule_ends(imagined.actions, turn, self._ppo.bootstrap_truncated)
        return actor_targets(imagined, logprobs, ends, self._ppo.gamma, self._config.lambda_, self._acting.return_range)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs; nothing imagined waits between iterations."""
        return {
            "agent": self._agent.num_updates,
            "replay": self._replay.state_dict(),
            "gate": self._gate.state_dict(),
            "range": self._range.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._agent.num_updates = int(state["agent"])
        self._replay.load_state_dict(state["replay"])
        self._gate.load_state_dict(state["gate"])
        self._range.load_state_dict(state["range"])
