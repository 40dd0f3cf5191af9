"""Held-out evaluation by search: its answers, the policy's own beside them, and what both took of the trunk."""

from collections.abc import Callable

import pytest
import torch

from worldmtp.agents.evaluation import Evaluation, EvaluationSearch, Evaluator
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.search_config import ActingSearch
from worldmtp.dynamics import acting_policy, make_world_model
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.search import SearchConfig, TurnWorldModel, plan

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]


def evaluated(text_env: MakeEnv, model: MTPModel, how: ActingSearch | None, temperature: float = 1.0) -> Evaluation:
    env = text_env(4)
    search = None if how is None else EvaluationSearch(how, seed=3)
    return Evaluator(env, env.examples("heldout", 4, seed=0), temperature, seed=7, search=search).run(model)


def same_answers(one: Rollout, other: Rollout) -> bool:
    return torch.equal(one.actions, other.actions) and torch.equal(one.step_mask, other.step_mask)


@pytest.fixture
def telling_model(tiny_model: MakeModel) -> MTPModel:
    """World heads start at zero; here they tell latents apart."""
    model, generator = tiny_model(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_a_search_of_heads_that_know_nothing_is_the_policy(rule: str, text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Rewards and values are all exactly 0, so that every Q is, and the likeliest token is the best."""
    how = ActingSearch(rule, "oracle", SearchConfig(num_simulations=5))
    found, plain = evaluated(text_env, tiny_model(), how), evaluated(text_env, tiny_model(), None)
    assert same_answers(found.greedy, plain.greedy)
    assert found.policy is not None
    for name in ("greedy", "sampled"):
        assert same_answers(getattr(found.policy, name), getattr(plain, name))
    metrics, by_itself = found.metrics(), plain.metrics()
    for name in ("exact", "exact_sampled", "score", "score_sampled"):
        assert metrics[f"eval/policy/{name}"] == by_itself[f"eval/{name}"]
    # Prompts of 3 tokens and answers of n; each of these takes a search of 5 nodes.
    lengths = plain.greedy.step_mask.sum(dim=1).float()
    assert metrics["eval/policy/trunk_tokens"] == pytest.approx(float((3 + lengths).mean()))
    assert metrics["eval/trunk_tokens"] == pytest.approx(float((3 + 6 * lengths).mean()))
    assert not {"eval/trunk_tokens", "eval/policy/exact"} & set(by_itself)


def test_greedy_tokens_are_the_best_of_a_search_and_heads_are_measured_on_the_policys_own(
    text_env: MakeEnv, telling_model: MTPModel
) -> None:
    how = ActingSearch("puct", "oracle", SearchConfig(num_simulations=6, width=7), "node")
    found, plain = evaluated(text_env, telling_model, how, 0.7), evaluated(text_env, telling_model, None, 0.7)
    world_model = make_world_model("oracle", telling_model, torch.Generator())
    turns = TurnWorldModel(world_model, [1], ends_episode=True)
    for b, t in found.greedy.step_mask.nonzero().tolist():
        prefix = found.greedy.input_ids[b : b + 1, : found.greedy.action_index[b, t]]
        with torch.no_grad():
            state = turns.limited(turns.encode(prefix, torch.ones_like(prefix).bool()), torch.tensor([3 - t]))
            best = plan("puct", turns, state, acting_policy(0.7), how.tree).actions
        assert int(found.greedy.actions[b, t]) == int(best)
    assert not same_answers(found.sampled, plain.sampled)
    assert same_answers(found.own, plain.sampled)
    assert same_answers(plain.own, plain.sampled)


def test_evaluating_again_gives_the_same_though_the_search_draws(text_env: MakeEnv, telling_model: MTPModel) -> None:
    """The shuffled heads draw whose token they are moved by."""
    how = ActingSearch("gumbel", "shuffled", SearchConfig(num_simulations=4, max_depth=2))
    first, second = evaluated(text_env, telling_model, how), evaluated(text_env, telling_model, how)
    for name in ("greedy", "sampled"):
        assert same_answers(getattr(first, name), getattr(second, name))
    assert first.metrics() == second.metrics()
