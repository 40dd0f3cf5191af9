"""A step that strays is taken back to where the limit is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from worldmtp.agents.advantages import plain_plan
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.ppo import PPOAgent, policy_stats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.trust_region import TrustRegion
from worldmtp.model import MTPModel

LOGITS = st.lists(st.floats(-5, 5), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float64))


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [
        (0.0, 0.25, [1.4, -1.6]),  # a fifth of the step is allowed: from 1 to 3, and from -2 to 0
        (0.03, 0.11, [1.5, -1.5]),  # .02 of the .08 that this step went
        (0.0, 0.05, [3.0, 0.0]),  # not beyond
    ],
)
def test_by_hand(first: float, second: float, left: list[float]) -> None:
    weights = [torch.tensor([1.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)]
    region = TrustRegion(weights, 0.05)
    assert not region.is_left(first)
    region.keep()
    for weight in weights:
        weight += 2.0
    assert region.is_left(second) == (second > 0.05)
    assert torch.cat(weights).tolist() == pytest.approx(left, abs=1e-12)


def test_the_step_taken_back_is_the_last_one() -> None:
    weight = torch.zeros(1, dtype=torch.float64)
    region = TrustRegion([weight], 1.0)
    for kl in (0.0, 0.5):
        assert not region.is_left(kl)
        region.keep()
        weight += 1.0
    assert region.is_left(1.5)
    assert weight.tolist() == pytest.approx([1.5], abs=1e-12)


def test_where_the_first_minibatch_has_strayed_there_is_no_step_to_take_back() -> None:
    weight = torch.ones(2)
    assert TrustRegion([weight], 0.05).is_left(0.1)
    assert weight.tolist() == [1.0, 1.0]


@given(acted=LOGITS, step=LOGITS, limit=st.floats(1e-3, 0.2))
def test_a_categorical_policy_is_never_left_beyond_the_limit(acted: Tensor, step: Tensor, limit: float) -> None:
    """KL(acted || now) is convex in the logits of now, so that the line between the two ends lies above it."""

    def kl(logits: Tensor) -> float:
        log_p, log_q = acted.log_softmax(0), logits.log_softmax(0)
        return float((log_p.exp() * (log_p - log_q)).sum())

    logits = acted.clone()
    region = TrustRegion([logits], limit)
    region.is_left(kl(logits))
    region.keep()
    logits += step
    assume(kl(logits) > limit)
    assert region.is_left(kl(logits))
    assert kl(logits) <= limit * (1 + 1e-9) + 1e-12
    assert kl(logits) > 0


def test_an_update_whose_one_step_goes_too_far_ends_about_at_the_limit(
    tiny_model: Callable[..., MTPModel], hand_rollout: Callable[..., Rollout]
) -> None:
    """Without a limit the same step goes more than five times as far."""
    found = []
    for target in (None, 0.02):
        model = tiny_model()
        rows: list[dict[str, Any]] = [{"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.0, 1.0]}]
        rollout = hand_rollout([rows[0] | {"end": "terminated"}], steps=3, length=6)

        def logprobs(model: MTPModel = model, rollout: Rollout = rollout) -> Tensor:
            with torch.no_grad():
                logits = model.trunk(rollout.input_ids, attention_mask=rollout.attention_mask.long()).logits
            at = rollout.action_index[..., None].expand(-1, -1, logits.shape[-1]) - 1
            return logits.log_softmax(-1).gather(1, at).gather(2, rollout.actions[..., None])[..., 0]

        rollout.logprobs[:] = logprobs()
        config = PPOConfig(
            target_kl=target, learning_rate=0.02, num_epochs=2, num_minibatches=1, vf_coef=0.0, kl_coef=0.0
        )
        agent = PPOAgent(model, config if target else PPOConfig(**(vars(config) | {"num_epochs": 1})), 1.0)
        stats = policy_stats(model, None, rollout, 1.0)
        plan = plain_plan(torch.ones_like(rollout.rewards), torch.zeros_like(rollout.rewards))
        agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
        log_ratio = logprobs() - rollout.logprobs
        found.append(float((log_ratio.exp() - 1 - log_ratio).mean()))
    assert found[0] > 0.1
    assert 0.005 < found[1] <= 0.022
