"""The tail of the vocabulary as one action: its mass and the mass's gradient, however small."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldmtp.agents.action_masks import forbid
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.imagination.critic import live_tokens
from worldmtp.agents.ppo import AdvantagePlan, PPOAgent, likely_tokens, policy_stats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import TAIL, live_logprobs, tail_logprob
from worldmtp.model import MTPModel

STEP = torch.ones((1, 1), dtype=torch.bool)


def log_policy_of(*probs: float) -> Tensor:
    return torch.tensor([[probs]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("max_live", "min_probability", "is_live", "mass"),
    [
        (4, 0.0, [True] * 4 + [False], 0.0),
        (3, 0.0, [True] * 3 + [True], 0.05),
        (3, 0.2, [True, True, False, True], 0.2),  # the third likeliest is not live: it joins the fourth
        (1, 0.0, [True, True], 0.5),
        (2, 0.9, [True, False, True], 0.5),  # the likeliest is live whatever its probability
    ],
)
def test_the_tail_is_what_the_live_tokens_leave(
    max_live: int, min_probability: float, is_live: list[bool], mass: float
) -> None:
    likely = likely_tokens(log_policy_of(0.3, 0.05, 0.5, 0.15), max_live)
    live = live_tokens(likely, STEP, min_probability, tail=True)
    assert live.ids[0, 0].tolist() == [*[2, 0, 3, 1][:max_live], TAIL]
    assert live.mask[0, 0].tolist() == is_live
    assert float(live.logprobs[0, 0, -1].exp()) == pytest.approx(mass, abs=1e-15)
    assert not live_tokens(likely, ~STEP, min_probability, tail=True).mask.any()


def test_whoever_has_no_place_of_its_own_takes_the_tail() -> None:
    live = live_tokens(likely_tokens(log_policy_of(0.3, 0.05, 0.5, 0.15), 3), STEP, 0.2, tail=True)
    places = [live.taken(torch.tensor([[token]]))[0, 0].tolist() for token in range(4)]
    first, second, tail = [True, False, False, False], [False, True, False, False], [False, False, False, True]
    assert places == [second, tail, first, tail]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("logprob", [-5.0, -30.0, -80.0])
def test_a_tail_below_rounding_keeps_its_mass_and_its_gradient(logprob: float, dtype: torch.dtype) -> None:
    """Two tokens of e^-30 beside two of about a half: 1 - sum is 0 in float32, and so its log would be -inf.

    The tail's log pi is theirs plus log 2, and its gradient in the logits is theirs, 1/2 each, less pi.
    """
    logits = torch.tensor([[[0.0, logprob, 0.0, logprob]]], dtype=dtype, requires_grad=True)
    log_policy = logits.log_softmax(dim=-1)
    likely = likely_tokens(log_policy.detach(), 2)
    live = live_tokens(likely, STEP, 0.0, tail=True)
    found = live_logprobs(log_policy, live.ids, live.logprobs, True)
    normaliser = math.log(2 + 2 * math.exp(logprob))
    expected = [-normaliser, -normaliser, logprob + math.log(2) - normaliser]
    assert found[0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert live.logprobs[0, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert bool(live.mask.all())
    found[0, 0, 2].backward()
    pi = math.exp(-normaliser), math.exp(logprob - normaliser)
    assert logits.grad[0, 0].tolist() == pytest.approx([-pi[0], 0.5 - pi[1], -pi[0], 0.5 - pi[1]], abs=1e-6)


def test_an_empty_tail_has_no_probability_and_no_gradient_that_is_not_finite() -> None:
    logits = torch.zeros((1, 2, 3), requires_grad=True)
    is_live = torch.tensor([[[True, True, True], [True, True, False]]])
    tail = tail_logprob(logits.log_softmax(dim=-1), torch.tensor([[[0, 1, 2]] * 2]), is_live)
    assert tail.exp().tolist() == [[0.0, pytest.approx(1 / 3)]]
    torch.where(torch.isfinite(tail), tail, 0.0).sum().backward()
    assert logits.grad[0, 0].tolist() == [0.0, 0.0, 0.0]
    assert logits.grad[0, 1].tolist() == pytest.approx([-1 / 3, -1 / 3, 2 / 3])


def test_forbidden_tokens_are_in_no_tail() -> None:
    """Two of five tokens are allowed beside the live one: they are the tail. Where only that one is, there is none."""
    allowed = torch.tensor([[[True, False, True, True, False], [False, False, False, True, False]]])
    log_policy = forbid(torch.zeros((1, 2, 5)) + 0.1 * torch.eye(5)[3], allowed).log_softmax(dim=-1)
    live = live_tokens(likely_tokens(log_policy, 1), torch.ones((1, 2), dtype=torch.bool), 0.0, tail=True)
    weight = math.exp(0.1)
    assert live.ids.tolist() == [[[3, TAIL], [3, TAIL]]]
    assert live.mask.tolist() == [[[True, True], [True, False]]]
    assert live.logprobs.exp()[0].tolist() == [pytest.approx([weight / (weight + 2), 2 / (weight + 2)]), [1.0, 0.0]]
    found = live_logprobs(log_policy, live.ids, live.logprobs, True)
    assert found.exp()[0].tolist() == [pytest.approx([weight / (weight + 2), 2 / (weight + 2)]), [1.0, 0.0]]


def gradients(agent: PPOAgent, rollout: Rollout, plan: AdvantagePlan) -> list[Tensor]:
    """Of the first update, where every ratio is one."""
    stats = policy_stats(agent.model, None, rollout, 0.7)
    agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
    return [parameter.grad.clone() for parameter in agent._parameters if parameter.grad is not None]


@pytest.mark.parametrize("masked", [False, True])
def test_the_tail_in_an_update_is_all_its_tokens_with_one_advantage(
    masked: bool, tiny_model: Callable[..., MTPModel], hand_rollout: Callable[..., Rollout]
) -> None:
    """A plan with the tail, and one that lists all seven tokens by themselves, have one gradient."""
    rows = [
        {"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.0, 1.0], "end": "terminated"},
        {"prompt": [3, 6], "actions": [2, 1], "rewards": [0.0, 0.5], "end": "terminated"},
    ]
    rollout = hand_rollout(rows, steps=3, length=6)
    generator = torch.Generator().manual_seed(5)
    if masked:
        allowed = torch.rand((2, 3, 7), generator=generator) < 0.6
        rollout = replace(rollout, allowed=allowed.scatter(2, rollout.actions[..., None], True))
    models = [tiny_model().double() for _ in range(2)]
    stats = policy_stats(models[0], None, rollout, 0.7, num_likely=7)
    assert stats.likely is not None
    everything = live_tokens(stats.likely, rollout.step_mask, 0.0, tail=False)
    likely = likely_tokens(torch.zeros((2, 3, 7)).double().scatter(2, everything.ids, everything.logprobs), 3)
    live = live_tokens(likely, rollout.step_mask, 0.15, tail=True)
    told = torch.randn(live.ids.shape, generator=generator, dtype=torch.float64).masked_fill(~live.mask, 0.0)
    places = torch.stack([live.taken(everything.ids[..., place]) for place in range(7)], dim=2)
    by_token = (places * told[:, :, None, :]).sum(dim=-1)  # every token's advantage: its own, or the tail's
    nothing = torch.zeros((2, 3), dtype=torch.float64)
    plans = [
        AdvantagePlan(nothing, nothing, tokens.ids, tokens.logprobs.masked_fill(~tokens.mask, -torch.inf), advantages)
        for tokens, advantages in ((live, told), (everything, by_token))
    ]
    config = PPOConfig(num_epochs=1, num_minibatches=1, vf_coef=0.0, kl_coef=0.0, max_grad_norm=1e9)
    tail, listed = (
        gradients(PPOAgent(model, config, 0.7), rollout, plan) for model, plan in zip(models, plans, strict=True)
    )
    for one, other in zip(tail, listed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert sum(float(gradient.abs().sum()) for gradient in tail) > 0.01
    assert bool(live.is_tail.any())
