"""The policy-gradient estimators in an enumerable token MDP, in float64: expectations, not samples.

Every episode there is stands in one batch, weighted by its probability, so ``sum_episodes p * loss`` *is* the expected
loss, and its gradient can be compared with the enumerated policy gradient to rounding.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldmtp.agents.config import ImaginationConfig
from worldmtp.agents.imagination.completions import ScoredCompletions
from worldmtp.agents.imagination.counterfactual import centred_advantages, episode_correction
from worldmtp.agents.imagination.critic import LiveTokens, RungCritic, live_tokens
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.ppo import likely_tokens
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import ends_with_tail, live_logprobs
from worldmtp.dynamics import ExactWorldModel, TokenMDP, acting_policy
from worldmtp.objective.policy_losses import all_action_loss_per_token, policy_loss_per_token

CLIP = 0.2


class Enumerated:
    """A token MDP, a tabular policy, and all its episodes."""

    def __init__(self, vocab_size: int = 4, horizon: int = 4, eos: int | None = None, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        num_prefixes = sum(vocab_size**length for length in range(horizon))
        self.mdp = TokenMDP(vocab_size, horizon, self.randn(num_prefixes, vocab_size), eos)
        self.logits = self.randn(num_prefixes, vocab_size).requires_grad_(True)
        self.episodes = self.mdp.episodes()
        self.weight = self.episodes.probability(self.logits).detach()
        self.log_policy = self.logits.log_softmax(-1)[self.episodes.prefixes]
        self.old = self.log_policy.detach()
        self.exact = self.mdp.policy_gradient(self.logits.detach())

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def taken(self, log_policy: Tensor) -> Tensor:
        return log_policy.gather(2, self.episodes.actions[..., None])[..., 0]

    def gradient_of(self, loss_per_token: Tensor) -> Tensor:
        """Gradient of the expected total *objective* (minus the loss)."""
        per_episode = torch.where(self.episodes.step_mask, loss_per_token, 0.0).sum(dim=1)
        (gradient,) = torch.autograd.grad(-(self.weight * per_episode).sum(), self.logits, retain_graph=True)
        return gradient

    def sampled_term(self, advantages: Tensor) -> Tensor:
        return policy_loss_per_token(self.taken(self.log_policy), self.taken(self.old), advantages, CLIP)

    def live(self, max_live: int, min_probability: float = 0.0, tail: bool = False) -> LiveTokens:
        return live_tokens(likely_tokens(self.old, max_live), self.episodes.step_mask, min_probability, tail)

    def critic(self, q_table: Tensor, live: LiveTokens, q_tail: Tensor | None = None) -> Tensor:
        """What ``q_table[prefix, action]`` says of the live tokens, and ``q_tail[prefix]`` of the tail."""
        q_values = q_table[self.episodes.prefixes].gather(2, live.without_tail().ids)
        return q_values if q_tail is None else torch.cat([q_values, q_tail[self.episodes.prefixes][..., None]], dim=-1)

    def all_action_term(self, live: LiveTokens, advantages: Tensor) -> Tensor:
        old = live.logprobs.masked_fill(~live.mask, float("-inf"))
        logprobs = live_logprobs(self.log_policy, live.ids, old, ends_with_tail(live.ids))
        return all_action_loss_per_token(logprobs, old, advantages, CLIP)

    def counterfactual_gradient(
        self,
        q_table: Tensor,
        eta: float,
        live: LiveTokens,
        baseline: Tensor | float = 0.0,
        q_tail: Tensor | None = None,
    ) -> Tensor:
        """The two-term loss of agents/imagination/counterfactual.py with the critic ``q_table[prefix, action]``."""
        advantages = eta * centred_advantages(self.critic(q_table, live, q_tail), live)
        return self.gradient_of(self.two_terms(advantages, live, self.all_action_term(live, advantages), baseline))

    def completed(
        self, live: LiveTokens, options: dict[str, Any], as_rollout: Callable[..., Rollout], mutant: str = ""
    ) -> Tensor:
        """The two-term loss with a critic that reads scored completions, drawn anew for each prefix and token."""
        wrong = options.pop("world", None) == "wrong"
        logits = self.randn(*self.logits.shape) if wrong else self.logits.detach()
        config = ImaginationConfig(max_rung=0, completions="trunk", **options)
        eos = -1 if self.mdp.eos is None else self.mdp.eos
        world, acting = ExactWorldModel(self.mdp, logits), Acting(acting_policy(1.0), (0.0, 1.0))
        completions = ScoredCompletions(world, self.worth, acting, eos, self.mdp.horizon, config, self.generator)
        rollout = as_rollout(self.episodes, self.taken(self.old))
        columns, _ = completions.features(rollout, acted_states(world, rollout), live)
        if mutant == "own_continuation":
            returns = self.episodes.rewards.sum(dim=1)[:, None, None].expand(live.mask.shape)
            taken = live.taken(self.episodes.actions)[live.mask]
            columns[:, 1] = torch.where(taken, returns[live.mask], columns[:, 1])
        if mutant == "states_by_length":
            is_last = torch.arange(self.mdp.horizon) == self.episodes.step_mask.sum(dim=1, keepdim=True) - 1
            columns[is_last[..., None].expand(live.mask.shape)[live.mask]] = 0.0
        critic = RungCritic(columns.shape[1], 16, self.generator, torch.float64)
        q_values = torch.zeros_like(live.logprobs)
        q_values[live.mask] = 5 * critic(columns).detach()
        advantages = centred_advantages(q_values, live)
        assert float(advantages.abs().max()) > 0.1
        return self.two_terms(advantages, live, self.all_action_term(live, advantages))

    def worth(self, rows: np.ndarray, answers: Sequence[np.ndarray]) -> np.ndarray:
        """The return of each answer, token by token."""
        returns = []
        for answer in answers:
            prefix, total = 0, 0.0
            for token in answer.tolist():
                total += float(self.mdp.rewards[prefix, token])
                prefix = prefix * self.mdp.vocab_size + 1 + token
            returns.append(total)
        return np.array(returns)

    def two_terms(self, advantages: Tensor, live: LiveTokens, every: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
        correction = episode_correction(advantages, live, self.episodes.actions)
        residual = self.episodes.rewards.sum(dim=1) - baseline - correction
        return every + self.sampled_term(residual[:, None].expand_as(self.taken(self.old)))


def reward_to_go(rewards):
    """The sum of the rewards from each step on."""
    return rewards.flip(1).cumsum(1).flip(1)


@pytest.mark.parametrize("eos", [None, 1])
def test_autograd_policy_gradient_equals_the_enumerated_one(eos: int | None) -> None:
    case = Enumerated(vocab_size=5, horizon=4, eos=eos)
    masked = torch.where(case.episodes.step_mask, case.episodes.rewards, 0.0)
    to_go = reward_to_go(masked)
    torch.testing.assert_close(case.gradient_of(case.sampled_term(to_go)), case.exact, atol=1e-11, rtol=0)


def test_a_one_step_misalignment_of_the_returns_is_caught() -> None:
    case = Enumerated()
    to_go = reward_to_go(case.episodes.rewards)
    late = torch.cat([to_go[:, 1:], torch.zeros_like(to_go[:, :1])], dim=1)
    assert float((case.gradient_of(case.sampled_term(late)) - case.exact).abs().max()) > 0.01


def critics(case: Enumerated) -> dict[str, Tensor]:
    """What a critic may say of each prefix and action: anything, the truth, and the same of all."""
    true = case.mdp.action_values(case.logits.detach())
    random = case.randn(*true.shape)
    return {"random": random, "huge": 1e3 * random, "true": true, "constant": torch.full_like(true, 3.0)}


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize("max_live", [4, 2])
def test_counterfactual_gradient_is_exact_for_any_critic(max_live: int, eos: int | None) -> None:
    """Also with the tail cut (max_live=2 of 4): tokens left out count as the live mean, which costs no bias."""
    case = Enumerated(eos=eos)
    live = case.live(max_live)
    for (name, q_table), eta in itertools.product(critics(case).items(), (0.0, 0.4, 1.0)):
        error = (case.counterfactual_gradient(q_table, eta, live) - case.exact).abs().max()
        assert float(error) < (1e-9 if name == "huge" else 1e-11), (name, eta)


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize(("max_live", "min_probability"), [(4, 0.0), (3, 0.0), (2, 0.0), (1, 0.0), (4, 0.25)])
def test_with_the_tail_the_gradient_is_exact_for_any_critic(
    max_live: int, min_probability: float, eos: int | None
) -> None:
    """From a tail of no token (all 4 are live) to one of three; what it is worth is the critic's guess, too."""
    case = Enumerated(eos=eos)
    live = case.live(max_live, min_probability, tail=True)
    assert bool(live.is_tail.any()) == (max_live < 4 or min_probability > 0)
    q_tail = 10.0 * case.randn(len(case.logits))
    for (name, q_table), eta in itertools.product(critics(case).items(), (0.4, 1.0)):
        error = (case.counterfactual_gradient(q_table, eta, live, q_tail=q_tail) - case.exact).abs().max()
        assert float(error) < 1e-10, (name, eta)
    taken = live.taken(case.episodes.actions)
    assert torch.equal(taken.sum(dim=-1), case.episodes.step_mask.long()), "every action has one place"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab_size=st.integers(2, 5),
    horizon=st.integers(1, 3),
    has_eos=st.booleans(),
    max_live=st.integers(1, 6),
    min_probability=st.floats(0.0, 0.9),
    sharpness=st.floats(0.0, 8.0),
    eta=st.floats(-2.0, 2.0),
)
def test_the_tail_is_unbiased_whatever_the_policy_the_live_set_and_the_critic(
    seed: int,
    vocab_size: int,
    horizon: int,
    has_eos: bool,
    max_live: int,
    min_probability: float,
    sharpness: float,
    eta: float,
) -> None:
    """Flat policies, where ties decide what is live, to sharp ones, where the tail is of probability 1e-16."""
    case = Enumerated(vocab_size, horizon, 0 if has_eos else None, seed)
    case.logits = (sharpness * case.logits.detach()).requires_grad_(True)
    case.log_policy = case.logits.log_softmax(-1)[case.episodes.prefixes]
    case.old, case.weight = case.log_policy.detach(), case.episodes.probability(case.logits).detach()
    exact = case.mdp.policy_gradient(case.logits.detach())
    q_table, q_tail = case.randn(*exact.shape), case.randn(len(exact))
    live = case.live(max_live, min_probability, tail=True)
    gradient = case.counterfactual_gradient(q_table, eta, live, q_tail=q_tail)
    torch.testing.assert_close(gradient, exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "mutant", ["mass_without_gradient", "tail_advantage_zero", "centring_without_the_tail", "tail_never_taken"]
)
def test_mutants_of_the_tail_are_biased(mutant: str) -> None:
    case = Enumerated()
    live = case.live(2, tail=True)
    q_values = case.critic(case.randn(*case.logits.shape), live, case.randn(len(case.logits)))
    advantages = centred_advantages(q_values, live)
    seen = live
    if mutant == "tail_advantage_zero":
        advantages = torch.where(live.is_tail, 0.0, advantages)
    if mutant == "centring_without_the_tail":
        own = centred_advantages(q_values[..., :-1], live.without_tail())
        state_value = q_values[..., :1] - own[..., :1]
        advantages = torch.where(live.mask, q_values - state_value, 0.0)
    if mutant == "tail_never_taken":
        seen = live.without_tail()
    every = case.all_action_term(live, advantages)
    if mutant == "mass_without_gradient":
        every = case.all_action_term(live.without_tail(), advantages[..., :-1])
    correction = advantages if mutant != "tail_never_taken" else advantages[..., :-1]
    gradient = case.gradient_of(case.two_terms(correction, seen, every))
    assert float((gradient - case.exact).abs().max()) > 0.01


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize(("max_live", "min_probability", "tail"), [(4, 0.0, False), (2, 0.0, True), (3, 0.25, True)])
@pytest.mark.parametrize("options", [{}, {"completion_states": 1}, {"completion_candidates": 1}, {"world": "wrong"}])
def test_with_scored_completions_the_gradient_is_exact(
    options: dict[str, Any],
    max_live: int,
    min_probability: float,
    tail: bool,
    eos: int | None,
    rollout_of_episodes: Callable[..., Rollout],
) -> None:
    """Whatever the draws, and whatever an untrained critic makes of them; the chains of another policy, too."""
    case = Enumerated(eos=eos)
    live = case.live(max_live, min_probability, tail)
    gradient = case.gradient_of(case.completed(live, dict(options), rollout_of_episodes))
    torch.testing.assert_close(gradient, case.exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mutant", ["own_continuation", "states_by_length"])
def test_mutants_of_completions_are_biased(mutant: str, rollout_of_episodes: Callable[..., Rollout]) -> None:
    """A token that was taken, completed by what the episode went on to write; and states chosen by how long it got."""
    case = Enumerated(eos=2)
    loss = case.completed(case.live(4), {}, rollout_of_episodes, mutant)
    assert float((case.gradient_of(loss) - case.exact).abs().max()) > 0.01


def test_a_critic_that_knows_the_tail_leaves_less_to_the_sample() -> None:
    """With the true Q of every action, the tail's being the mean over its tokens, the residual varies less than cut.

    The live sets are nested, and the more tokens the tail puts together, the less is known.
    """
    case = Enumerated(vocab_size=5, horizon=3)
    true = case.mdp.action_values(case.logits.detach())
    probs, variances = case.logits.detach().softmax(-1), []
    for max_live, tail in ((5, True), (3, True), (1, True), (3, False)):
        live = case.live(max_live, tail=tail)
        outside = probs.topk(max_live, dim=-1).indices
        rest = probs.scatter(-1, outside, 0.0)
        mean = (rest * true).sum(-1) / rest.sum(-1).clamp_min(1e-300)
        advantages = centred_advantages(case.critic(true, live, mean if tail else None), live)
        residual = case.episodes.rewards.sum(1) - episode_correction(advantages, live, case.episodes.actions)
        average = (case.weight * residual).sum()
        variances.append(float((case.weight * (residual - average) ** 2).sum()))
    everything, three, one, cut = variances
    assert everything < 1e-20 < three < one
    assert three < 0.9 * cut


def test_a_baseline_changes_nothing_in_expectation() -> None:
    case = Enumerated()
    gradient = case.counterfactual_gradient(case.randn(*case.logits.shape), 0.7, case.live(4), baseline=5.0)
    torch.testing.assert_close(gradient, case.exact, atol=1e-11, rtol=0)


def test_with_the_true_critic_nothing_is_left_to_the_sample() -> None:
    """Transitions append, so with Q^ = Q the residual G - V(s_0) - S vanishes on every single episode."""
    case = Enumerated()
    live = case.live(4)
    true = case.mdp.action_values(case.logits.detach())
    advantages = centred_advantages(true[case.episodes.prefixes].gather(2, live.ids), live)
    root_value = (case.logits.detach().softmax(-1) * true).sum(-1)[0]
    residual = case.episodes.rewards.sum(1) - root_value - episode_correction(advantages, live, case.episodes.actions)
    assert float(residual.abs().max()) < 1e-11


@pytest.mark.parametrize("mutant", ["no_centring", "critic_one_step_late", "correction_dropped", "baseline_peeks"])
def test_mutants_are_biased(mutant: str) -> None:
    case = Enumerated()
    live, q_table, eta = case.live(4), case.randn(*case.logits.shape), 0.7
    q_values = q_table[case.episodes.prefixes].gather(2, live.ids)
    advantages = q_values if mutant == "no_centring" else centred_advantages(q_values, live)
    correction = episode_correction(advantages, live, case.episodes.actions)
    if mutant == "critic_one_step_late":
        correction = episode_correction(advantages.roll(1, dims=1), live, case.episodes.actions)
    if mutant == "correction_dropped":
        correction = torch.zeros_like(correction)
    residual = case.episodes.rewards.sum(1) - eta * correction
    if mutant == "baseline_peeks":
        residual = residual - 0.5 * case.episodes.rewards[:, -1]
    every = all_action_loss_per_token(case.log_policy.gather(2, live.ids), live.logprobs, eta * advantages, CLIP)
    gradient = case.gradient_of(every + case.sampled_term(residual[:, None].expand_as(case.taken(case.old))))
    assert float((gradient - case.exact).abs().max()) > 0.01


def test_the_bias_of_renormalising_a_cut_is_what_we_avoid() -> None:
    """Measured, as a warning: treating cut tokens as advantage -V^ (the usual top-m cut) biases the gradient."""
    case = Enumerated()
    live, q_table = case.live(2), case.mdp.action_values(case.logits.detach())
    q_values = q_table[case.episodes.prefixes].gather(2, live.ids)
    uncut = (live.logprobs.exp() * q_values).sum(-1, keepdim=True)
    every = all_action_loss_per_token(case.log_policy.gather(2, live.ids), live.logprobs, q_values - uncut, CLIP)
    correction = torch.where(live.taken(case.episodes.actions), q_values - uncut, 0.0).sum(dim=(1, 2))
    residual = case.episodes.rewards.sum(1) - correction
    gradient = case.gradient_of(every + case.sampled_term(residual[:, None].expand_as(case.taken(case.old))))
    assert float((gradient - case.exact).abs().max()) > 0.01


def test_clipping_biases_once_the_policy_has_moved_and_by_how_much() -> None:
    """Away from ratio one the clipped surrogate is no longer the gradient; its size is bounded, not hidden."""
    case = Enumerated()
    with torch.no_grad():
        case.logits.add_(0.3 * case.randn(*case.logits.shape))
    case.log_policy = case.logits.log_softmax(-1)[case.episodes.prefixes]
    returns = case.episodes.rewards.sum(1)[:, None].expand_as(case.taken(case.old))
    clipped = case.gradient_of(case.sampled_term(returns))
    unclipped = case.gradient_of(policy_loss_per_token(case.taken(case.log_policy), case.taken(case.old), returns, 1e9))
    gap = float((clipped - unclipped).norm() / unclipped.norm())
    assert 0.01 < gap < 1.0
