"""Where the policy's states stand, what it says there, and how episodes end."""

import copy
from collections.abc import Callable

import pytest
import torch

from worldmtp.agents.advantages import discounts_of, lambdas_of
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.ppo import gather_states, policy_stats
from worldmtp.agents.rollout import Rollout, action_mask, episode_returns, state_index
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]
MakeModel = Callable[..., MTPModel]


def three_rows(make: MakeRollout) -> Rollout:
    """Terminated, truncated, and one where the environment writes 5 5 after the first action."""
    rows = [
        {"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.25, 1.0], "end": "terminated"},
        {"prompt": [2], "actions": [3, 4], "rewards": [0.5, 0.25], "end": "truncated"},
        {"prompt": [2], "actions": [4, 1], "rewards": [0.5, 1.0], "end": "terminated", "wrote": [[5, 5], []]},
    ]
    return make(rows, steps=3, length=7)


def test_states_stand_at_the_last_token_of_their_prefix(hand_rollout: MakeRollout) -> None:
    """The state after the last step, and all that are not there, stand at the end of the text."""
    assert state_index(three_rows(hand_rollout)).tolist() == [[2, 3, 4, 5], [0, 1, 2, 2], [0, 3, 4, 4]]


def test_the_tokens_that_were_chosen(hand_rollout: MakeRollout) -> None:
    rollout = three_rows(hand_rollout)
    assert action_mask(rollout).int().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0]]
    assert rollout.input_ids[action_mask(rollout)].tolist() == [4, 5, 1, 3, 4, 4, 1]


@pytest.mark.parametrize(("bootstraps", "last_of_truncated"), [(False, 0.0), (True, 0.9)])
def test_ends(bootstraps: bool, last_of_truncated: float, hand_rollout: MakeRollout) -> None:
    rollout = three_rows(hand_rollout)
    discounts = discounts_of(rollout, PPOConfig(gamma=0.9, bootstrap_truncated=bootstraps))
    expected = torch.tensor([[0.9, 0.9, 0.0], [0.9, last_of_truncated, 0.0], [0.9, 0.0, 0.0]])
    torch.testing.assert_close(discounts, expected)
    expected = torch.tensor([[0.7, 0.7, 0.0], [0.7, 0.0, 0.0], [0.7, 0.0, 0.0]])
    torch.testing.assert_close(lambdas_of(rollout, 0.7), expected)


def test_returns_are_undiscounted_sums(hand_rollout: MakeRollout) -> None:
    assert episode_returns(three_rows(hand_rollout)).tolist() == [1.25, 0.75, 1.5]


def test_gathering() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    assert gather_states(hidden, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@torch.no_grad()
def test_stats_are_those_of_each_unpadded_prefix(
    temperature: float, hand_rollout: MakeRollout, tiny_model: MakeModel
) -> None:
    """Prefix by prefix, without padding or batch; the value after the last step is that of the whole text."""
    model, rollout = tiny_model(), three_rows(hand_rollout)
    torch.nn.init.normal_(model.world_heads.value[-1].weight, generator=torch.Generator().manual_seed(0))
    reference = copy.deepcopy(model.trunk)
    for parameter in reference.parameters():
        parameter.mul_(1.2)
    stats = policy_stats(model, reference, rollout, temperature, num_likely=3)
    assert stats.likely is not None
    ends = [[3, 4, 5, 6], [1, 2, 3], [1, 4, 5]]
    for row, prefixes in enumerate(ends):
        for t, end in enumerate(prefixes):
            text = rollout.input_ids[row : row + 1, :end]
            hidden = model.trunk.base_model(input_ids=text).last_hidden_state[0, -1]
            weights = model.world_heads.value(hidden).softmax(-1)
            value = (weights * torch.linspace(-1, 1, 21)).sum()
            torch.testing.assert_close(stats.values[row, t], value, atol=1e-5, rtol=0)
            if end == prefixes[-1]:
                continue
            logits = model.trunk(input_ids=text).logits[0, -1]
            log_policy = (logits / temperature).log_softmax(-1)
            best, ids = log_policy.sort(descending=True)
            assert stats.likely.ids[row, t].tolist() == ids[:3].tolist()
            torch.testing.assert_close(stats.likely.logprobs[row, t], best[:3], atol=1e-5, rtol=0)
            entropy = -(log_policy.exp() * log_policy).sum()
            torch.testing.assert_close(stats.likely.entropy[row, t], entropy, atol=1e-5, rtol=0)
            said = (reference(input_ids=text).logits[0, -1] / temperature).log_softmax(-1)
            torch.testing.assert_close(stats.ref_logprobs[row, t], said[rollout.actions[row, t]], atol=1e-5, rtol=0)


def test_without_a_reference_the_policy_is_its_own(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    rollout = three_rows(hand_rollout)
    stats = policy_stats(tiny_model(), None, rollout, 1.0)
    assert torch.equal(stats.ref_logprobs, rollout.logprobs)
    assert stats.likely is None
    assert not stats.values.requires_grad


def test_a_reading_in_micro_batches_is_the_same(hand_rollout: MakeRollout, tiny_model: MakeModel) -> None:
    """Logits of two rows, then of the third."""
    model, rollout, seen = tiny_model().double(), three_rows(hand_rollout), list[int]()
    reference = copy.deepcopy(model.trunk)
    with torch.no_grad():
        reference.base_model.norm.weight.mul_(1.2)
    whole = policy_stats(model, reference, rollout, 0.7, num_likely=3)
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(len(output)))
    parts = policy_stats(model, reference, rollout, 0.7, num_likely=3, micro_batch_size=2)
    assert seen == [2, 1]
    assert whole.likely is not None
    assert parts.likely is not None
    assert torch.equal(parts.likely.ids, whole.likely.ids)
    for name in ("logprobs", "entropy"):
        torch.testing.assert_close(getattr(parts.likely, name), getattr(whole.likely, name), atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.ref_logprobs, whole.ref_logprobs, atol=1e-12, rtol=0)
    assert torch.equal(parts.values, whole.values)
