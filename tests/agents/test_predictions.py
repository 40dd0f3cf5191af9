"""What depths said of realized tokens, and imagined beside realized returns, by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.config import PPOConfig
from worldmtp.agents.evaluation import depth_predictions, root_imaginations
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.rollout import Rollout
from worldmtp.dynamics import MTPWorldModel, acting_policy
from worldmtp.model import MTPModel

MakeRollout = Callable[..., Rollout]

# The acting policy at temperature 1, and returns of any size: TotalWorld's are sums of token ids.
ACTING = Acting(acting_policy(1.0), (-1e3, 1e3))


def two_rows(make: MakeRollout) -> Rollout:
    rows = [
        {"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.25, 1.0], "end": "terminated"},
        {"prompt": [2], "actions": [3, 4], "rewards": [0.5, 0.25], "end": "truncated"},
    ]
    return make(rows, steps=3, length=7)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@torch.no_grad()
def test_of_token_i_depth_k_spoke_at_i_minus_k(
    temperature: float, hand_rollout: MakeRollout, tiny_model: Callable[..., MTPModel]
) -> None:
    model, rollout = tiny_model(depth=3), two_rows(hand_rollout)
    said = depth_predictions(model, rollout, temperature)
    logits = model(rollout.input_ids, rollout.attention_mask.long()).depth_logits
    for b, length in enumerate((6, 3)):
        for i in range(7):
            for k in (1, 2, 3):
                place = (b, i, k - 1)
                if i < k or i >= length:
                    assert torch.isnan(torch.stack([said.logprobs[place], said.entropies[place]])).all()
                    assert torch.isnan(said.top1_probs[place])
                    assert int(said.top1_ids[place]) == 0
                    continue
                log_policy = (logits[k - 1][b, i - k] / temperature).log_softmax(-1)
                token = rollout.input_ids[b, i]
                torch.testing.assert_close(said.logprobs[place], log_policy[token], atol=1e-5, rtol=0)
                entropy = -(log_policy.exp() * log_policy).sum()
                torch.testing.assert_close(said.entropies[place], entropy, atol=1e-5, rtol=0)
                assert int(said.top1_ids[place]) == int(log_policy.argmax())
                torch.testing.assert_close(said.top1_probs[place], log_policy.max().exp(), atol=1e-5, rtol=0)


def test_depth_one_is_the_policy_that_wrote_the_text(
    hand_rollout: MakeRollout, tiny_model: Callable[..., MTPModel]
) -> None:
    """On its own text its log-probabilities do not depend on what follows."""
    model, rollout = tiny_model(depth=2), two_rows(hand_rollout)
    whole = depth_predictions(model, rollout, 1.0).logprobs[0, :5, 0]
    rollout.input_ids[0, 5] = 3
    torch.testing.assert_close(depth_predictions(model, rollout, 1.0).logprobs[0, :5, 0], whole, equal_nan=True)


def test_one_pass_of_the_trunk_serves_both_readings(
    hand_rollout: MakeRollout, tiny_model: Callable[..., MTPModel]
) -> None:
    """What is said and what is imagined of a text, by features at hand and by passes of their own, to the bit."""
    model, rollout = tiny_model(depth=3), two_rows(hand_rollout)
    world, passes = MTPWorldModel(model), []
    with torch.no_grad():
        features = model.trunk_features(rollout.input_ids, rollout.attention_mask)
    model.base_model.register_forward_hook(lambda *args: passes.append(1))

    def read(*at_hand: Any) -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        said = depth_predictions(model, rollout, 1.0, *at_hand)
        roots = root_imaginations(world, ACTING, rollout, 2, 3, PPOConfig(), generator, *at_hand)
        return [*vars(said).values(), *vars(roots).values()]

    shared = read(features)
    assert passes == []
    for one, other in zip(shared, read(), strict=True):
        assert torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))
    assert len(passes) == 2


def test_root_returns_by_hand(hand_rollout: MakeRollout, total_world: Any) -> None:
    """At gamma 0 nothing but the first imagined reward counts, a tenth of a token of 0 .. 6; realized: r_t itself.

    Roots stand at the last token of each prefix: row 0 at 2, 3, 4; row 1 at 0, 1.
    """
    rollout = two_rows(hand_rollout)
    roots = root_imaginations(
        total_world, ACTING, rollout, 1, 400, PPOConfig(gamma=0.0), torch.Generator().manual_seed(0)
    )
    nan = float("nan")
    expected = torch.tensor([[nan, nan, 0.0, 0.25, 1.0, nan, nan], [0.5, 0.25, nan, nan, nan, nan, nan]])
    torch.testing.assert_close(roots.realized, expected, equal_nan=True)
    assert torch.equal(roots.imagined.isnan(), expected.isnan())
    # Totals 11, 15, 20 and 2, 5 make 4, 1, 6 and 2, 5 the mode, of probability e^5 / (e^5 + 6); the mean of the rest.
    p, q = torch.tensor([5.0] + [0.0] * 6).softmax(0)[:2].tolist()
    mean = torch.tensor([p * mode + q * (21 - mode) for mode in (4, 1, 6, 2, 5)]) / 10
    # Standard error below .6 / 20 * sqrt(6 q) = .006; six of them: false alarm below 1e-8, and the seed is fixed.
    torch.testing.assert_close(roots.imagined[~expected.isnan()], mean, atol=0.036, rtol=0)


def test_imagined_returns_weigh_what_follows_by_the_imagined_continuation(
    hand_rollout: MakeRollout, total_world: Any
) -> None:
    """T_2 = r_0 + gamma c_0 r_1 + gamma^2 c_0 c_1 v_2, with gamma = .5 and c = .5: a quarter and a sixteenth.

    A logit of 50 instead of 5 makes every draw the likeliest token, total mod 7; a token is paid a tenth of its id, a
    text is worth its total. Row 0 from total 11 appends 4 and 1; row 1 from total 2 appends 2 and 4.
    """
    world = _without_doubt(total_world)
    rows = [
        {"prompt": [2, 3, 6], "actions": [1], "rewards": [1.0], "end": "terminated"},
        {"prompt": [2], "actions": [1], "rewards": [0.5], "end": "terminated"},
    ]
    rollout = hand_rollout(rows, steps=1, length=5)
    roots = root_imaginations(world, ACTING, rollout, 2, 3, PPOConfig(gamma=0.5), torch.Generator().manual_seed(0))
    nan = float("nan")
    first = 0.4 + 0.25 * 0.1 + 16 / 16
    second = 0.2 + 0.25 * 0.4 + 8 / 16
    expected = torch.tensor([[nan, nan, first, nan, nan], [second, nan, nan, nan, nan]])
    torch.testing.assert_close(roots.imagined, expected, equal_nan=True)


def _without_doubt(world: Any) -> Any:
    class Certain(type(world)):  # type: ignore[misc]  # its class is known to the fixture alone
        def predict(self, state: Any, with_logits: bool = True) -> Any:
            prediction = super().predict(state, with_logits)
            return replace(prediction, logits=10 * prediction.logits if with_logits else None)

    return Certain()


def test_the_likeliest_continuation_by_hand(hand_rollout: MakeRollout, total_world: Any) -> None:
    """From totals 11, 15, 20 and 2, 5: total mod 7 is appended, twice."""
    rollout = two_rows(hand_rollout)
    roots = root_imaginations(
        total_world, ACTING, rollout, 2, 2, PPOConfig(gamma=0.5), torch.Generator().manual_seed(0)
    )
    assert roots.realized[0, 2:5].tolist() == [0.375, 0.75, 1.0]
    assert roots.realized[1, :2].tolist() == [0.625, 0.25]
    assert roots.tokens[0, 2:5].tolist() == [[4, 1], [1, 2], [6, 5]]
    assert roots.tokens[1, :2].tolist() == [[2, 4], [5, 3]]
    known = ~roots.token_probs.isnan().any(dim=-1)
    assert known.tolist() == (~roots.realized.isnan()).tolist()
    p = float(torch.tensor([5.0] + [0.0] * 6).softmax(0)[0])
    torch.testing.assert_close(roots.token_probs[known], torch.full((5, 2), p))
    assert not roots.tokens[~known].any()


def test_without_a_world_model_only_what_was_realized_is_known(hand_rollout: MakeRollout, total_world: Any) -> None:
    rollout = two_rows(hand_rollout)
    known, nothing = (
        root_imaginations(world, ACTING, rollout, 2, 1, PPOConfig(), torch.Generator().manual_seed(0))
        for world in (total_world, None)
    )
    torch.testing.assert_close(nothing.realized, known.realized, equal_nan=True)
    assert nothing.imagined.isnan().all()
    assert nothing.token_probs.isnan().all()
    assert nothing.tokens.shape == known.tokens.shape
    assert not nothing.tokens.any()


@torch.no_grad()
def test_the_likeliest_tokens_of_what_was_said(hand_rollout: MakeRollout, tiny_model: Callable[..., MTPModel]) -> None:
    """Sorted from the logits at hand, temperature included; the first is what the strips show."""
    model, rollout = tiny_model(depth=3), two_rows(hand_rollout)
    said = depth_predictions(model, rollout, 2.0, num_top=3)
    assert said.top_ids.shape == (*rollout.input_ids.shape, 3, 3)
    logits = model(rollout.input_ids, rollout.attention_mask.long()).depth_logits
    for b, i, k in ((0, 4, 2), (0, 5, 3), (1, 2, 1)):
        probabilities = (logits[k - 1][b, i - k] / 2.0).softmax(-1).tolist()
        ordered = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:3]
        assert said.top_ids[b, i, k - 1].tolist() == ordered
        expected = torch.tensor([probabilities[token] for token in ordered])
        torch.testing.assert_close(said.top_probs[b, i, k - 1], expected, atol=1e-5, rtol=0)
    assert torch.isnan(said.top_probs[1, 3:]).all()
    assert not said.top_ids[1, 3:].any()
    assert depth_predictions(model, rollout, 1.0).top_ids.shape[-1] == 0


def test_the_likeliest_tokens_of_what_was_imagined(
    hand_rollout: MakeRollout, tiny_model: Callable[..., MTPModel]
) -> None:
    """At each step of the greedy continuation; the first of them is that continuation."""
    model, rollout = tiny_model(depth=3), two_rows(hand_rollout)
    generator = torch.Generator().manual_seed(0)
    asked = (MTPWorldModel(model), ACTING, rollout, 2, 3, PPOConfig(), generator, None)
    roots = root_imaginations(*asked, 4)
    acted = torch.isfinite(roots.realized)
    assert acted.sum() == 5
    assert roots.top_ids.shape == (*rollout.input_ids.shape, 2, 4)
    assert torch.equal(roots.top_ids[..., 0][acted], roots.tokens[acted])
    torch.testing.assert_close(roots.top_probs[..., 0][acted], roots.token_probs[acted])
    assert (roots.top_probs[acted].diff(dim=-1) <= 0).all()
    assert torch.isnan(roots.top_probs[~acted]).all()
    # The first step is the trunk's own next token, which depth 1 says of the place after the root.
    said = depth_predictions(model, rollout, 1.0, num_top=4)
    assert torch.equal(roots.top_ids[0, 2, 0], said.top_ids[0, 3, 0])
    nothing = root_imaginations(None, *asked[1:], 4)
    assert nothing.top_ids.shape == roots.top_ids.shape
    assert torch.isnan(nothing.top_probs).all()
