"""Real episodes of a world acted by a search that goes on through its replies: learnt ones, or the world's own."""

import io
import math
from collections.abc import Callable

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.evaluation import EvaluationSearch, Evaluator
from worldmtp.agents.search_config import ActingSearch, SearchTargetConfig
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.envs import TextVectorEnv
from worldmtp.envs.wrappers.action_mask import VectorActionMask
from worldmtp.model import MTPModel
from worldmtp.search import SearchConfig

MakeModel = Callable[..., MTPModel]
MakeEnv = Callable[..., TextVectorEnv]
REPLIES = ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=8)


def masked(env: TextVectorEnv) -> TextVectorEnv:
    return VectorActionMask(env, alphabet="abc", forbid_eos=True)


def make_trainer(env: TextVectorEnv, model: MTPModel, dynamics: str, use: str = "search") -> ImaginationTrainer:
    return ImaginationTrainer(
        model,
        masked(env),
        RolloutConfig(6, 8, 1, act="search", search_after=0),
        PPOConfig(learning_rate=1e-2, kl_coef=0.0, gamma=0.9),
        WorldModelConfig(replies=REPLIES),
        ImaginationConfig(
            use=use,
            horizon=2,
            search=SearchTargetConfig(num_simulations=2, gate_batches=100, through_replies=True),
            episodes=EpisodesConfig(num_batches=1, batch_size=4, exploring_batch_size=4, num_epochs=1),
        ),
        seed=0,
        search=ActingSearch("gumbel", dynamics, SearchConfig(num_simulations=8, width=3, gamma=0.9), "returns"),
    )


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.mark.parametrize("use", ["search", "episodes"])
def test_the_policy_acts_until_replies_are_learnt_and_a_run_goes_on_from_a_checkpoint(
    use: str, steps_env: MakeEnv, tiny_model: MakeModel
) -> None:
    trainer = make_trainer(steps_env(8), tiny_model(), "replies", use)
    assert trainer.replies is None
    first, _ = trainer.step()
    assert "rollout/search_kl" not in first
    assert trainer.replies is not None
    second, rollout = trainer.step()
    assert second["rollout/search_trunk_tokens"] > 0
    assert all(math.isfinite(value) for value in numbers(second).values())
    assert rollout.allowed is not None
    assert rollout.allowed.gather(2, rollout.actions[..., None])[..., 0][rollout.step_mask].all()
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other = make_trainer(steps_env(8), tiny_model(), "replies", use)
    other.load_state_dict(torch.load(file, weights_only=False))
    assert numbers(trainer.step()[0]) == numbers(other.step()[0])


def test_through_the_real_worlds_replies_what_is_paid_is_done_more_often(
    steps_env: MakeEnv,
    tiny_model: MakeModel,
) -> None:
    """A turn ahead the world says what each letter pays, .5 for "a": its sigma is at least 5.1 * .5 = 2.55 larger.

    A third of the policy's letters are "a" at first; with odds of 1/2 e^2.55 = 6.4 it is .86 of those drawn. That .25
    more than the policy's are missed by 20 letters is more than three standard errors, .08 each.
    """
    trainer = make_trainer(steps_env(8), tiny_model(), "world", "search")
    _, rollout = trainer.step()
    letters = trainer._env.tokenizer.encode("a")[0]
    share = float((rollout.actions == letters)[rollout.step_mask].float().mean())
    policys = rollout.logprobs[(rollout.actions == letters) & rollout.step_mask].exp().mean()
    assert share > float(policys) + 0.25


def test_evaluation_asks_the_replies_of_now_and_the_policy_before_there_are_any(
    steps_env: MakeEnv, tiny_model: MakeModel
) -> None:
    model, env = tiny_model(), masked(steps_env(4))
    trainer = make_trainer(steps_env(8), model, "replies")
    how = ActingSearch("puct", "replies", SearchConfig(num_simulations=8, width=3, gamma=0.9))
    examples = env.examples("heldout", 4, seed=0)
    evaluator = Evaluator(env, examples, 1.0, seed=0, search=EvaluationSearch(how, seed=1))
    before = evaluator.run(model)
    assert before.policy is not None
    assert torch.equal(before.greedy.actions, before.policy.greedy.actions)
    trainer.step()
    evaluator.replies = trainer.replies
    after = evaluator.run(model).metrics()
    # Text is read once, and every simulation reads a token at least.
    assert after["eval/trunk_tokens"] > after["eval/policy/trunk_tokens"] + 8


def test_a_run_that_learns_no_replies_is_told_what_does(steps_env: MakeEnv, tiny_model: MakeModel) -> None:
    message = r"act=search, by search\.dynamics=replies: .* imagination=episodes learns, or one with imagination=search"
    with pytest.raises(ValueError, match=message):
        make_trainer(steps_env(8), tiny_model(), "replies", "off")
