"""One PPO update by itself: what the entropy bonus, the temperature of acting and the warm-up do to it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.advantages import plain_plan
from worldmtp.agents.config import PPOConfig
from worldmtp.agents.ppo import AdvantagePlan, PPOAgent, policy_stats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.tail import TAIL
from worldmtp.model import MTPModel

MakeModel = Callable[..., MTPModel]
MakeRollout = Callable[..., Rollout]
ONE_STEP = {"num_epochs": 1, "num_minibatches": 1, "vf_coef": 0.0, "kl_coef": 0.0}


def acted_at(model: MTPModel, make: MakeRollout, temperature: float) -> Rollout:
    """Two answers with the log-probabilities that the model gives them at a temperature, from its plain logits."""
    rows: list[dict[str, Any]] = [
        {"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.0, 1.0], "end": "terminated"},
        {"prompt": [3, 6], "actions": [2, 1], "rewards": [0.0, 0.5], "end": "terminated"},
    ]
    rollout = make(rows, steps=3, length=6)
    with torch.no_grad():
        logits = model.trunk(rollout.input_ids, attention_mask=rollout.attention_mask.long()).logits
    log_policy = (logits / temperature).log_softmax(dim=-1)
    for row in range(2):
        for step in range(len(rows[row]["actions"])):
            at, action = rollout.action_index[row, step], rollout.actions[row, step]
            rollout.logprobs[row, step] = log_policy[row, at - 1, action]
    return rollout


def update(agent: PPOAgent, rollout: Rollout, advantage: float, temperature: float = 1.0) -> dict[str, float]:
    stats = policy_stats(agent.model, None, rollout, temperature)
    advantages = torch.where(rollout.step_mask, advantage, 0.0)
    plan = plain_plan(advantages, torch.zeros_like(advantages))
    return agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))


def test_the_entropy_bonus_makes_the_policy_less_certain(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    """Where nothing is worth anything, the bonus is all there is to climb."""
    model = tiny_model()
    agent = PPOAgent(model, PPOConfig(ent_coef=1.0, learning_rate=1e-3, **ONE_STEP), 1.0)
    rollout = acted_at(model, hand_rollout, 1.0)
    entropies = [update(agent, rollout, advantage=0.0)["losses/entropy"] for _ in range(3)]
    assert entropies[0] < entropies[1] < entropies[2]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_at_the_temperature_of_acting_the_first_update_is_on_policy(
    temperature: float, tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    """So its ratio is one at every step: no divergence, nothing clipped, and the loss is minus the advantage."""
    model = tiny_model()
    agent = PPOAgent(model, PPOConfig(**ONE_STEP), temperature)
    metrics = update(agent, acted_at(model, hand_rollout, temperature), 0.75, temperature)
    assert metrics["losses/approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["losses/clip_fraction"] == 0.0
    assert metrics["losses/policy"] == pytest.approx(-0.75, abs=1e-5)


def test_the_learning_rate_rises_over_the_warm_up_and_falls_with_the_run(
    tiny_model: MakeModel, hand_rollout: MakeRollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps of warm-up: a quarter at the first, all at the fourth; an annealed rate is the share that is left."""
    model = tiny_model()
    config = PPOConfig(
        learning_rate=0.08, warmup_updates=4, anneals_learning_rate=True, **(ONE_STEP | {"num_epochs": 3})
    )
    agent, rates = PPOAgent(model, config, 1.0), list[float]()
    monkeypatch.setattr(agent.optimizer, "step", lambda: rates.append(agent.optimizer.param_groups[0]["lr"]))
    rollout = acted_at(model, hand_rollout, 1.0)
    stats = policy_stats(model, None, rollout, 1.0)
    plan = plain_plan(torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards))
    for remaining in (1.0, 0.5):
        agent.update(rollout, stats, plan, torch.Generator().manual_seed(0), remaining)
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.04, 0.04, 0.04])


@pytest.mark.parametrize(
    ("divergences", "num_read", "num_steps"), [([0.0, 0.01, 0.06, 0.0], 3, 2), ([0.0, 0.05, 0.0, 0.0], 4, 4)]
)
def test_epochs_end_with_the_minibatch_that_strayed_too_far(
    divergences: list[float],
    num_read: int,
    num_steps: int,
    tiny_model: MakeModel,
    hand_rollout: MakeRollout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of four epochs of one minibatch: .06 is more than the .05 that was allowed, .05 is not; the one is no step."""
    agent = PPOAgent(tiny_model(), PPOConfig(target_kl=0.05, **(ONE_STEP | {"num_epochs": 4})), 1.0)
    numbers = ({"losses/approx_kl": torch.tensor(kl, dtype=torch.float64)} for kl in divergences)
    monkeypatch.setattr(agent, "_accumulate", lambda *given: given[4].add(next(numbers)))
    metrics = update(agent, acted_at(agent.model, hand_rollout, 1.0), 0.75, 1.0)
    assert metrics["losses/num_updates"] == agent.num_updates == num_steps
    assert metrics["losses/approx_kl"] == pytest.approx(sum(divergences[:num_read]) / num_read)
    assert metrics["losses/learning_rate"] == pytest.approx(agent.config.learning_rate)


def sharpened(model: MTPModel, scale: float) -> MTPModel:
    """A model that is sure: most of its tokens have a probability that float32 rounds to zero."""
    with torch.no_grad():
        model.trunk.base_model.norm.weight *= scale
    return model


@pytest.mark.parametrize("coefs", [{"ent_coef": 0.01}, {"kl_coef": 0.02}, {"ent_coef": 0.01, "kl_coef": 0.02}])
def test_probabilities_that_round_to_zero_leave_the_update_finite(
    coefs: dict[str, float], tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    """The second answer is shorter: where it has no step, padding is what stands for an action.

    The KL to the reference is 0 there whatever the model says of padding, and an entropy has no slope at a probability
    of 0: the gradient is that of the same update in float64, where nothing rounds to zero.
    """
    found = []
    for dtype in (torch.float32, torch.float64):
        model = sharpened(tiny_model(), 500.0).to(dtype)
        agent = PPOAgent(model, PPOConfig(**(ONE_STEP | {"max_grad_norm": 1e9} | coefs)), 1.0)
        rollout = acted_at(model, hand_rollout, 1.0)
        with torch.no_grad():
            logits = model.trunk(rollout.input_ids, attention_mask=rollout.attention_mask.long()).logits
        probs = logits.float().log_softmax(dim=-1).exp()
        assert bool((probs[1, 3] == 0).any())
        assert float(probs[1, 3, 0]) == 0.0
        metrics = update(agent, rollout, advantage=0.75)
        assert metrics["losses/kl_reference"] == pytest.approx(0.0, abs=1e-6)
        found.append(metrics["losses/grad_norm"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_ratio_that_rounds_to_zero_has_a_finite_divergence(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    """The first action's probability fell by exp(-200): r - 1 - log r is 0 - 1 + 200, of one step in two."""
    model = tiny_model()
    agent = PPOAgent(model, PPOConfig(**ONE_STEP), 1.0)
    rows = [{"prompt": [2, 3, 6], "actions": [4, 1], "rewards": [0.0, 1.0], "end": "terminated"}]
    rollout = hand_rollout(rows, steps=2, length=5)
    with torch.no_grad():
        logits = model.trunk(rollout.input_ids, attention_mask=rollout.attention_mask.long()).logits
    now = logits.log_softmax(dim=-1)[0, [2, 3], [4, 1]]
    rollout.logprobs[0] = now + torch.tensor([200.0, 0.0])
    stats = replace(policy_stats(model, None, rollout, 1.0), ref_logprobs=now[None])
    plan = plain_plan(torch.full((1, 2), 0.75), torch.zeros(1, 2))
    metrics = agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
    assert metrics["losses/approx_kl"] == pytest.approx(199 / 2, rel=1e-5)


def updated(
    micro_batch_size: int | None, make_model: MakeModel, make: MakeRollout, tail: bool = False
) -> tuple[Any, dict[str, float]]:
    """The gradient of one minibatch of four unequal rows, all terms of the loss in it, in float64; and the metrics."""
    rows = [
        {"prompt": [2, 3, 6], "actions": [4, 5, 1], "rewards": [0.0, 0.25, 1.0], "end": "terminated"},
        {"prompt": [2], "actions": [3], "rewards": [0.5], "end": "truncated"},
        {"prompt": [2], "actions": [4, 1], "rewards": [0.5, 1.0], "end": "terminated", "wrote": [[5, 5], []]},
        {"prompt": [5, 4], "actions": [2, 3, 4, 1], "rewards": [0.0, 0.0, 0.0, 0.5], "end": "terminated"},
    ]
    rollout, generator = make(rows, steps=4, length=7), torch.Generator().manual_seed(3)
    allowed = torch.rand((4, 4, 7), generator=generator) < 0.7
    allowed = allowed.scatter(2, rollout.actions[..., None], True)
    allowed[2:] = True

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rollout = replace(rollout, allowed=allowed, logprobs=-1.5 + 0.3 * randn(4, 4))
    model = make_model().double()
    torch.nn.init.normal_(model.world_heads.value[-1].weight, generator=torch.Generator().manual_seed(0))
    stats = replace(policy_stats(model, None, rollout, 0.7), ref_logprobs=-1.4 + 0.3 * randn(4, 4))
    live_ids = rollout.actions[..., None].expand(4, 4, 2).clone()
    live_ids[2:, :, 1] = 6
    plan = AdvantagePlan(randn(4, 4), rollout.rewards.double(), live_ids, -1 - randn(4, 4, 2).abs(), randn(4, 4, 2))
    if tail:
        plan = replace(
            plan,
            live_ids=torch.cat([live_ids, torch.full((4, 4, 1), TAIL)], dim=-1),
            live_logprobs=torch.cat([plan.live_logprobs, -0.5 - randn(4, 4, 1).abs()], dim=-1),
            live_advantages=torch.cat([plan.live_advantages, 3 * randn(4, 4, 1)], dim=-1),
        )
    config = PPOConfig(
        num_epochs=1, num_minibatches=1, ent_coef=0.3, kl_coef=0.2, max_grad_norm=1e9, detach_value=False,
        micro_batch_size=micro_batch_size,
    )  # fmt: skip
    agent = PPOAgent(model, config, 0.7)
    metrics = agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
    return [parameter.grad for parameter in agent._parameters], metrics


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_add_up_to_the_gradient_of_their_minibatch(
    size: int, tail: bool, tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    """Rows of 1 to 4 actions: each counts by its actions, not by the micro-batch it is in."""
    whole, expected = updated(None, tiny_model, hand_rollout, tail)
    parts, metrics = updated(size, tiny_model, hand_rollout, tail)
    for part, gradient in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, gradient, atol=1e-12, rtol=0)
    assert sum(float(gradient.abs().sum()) for gradient in whole) > 1.0
    assert metrics == pytest.approx(expected, abs=1e-7)  # the share that was clipped is counted in float32
    assert expected["losses/counterfactual"] != 0 != expected["losses/kl_reference"]


def test_no_more_than_a_micro_batch_is_in_memory(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    model = tiny_model()
    agent = PPOAgent(model, PPOConfig(num_epochs=2, num_minibatches=1, micro_batch_size=1), 1.0)
    rollout, sizes = acted_at(model, hand_rollout, 1.0), list[int]()
    stats = policy_stats(model, None, rollout, 1.0)
    plan = plain_plan(torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards))
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
    assert sizes == [1] * 4
    assert agent.state_dict()["num_updates"] == 2  # steps of the optimiser: a minibatch's, not a micro-batch's
