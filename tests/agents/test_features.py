"""The critic's features: by hand, and blind to the action taken and all that follows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.imagination.critic import (
    NUM_SURPRISALS,
    LiveTokens,
    imagined_features,
    live_tokens,
    num_readings,
    surprisal_features,
)
from worldmtp.agents.imagination.imagined_returns import Acting, acted_states
from worldmtp.agents.ppo import likely_tokens
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import MTPWorldModel, OracleWorldModel, acting_policy
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]

# The acting policy at temperature 1, and returns of any size: TotalWorld's are sums of token ids.
ACTING = Acting(acting_policy(1.0), (-1e3, 1e3))


def two_rows(make: MakeRollout) -> Rollout:
    return make(
        [
            {
                "prompt": [2, 3, 6],
                "actions": [4, 5, 1],
                "rewards": [0, 0, 1],
                "end": "terminated",
                "logprobs": [-1, -3, -2],
            },
            {"prompt": [2], "actions": [3, 4], "rewards": [0, 0], "end": "truncated", "logprobs": [-0.5, -0.25]},
        ],
        steps=3,
        length=7,
    )


def policy_of(rollout: Rollout, seed: int = 0) -> torch.Tensor:
    logits = torch.randn((*rollout.actions.shape, 7), generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1)


def test_surprisals_by_hand(hand_rollout: MakeRollout) -> None:
    rollout = two_rows(hand_rollout)
    probs = torch.tensor([0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0])
    log_policy = probs.log().expand(2, 3, 7)
    likely = likely_tokens(log_policy, 2)
    live = live_tokens(likely, rollout.step_mask, 0.1)
    features = surprisal_features(likely.entropy, live, rollout)
    assert features.shape == (2, 3, 2, NUM_SURPRISALS)
    ln2 = torch.tensor(2.0).log().item()
    # Row 0, third step, second candidate: -1 - 3 so far and the least -3; entropy 1/2 ln 2 + 2 (1/4 ln 4) = 1.5 ln 2.
    torch.testing.assert_close(features[0, 2, 1], torch.tensor([-2 * ln2, -4 - 2 * ln2, -3, 1.5 * ln2, 2 / 3, 0.0]))
    # First step: nothing so far; the likeliest candidate.
    torch.testing.assert_close(features[1, 0, 0], torch.tensor([-ln2, -ln2, -ln2, 1.5 * ln2, 0.0, 1.0]))


@pytest.mark.parametrize("t", [0, 1, 2])
def test_a_feature_never_looks_at_its_action_or_later(t: int, hand_rollout: MakeRollout) -> None:
    """To the bit: a running sum less its last term would betray a_t in its rounding."""
    rollout = two_rows(hand_rollout)
    generator = torch.Generator().manual_seed(t)
    rollout = replace(rollout, logprobs=-9 * torch.rand((2, 3), generator=generator))
    likely = likely_tokens(policy_of(rollout), 3)
    live = live_tokens(likely, torch.ones((2, 3), dtype=torch.bool), 0.0)
    features = surprisal_features(likely.entropy, live, rollout)
    for _ in range(50):
        logprobs = rollout.logprobs.clone()
        logprobs[:, t:] = -9 * torch.rand((2, 3 - t), generator=generator)
        other = replace(rollout, logprobs=logprobs, actions=(rollout.actions + 1) % 7)
        assert torch.equal(surprisal_features(likely.entropy, live, other)[:, : t + 1], features[:, : t + 1])
    if t < 2:
        assert not torch.equal(surprisal_features(likely.entropy, live, other), features)


@pytest.mark.parametrize("world", [MTPWorldModel, OracleWorldModel])
def test_imagined_features_never_look_at_the_action_or_later(
    world: type[Any], hand_rollout: MakeRollout, tiny_model: Callable[..., MTPModel]
) -> None:
    """The text from a_1 on is exchanged; what is imagined in s_0 and s_1 stays."""
    rollout, model = two_rows(hand_rollout), tiny_model()
    live = live_tokens(likely_tokens(policy_of(rollout), 3), rollout.step_mask, 0.0)
    before = imagined_features(world(model), ACTING, rollout, acted_states(world(model), rollout), live, 2, 100)
    input_ids = rollout.input_ids.clone()
    input_ids[0, 4:6], input_ids[1, 2:3] = torch.tensor([2, 6]), torch.tensor([5])
    other = replace(rollout, input_ids=input_ids)
    after = imagined_features(world(model), ACTING, other, acted_states(world(model), other), live, 2, 100)
    early = (torch.arange(3) < 2)[None, :, None].expand(live.mask.shape)[live.mask]
    torch.testing.assert_close(after.latents[early], before.latents[early], atol=1e-6, rtol=0)
    torch.testing.assert_close(after.readings[early], before.readings[early], atol=1e-6, rtol=0)
    assert float((after.latents[~early] - before.latents[~early]).abs().max()) > 1e-3


def test_readings_by_hand(hand_rollout: MakeRollout, total_world: Any) -> None:
    """A world that pays a tenth of each token, ends every other time, and is worth the total of the text."""
    rollout = hand_rollout([{"prompt": [2, 3], "actions": [4], "rewards": [0], "end": "terminated"}], steps=2, length=4)
    ids = torch.tensor([[[4, 1], [0, 0]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    live = LiveTokens(ids=ids, logprobs=torch.zeros((1, 2, 2)), mask=mask)
    states = acted_states(total_world, rollout)
    imagined = imagined_features(total_world, ACTING, rollout, states, live, 2, 100)
    # Candidate 4: total 9, paid .4, next 9 mod 7 = 2 -> total 11, paid .2. Candidate 1: total 6, .1, next 6 -> 12, .6.
    # Logit 5 beside six of 0: log p = 5 - ln(e^5 + 6); entropy = -p ln p - 6 q ln q with q = 1 / (e^5 + 6).
    log_p, log_q = (torch.tensor([5.0] + [0.0] * 6).log_softmax(0)[[0, 1]]).tolist()
    entropy = -(torch.tensor(log_p).exp().item() * log_p + 6 * torch.tensor(log_q).exp().item() * log_q)
    expected = [
        [0.4, 0.5, 9.0, 0.5 * log_p, 0.5 * entropy, 0.5 * 11, 0.4 + 0.5 * 0.2],
        [0.1, 0.5, 6.0, 0.5 * log_p, 0.5 * entropy, 0.5 * 12, 0.1 + 0.5 * 0.6],
    ]
    torch.testing.assert_close(imagined.readings, torch.tensor(expected))
    assert imagined.latents.tolist() == [[9.0, 4.0], [6.0, 1.0]]
    assert imagined.num_steps == 4
    short = imagined_features(total_world, ACTING, rollout, states, live, 1, 100)
    torch.testing.assert_close(short.readings, torch.tensor(expected)[:, :3])


def test_every_candidate_is_asked_about_in_its_own_state(hand_rollout: MakeRollout, total_world: Any) -> None:
    """A state is worth its total. Row 0: 2 + 3 + 6 = 11, then 15 and 20 after actions 4 and 5; row 1: 2, then 5."""
    rollout = two_rows(hand_rollout)
    ids = torch.tensor([[[1, 2], [3, 4], [5, 6]], [[6, 5], [4, 3], [0, 0]]])
    mask = torch.tensor([[[True, True], [False, True], [True, False]], [[True, False], [True, True], [False, False]]])
    live = LiveTokens(ids=ids, logprobs=torch.zeros((2, 3, 2)), mask=mask)
    imagined = imagined_features(total_world, ACTING, rollout, acted_states(total_world, rollout), live, 1, 100)
    assert imagined.readings[:, 2].tolist() == [11 + 1, 11 + 2, 15 + 4, 20 + 5, 2 + 6, 5 + 4, 5 + 3]


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_chunks_change_nothing(horizon: int, hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = two_rows(hand_rollout)
    live = live_tokens(likely_tokens(policy_of(rollout), 3), rollout.step_mask, 0.05)
    states = acted_states(total_world, rollout)
    whole = imagined_features(total_world, ACTING, rollout, states, live, horizon, 1000)
    chunked = imagined_features(total_world, ACTING, rollout, states, live, horizon, 2)
    torch.testing.assert_close(chunked.readings, whole.readings)
    assert torch.equal(chunked.latents, whole.latents)
    assert whole.readings.shape == (int(live.mask.sum()), num_readings(horizon))
