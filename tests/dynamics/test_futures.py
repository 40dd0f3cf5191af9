"""Drawn futures: each says what the model says there, and their mean is the law k tokens ahead."""

import pytest
import torch

from worldmtp.dynamics import ExactWorldModel, TokenMDP, acting_policy
from worldmtp.dynamics.futures import draw_futures
from worldmtp.exact import token_mdp

MDP = TokenMDP(2, 4, torch.zeros(15, 2, dtype=torch.float64))
LOGITS = torch.randn(15, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def drawn(num_futures, depth=3, logits=LOGITS):
    """Roots: the empty prefix, and 1."""
    world_model = ExactWorldModel(MDP, logits)
    texts = torch.ones(2, 1, dtype=torch.long)
    state = world_model.encode(texts, texts.bool(), torch.tensor([0, 1]), torch.tensor([-1, 0]))
    return draw_futures(world_model, state, depth, num_futures, acting_policy(1.0), torch.Generator())


def test_the_mean_of_futures_is_the_marginal(global_rng_untouched):
    """4000 futures of numbers in [0, 1] know a mean to .008 (one deviation); 4 of them are allowed, on a fixed seed."""
    with global_rng_untouched():
        found = drawn(4000).conditionals
    source = token_mdp(MDP, LOGITS)
    beliefs = torch.stack([source.start, source.update(source.start[None], torch.tensor([1]))[0]])
    assert found.shape == (2, 3, 4000, 2)
    assert torch.allclose(found.mean(dim=2), source.marginals(beliefs, 3)[..., :2], atol=0.032)
    # The next token is the same in all of them.
    assert torch.allclose(found[:, 0], LOGITS.softmax(dim=-1)[[0, 2]][:, None].expand(-1, 4000, -1))


def test_each_future_is_one_path():
    """A policy that all but chooses its token goes one way: from the root 1 to 10, then 100."""
    sure = torch.tensor([[0.0, 50.0]] + [[50.0, 0.0]] * 14, dtype=torch.float64)
    futures = drawn(3, logits=sure)
    found = futures.conditionals.round()
    assert futures.tokens.tolist() == [[[1, 0]] * 3, [[0, 0]] * 3]
    assert found[0, :, 0].tolist() == [[0, 1], [1, 0], [1, 0]]
    assert found[1, :, 2].tolist() == [[1, 0], [1, 0], [1, 0]]


def test_a_model_that_is_blind_to_tokens_is_refused():
    world_model = ExactWorldModel(MDP, LOGITS)
    world_model.action_conditional = False
    state = world_model.encode(torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match="predicts the policy's average future"):
        draw_futures(world_model, state, 2, 2, acting_policy(1.0), torch.Generator())
