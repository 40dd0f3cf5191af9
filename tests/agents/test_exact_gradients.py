"""The policy-gradient estimators in an enumerable token MDP, in float64: expectations, not samples.

Every episode there is stands in one batch, weighted by its probability, so ``sum_episodes p * loss`` *is* the expected
loss, and its gradient can be compared with the enumerated policy gradient to rounding.
"""

import pytest
import torch
from torch import Tensor

from worldmtp.agents.imagination.counterfactual import centred_advantages, episode_correction
from worldmtp.agents.imagination.critic import LiveTokens, live_tokens
from worldmtp.agents.ppo import all_action_loss_per_token, likely_tokens, policy_loss_per_token
from worldmtp.dynamics import TokenMDP

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

    def live(self, max_live: int, min_probability: float = 0.0) -> LiveTokens:
        return live_tokens(likely_tokens(self.old, max_live), self.episodes.step_mask, min_probability)

    def counterfactual_gradient(
        self, q_table: Tensor, eta: float, live: LiveTokens, baseline: Tensor | float = 0.0
    ) -> Tensor:
        """The two-term loss of agents/imagination/counterfactual.py with the critic ``q_table[prefix, action]``."""
        q_values = q_table[self.episodes.prefixes].gather(2, live.ids)
        advantages = centred_advantages(q_values, live)
        correction = episode_correction(advantages, live, self.episodes.actions)
        residual = self.episodes.rewards.sum(dim=1) - baseline - eta * correction
        every = all_action_loss_per_token(self.log_policy.gather(2, live.ids), live.logprobs, eta * advantages, CLIP)
        return self.gradient_of(every + self.sampled_term(residual[:, None].expand_as(self.taken(self.old))))


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


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("critic", ["random", "huge", "true", "constant"])
@pytest.mark.parametrize("max_live", [4, 2])
def test_counterfactual_gradient_is_exact_for_any_critic(
    critic: str, eta: float, max_live: int, eos: int | None
) -> None:
    """Also with the tail cut (max_live=2 of 4): tokens left out count as the live mean, which costs no bias."""
    case = Enumerated(eos=eos)
    true = case.mdp.action_values(case.logits.detach())
    q_table = {"random": case.randn(*true.shape), "huge": 1e3 * case.randn(*true.shape), "true": true}.get(
        critic, torch.full_like(true, 3.0)
    )
    gradient = case.counterfactual_gradient(q_table, eta, case.live(max_live))
    torch.testing.assert_close(gradient, case.exact, atol=1e-9 if critic == "huge" else 1e-11, rtol=0)


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
