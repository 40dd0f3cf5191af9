"""MTPPPOTrainer's rewards: by token, by turn and at the end; advantages from elsewhere; and that they are learnt."""

import math

import pytest
import torch
from datasets import Dataset

from worldmtp.envs import TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.post_training import TextGenRollout, env_reward

EOS, ONES = 1, 3
ONE = {"num_generations": 1}


def logged(trainer, name):
    return [record[name] for record in trainer.state.log_history if name in record]


def replied(prompts, trainer):
    """A rollout: the policy's 2, a world's 3 4, the policy's 5 and EOS; the first and the last are paid."""
    number = len(prompts)
    return {
        "prompt_ids": [[6, 7]] * number,
        "completion_ids": [[2, 3, 4, 5, EOS]] * number,
        "logprobs": [[0.0] * 5] * number,
        "env_mask": [[1, 0, 0, 1, 1]] * number,
        "env_reward": [0.75] * number,
        "token_rewards": [[0.25, 0.0, 0.0, 0.0, 0.5]] * number,
        "env_truncated": [False] * number,
    }


ROLLOUT = pytest.mark.filterwarnings("ignore:You are using 'rollout_func', which is an experimental feature")


@ROLLOUT
def test_a_rollouts_rewards_stand_at_their_tokens_beside_other_functions(batches_of, make_any, make_model):
    """Values start at zero; with gamma 1/2 and lambda 1 advantages are discounted sums over the decisions."""

    def half(completions, **_):
        return [1.0] * len(completions)

    given = {"reward_funcs": [env_reward, half], "rollout_func": replied}
    options = {"reward_weights": [2.0, 0.5], "gamma": 0.5, "gae_lambda": 1.0, "scale_advantages": False}
    trainer = make_any("PPO", make_model(), **ONE, **options, max_steps=1, extra=given)
    batches = batches_of(trainer)
    with pytest.warns(UserWarning, match="outside the value head's bins"):
        trainer.train()
    at_the_end = 2.0 * 0.5 + 0.5 * 1.0
    expected = torch.tensor([[2.0 * 0.25 + at_the_end / 4, 0.0, 0.0, at_the_end / 2, at_the_end]]).expand(8, -1)
    torch.testing.assert_close(batches[0]["advantages"], expected)
    torch.testing.assert_close(batches[0]["value_targets"], expected)
    assert int(batches[0]["num_items_in_batch"]) == 24


@ROLLOUT
def test_token_rewards_that_are_not_the_episodes_are_refused(make_any, make_model):
    def wrong(prompts, trainer):
        return replied(prompts, trainer) | {"env_reward": [1.0] * len(prompts)}

    given = {"reward_funcs": env_reward, "rollout_func": wrong}
    with pytest.raises(ValueError, match=r"token_rewards add up to \[0\.75.* and .*env_reward returned \[1\.0"):
        make_any("PPO", make_model(), **ONE, max_steps=1, extra=given).train()


@ROLLOUT
def test_what_a_world_replied_moves_nothing(make_any, make_model):
    """Its tokens take no part in the loss: their labels' log-probabilities may be anything."""
    weights = []
    for spoilt in (0.0, -50.0):
        model = make_model()
        trainer = make_any(
            "PPO", model, **ONE, max_steps=1, extra={"reward_funcs": env_reward, "rollout_func": replied}
        )
        score = trainer._get_per_token_logps_and_entropies

        def scored(*given, score=score, spoilt=spoilt, **options):
            logps, entropies, aux = score(*given, **options)
            return logps + spoilt * torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), entropies, aux

        trainer._get_per_token_logps_and_entropies = scored
        trainer.train()
        weights.append(model.trunk.state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


class PaysForOnes:
    """Opens with "="; answers each of two turns with "=", and pays 1/2 for a turn that begins with "1"."""

    def reset(self, seed):
        self._turns = 0
        return "=", {}

    def step(self, text):
        self._turns += 1
        return "=", 0.5 * text.startswith("1"), self._turns == 2, False, {}


def conversation(make_any, model, **options):
    """A trainer on that world; its tokens are those of the tests' tokenizer."""
    envs = TextGenVectorEnv(
        8,
        autoreset_mode="disabled",
        task=WorldTask(PaysForOnes),
        tokenizer={"kind": "char", "alphabet": "0123456789+="},
        max_prompt=1,
        max_new=8,
        max_turn=2,
        pool_size=8,
    )
    rollout = TextGenRollout(envs, seed=0)
    given = {"reward_funcs": env_reward, "rollout_func": rollout}
    rows = Dataset.from_list(rollout.rows("train", 4, seed=0))
    options = ONE | {"max_completion_length": rollout.max_new} | options
    return make_any("PPO", model, extra=given, train_dataset=rows, **options)


@ROLLOUT
def test_turns_of_a_conversation_are_paid_where_they_end(batches_of, make_any, make_model):
    """With lambda and gamma 1 and a value head that says zero, an advantage is what is still to be paid."""
    options = {"gae_lambda": 1.0, "scale_advantages": False, "max_steps": 1, "per_device_train_batch_size": 4}
    trainer = conversation(make_any, make_model(), **options)
    batches = batches_of(trainer)
    trainer.train()
    (batch,) = batches
    for row in range(4):
        ids, mask = batch["completion_ids"][row].tolist(), batch["decision_mask"][row].tolist()
        turns, starts = [], []
        for place, chosen in enumerate(mask):
            if chosen and not (place and mask[place - 1]):
                starts.append(place)
                turns.append(0.5 * (ids[place] == ONES))
        assert len(turns) == 2
        expected = [chosen * (sum(turns) if place < starts[1] else turns[1]) for place, chosen in enumerate(mask)]
        assert batch["advantages"][row].tolist() == pytest.approx(expected, abs=1e-6)


# Minutes on a busy machine.
@pytest.mark.slow
@ROLLOUT
def test_a_conversation_is_learnt(make_any, make_model):
    options = {"num_iterations": 2, "learning_rate": 3e-3, "max_steps": 120, "per_device_train_batch_size": 4}
    trainer = conversation(make_any, make_model(), **options, mtp_objective={"coef": {"start": 0}})
    trainer.train()
    rewards = logged(trainer, "reward")
    assert sum(rewards[:4]) / 4 < 0.3
    assert sum(rewards[-4:]) / 4 > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("num_generations", [1, 4])
def test_a_reward_function_is_learnt(make_any, make_model, num_generations):
    """The share of ones among a completion's tokens; one of fourteen by chance."""
    options = {"num_iterations": 2, "steps_per_generation": 2, "learning_rate": 3e-3, "max_steps": 120}
    options |= {"per_device_train_batch_size": 8, "num_generations": num_generations, "beta": 0.001}
    trainer = make_any("PPO", make_model(), **options, mtp_objective={"coef": {"start": 0}})
    trainer.train()
    rewards = logged(trainer, "reward")
    assert sum(rewards[:4]) / 4 < 0.2
    assert sum(rewards[-4:]) / 4 > 0.7
    assert sum(logged(trainer, "ppo/explained_variance")[-4:]) / 4 > -1


def test_imagined_advantages_take_the_place_of_gae(batches_of, make_any, make_model):
    seen = []

    def imagined(batch):
        seen.append(batch)
        return torch.full_like(batch["advantages"], 2.0)

    trainer = make_any("PPO", make_model(), **ONE, max_steps=1, extra={"imagined_advantages": imagined})
    batches = batches_of(trainer)
    trainer.train()
    mask = batches[0]["decision_mask"]
    assert torch.equal(batches[0]["advantages"], mask.float())  # their root mean square is 2
    assert {"values", "value_targets", "old_per_token_logps"} <= seen[0].keys()


@pytest.mark.parametrize(
    ("imagined", "message"),
    [
        (lambda batch: batch["advantages"][:, 0], r"imagined_advantages returned \(8,\), expected a tensor of \(8, "),
        (lambda batch: None, "imagined_advantages returned NoneType"),
        (lambda batch: batch["advantages"] * math.nan, "a number that is not finite for a decision"),
    ],
)
def test_imagined_advantages_of_another_shape_or_not_finite_are_refused(make_any, make_model, imagined, message):
    trainer = make_any("PPO", make_model(), **ONE, max_steps=1, extra={"imagined_advantages": imagined})
    with pytest.raises(ValueError, match=message):
        trainer.train()
