"""The distribution that acts after a search: by hand, over all tokens, never worse than the policy where Q is exact."""

import math
from dataclasses import replace

import pytest
import torch

from worldmtp.dynamics import acting_policy
from worldmtp.dynamics.exact import ExactWorldModel, TokenMDP
from worldmtp.search import SearchConfig, SearchedPolicy, plan
from worldmtp.search.acting import acting_logprobs

POLICY = acting_policy(1.0)


def searched(
    mdp: TokenMDP, logits: torch.Tensor, rule: str, config: SearchConfig, invalid: torch.Tensor | None = None
) -> tuple[SearchedPolicy, torch.Tensor]:
    """A search in every state of a token MDP at once, and the distribution that acts there."""
    model, prefixes = ExactWorldModel(mdp, logits), torch.arange(mdp.num_prefixes)
    root = model.encode(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    state = replace(
        root.select(torch.zeros_like(prefixes)), prefixes=prefixes, arriving_reward=torch.zeros(len(prefixes)).double()
    )
    found = plan(rule, model, state, POLICY, config, invalid)
    log_policy = logits.log_softmax(dim=-1)
    if invalid is not None:
        log_policy = log_policy.masked_fill(invalid, -torch.inf).log_softmax(dim=-1)
    return found, acting_logprobs(rule, found, log_policy)


def bandit(*rewards: float) -> tuple[TokenMDP, torch.Tensor]:
    """One token of three, and a policy of .5, .3, .2."""
    return TokenMDP(3, 1, torch.tensor([rewards]).double()), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()


def test_gumbel_by_hand_with_a_token_that_was_not_kept() -> None:
    """Tokens 0 and 1 are kept and visited once each, with Q of 0 and 1; the third has the mixed value.

    The policy is worth .3 * 1 + .2 * 5 = 1.3, and the visited tokens .3 / .8 = .375 under it, so that the mixed value
    is (1.3 + 2 * .375) / 3 = .6833. With one visit at most a child, sigma is 5.1 times a Q that lies in [0, 1].
    """
    _, log_acting = searched(*bandit(0.0, 1.0, 5.0), "gumbel", SearchConfig(num_simulations=2, width=2))
    weights = torch.tensor([0.5, 0.3 * math.exp(5.1), 0.2 * math.exp(5.1 * 2.05 / 3)])
    torch.testing.assert_close(log_acting[0].exp().float(), weights / weights.sum(), atol=1e-6, rtol=0)


def test_puct_by_hand_with_a_token_that_was_not_kept() -> None:
    found, log_acting = searched(*bandit(0.0, 1.0, 0.0), "puct", SearchConfig(num_simulations=4, width=2))
    visits = dict(zip(found.tokens[0].tolist(), found.tree.root.child_visits[0].tolist(), strict=True))
    assert set(visits) == {0, 1}
    assert sum(visits.values()) == 4
    expected = torch.tensor([(visits[0] + 0.5) / 5, (visits[1] + 0.3) / 5, 0.2 / 5])
    torch.testing.assert_close(log_acting[0].exp().float(), expected)


@pytest.mark.parametrize("width", [2, 3])
def test_where_all_q_values_are_equal_it_is_the_policy(width: int) -> None:
    mdp, logits = bandit(0.0, 0.0, 0.0)
    _, log_acting = searched(mdp, logits, "gumbel", SearchConfig(num_simulations=4, width=width))
    torch.testing.assert_close(log_acting, logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_it_is_a_distribution_over_what_is_allowed(rule: str, width: int) -> None:
    invalid = torch.tensor([[False, True, False]])
    _, log_acting = searched(*bandit(0.0, 1.0, 2.0), rule, SearchConfig(num_simulations=4, width=width), invalid)
    probs = log_acting[0].exp()
    assert float(probs.sum()) == pytest.approx(1.0, abs=1e-12)
    assert probs[1] == 0
    assert (probs[[0, 2]] > 0).all()


@pytest.mark.parametrize("width", [2, 3])
def test_acting_so_with_exact_dynamics_earns_more_than_the_policy(width: int) -> None:
    """Three tokens of three, every one paid, in six random worlds; the return of what acts is exact."""
    gains = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        mdp = TokenMDP(3, 3, torch.randn(13, 3, generator=generator).double())
        logits = torch.randn(13, 3, generator=generator).double()
        _, log_acting = searched(mdp, logits, "gumbel", SearchConfig(num_simulations=16, max_depth=3, width=width))
        returns = [float((one[0].softmax(dim=-1) * mdp.action_values(one)[0]).sum()) for one in (logits, log_acting)]
        assert returns[1] > returns[0], seed
        gains.append(returns[1] - returns[0])
    assert sum(gains) / 6 > 0.5
