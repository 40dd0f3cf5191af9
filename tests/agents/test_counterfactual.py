"""Live tokens, centring and the correction, by hand; their unbiasedness is test_exact_gradients.py's."""

import pytest
import torch
from torch import Tensor

from worldmtp.agents.imagination.counterfactual import centred_advantages, episode_correction
from worldmtp.agents.imagination.critic import LiveTokens, live_tokens
from worldmtp.agents.ppo import likely_tokens

# One episode of two steps over four tokens.
PROBS = torch.tensor([[[0.5, 0.1, 0.3, 0.1], [0.05, 0.9, 0.04, 0.01]]], dtype=torch.float64)
STEPS = torch.ones((1, 2), dtype=torch.bool)


def live(max_live: int = 3, min_probability: float = 0.05, step_mask: Tensor = STEPS) -> LiveTokens:
    return live_tokens(likely_tokens(PROBS.log(), max_live), step_mask, min_probability)


def test_the_likeliest_tokens_are_live() -> None:
    tokens = live(max_live=2, min_probability=0.06)
    assert tokens.ids.tolist() == [[[0, 2], [1, 0]]]
    torch.testing.assert_close(tokens.logprobs.exp(), torch.tensor([[[0.5, 0.3], [0.9, 0.05]]], dtype=torch.float64))
    assert tokens.mask.tolist() == [[[True, True], [True, False]]]


def test_the_likeliest_is_live_whatever_the_threshold() -> None:
    assert live(min_probability=0.95).mask.tolist() == [[[True, False, False], [True, False, False]]]


def test_nothing_is_live_where_there_is_no_step() -> None:
    assert not live(step_mask=torch.tensor([[True, False]])).mask[0, 1].any()


def test_more_live_tokens_than_there_are_is_all_of_them() -> None:
    assert live(max_live=9, min_probability=0.0).ids.shape == (1, 2, 4)


def test_advantages_are_centred_under_the_old_policy() -> None:
    # Live at the first step: .5 and .3 of .8; Q = 1, 5: mean (.5 + 1.5) / .8 = 2.5, so -1.5 and 2.5.
    tokens = live(max_live=2, min_probability=0.06)
    q_values = torch.tensor([[[1.0, 5.0], [3.0, float("nan")]]], dtype=torch.float64)
    advantages = centred_advantages(q_values, tokens)
    torch.testing.assert_close(advantages, torch.tensor([[[-1.5, 2.5], [0.0, 0.0]]], dtype=torch.float64))


@pytest.mark.parametrize("max_live", [2, 3, 4])
def test_advantages_have_mean_zero_under_the_whole_policy(max_live: int) -> None:
    """Tokens left out have advantage zero, so the sum over the live ones is the sum over all."""
    generator = torch.Generator().manual_seed(0)
    log_policy = torch.randn((3, 4, 6), generator=generator, dtype=torch.float64).log_softmax(-1)
    tokens = live_tokens(likely_tokens(log_policy, max_live), torch.ones((3, 4), dtype=torch.bool), 0.1)
    q_values = torch.randn(tokens.ids.shape, generator=generator, dtype=torch.float64)
    advantages = centred_advantages(q_values, tokens)
    assert float((tokens.logprobs.exp() * advantages).sum(-1).abs().max()) < 1e-12
    assert float(advantages.abs().max()) > 0.1
    torch.testing.assert_close(centred_advantages(q_values + 7.0, tokens), advantages)


def test_one_live_token_has_nothing_to_be_better_than() -> None:
    tokens = live(min_probability=0.6)
    assert centred_advantages(torch.full((1, 2, 3), 5.0, dtype=torch.float64), tokens)[0, 1].tolist() == [0, 0, 0]


def test_the_correction_adds_up_what_was_taken() -> None:
    # Ids are (0, 2, 1) and (1, 0, 2); the third of each is masked at the second step.
    tokens = live(min_probability=0.045)
    assert tokens.ids.tolist()[0][1][:2] == [1, 0]
    advantages = torch.tensor([[[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]]], dtype=torch.float64)
    assert float(episode_correction(advantages, tokens, torch.tensor([[2, 1]]))) == 2 + 8
    assert float(episode_correction(advantages, tokens, torch.tensor([[0, 0]]))) == 1 + 16
    assert float(episode_correction(advantages, tokens, torch.tensor([[0, 3]]))) == 1  # 3 is not live there


def test_a_masked_token_is_not_taken() -> None:
    tokens = live(max_live=2, min_probability=0.06)
    assert tokens.taken(torch.tensor([[2, 0]])).tolist() == [[[False, True], [False, False]]]
