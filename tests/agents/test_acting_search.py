"""Real episodes acted by search: what is stored of them, what PPO makes of it, and when it is the usual rollout."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.acting_search import q_transform_of
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.search_config import ActingSearch
from worldmtp.agents.searched_rollouts import SearchedRollouts, importance_weights
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.agents.uses import check_use
from worldmtp.dynamics.exact import TokenMDP
from worldmtp.envs import TextGenVectorEnv, TextVectorEnv
from worldmtp.envs.wrappers.action_mask import VectorActionMask
from worldmtp.model import MTPModel
from worldmtp.objective.policy_losses import ppo_terms
from worldmtp.search import SearchConfig
from worldmtp.search.tree import Node

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
HOW = ActingSearch("gumbel", "oracle", SearchConfig(num_simulations=4, width=4), "node")
SEARCH_TAGS = {
    *(f"rollout/{name}" for name in ("search_trunk_tokens", "search_kl", "importance_weight_mean")),
    "rollout/effective_sample_share",
}


def make_trainer(
    model: MTPModel, env: TextVectorEnv, how: ActingSearch | None, use: str = "off", **rollout: Any
) -> ImaginationTrainer:
    rollout = {"act": "policy" if how is None else "search", "search_after": 0} | rollout
    return ImaginationTrainer(
        model,
        env,
        RolloutConfig(4, 4, 4, **rollout),
        PPOConfig(learning_rate=1e-2, kl_coef=0.1, ent_coef=0.01),
        WorldModelConfig(num_updates=2, batch_size_episodes=16),
        ImaginationConfig(use=use, horizon=2),
        seed=0,
        search=how,
    )


def numbers(metrics: dict[str, float], *left_out: str) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(("time/", *left_out))}


def learnt(text_env: MakeEnv, model: MTPModel, how: ActingSearch, steps: int, **rollout: Any) -> ImaginationTrainer:
    trainer = make_trainer(model, text_env(16), how, **rollout)
    for _ in range(steps):
        trainer.step()
    return trainer


def test_a_search_of_heads_that_know_nothing_is_the_usual_rollout(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Rewards and values are exactly 0 before anything is learnt, so that b is the policy, and weights are 1.

    The last bits differ: the trunk reads whole texts for a search, and goes on from its cache otherwise. Answers are of
    one length, as who draws after another's end is a matter of the cache.
    """
    usual, searched = (
        make_trainer(tiny_model(), VectorActionMask(text_env(16), min_new=2), how) for how in (None, HOW)
    )
    plain, plain_rollout = usual.step()
    found, rollout = searched.step()
    assert torch.equal(rollout.actions, plain_rollout.actions)
    torch.testing.assert_close(rollout.logprobs, plain_rollout.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.behaviour_logprobs, rollout.logprobs, atol=1e-6, rtol=0)
    assert set(found) - set(plain) > SEARCH_TAGS
    assert found["rollout/search_trunk_tokens"] == 4
    assert found["rollout/effective_sample_share"] == pytest.approx(1.0, abs=1e-6)
    for name, value in numbers(plain).items():
        assert found[name] == pytest.approx(value, abs=2e-4), name


def test_before_search_after_it_is_the_usual_rollout_to_the_bit(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    usual = make_trainer(tiny_model(), text_env(16), None)
    searched = make_trainer(tiny_model(), text_env(16), HOW, search_after=1)
    plain, found = usual.step()[0], searched.step()[0]
    assert {name: found[name] for name in numbers(plain)} == numbers(plain)
    assert not SEARCH_TAGS & set(found)
    assert set(searched.step()[0]) > SEARCH_TAGS


@pytest.mark.parametrize("rule", ["gumbel", "puct"])
def test_what_is_learnt_makes_another_distribution_act(rule: str, text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Of 7 tokens a search knows 4, and draws the others as well."""
    how = ActingSearch(rule, "mtp", SearchConfig(num_simulations=4, width=4), "node")
    trainer = learnt(text_env, tiny_model(), how, 3)
    drawn = [trainer.step()[1] for _ in range(3)]
    for rollout in drawn:
        assert rollout.behaviour_logprobs is not None
        assert rollout.behaviour_logprobs[rollout.step_mask].isfinite().all()
    weights = torch.cat([importance_weights(one, math.inf)[one.step_mask] for one in drawn])
    assert float(weights.min()) < 0.9
    assert float(weights.max()) > 1.1
    cut = importance_weights(drawn[0], 0.5)
    assert float(cut.max()) == 0.5


@pytest.mark.parametrize(
    ("rule", "scale", "most"),
    [("gumbel", "node", 5.1), ("gumbel", "returns", 0.51), ("puct", "node", 1.0), ("puct", "returns", 0.1)],
)
def test_what_a_difference_of_values_counts(rule: str, scale: str, most: float, tiny_model: MakeModel) -> None:
    """PUCT takes Q in [0, 1], by the range of the node or of returns; sigma of two visited tokens is 5.1 times that.

    Q is .4 and .5, and returns lie between 0 and 1.
    """
    transform = q_transform_of(ActingSearch(rule, scale=scale), tiny_model())
    node = Node(
        logits=torch.tensor([[0.5, 0.5]]).log(),
        raw_value=torch.tensor([0.45]),
        value=torch.tensor([0.45]),
        visits=torch.tensor([3]),
        child_visits=torch.tensor([[1, 1]]),
        q_values=torch.tensor([[0.4, 0.5]]),
    )
    sigma = transform(node)[0]
    assert float(sigma[1] - sigma[0]) == pytest.approx(most, abs=1e-5)


def test_a_run_goes_on_from_a_checkpoint_though_the_search_draws(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    how = ActingSearch("gumbel", "shuffled", SearchConfig(num_simulations=4, max_depth=2))
    trainer, other = learnt(text_env, tiny_model(), how, 2), make_trainer(tiny_model(), text_env(16), how)
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=False))
    (one, first), (two, second) = trainer.step(), other.step()
    assert numbers(one) == numbers(two)
    assert torch.equal(first.behaviour_logprobs, second.behaviour_logprobs)


def test_masks_are_kept_to_in_the_draw_and_in_both_log_probabilities(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    env = VectorActionMask(text_env(16), alphabet="ab")
    trainer = make_trainer(tiny_model(), env, HOW)
    for _ in range(3):
        metrics, rollout = trainer.step()
    assert rollout.allowed is not None
    taken = rollout.allowed.gather(2, rollout.actions[..., None])[..., 0]
    assert taken[rollout.step_mask].all()
    assert all(math.isfinite(value) for value in metrics.values())
    _, rollout = make_trainer(tiny_model(), env, HOW).step()
    allowed = torch.tensor([*env.tokenizer.encode("ab"), env.tokenizer.eos_id])
    for b, t in rollout.step_mask.nonzero()[:5].tolist():
        with torch.no_grad():
            logits = tiny_model().trunk(rollout.input_ids[b : b + 1, : rollout.action_index[b, t]]).logits[0, -1]
        expected = logits[rollout.actions[b, t]] - logits[allowed].logsumexp(0)
        assert float(rollout.logprobs[b, t]) == pytest.approx(float(expected), abs=1e-4)


def test_weighted_tokens_have_the_gradient_of_the_policys_own_mean(
    rollout_of_episodes: Callable[..., Rollout],
) -> None:
    """All episodes of a token MDP, drawn by b: the expected PPO gradient is sum_s d_b(s) sum_a pi(a|s) A_b(s, a) grad.

    Of a tabular softmax that is d_b(s) pi(a) (A_b(s, a) - sum_a' pi(a') A_b(s, a')) by the logit of a in s.
    """
    generator = torch.Generator().manual_seed(0)
    mdp = TokenMDP(3, 3, torch.randn(13, 3, generator=generator).double())
    policy, behaviour = torch.randn(2, 13, 3, generator=generator).double()
    episodes = mdp.episodes()
    taken = episodes.prefixes, episodes.actions
    q_values = mdp.action_values(behaviour)
    advantages = q_values - (behaviour.softmax(-1) * q_values).sum(-1, keepdim=True)
    old = policy.log_softmax(-1)[taken]
    rollout = rollout_of_episodes(episodes, old)
    object.__setattr__(rollout, "behaviour_logprobs", behaviour.log_softmax(-1)[taken])
    learning = policy.clone().requires_grad_()
    nothing = torch.zeros_like(old)
    chance = episodes.probability(behaviour)[:, None]
    terms = ppo_terms(
        learning.log_softmax(-1)[taken],
        *(old, old, chance * advantages[taken], nothing, nothing, episodes.step_mask, torch.tensor(1), 0.2),
        importance_weights(rollout, math.inf),
    )
    terms["losses/policy"].backward()
    occupancy = torch.zeros(13).double()
    occupancy[0] = 1.0
    for prefix in range(4):  # those that go on
        occupancy[3 * prefix + 1 : 3 * prefix + 4] = occupancy[prefix] * behaviour.softmax(-1)[prefix]
    probs = policy.softmax(-1)
    centred = advantages - (probs * advantages).sum(-1, keepdim=True)
    assert learning.grad is not None
    torch.testing.assert_close(-learning.grad, occupancy[:, None] * probs * centred, atol=1e-10, rtol=0)


def test_ppo_is_given_what_each_action_counts(
    text_env: MakeEnv, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, given = learnt(text_env, tiny_model(), HOW, 2), []
    update = trainer.agent.update

    def noting(rollout: Rollout, stats: Any, plan: Any, *rest: Any) -> dict[str, float]:
        given.append((rollout, plan))
        return update(rollout, stats, plan, *rest)

    monkeypatch.setattr(trainer.agent, "update", noting)
    trainer.step()
    (rollout, plan), mask = given[0], given[0][0].step_mask
    expected = (rollout.logprobs.exp() / rollout.behaviour_logprobs.exp()).clamp_max(10.0)
    torch.testing.assert_close(plan.action_weights[mask], expected[mask], atol=1e-5, rtol=1e-4)
    assert float((expected - 1).abs().max()) > 0.1
    plain = replace(plan, action_weights=torch.ones_like(plan.advantages))
    doubled = replace(plan, action_weights=torch.full_like(plan.advantages, 2.0))
    norms = [trainer.agent.squared_gradient_norm(rollout, one) for one in (plain, doubled)]
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-5)


@pytest.mark.parametrize(("told", "expected"), [(None, 0.5), (0.9, 0.9)])
def test_what_follows_is_discounted_as_the_values_are(
    told: float | None, expected: float, text_env: MakeEnv, tiny_model: MakeModel
) -> None:
    """By ``agent.ppo.gamma``, which the values were learnt with, unless the search is told another."""
    how = replace(HOW, tree=replace(HOW.tree, gamma=told))
    rollout, ppo = RolloutConfig(1, act="search"), PPOConfig(learning_rate=1e-2, gamma=0.5)
    searched = SearchedRollouts(how, tiny_model(), text_env(16), rollout, ppo, seed=0)
    assert searched.how.tree.discount == expected


class TestRefusals:
    def test_drafts_decide_what_nobody_has_searched_for(self) -> None:
        with pytest.raises(ValueError, match=r"act=search with draft=mtp: .* set agent\.rollout\.draft=none"):
            RolloutConfig(1, act="search", draft="mtp")

    def test_an_unknown_way_to_act(self) -> None:
        with pytest.raises(ValueError, match=r"agent\.rollout\.act='serch' is unknown; did you mean 'search'"):
            RolloutConfig(1, act="serch")

    def test_nothing_says_how(self, text_env: MakeEnv, tiny_model: MakeModel) -> None:
        with pytest.raises(ValueError, match=r"nothing says how; give search=ActingSearch"):
            make_trainer(tiny_model(), text_env(16), None, act="search")

    @pytest.mark.parametrize("use", ["counterfactual", "latent"])
    def test_uses_of_imagination_that_need_the_policys_draws(
        self, use: str, text_env: MakeEnv, tiny_model: MakeModel
    ) -> None:
        message = rf"imagination={use} .* agent\.rollout\.act=search draws otherwise; set imagination=off"
        with pytest.raises(ValueError, match=message):
            make_trainer(tiny_model(), text_env(16), HOW, use)

    def test_no_use_is_advised_that_needs_the_policys_draws(self, text_env: MakeEnv, tiny_model: MakeModel) -> None:
        """Who does as the message says is not refused again: counterfactuals are for other environments, not this."""
        with pytest.raises(ValueError, match=r"nobody replies in this environment; set imagination=off\.$"):
            make_trainer(tiny_model(), text_env(16), HOW, "episodes")

    def test_completions_go_with_the_use_that_reads_them(self, text_env: MakeEnv) -> None:
        env = text_env(16)
        imagination = ImaginationConfig(use="counterfactual", completions="trunk")
        with pytest.raises(ValueError, match=r"or imagination=search, each with imagination\.completions=none, or "):
            check_use(env, env.reset(seed=0)[1], imagination, PPOConfig(learning_rate=1e-2), "none", "search")

    @pytest.mark.parametrize("weight", [0.99, math.inf])
    def test_a_limit_that_cuts_what_the_policy_drew(self, weight: float) -> None:
        """Where the policy acts pi / b is 1, which a limit below would cut; 1 itself cuts nothing."""
        PPOConfig(learning_rate=1e-2, max_importance_weight=1.0)
        with pytest.raises(ValueError, match=rf"max_importance_weight={weight} must be finite and at least 1"):
            PPOConfig(learning_rate=1e-2, max_importance_weight=weight)

    def test_a_search_deeper_than_the_heads(self, text_env: MakeEnv, tiny_model: MakeModel) -> None:
        how = ActingSearch("gumbel", "mtp", SearchConfig(max_depth=5))
        message = r"agent\.rollout\.act=search, by search\.dynamics=mtp: max_depth=5 is beyond"
        with pytest.raises(ValueError, match=message):
            make_trainer(tiny_model(), text_env(16), how)
