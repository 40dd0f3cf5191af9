"""ECHO's term: whose tokens are foreseen, by which states, and what an update makes of it."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.advantages import plain_plan
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.observation import check_replies, observation_loss
from worldmtp.agents.ppo import PPOAgent, policy_stats
from worldmtp.agents.rollout import Rollout, reply_mask
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.envs import TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.model import MTPModel

MakeModel = Callable[..., MTPModel]
MakeRollout = Callable[..., Rollout]
ONE_STEP: dict[str, Any] = {"num_epochs": 1, "num_minibatches": 1, "max_grad_norm": 1e9}
CONVERSATIONS: list[dict[str, Any]] = [
    # A reply between two turns and one at the end, which the world writes as it ends the episode.
    {"prompt": [2, 3], "actions": [4, 1, 5], "rewards": [0, 0, 0.5], "end": "terminated", "wrote": [[], [6, 2], [3]]},
    {"prompt": [2], "actions": [3, 4], "rewards": [0.5, 0.25], "end": "truncated"},
    {"prompt": [5], "actions": [4, 1], "rewards": [0.5, 1.0], "end": "terminated", "wrote": [[5, 5, 6, 2], []]},
]  # fmt: skip
REPLIED = [(0, 4), (0, 5), (0, 7), (2, 2), (2, 3), (2, 4), (2, 5)]
"""Row and place of the tokens that the world wrote in reply, counted by hand."""


def conversations(make: MakeRollout) -> Rollout:
    return make(CONVERSATIONS, steps=3, length=9)


def independent_loss(model: MTPModel, rollout: Rollout) -> torch.Tensor:
    """The mean surprisal of the reply tokens, each by a forward over its own prefix, at temperature 1."""
    surprisals = []
    for row, place in REPLIED:
        text = rollout.input_ids[row : row + 1, :place]
        logits = model.trunk(input_ids=text).logits[0, -1]
        surprisals.append(logits.logsumexp(-1) - logits[rollout.input_ids[row, place]])
    return torch.stack(surprisals).mean()


def updated(model: MTPModel, rollout: Rollout, config: PPOConfig, temperature: float = 1.0) -> dict[str, float]:
    agent = PPOAgent(model, config, temperature)
    stats = policy_stats(model, None, rollout, temperature)
    plan = plain_plan(torch.where(rollout.step_mask, 0.75, 0.0), torch.zeros_like(rollout.rewards))
    return agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))


def gradients(model: MTPModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.trunk.named_parameters() if weight.grad is not None}


def test_whose_tokens_they_are(hand_rollout: MakeRollout) -> None:
    """Neither the prompt's, nor the policy's, nor padding."""
    assert torch.nonzero(reply_mask(conversations(hand_rollout))).tolist() == [list(place) for place in REPLIED]


def test_a_uniform_model_is_surprised_by_the_logarithm_of_its_tokens(
    tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    """Seven tokens in the vocabulary: ln 7 each; the first row, three of the seven replied tokens, makes 3/7 of it."""
    model, rollout = tiny_model().double(), conversations(hand_rollout)
    hidden = torch.zeros(3, 9, 32, dtype=torch.float64)
    loss = observation_loss(model, hidden, rollout, torch.tensor(7))
    assert float(loss.detach()) == pytest.approx(math.log(7), abs=1e-12)
    first = rollout.select(torch.tensor([0]))
    part = observation_loss(model, hidden[:1], first, torch.tensor(7))
    assert float(part.detach()) == pytest.approx(3 / 7 * math.log(7), abs=1e-12)


def test_the_state_before_a_token_foresees_it(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    """Hidden states that are the embedding of the next token, scaled: each says that token with the same certainty."""
    model, rollout = tiny_model().double(), conversations(hand_rollout)
    weight = torch.eye(7, 32, dtype=torch.float64)
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(weight)
    hidden = torch.zeros(3, 9, 32, dtype=torch.float64)
    hidden[:, :-1] = 3.0 * weight[rollout.input_ids[:, 1:]]
    # Logit 3 for the token that comes and 0 for the other six.
    assert float(observation_loss(model, hidden, rollout, torch.tensor(7)).detach()) == pytest.approx(
        math.log(math.exp(3) + 6) - 3, abs=1e-12
    )


def test_the_gradient_of_a_state_in_closed_form(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    """W^T (softmax(W h) - onehot(next)) / 7 at the seven states before a reply token, in float64, and 0 elsewhere."""
    model, rollout = tiny_model().double(), conversations(hand_rollout)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 9, 32, dtype=torch.float64, generator=generator).requires_grad_(True)
    observation_loss(model, hidden, rollout, torch.tensor(7)).backward()
    weight = model.get_output_embeddings().weight.detach()
    expected = torch.zeros(3, 9, 32, dtype=torch.float64)
    for row, place in REPLIED:
        odds = (weight @ hidden.detach()[row, place - 1]).exp()
        error = odds / odds.sum()
        error[rollout.input_ids[row, place]] -= 1
        expected[row, place - 1] = error @ weight / 7
    torch.testing.assert_close(hidden.grad, expected, atol=1e-14, rtol=0)
    assert float(expected.abs().max()) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_value_and_gradient_are_those_of_a_loss_prefix_by_prefix(
    temperature: float, tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    """What the term adds to PPO's gradient is its coefficient times the gradient of that loss.

    The temperature of acting changes PPO's gradient and not the term's. To 1e-7: Llama's norms compute in float32.
    """
    rollout, models = conversations(hand_rollout), [tiny_model().double() for _ in range(3)]
    for model in models:
        model.limit_tokens(7)
    expected = independent_loss(models[0], rollout)
    expected.backward()
    plain = updated(models[1], rollout, PPOConfig(**ONE_STEP), temperature)
    echo = updated(models[2], rollout, PPOConfig(observation_coef=0.3, **ONE_STEP), temperature)
    assert "losses/observation" not in plain
    assert echo["losses/observation"] == pytest.approx(float(expected.detach()), abs=1e-12)
    assert echo["losses/total"] == pytest.approx(plain["losses/total"] + 0.3 * float(expected.detach()), abs=1e-12)
    before, after = gradients(models[1]), gradients(models[2])
    for name, gradient in gradients(models[0]).items():
        torch.testing.assert_close(after[name] - before[name], 0.3 * gradient, atol=1e-7, rtol=0)
    assert sum(float(gradient.abs().sum()) for gradient in gradients(models[0]).values()) > 1.0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_add_up_to_the_mean_of_their_minibatch(
    size: int, order: tuple[int, ...], tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    """Rows of 3, 0 and 4 reply tokens: each counts by its tokens, not by the micro-batch it is in."""
    rollout = conversations(hand_rollout).select(torch.tensor(order))
    whole, parts = tiny_model().double(), tiny_model().double()
    config = PPOConfig(observation_coef=0.5, **ONE_STEP)
    expected = updated(whole, rollout, config)
    metrics = updated(parts, rollout, replace(config, micro_batch_size=size))
    assert metrics["losses/observation"] == pytest.approx(expected["losses/observation"], abs=1e-12)
    for name, gradient in gradients(parts).items():
        torch.testing.assert_close(gradient, gradients(whole)[name], atol=1e-7, rtol=0)


def test_a_mask_of_legal_moves_is_not_for_the_world(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    """The policy may write what it wrote and nothing else; the world's tokens are as surprising as without a mask."""
    rollout = conversations(hand_rollout)
    allowed = torch.zeros((3, 3, 7), dtype=torch.bool).scatter(2, rollout.actions[..., None], True)
    config = PPOConfig(observation_coef=0.5, **ONE_STEP)
    found = [
        updated(tiny_model().double(), one, config)["losses/observation"]
        for one in (rollout, replace(rollout, allowed=allowed))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-12)


def test_without_a_reply_the_term_is_zero_and_the_update_is_ppo(
    tiny_model: MakeModel, hand_rollout: MakeRollout
) -> None:
    rollout = conversations(hand_rollout).select(torch.tensor([1]))
    models = [tiny_model(), tiny_model()]
    for model, coef in zip(models, (0.0, 1.0), strict=True):
        metrics = updated(model, rollout, PPOConfig(observation_coef=coef, **ONE_STEP))
    assert metrics["losses/observation"] == 0.0
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_second_forward_is_made(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    model, rollout, passes = tiny_model(), conversations(hand_rollout), list[int]()
    agent = PPOAgent(model, PPOConfig(observation_coef=0.5, **ONE_STEP), 1.0)
    stats = policy_stats(model, None, rollout, 1.0)
    plan = plain_plan(torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards))
    model.trunk.base_model.register_forward_hook(lambda module, args, output: passes.append(1))
    agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
    assert passes == [1]


def test_the_policy_learns_to_foresee_its_world(tiny_model: MakeModel, hand_rollout: MakeRollout) -> None:
    """Forty updates on three conversations that never change, nothing being worth anything."""
    model, rollout = tiny_model(), conversations(hand_rollout)
    config = PPOConfig(observation_coef=1.0, vf_coef=0.0, kl_coef=0.0, learning_rate=3e-3, num_epochs=40)
    agent, stats = PPOAgent(model, config, 1.0), policy_stats(model, None, rollout, 1.0)
    plan = plain_plan(torch.zeros_like(rollout.rewards), torch.zeros_like(rollout.rewards))
    before = float(independent_loss(model, rollout).detach())
    agent.update(rollout, stats, plan, torch.Generator().manual_seed(0))
    assert float(independent_loss(model, rollout).detach()) < 0.3 * before


class Parrot:
    """Says "=" to everything; two turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._num_turns = 0
        return "abcd"[seed % 4] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._num_turns += 1
        return "=", len(text) / 10, self._num_turns == 2, False, {}


def trainer_of(env: TextGenVectorEnv, model: MTPModel, config: PPOConfig) -> ImaginationTrainer:
    rollout = RolloutConfig(num_iterations=1, num_prompts=2, group_size=2)
    return ImaginationTrainer(model, env, rollout, config, WorldModelConfig(), ImaginationConfig(use="off"), seed=0)


def test_it_is_refused_where_nobody_replies(tiny_model: MakeModel, text_env: Callable[[int], TextGenVectorEnv]) -> None:
    with pytest.raises(ValueError, match=r"observation_coef=0\.1 with FirstLetter, which writes nothing after the pr"):
        trainer_of(text_env(4), tiny_model(), PPOConfig(observation_coef=0.1))
    check_replies(text_env(4).task, PPOConfig())


def test_it_trains_where_a_world_replies(tiny_model: MakeModel) -> None:
    env = TextGenVectorEnv(
        4,
        autoreset_mode="disabled",
        task=WorldTask(Parrot, num_seeds=40),
        tokenizer={"kind": "char", "alphabet": "abcd="},
        max_prompt=2,
        max_new=8,
        max_turn=2,
        pool_size=8,
    )
    metrics, _ = trainer_of(env, tiny_model(), PPOConfig(observation_coef=0.1)).step()
    assert 0.0 < metrics["losses/observation"] < 10.0
