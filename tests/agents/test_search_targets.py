"""``imagination=search``: the improved policy by hand and by its law, an exact gradient, and what it leaves alone."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp import MTPModel
from worldmtp.agents import ImaginationConfig, ImaginationTrainer, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.imagination.imagined_returns import Acting
from worldmtp.agents.imagination.search import ImprovedPolicy, SearchAdvantages, improved_policy
from worldmtp.agents.imagination.searched_world import WithinTurn
from worldmtp.agents.ppo import PolicyStats
from worldmtp.agents.rollout import Rollout
from worldmtp.agents.search_config import SearchTargetConfig
from worldmtp.agents.tail import TAIL
from worldmtp.dynamics import ExactWorldModel, TokenMDP, acting_policy
from worldmtp.envs import TextVectorEnv
from worldmtp.objective.policy_losses import improved_kl_per_token
from worldmtp.search import SearchConfig
from worldmtp.search.q_transforms import completed_in_range

POLICY = acting_policy(1.0)
IN_UNIT = partial(completed_in_range, low=0.0, high=1.0)


def every_state(world: ExactWorldModel, mdp: TokenMDP) -> Any:
    nothing = torch.zeros(1, 1, dtype=torch.long)
    root = world.encode(nothing, nothing.bool())
    prefixes = torch.arange(mdp.num_prefixes)
    return replace(root.select(torch.zeros_like(prefixes)), prefixes=prefixes)


def improve(
    mdp: TokenMDP,
    logits: torch.Tensor,
    simulations: int,
    width: int,
    depth: int,
    allowed: torch.Tensor | None = None,
) -> ImprovedPolicy:
    world = ExactWorldModel(mdp, logits)
    config, generator = SearchConfig(simulations, depth, width), torch.Generator().manual_seed(0)
    return improved_policy(world, every_state(world, mdp), POLICY, config, IN_UNIT, width, generator, allowed)


def test_the_improved_policy_by_hand() -> None:
    """One token of three, .5 .3 .2, of which the first is paid 1; two are kept and each is looked at once."""
    mdp = TokenMDP(3, 1, torch.tensor([[1.0, 0.0, 0.0]]).double())
    found = improve(mdp, torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log(), simulations=2, width=2, depth=1)
    assert found.ids.tolist() == [[0, 1, TAIL]]
    assert found.old_logprobs.exp().tolist() == [pytest.approx([0.5, 0.3, 0.2], abs=1e-12)]
    # The tail is worth the mean of what was seen, .5 / .8. The policy's mean is then that, too.
    assert found.advantages.tolist() == [pytest.approx([1 - 0.625, -0.625, 0.0], abs=1e-12)]
    # sigma = (50 + 1 visit) * .1 * Q
    odds = [0.5 * math.exp(5.1), 0.3, 0.2 * math.exp(5.1 * 0.625)]
    assert found.logprobs.exp().tolist() == [pytest.approx([odd / sum(odds) for odd in odds], abs=1e-12)]
    actions = torch.tensor([0])
    assert float(found.ratio(actions)) == pytest.approx(odds[0] / sum(odds) / 0.5, abs=1e-12)
    assert float(found.of(found.advantages, torch.tensor([2]))) == pytest.approx(0.0, abs=1e-12)


def test_what_a_mask_forbids_is_no_part_of_either_policy() -> None:
    """.5 .3 .2 without the first are .6 and .4: one is kept and looked at, the other is the tail."""
    mdp = TokenMDP(3, 1, torch.tensor([[1.0, 0.25, 0.0]]).double())
    logits, allowed = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log(), torch.tensor([[False, True, True]])
    found = improve(mdp, logits, simulations=1, width=1, depth=1, allowed=allowed)
    assert found.ids.tolist() == [[1, TAIL]]
    assert found.old_logprobs.exp().tolist() == [pytest.approx([0.6, 0.4], abs=1e-12)]
    assert found.logprobs.exp().tolist() == [pytest.approx([0.6, 0.4], abs=1e-12)]  # one value is known of all
    nothing = torch.ones(1, 0, dtype=torch.bool)  # a mask of no tokens is none
    assert improve(mdp, logits, 2, 2, 1, nothing).old_logprobs.exp().tolist() == [pytest.approx([0.5, 0.3, 0.2])]


def random_problem(seed: int, vocab: int, horizon: int) -> tuple[TokenMDP, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    number = sum(vocab**length for length in range(horizon))
    rewards = torch.rand(number, vocab, generator=generator).double() / horizon
    return TokenMDP(vocab, horizon, rewards), 2 * torch.randn(number, vocab, generator=generator).double()


def policy_value(mdp: TokenMDP, logits: torch.Tensor) -> torch.Tensor:
    """The exact value of each prefix."""
    return (logits.softmax(dim=-1) * mdp.action_values(logits)).sum(dim=-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3))
def test_with_exact_dynamics_and_every_token_looked_at_no_state_is_worth_less(
    seed: int, vocab: int, horizon: int
) -> None:
    """Policy improvement: E_pi' Q^pi >= E_pi Q^pi in every state, so the value of pi' is nowhere below that of pi."""
    mdp, logits = random_problem(seed, vocab, horizon)
    found = improve(mdp, logits, simulations=vocab, width=vocab, depth=1)
    assert bool(found.logprobs[:, -1].isneginf().all())  # nothing is left for the tail
    target = torch.full_like(logits, -torch.inf).scatter(1, found.ids[:, :-1], found.logprobs[:, :-1])
    assert bool((policy_value(mdp, target) >= policy_value(mdp, logits) - 1e-12).all())


def test_deeper_search_gains_more_in_the_mean() -> None:
    """In eight problems of three tokens in a row, by the value of the first state."""
    gains = []
    for seed in range(8):
        mdp, logits = random_problem(seed, 3, 3)
        prior = float(policy_value(mdp, logits)[0])
        values = []
        for simulations, depth in ((3, 1), (32, 3)):
            found = improve(mdp, logits, simulations, 3, depth)
            target = torch.full_like(logits, -torch.inf).scatter(1, found.ids[:, :-1], found.logprobs[:, :-1])
            values.append(float(policy_value(mdp, target)[0]) - prior)
        assert min(values) > 0
        gains.append(values)
    shallow, deep = torch.tensor(gains).mean(dim=0).tolist()
    assert deep > 1.1 * shallow


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_tokens_that_were_not_kept_keep_their_share_of_a_world_that_pays_all_the_same(scale: float) -> None:
    """Nothing pays more than anything else: the improved policy is the policy, however few tokens were looked at."""
    mdp, logits = random_problem(5, 4, 2)
    mdp = replace(mdp, rewards=torch.full_like(mdp.rewards, 0.25 * scale))
    found = improve(mdp, logits, simulations=2, width=2, depth=1)
    torch.testing.assert_close(found.logprobs, found.old_logprobs, atol=1e-12, rtol=0)
    assert float(found.advantages.abs().max()) < 1e-12


class EveryEpisode:
    """All episodes of a token MDP in one batch, in a world model that is wrong of rewards and values."""

    def __init__(self, eos: int | None, coef: float, width: int, wrong: bool, **options: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        number = 1 + 4 + 16
        self.mdp = TokenMDP(4, 3, torch.rand(number, 4, generator=generator).double(), eos)
        self.logits = torch.randn(number, 4, generator=generator).double().requires_grad_(True)
        other = replace(self.mdp, rewards=torch.rand(number, 4, generator=generator).double()) if wrong else self.mdp
        self.episodes = self.mdp.episodes()
        self.log_policy = self.logits.log_softmax(-1)[self.episodes.prefixes]
        self.weight = self.episodes.probability(self.logits).detach()
        # Each of four candidates once, or of two twice, whatever the noise: rows that share a prefix find the same.
        corrected = options.pop("corrected", True)
        search = SearchTargetConfig(coef, 4, 10**6, width, width, corrected, gated=False, gate_batches=2)
        config = ImaginationConfig(use="search", horizon=2, search=search)
        ppo = PPOConfig(gae_lambda=1.0, scale_advantages=False)
        world, acting = ExactWorldModel(other, self.logits.detach()), Acting(POLICY, (0.0, 3.0))
        within = WithinTurn(world, acting, -1 if eos is None else eos, config.horizon, ppo.gamma)
        self.estimator = SearchAdvantages(within, acting.return_range, config, ppo, generator)

    def taken(self) -> torch.Tensor:
        return self.log_policy.gather(2, self.episodes.actions[..., None])[..., 0]

    def plan(self, as_rollout: Callable[..., Rollout]) -> Any:
        rollout = as_rollout(self.episodes, self.taken().detach())
        values = torch.zeros(len(rollout), self.mdp.horizon + 1).double()
        stats = PolicyStats(values, rollout.logprobs)
        for _ in range(2):  # the gate waits
            plan, metrics = self.estimator.estimate(rollout, stats)
            assert plan.improved is None
            assert metrics["imagination/gate_open"] == 0
        return self.estimator.estimate(rollout, stats)[0]

    def gradient(self, plan: Any) -> torch.Tensor:
        """The gradient of the expected loss, its sign turned; the ratio is one."""
        ids, improved, weight = plan.improved
        live = torch.cat([self.log_policy, torch.full_like(self.log_policy[..., :1], -torch.inf)], dim=-1)
        probs = self.log_policy.exp()
        own = ids[..., :-1]
        rest = (1 - probs.gather(2, own).sum(dim=-1, keepdim=True)).clamp_min(1e-300).log()
        rest = torch.where(torch.isneginf(improved[..., -1:]), live[..., -1:], rest)
        kl = improved_kl_per_token(torch.cat([self.log_policy.gather(2, own), rest], dim=-1), improved)
        taken = self.taken()
        per_step = plan.advantages * (taken - taken.detach()).exp() - weight * kl
        total = (self.weight * torch.where(self.episodes.step_mask, per_step, 0.0).sum(dim=1)).sum()
        (gradient,) = torch.autograd.grad(total, self.logits)
        return gradient


@pytest.mark.parametrize("eos", [None, 2])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("coef", [0.3, 5.0])
def test_corrected_the_expected_gradient_is_the_policy_gradient(
    eos: int | None, width: int, wrong: bool, coef: float, rollout_of_episodes: Callable[..., Rollout]
) -> None:
    case = EveryEpisode(eos, coef, width, wrong)
    exact = case.mdp.policy_gradient(case.logits.detach())
    plan = case.plan(rollout_of_episodes)
    assert float((plan.improved_logprobs.exp().max(dim=-1).values).max()) > 0.3
    torch.testing.assert_close(case.gradient(plan), exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mutant", ["uncorrected", "of the next state", "half of it"])
def test_without_the_right_correction_it_is_not(mutant: str, rollout_of_episodes: Callable[..., Rollout]) -> None:
    case = EveryEpisode(None, 1.0, 4, True)
    exact = case.mdp.policy_gradient(case.logits.detach())
    plan = case.plan(rollout_of_episodes)
    plain = EveryEpisode(None, 1.0, 4, True, corrected=False).plan(rollout_of_episodes)
    correction = plain.advantages - plan.advantages
    assert float(correction.abs().max()) > 0.1
    share = {"uncorrected": 0.0 * correction, "of the next state": correction.roll(1, 1), "half of it": correction / 2}
    gradient = case.gradient(replace(plan, advantages=plain.advantages - share[mutant]))
    assert float((gradient - exact).abs().max()) > 0.01


def test_a_sample_of_states_stands_for_all_of_them(rollout_of_episodes: Callable[..., Rollout]) -> None:
    """Three states of the 192 of 64 episodes count 192 / 3 times the coefficient each, and no other state counts."""
    case = EveryEpisode(None, 0.5, 4, False)
    case.estimator._config = replace(case.estimator._config, num_states=3)
    weights = sorted(case.plan(rollout_of_episodes).improved_weight.flatten().tolist())
    assert len(weights) == 192
    assert weights[-4:] == pytest.approx([0.0, 32.0, 32.0, 32.0])


def test_kl_by_hand_and_places_without_probability() -> None:
    logprobs = torch.tensor([[[0.5, 0.5, 0.0]]]).double().log().requires_grad_(True)
    improved = torch.tensor([[[0.25, 0.75, 0.0]]]).double().log()
    found = improved_kl_per_token(logprobs, improved)
    assert found.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-12)
    found.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[[-0.25, -0.75, 0.0]]]


def trained(
    tiny_model: Callable[..., MTPModel],
    text_env: Callable[[int], TextVectorEnv],
    use: str,
    backend: str = "mtp",
    num_updates: int = 2,
    num_iterations: int = 4,
    **search: Any,
) -> tuple[ImaginationTrainer, list[dict[str, float]]]:
    trainer = ImaginationTrainer(
        tiny_model(),
        text_env(16),
        RolloutConfig(num_iterations=4, num_prompts=4, group_size=4),
        PPOConfig(learning_rate=3e-3),
        WorldModelConfig(num_updates=num_updates, batch_size_episodes=12, backend=backend),
        ImaginationConfig(use=use, horizon=2, search=SearchTargetConfig(**search)),
        seed=0,
    )
    return trainer, [trainer.step()[0] for _ in range(num_iterations)]


@pytest.mark.parametrize("search", [{"coef": 0.0}, {"num_simulations": 0}])
def test_where_nothing_is_searched_it_is_plain_ppo_to_the_bit(
    search: dict[str, Any], tiny_model: Callable[..., MTPModel], text_env: Callable[[int], TextVectorEnv]
) -> None:
    """All weights, the world heads' among them, which nobody trains, and every number but times."""
    off, plain = trained(tiny_model, text_env, "off")
    on, metrics = trained(tiny_model, text_env, "search", **search)
    for (name, one), other in zip(off.model.named_parameters(), on.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(plain, metrics, strict=True):
        assert {name: value for name, value in one.items() if not name.startswith("time/")} == {
            name: value for name, value in other.items() if not name.startswith("time/")
        }


def test_behind_a_shut_gate_the_policy_is_that_of_plain_ppo_to_the_bit(
    tiny_model: Callable[..., MTPModel], text_env: Callable[[int], TextVectorEnv]
) -> None:
    """The critic would learn beside the heads, so that these do not learn here."""
    off, _ = trained(tiny_model, text_env, "off")
    on, metrics = trained(tiny_model, text_env, "search", num_updates=0, gate_batches=100)
    for (name, one), other in zip(off.model.trunk.named_parameters(), on.model.trunk.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert all("imagination/search_skill" in one and "losses/search" not in one for one in metrics)


def test_behind_an_open_gate_the_policy_moves_and_the_run_goes_on_from_a_checkpoint(
    tiny_model: Callable[..., MTPModel], text_env: Callable[[int], TextVectorEnv]
) -> None:
    options = {"gated": False, "gate_batches": 2, "num_simulations": 8, "coef": 3.0}
    trainer, metrics = trained(tiny_model, text_env, "search", **options)
    assert [one["imagination/gate_open"] for one in metrics] == [0, 0, 1, 1]
    assert ["losses/search" in one for one in metrics] == [False, False, True, True]
    assert all(one["imagination/search_kl"] >= 0 for one in metrics)
    file = io.BytesIO()
    torch.save(trainer.state_dict(), file)
    file.seek(0)
    other, _ = trained(tiny_model, text_env, "search", num_iterations=0, **options)
    other.load_state_dict(torch.load(file, weights_only=False))
    one, two = trainer.step()[0], other.step()[0]
    assert {name for name in one if not name.startswith("time/") and one[name] != two[name]} == set()
    assert "losses/search" in two


class TestRefusals:
    def test_blind_heads(self, text_env: Callable[[int], TextVectorEnv], tiny_model: Callable[..., MTPModel]) -> None:
        with pytest.raises(TypeError, match="action-conditional"):
            trained(tiny_model, text_env, "search", backend="mtp_parallel")

    def test_a_horizon_beyond_the_heads(
        self, text_env: Callable[[int], TextVectorEnv], tiny_model: Callable[..., MTPModel]
    ) -> None:
        with pytest.raises(ValueError, match="horizon=2"):
            trained(lambda: tiny_model(depth=2), text_env, "search")

    @pytest.mark.parametrize(
        ("ppo", "message"),
        [
            (PPOConfig(bootstrap_truncated=True), r"set agent\.ppo\.bootstrap_truncated=false\.$"),
            (PPOConfig(gamma=0.0), r"set agent\.ppo\.gamma=1\.$"),
        ],
    )
    def test_returns_that_a_search_cannot_follow(self, ppo: PPOConfig, message: str) -> None:
        mdp, logits = random_problem(0, 2, 1)
        world, acting = ExactWorldModel(mdp, logits), Acting(POLICY, (0.0, 1.0))
        with pytest.raises(ValueError, match=message):
            SearchAdvantages(
                WithinTurn(world, acting, 0, 1, 1.0),
                (0.0, 1.0),
                ImaginationConfig(use="search"),
                ppo,
                torch.Generator(),
            )
        PPOConfig().check_searched()

    @pytest.mark.parametrize(
        "change",
        [
            *({"coef": -1.0}, {"coef": math.inf}, {"num_simulations": -1}, {"num_states": 0}),
            *({"width": 0}, {"num_considered": 0}, {"gate_batches": 1}),
        ],
    )
    def test_configs(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(change))):
            SearchTargetConfig(**change)
