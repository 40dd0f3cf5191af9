"""Weights that PPO and the world model train are float32; what is computed in bfloat16 is reduced in float32."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldmtp.agents.advantages import PlainAdvantages
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.policies import TrunkPolicy, sample_step
from worldmtp.agents.ppo import PolicyStats, PPOAgent, policy_stats
from worldmtp.agents.rollout import Rollout, collect_rollout
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.agents.world_learning import WorldModelLearner
from worldmtp.dynamics import acting_policy
from worldmtp.dynamics.latent import read_latent
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.model.precision import computing_in

MakeEnv = Callable[[int], TextGenVectorEnv]
MakeModel = Callable[..., MTPModel]
CPU = torch.device("cpu")


def collected(model: MTPModel, text_env: MakeEnv) -> Rollout:
    env = text_env(16)
    env.reset(seed=5)
    return collect_rollout(env, TrunkPolicy(model, 1.0), torch.Generator().manual_seed(0), {"split": "train"})


def test_trained_weights_in_bfloat16_are_refused(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model = tiny_model()
    torch.nn.Module.to(model, torch.bfloat16)
    message = r"is to train \d+ tensors of weights kept in bfloat16.*Call model\.float\(\) first"
    with pytest.raises(ValueError, match=f"PPOAgent {message}"):
        PPOAgent(model, PPOConfig(), 1.0)
    with pytest.raises(ValueError, match=f"WorldModelLearner {message}"):
        WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    with pytest.raises(ValueError, match=f"PPOAgent {message}"):
        ImaginationTrainer(
            model, text_env(4), RolloutConfig(1, 2, 2), PPOConfig(), WorldModelConfig(), ImaginationConfig(use="off"), 0
        )
    torch.nn.Module.to(model, torch.float64)
    PPOAgent(model, PPOConfig(), 1.0)
    WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    model.trunk.to(torch.bfloat16).requires_grad_(False)  # weights that nobody trains may be kept in anything
    PPOAgent(model, PPOConfig(), 1.0)


def moved_share(model: MTPModel, compute_dtype: str, text_env: MakeEnv) -> float:
    """Share of the layers' weights that twenty steps of 1e-5 change."""
    before = [weight.clone() for weight in model.trunk.model.layers.parameters()]
    with computing_in(compute_dtype, CPU):
        rollout = collected(model, text_env)
        # A policy that knows nothing may earn nothing: every other row is paid, so that there is something to learn.
        paid = (torch.arange(16)[:, None] % 2) * rollout.step_mask * 0.25
        rollout = replace(rollout, rewards=paid)
        stats = policy_stats(model, None, rollout, 1.0)
        plan, _ = PlainAdvantages(PPOConfig()).estimate(rollout, stats)
        config = PPOConfig(learning_rate=1e-5, num_epochs=20, num_minibatches=1, anneals_learning_rate=False)
        PPOAgent(model, config, 1.0).update(rollout, stats, plan, torch.Generator().manual_seed(0))
    after = model.trunk.model.layers.parameters()
    return float(torch.cat([(a != b).flatten() for a, b in zip(after, before, strict=True)]).float().mean())


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_small_steps_move_the_weights_of_a_bfloat16_checkpoint(
    compute_dtype: str, text_env: MakeEnv, tiny_model: MakeModel
) -> None:
    model = tiny_model()
    torch.nn.Module.to(model, torch.bfloat16)
    assert moved_share(model.float(), compute_dtype, text_env) > 0.99


def test_kept_in_bfloat16_most_would_stand_still(
    text_env: MakeEnv, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why they are refused."""
    monkeypatch.setattr("worldmtp.agents.ppo.check_trained_weights", lambda owner, parameters: None)
    model = tiny_model()
    torch.nn.Module.to(model, torch.bfloat16)
    assert moved_share(model, "float32", text_env) < 0.5


def test_a_step_inside_the_context_is_seen_by_the_next_product() -> None:
    """Autocast's own cache would hand out the old weight until the context is left."""
    layer = torch.nn.Linear(4, 4, bias=False)
    ones = torch.ones(1, 4)
    with computing_in("bfloat16", CPU):
        layer(ones).sum().backward()
        with torch.no_grad():
            layer.weight.fill_(2.0)
        assert layer(ones).tolist() == [[8.0] * 4]
        assert layer(ones).dtype == torch.bfloat16
    with computing_in("float32", CPU):
        assert layer(ones).dtype == torch.float32
    with pytest.raises(ValueError, match=r"compute_dtype='bfloat61' is unknown; did you mean 'bfloat16'"):
        computing_in("bfloat61", CPU)


@pytest.mark.parametrize("draft", ["none", "mtp"])
def test_acting_and_updating_agree_in_bfloat16(draft: str, text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Log-probabilities of a cached and of a full pass differ by roundings of 2^-8 of logits of size 1 or less.

    The log-probabilities themselves are not rounded: they differ from those in float32 by as little.
    """
    model = tiny_model()
    env = text_env(16)
    env.reset(seed=0)
    with computing_in("bfloat16", CPU):
        policy = TrunkPolicy(model, 1.0, draft=draft)
        rollout = collect_rollout(env, policy, torch.Generator().manual_seed(0), {"split": "train"})
        stats = policy_stats(model, None, rollout, 1.0, num_likely=7)
    mask, log_policy = rollout.step_mask, whole_policy(stats)
    assert rollout.logprobs.dtype == log_policy.dtype == stats.values.dtype == torch.float32
    read = log_policy.gather(2, rollout.actions[..., None])[..., 0][mask]
    torch.testing.assert_close(read, rollout.logprobs[mask], atol=0.01, rtol=0)
    torch.testing.assert_close(log_policy.exp().sum(-1), torch.ones(mask.shape), atol=1e-5, rtol=0)
    precise = whole_policy(policy_stats(model, None, rollout, 1.0, num_likely=7))
    precise = precise.gather(2, rollout.actions[..., None])[..., 0][mask]
    assert 0 < float((precise - read).abs().max()) < 0.01


def whole_policy(stats: PolicyStats) -> torch.Tensor:
    """The log-probabilities of all seven tokens, in their order."""
    assert stats.likely is not None
    return torch.empty_like(stats.likely.logprobs).scatter(2, stats.likely.ids, stats.likely.logprobs)


def by_hand(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax in float64."""
    precise = logits.double()
    return precise - precise.exp().sum(-1, keepdim=True).log()


def test_log_probabilities_of_bfloat16_logits_are_float32() -> None:
    logits = torch.linspace(-3, 3, 50, dtype=torch.bfloat16)[None]
    expected = by_hand(logits / 0.5)
    acted = sample_step(logits, 0.5, None)
    assert float(acted.logprobs) == pytest.approx(float(expected.max()), abs=1e-5)
    torch.testing.assert_close(acting_policy(0.5)(logits).double(), expected, atol=1e-5, rtol=0)
    assert acting_policy(1.0)(logits.double()).dtype == torch.float64


def test_what_a_bfloat16_model_says_is_read_in_float32(
    text_env: MakeEnv, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PPO's entropy and KL, the reading's log-probabilities and the continuation, worked out from the logits."""
    model = tiny_model()
    with torch.no_grad():
        for weight in [model.get_output_embeddings().weight, *model.world_heads.parameters()]:
            weight.add_(0.04 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    rollout = collected(model, text_env)
    mask = rollout.step_mask
    seen: list[torch.Tensor] = []
    plain = MTPModel.logits_of

    def halved(self: MTPModel, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(plain(self, *args, **kwargs).bfloat16())
        return seen[-1]

    monkeypatch.setattr(MTPModel, "logits_of", halved)
    stats = policy_stats(model, None, rollout, 0.7, num_likely=7)
    expected = by_hand(seen[-1].double() / 0.7)
    torch.testing.assert_close(whole_policy(stats).double(), expected, atol=1e-5, rtol=0)

    plan, _ = PlainAdvantages(PPOConfig()).estimate(rollout, stats)
    agent = PPOAgent(model, PPOConfig(), 0.7)
    _, terms = agent._loss(rollout, stats.ref_logprobs, plan, rollout, has_tail=False)
    terms = {name: term.detach() for name, term in terms.items()}
    expected = by_hand(seen[-1].detach().double() / 0.7)
    entropy = -(expected.exp() * expected).sum(-1)[mask].mean()
    assert 0.5 < float(entropy) < 1.9  # of at most log 7: neither certain nor uniform
    assert float(terms["losses/entropy"]) == pytest.approx(float(entropy), abs=1e-5)
    taken = expected.gather(2, rollout.actions[..., None])[..., 0]
    difference = (stats.ref_logprobs.double() - taken)[mask]
    penalty = (difference.exp() - difference - 1).mean()
    assert float(terms["losses/kl_reference"]) == pytest.approx(float(penalty), rel=1e-4, abs=1e-6)

    with computing_in("bfloat16", CPU):
        latent = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
        logits = model.world_heads(latent).continuation_logits
        assert logits.dtype == torch.bfloat16
        read = read_latent(model, latent, False).continuation
        torch.testing.assert_close(read.double(), by_hand(logits).exp()[:, 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(model.world_heads(latent).continuation_probs, read)


@pytest.mark.parametrize("use", ["off", "counterfactual", "baseline"])
@pytest.mark.parametrize("backend", ["mtp", "oracle"])
def test_an_iteration_in_bfloat16(use: str, backend: str, text_env: MakeEnv, tiny_model: MakeModel) -> None:
    """Close to the one in float32, with float32 weights and finite metrics of every kind."""
    rollout = RolloutConfig(num_iterations=2, num_prompts=4, group_size=4)
    imagination = ImaginationConfig(use=use, horizon=2, num_rollouts=2, min_batches=1, max_live=3)
    world = WorldModelConfig(backend=backend, num_updates=2, batch_size_episodes=8)
    losses = []
    for compute_dtype in ("float32", "bfloat16"):
        model = tiny_model()
        trainer = ImaginationTrainer(model, text_env(16), rollout, PPOConfig(), world, imagination, 0)
        with computing_in(compute_dtype, CPU):
            metrics, _ = trainer.step()
            metrics, _ = trainer.step()
        losses.append(metrics["losses/entropy"])
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert (use == "off") == ("world_model/loss" not in metrics)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_the_next_token_loss_of_bfloat16_logits_is_summed_in_float32(text_env: MakeEnv, tiny_model: MakeModel) -> None:
    model = tiny_model()
    rollout = collected(model, text_env)
    learner = WorldModelLearner(model, WorldModelConfig(), PPOConfig(), temperature=1.0)
    with computing_in("bfloat16", CPU):
        loss, metrics = learner.losses(rollout)
    precise, expected = learner.losses(rollout)
    assert loss.dtype == precise.dtype == torch.float32
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=5e-3), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_critics_compute_in_the_precision_of_the_model(
    dtype: torch.dtype, text_env: MakeEnv, tiny_model: MakeModel
) -> None:
    """In float64 they were float32, so that a run in float64 was known to seven digits only."""
    model = tiny_model()
    torch.nn.Module.to(model, dtype)
    rollout, imagination = RolloutConfig(1, 4, 4), ImaginationConfig(horizon=2)
    trainer = ImaginationTrainer(model, text_env(16), rollout, PPOConfig(), WorldModelConfig(), imagination, 0)
    trainer.step()
    rungs = trainer.state_dict()["estimator"]["rungs"]
    assert len(rungs) == 3
    for rung in rungs:
        kept = [*rung["critic"].values(), *(tensor for batch in rung["replay"] for tensor in batch)]
        assert {tensor.dtype for tensor in kept} == {dtype}
