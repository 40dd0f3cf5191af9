"""``imagination=search``: a search from real states says what the policy should rather do, and the policy learns it.

Before anything trains on a fresh batch, a sample of its states is searched: Gumbel's search, by the policy that acted,
in the world model of the run. The improved policy (Danihelka et al. 2022, "Policy improvement by planning with Gumbel",
section 4)

    pi'(a|s) = softmax(log pi_old(a|s) + sigma(completed Q(s, a)))

is a target beside the real PPO term: the loss adds coef * mean over states of KL(pi' || pi), with each searched state
standing for as many others, so that the term estimates its mean over all states of the batch.

**Departures.** A search keeps the ``width`` likeliest tokens of a state. All others are one action here, the tail, of
the probability that they have together and never visited: no token loses probability because it was not kept. What was
not visited has the mean Q of what was, so that none gains by having been looked at. And sigma takes Q on the scale of
the returns there are, not of the node's own least and largest (``completed_in_range``).

**Biased, or corrected.** With right Q values of all tokens pi' is no worse than pi_old in any state (their section
3.2). With wrong ones the policy learns to please the world model. So the gate is shut until
``imagination/search_skill``, on fresh answers, has exceeded two standard errors over ``gate_batches``: the correlation
of A^(s, a) with G - V(s), where a is the token really taken and A^ the completed Q less its mean under pi_old. For a
world model that does not tell tokens apart A^ is zero wherever one token is looked ahead, however well its values
explain returns. Further ahead depth itself moves Q, and likely tokens are searched deeper; a placebo is what shows how
much of a skill that is.

With ``corrected`` the search cannot move the expected gradient at all. At pi = pi_old

    -grad KL(pi' || pi) = sum_a pi'(a) grad log pi(a) = sum_a pi_old(a) w(a) grad log pi(a),   w = pi' / pi_old - 1,

as the scores have mean zero under pi_old. This is what the action taken brings on average with w(s_t, a_t) for an
advantage, so taking coef w(s_t, a_t) from its real advantage leaves the policy gradient, for any search that looks at
s_t and not at what was done there. It is exact before clipping and at the first minibatch; later ones follow the term
where the policy has moved. What is left is variance: less of it, where w is like the real advantages.

In a conversation the law is the same for a search that goes on through replies (``searched_world``): they may be wrong,
and drawn, and may even be the real world's, as long as they were not learnt from what was done at s_t.

Left out: acting by search, the root's value as a critic's target (Reanalyse), and the tokens of PUCT's visit counts.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.agents.action_masks import forbid
from worldmtp.agents.advantages import PlainAdvantages, correlation, monte_carlo_returns
from worldmtp.agents.config import ImaginationConfig, PPOConfig
from worldmtp.agents.imagination.gates import SkillGate
from worldmtp.agents.imagination.imagined_returns import acted_states
from worldmtp.agents.imagination.searched_world import SearchedWorld
from worldmtp.agents.ppo import AdvantagePlan, PolicyStats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import TAIL, tail_logprob
from worldmtp.dynamics import LatentState, Policy
from worldmtp.dynamics.protocol import Dynamics
from worldmtp.search import SearchConfig, gumbel_muzero_policy
from worldmtp.search.q_transforms import completed_by_visited, completed_in_range
from worldmtp.search.selection import QTransform


@dataclass(frozen=True)
class ImprovedPolicy:
    """What a search makes of the policy in some states; the last place is that of all tokens that were not kept."""

    ids: Int[Tensor, "state kept_and_tail"]
    old_logprobs: Float[Tensor, "state kept_and_tail"]
    logprobs: Float[Tensor, "state kept_and_tail"]
    advantages: Float[Tensor, "state kept_and_tail"]
    """Completed Q values less their mean under the old policy."""

    def of(
        self, values: Float[Tensor, "state kept_and_tail"], actions: Int[Tensor, " state"]
    ) -> Float[Tensor, " state"]:
        """Return the entries of actions: their own, or the tail's."""
        own = self.ids[:, :-1] == actions[:, None]
        place = torch.where(own.any(dim=1), own.int().argmax(dim=1), own.shape[1])
        return values.gather(1, place[:, None])[:, 0]

    def ratio(self, actions: Int[Tensor, " state"]) -> Float[Tensor, " state"]:
        """Return pi'(a) / pi_old(a)."""
        return self.of((self.logprobs - self.old_logprobs).exp(), actions)


@torch.no_grad()
def improved_policy(
    world_model: Dynamics[Any],
    state: Any,
    policy: Policy,
    config: SearchConfig,
    q_transform: QTransform,
    num_considered: int,
    generator: torch.Generator,
    allowed: Bool[Tensor, "state known"] | None = None,
) -> ImprovedPolicy:
    """Search from every state; return the improved policy over the kept tokens and all others together.

    Tokens that are not ``allowed`` have no probability, in the policy as in what is made of it.

    Raises:
        TypeError: the world model is blind to actions.
        ValueError: the search looks further ahead than the world model.
        FloatingPointError: the world model said something that is not finite.
    """
    logits = world_model.predict(state).logits
    assert logits is not None  # asked for
    invalid = forbid(torch.zeros_like(logits), allowed).isneginf()
    found = gumbel_muzero_policy(
        world_model,
        state,
        policy,
        config,
        generator,
        invalid=invalid,
        num_considered=num_considered,
        q_transform=q_transform,
    )
    logprobs = policy(logits).masked_fill(invalid, -torch.inf)
    is_kept = torch.ones_like(found.tokens[:, None], dtype=torch.bool)
    node = found.tree.root.with_tail(tail_logprob(logprobs[:, None], found.tokens[:, None], is_kept)[:, 0])
    q_values = completed_by_visited(node)
    mean = (node.logits.softmax(dim=-1) * q_values).sum(dim=1, keepdim=True)
    return ImprovedPolicy(
        ids=torch.nn.functional.pad(found.tokens, (0, 1), value=TAIL),
        old_logprobs=node.logits.log_softmax(dim=-1),
        logprobs=(node.logits + q_transform(node)).log_softmax(dim=-1),
        advantages=q_values - mean,
    )


class SearchAdvantages:
    """An ``AdvantageEstimator``: plain PPO's, with an improved policy to learn beside it.

    Raises:
        ValueError: as ``PPOConfig.check_searched``.
    """

    num_likely = 0

    def __init__(
        self,
        world: SearchedWorld,
        return_range: tuple[float, float],
        config: ImaginationConfig,
        ppo: PPOConfig,
        generator: torch.Generator,
    ) -> None:
        ppo.check_searched()
        self._world, self._ppo = world, ppo
        self._config, self._horizon, self._chunk = config.search, config.horizon, config.chunk_states
        self._generator = generator
        self._plain = PlainAdvantages(ppo)
        self._gate = SkillGate(config.search.gate_batches, config.search.gated)
        low, high = return_range
        self._transform: QTransform = partial(completed_in_range, low=low, high=high)

    def estimate(
        self, rollout: Rollout, stats: PolicyStats, states: LatentState | None = None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """Return the plan and its metrics, as ``AdvantageEstimator.estimate`` describes."""
        plan, metrics = self._plain.estimate(rollout, stats, states)
        if self._world.is_ready:
            plan, searched = self._searched(plan, rollout, stats, states)
            metrics |= searched
        self._world.observe(rollout)
        return plan, metrics

    def _searched(
        self, plan: AdvantagePlan, rollout: Rollout, stats: PolicyStats, states: LatentState | None
    ) -> tuple[AdvantagePlan, dict[str, float]]:
        """Search, and measure what was found; return the plan, with it where the gate is open, and the metrics."""
        config = self._config
        rows, steps = torch.nonzero(rollout.step_mask, as_tuple=True)
        number = len(rows)
        chosen = torch.randperm(number, generator=self._generator)[: config.num_states].to(rows.device)
        rows, steps = rows[chosen], steps[chosen]
        states = acted_states(self._world.inner, rollout) if states is None else states
        improved = self._improved(rollout, states.select(chosen), rows, steps)
        actions = rollout.actions[rows, steps]
        surprise = (monte_carlo_returns(rollout, self._ppo, stats.values) - stats.values[:, :-1])[rows, steps]
        is_open = self._gate.is_open
        skill = correlation(improved.of(improved.advantages, actions), surprise)
        self._gate.measure(skill)
        probs = improved.logprobs.exp()
        kl = torch.where(probs > 0, probs * (improved.logprobs - improved.old_logprobs), 0.0).sum(dim=1)
        metrics = {
            "imagination/search_skill": skill,
            "imagination/search_kl": float(kl.mean()),
            "imagination/gate_open": float(is_open),
            "imagination/imagined_tokens": float(len(rows) * config.num_simulations),
        }
        if is_open:
            plan = self._learning(plan, improved, rows, steps, actions, number / len(rows))
        return plan, metrics

    def _improved(
        self, rollout: Rollout, states: Any, rows: Int[Tensor, " state"], steps: Int[Tensor, " state"]
    ) -> ImprovedPolicy:
        """Return what searches from these states find, ``chunk_states`` of them at once."""
        config = self._config
        search = SearchConfig(config.num_simulations, self._horizon, config.width, self._ppo.gamma)
        parts = []
        for chunk in torch.arange(len(rows), device=rows.device).split(self._chunk):
            at = rows[chunk], steps[chunk]
            dynamics, roots = self._world.begin(rollout, states.select(chunk), *at)
            rule = self._transform, config.num_considered, self._generator
            assert rollout.allowed is not None  # made where it is not given
            parts.append(improved_policy(dynamics, roots, self._world.policy, search, *rule, rollout.allowed[at]))
        return ImprovedPolicy(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})

    def _learning(
        self,
        plan: AdvantagePlan,
        improved: ImprovedPolicy,
        rows: Int[Tensor, " state"],
        steps: Int[Tensor, " state"],
        actions: Int[Tensor, " state"],
        stands_for: float,
    ) -> AdvantagePlan:
        """Return the plan with the improved policy in it; each state stands for so many."""
        weight = self._config.coef * stands_for
        shape = (*plan.advantages.shape, improved.ids.shape[1])
        logprobs = plan.advantages.new_full(shape, float("-inf"))
        logprobs[rows, steps] = improved.logprobs.to(logprobs)
        ids = torch.zeros(shape, dtype=torch.long, device=rows.device)
        ids[..., -1] = TAIL
        ids[rows, steps] = improved.ids
        weights, advantages = torch.zeros_like(plan.advantages), plan.advantages.clone()
        weights[rows, steps] = weight
        if self._config.corrected:
            advantages[rows, steps] -= weight * (improved.ratio(actions) - 1).to(advantages)
        return replace(
            plan, advantages=advantages, improved_ids=ids, improved_logprobs=logprobs, improved_weight=weights
        )

    def learn(self) -> dict[str, float]:
        """Let the searched world learn, and return its metrics; the gate has learnt from the batch already."""
        return self._plain.learn() | self._world.learn()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"plain": self._plain.state_dict(), "gate": self._gate.state_dict(), **self._world.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._plain.load_state_dict(state["plain"])
        self._gate.load_state_dict(state["gate"])
        self._world.load_state_dict(state)
