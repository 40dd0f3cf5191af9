"""Values by enumeration: a policy worked by hand, and a model against the mean of its own draws."""

import itertools

import pytest
import torch

from worldmtp.dynamics.exact import TokenMDP
from worldmtp.training.exact_values import values_along

EOS = 2


def coin(prefixes):
    """Token 0 with .5, 1 with .3, the end with .2, whatever was written."""
    return torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).expand(len(prefixes), -1)


def test_values_by_hand():
    """Two tokens at most, 1 for answers that begin with 1: paid at once if it ends there, a token later else."""
    found = values_along(coin, lambda answer: float(answer[0] == 1), (1, 0), EOS, 2, gamma=0.5)
    # Behind the 1 all is won, and paid with the next token. Before it: .3 * gamma * 1, since 1 does not end.
    assert found.values.tolist() == pytest.approx([0.15, 1.0])
    assert found.missing == 0


def test_an_end_is_paid_where_it_stands():
    """1 for the empty answer: .2."""
    found = values_along(coin, lambda answer: float(answer == (EOS,)), (EOS,), EOS, 3, gamma=0.5)
    assert found.values.tolist() == pytest.approx([0.2])


def test_it_is_backward_induction_of_any_policy():
    """Against ``TokenMDP.action_values``: 3 tokens, of which 2 ends, 3 at most, and an own law in each prefix."""
    generator = torch.Generator().manual_seed(0)
    worth = {}
    for length in (1, 2, 3):
        for answer in itertools.product(range(3), repeat=length):
            if EOS not in answer[:-1] and (length == 3 or answer[-1] == EOS):
                worth[answer] = float(torch.rand((), generator=generator))
    number = {(): 0}
    for length in (1, 2):
        for prefix in itertools.product(range(3), repeat=length):
            number[prefix] = number[prefix[:-1]] * 3 + 1 + prefix[-1]
    rewards = torch.zeros(13, 3, dtype=torch.float64)
    for answer, value in worth.items():
        rewards[number[answer[:-1]], answer[-1]] = value
    mdp = TokenMDP(3, 3, rewards, eos=EOS)
    logits = torch.randn(13, 3, generator=generator, dtype=torch.float64)
    q_values, probs = mdp.action_values(logits), logits.softmax(dim=-1)
    found = values_along(
        lambda prefixes: probs[[number[prefix] for prefix in prefixes]], worth.__getitem__, (0, 1, 1), EOS, 3, gamma=1.0
    )
    wanted = [float((probs[number[prefix]] * q_values[number[prefix]]).sum()) for prefix in ((), (0,), (0, 1))]
    assert found.values.tolist() == pytest.approx(wanted)


def test_what_is_left_out_is_bounded_and_what_was_written_is_kept():
    def rarely(prefixes):
        return torch.tensor([[0.899, 0.001, 0.1]], dtype=torch.float64).expand(len(prefixes), -1)

    asked = []

    def score(answer):
        asked.append(answer)
        return 1.0

    found = values_along(rarely, score, (1, 0), EOS, 2, gamma=1.0, least=0.01)
    # Behind 1, which was written, and behind 0: the second token is 1 with .001, left out. The first was kept: .9 of
    # .999, and .1 for the end.
    assert found.values.tolist() == pytest.approx([0.9991, 0.999])
    assert found.missing == pytest.approx(0.001)
    # Over three tokens it adds up: .001 here, and as much behind each 0.
    longer = values_along(rarely, score, (0, 0, 0), EOS, 3, gamma=1.0, least=0.01)
    assert longer.missing == pytest.approx(0.001 * (1 + 0.899 + 0.899**2))
    assert (1, 1) not in asked
    assert (1, 0) in asked
