"""``imagination.use=baseline``: imagined value expansion as a state-only baseline.

From every real state, R rollouts of the world model give the expansions T_0 .. T_H (T_0 is the critic itself); the
baseline is a weighted sum of them. It depends on the state alone and advantages use real rewards with lambda = 1, so
imagination can change the variance of the gradient, never its expectation.

Which horizons count is decided by measured skill on real returns of past batches, 1 - MSE(T_h) / MSE(T_0): horizons
without positive skill get no weight, the others share by least squares on the simplex (stacking: Breiman 1996). We
stack where STEVE (Buckman et al. 2018) weighs by ensemble variance, because the spread of rollouts does not see a bias
they share. With no skilled horizon the baseline is the critic, and this is PPO with lambda = 1.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldmtp.agents.advantages import (
    advantage_moments,
    advantage_scale,
    correlation,
    gae_of,
    monte_carlo_returns,
    plain_plan,
)
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states, border_fraction
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import LatentState, WorldModel, check_horizon, imagine
from worldmtp.objective.policy_losses import explained_variance

_LEAST_RIDGE = 1e-30
"""Keeps horizons without any error solvable."""


@torch.no_grad()
def imagined_expansions(
    world_model: WorldModel[Any],
    acting: Acting,
    rollout: Rollout,
    states: LatentState,
    horizon: int,
    num_rollouts: int,
    gamma: float,
    chunk_states: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "state horizon_plus_1"], float]:
    """Return T_0 .. T_H of every real state (rows where ``step_mask`` is true), each the mean of ``num_rollouts``.

    The second value is the share of the rollouts that stopped at the end of the policy's turn before their horizon.
    ``states`` are the rollout's ``acted_states``.
    """
    rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
    turn = acting.room(rollout, rows, steps)
    expansions, rolled = [], []
    for chunk in torch.arange(len(rows), device=rows.device).split(max(1, chunk_states // num_rollouts)):
        branched = chunk.repeat_interleave(num_rollouts)
        room = turn.select(branched) if turn is not None else None
        imagined = imagine(world_model, states.select(branched), horizon, acting.policy, generator, room)
        expanded = acting.returns(imagined, gamma)
        expansions.append(expanded.view(len(chunk), num_rollouts, horizon + 1).mean(dim=1))
        rolled.append(imagined)
    return torch.cat(expansions), border_fraction(rolled)


def least_on_simplex(moments: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return the w that minimises w' E w with w >= 0 and sum w = 1, exactly: active sets, as in Lawson & Hanson 1974.

    It is the minimum where no coordinate outside the support has a gradient (E w)_j below w' E w. From the best single
    coordinate, the one that breaks this most joins the support; where the minimum on the new support, w ~ E^-1 1, has
    negative weights, w moves towards it until one of them is zero, which leaves. Every round lowers w' E w, so no
    support comes twice.
    """
    scale = float(moments.diagonal().mean())
    weights = torch.zeros(len(moments), dtype=moments.dtype)
    support = [int(moments.diagonal().argmin())]
    weights[support] = 1.0
    while True:
        gradient = moments @ weights
        error = float(weights @ gradient)
        joining = int(gradient.argmin())
        if joining in support or float(gradient[joining]) >= error - 1e-12 * scale:
            return weights
        support, candidate = _descend(moments, weights, [*support, joining])
        if not float(candidate @ moments @ candidate) < error:  # what is left to gain is rounding
            return weights
        weights = candidate


def _descend(moments: Tensor, weights: Tensor, support: list[int]) -> tuple[list[int], Tensor]:
    """Move from ``weights`` to the minimum on ``support``, which loses the coordinates that would turn negative."""
    while True:
        index = torch.tensor(support)
        block = moments[index][:, index]
        ridge = max(1e-9 * float(block.diagonal().mean()), _LEAST_RIDGE) * torch.eye(len(support), dtype=block.dtype)
        solved = torch.linalg.solve(block + ridge, torch.ones(len(support), dtype=block.dtype))
        aim = torch.zeros_like(weights)
        aim[index] = solved / solved.sum()
        if bool((aim >= 0).all()):
            return support, aim
        negative = index[aim[index] < 0]
        shares = weights[negative] / (weights[negative] - aim[negative])
        weights = weights + float(shares.min()) * (aim - weights)
        leaving = int(negative[shares.argmin()])
        weights[leaving] = 0.0
        support = [h for h in support if h != leaving]


class StackedHorizons:
    """Weights of the horizons, from moments of past batches: on the simplex, skilled horizons only."""

    def __init__(self, horizon: int, decay: float, min_batches: int) -> None:
        self._decay = decay
        self._min_batches = min_batches
        self._num_batches = 0
        self._moments = torch.zeros((horizon + 1, horizon + 1), dtype=torch.float64)

    def skills(self) -> Float[Tensor, " horizon_plus_1"]:
        """Return 1 - MSE(T_h) / MSE(T_0) over past batches; zero before any."""
        errors = self._moments.diagonal()
        return 1 - errors / errors[0] if errors[0] > 0 else torch.zeros_like(errors)

    def weights(self) -> Float[Tensor, " horizon_plus_1"]:
        """Return weights by least squares on the simplex over T_0 and the horizons of positive skill.

        While the gate is shut, T_0 has all the weight.

        E = moments of the errors T_h - G; w' E w is minimised with sum w = 1 and no negative weight.
        """
        weights = torch.zeros(len(self._moments), dtype=torch.float64)
        if self._num_batches < self._min_batches:
            weights[0] = 1.0
            return weights
        skills = self.skills()
        skilled = torch.tensor([0, *[h for h in range(1, len(skills)) if float(skills[h]) > 0]])
        weights[skilled] = least_on_simplex(self._moments[skilled][:, skilled])
        return weights

    def update(self, expansions: Float[Tensor, "state horizon_plus_1"], returns: Float[Tensor, " state"]) -> None:
        """Add a batch."""
        errors = (expansions - returns[:, None]).cpu().double()
        self._moments = self._decay * self._moments + errors.T @ errors / len(errors)
        self._num_batches += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"moments": self._moments, "num_batches": self._num_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._moments = state["moments"].cpu()
        self._num_batches = int(state["num_batches"])


class ExpansionAdvantages:
    """An ``AdvantageEstimator`` whose baseline looks ahead in imagination."""

    num_likely = 0

    def __init__(
        self,
        world_model: WorldModel[Any],
        acting: Acting,
        config: ImaginationConfig,
        ppo: PPOConfig,
        generator: torch.Generator,
    ) -> None:
        check_horizon(world_model, config.horizon)
        self._world_model = world_model
        self._acting = acting
        self._config = config
        self._ppo = ppo
        self._generator = generator
        self._stack = StackedHorizons(config.horizon, config.slope_decay, config.min_batches)

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """Return the plan and its metrics, as ``AdvantageEstimator.estimate`` describes."""
        config, mask = self._config, rollout.step_mask
        targets = monte_carlo_returns(rollout, self._ppo, stats.values)
        realized = targets[mask]
        expansions, cut = imagined_expansions(
            self._world_model,
            self._acting,
            rollout,
            acted_states(self._world_model, rollout) if states is None else states,
            config.horizon,
            config.num_rollouts,
            self._ppo.gamma,
            config.chunk_states,
            self._generator,
        )
        weights, skills = self._stack.weights(), self._stack.skills()
        baseline = expansions @ weights.to(expansions)
        critic_error = realized - expansions[:, 0]
        metrics = {
            "imagination/r2": explained_variance((realized - baseline).double(), critic_error.double()),
            "imagination/corr": correlation(baseline, realized),
            "imagination/gate_open": float(weights[0] < 1),
            "imagination/imagined_tokens": float(len(realized) * config.horizon * config.num_rollouts),
        }
        if self._acting.turns is not None:
            metrics["imagination/turn_border_fraction"] = cut
        for h, (weight, skill) in enumerate(zip(weights.tolist(), skills.tolist(), strict=True)):
            metrics |= {f"imagination/weight_h{h}": weight, f"imagination/skill_h{h}": skill}
        self._stack.update(expansions, realized)
        values = stats.values.clone()
        values[:, :-1][mask] = baseline.to(values.dtype)
        advantages = gae_of(rollout, values, 1.0, self._ppo)
        metrics |= advantage_moments(advantages, rollout)
        scale = 1.0
        if self._ppo.scale_advantages:
            scale = advantage_scale(advantages, rollout, self._ppo.min_advantage_scale)
        return plain_plan(advantages / scale, targets), metrics

    def learn(self) -> dict[str, float]:
        """Return no metrics: the stack has learnt from the batch already, and the world model has its own learner."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"stack": self._stack.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._stack.load_state_dict(state["stack"])
