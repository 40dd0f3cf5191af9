"""One pass of the trunk over the fresh batch serves all that is read of it, as passes of their own would."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from worldmtp import MTPConfig
from worldmtp.agents import trainer as trainer_module
from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.evaluation import Evaluator
from worldmtp.agents.imagination.imagined_returns import acted_states
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics import MTPWorldModel
from worldmtp.envs import TextGenVectorEnv
from worldmtp.model import MTPModel
from worldmtp.training.evaluation import Imagining, evaluate_run

MakeEnv = Callable[[int], TextGenVectorEnv]

# imagination.use, highest rung, back-end, heads
OFF = ("off", 2, "mtp", "sequential")
SURPRISALS = ("counterfactual", 0, "mtp", "sequential")
COUNTERFACTUAL = ("counterfactual", 2, "mtp", "sequential")
BASELINE = ("baseline", 2, "mtp", "sequential")
LATENT = ("latent", 2, "mtp", "sequential")
OTHERS = [
    ("counterfactual", 2, "mtp", "eagle"),
    ("counterfactual", 2, "mtp", "hydra"),
    ("counterfactual", 2, "identity", "sequential"),
    ("counterfactual", 2, "shuffled", "sequential"),
    ("baseline", 2, "mtp_parallel", "linear"),
]
ORACLE = ("baseline", 2, "oracle", "sequential")


def make_trainer(use: str, max_rung: int, backend: str, head: str, env: MakeEnv) -> ImaginationTrainer:
    """In float64; a PPO update has 2 epochs of 2 minibatches, a world model update 3 gradient steps."""
    config = LlamaConfig(
        vocab_size=7,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        dtype=torch.float64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        trunk = LlamaForCausalLM(config).double()
    heads = MTPConfig(head=head, depth=3, value_range=(0.0, 1.0), reward_range=(0.0, 1.0), num_value_bins=11)
    return ImaginationTrainer(
        MTPModel.from_trunk(trunk, heads, torch.Generator().manual_seed(0)).eval(),
        env(16),
        RolloutConfig(num_iterations=3, num_prompts=4, group_size=4),
        PPOConfig(learning_rate=1e-3, num_epochs=2, num_minibatches=2),
        WorldModelConfig(backend=backend, num_updates=3, batch_size_episodes=8),
        ImaginationConfig(use=use, horizon=2, num_rollouts=2, min_batches=1, max_live=3, max_rung=max_rung),
        seed=0,
    )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImaginationTrainer], list[Tensor]]:
    """What the trunk has read, text by text, since the last rollout was acted."""

    def listen(trainer: ImaginationTrainer) -> list[Tensor]:
        read: list[Tensor] = []
        trainer.model.base_model.register_forward_pre_hook(
            lambda module, args, inputs: read.append(inputs["input_ids"]), with_kwargs=True
        )
        collect = trainer_module.collect_rollout

        def act(*args: Any) -> Any:
            rollout = collect(*args)
            read.clear()
            return rollout

        monkeypatch.setattr(trainer_module, "collect_rollout", act)
        return read

    return listen


@pytest.mark.parametrize(
    ("case", "of_the_batch", "of_one_token"),
    [
        (OFF, 1, 0),  # the policy is read
        (SURPRISALS, 1, 0),  # and with the same pass: the root agreement, the sensitivity to actions
        (COUNTERFACTUAL, 1, 0),  # and what follows the live tokens
        (BASELINE, 1, 0),  # and what is expected of every state
        (LATENT, 1, 0),  # and the skill with which it tells tokens apart, while its gate is shut
        *((case, 1, 0) for case in OTHERS),
        (ORACLE, 2, 4),  # one that keeps keys and values; two steps from every state, two from the first ones
    ],
)
def test_an_iteration_reads_the_fresh_batch_once(
    case: tuple[str, int, str, str],
    of_the_batch: int,
    of_one_token: int,
    text_env: MakeEnv,
    passes: Callable[[ImaginationTrainer], list[Tensor]],
) -> None:
    """Then 2 x 2 minibatches of PPO read half of it, and 3 updates of the world model 8 episodes of the replay.

    The rows of both are 8, the batch has 16. The reference policy is a trunk of its own and reads the batch once.
    """
    trainer = make_trainer(*case, text_env)
    read = passes(trainer)
    reference: list[Tensor] = []
    assert trainer.reference is not None
    trainer.reference.base_model.register_forward_pre_hook(
        lambda module, args, inputs: reference.append(inputs["input_ids"]), with_kwargs=True
    )
    for _ in range(2):
        reference.clear()
        _, rollout = trainer.step()
        texts = [ids for ids in read if ids.shape[1] > 1]
        whole = [ids for ids in texts if len(ids) == 16]
        assert len(whole) == of_the_batch
        assert all(torch.equal(ids, rollout.input_ids) for ids in whole)
        assert len(read) - len(texts) == of_one_token
        assert [len(ids) for ids in texts if len(ids) != 16] == [8] * (4 if case == OFF else 4 + 3)
        assert len(reference) == 1


def test_at_the_default_settings_an_iteration_makes_ten_passes(
    text_env: MakeEnv, passes: Callable[[ImaginationTrainer], list[Tensor]]
) -> None:
    """One of the fresh batch, four of PPO, four of the world model, and the reference's."""
    trainer = make_trainer(*COUNTERFACTUAL, text_env)
    ppo, world = PPOConfig(), WorldModelConfig()
    trainer = ImaginationTrainer(
        trainer.model, text_env(16), RolloutConfig(1, 4, 4), ppo, world, ImaginationConfig(horizon=2), seed=0
    )
    read = passes(trainer)
    trainer.step()
    assert len(read) + 1 == 10


@pytest.mark.parametrize("case", [OFF, COUNTERFACTUAL, LATENT, ("baseline", 2, "identity", "sequential")])
def test_nothing_of_the_pass_is_left_when_weights_change(
    case: tuple[str, int, str, str], text_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hidden state of the trunk that acted can be read by the weights that follow it: there is none any more."""
    trainer = make_trainer(*case, text_env)
    hidden: list[weakref.ref[Tensor]] = []
    trainer.model.base_model.register_forward_hook(
        lambda module, args, output: hidden.append(weakref.ref(output.last_hidden_state))
    )
    update, alive = trainer.agent.update, []

    def look_then_update(*args: Any) -> Any:
        alive.append([kept().shape for kept in hidden if kept() is not None])
        return update(*args)

    monkeypatch.setattr(trainer.agent, "update", look_then_update)
    trainer.step()
    assert len(hidden) >= 1
    assert alive == [[]]


@pytest.mark.parametrize("case", [OFF, COUNTERFACTUAL, BASELINE, LATENT, ORACLE])
def test_the_shared_pass_is_the_passes_it_replaces(
    case: tuple[str, int, str, str], text_env: MakeEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two iterations beside a trainer whose every reader encodes the text by itself: exactly equal."""
    shared, alone = make_trainer(*case, text_env), make_trainer(*case, text_env)
    ours = [shared.step()[0] for _ in range(2)]

    stats, learner, estimator = trainer_module.policy_stats, alone._learner, alone._estimator
    sensitivity, estimate = learner.measure, estimator.estimate
    monkeypatch.setattr(trainer_module, "policy_stats", lambda *args: stats(*args[:5]))
    monkeypatch.setattr(trainer_module, "acted_states", lambda world, rollout, features: acted_states(world, rollout))
    monkeypatch.setattr(learner, "measure", lambda rollout, draws, _, now: sensitivity(rollout, draws, None, now))
    monkeypatch.setattr(estimator, "estimate", lambda rollout, stats, states: estimate(rollout, stats))
    read: list[Tensor] = []
    alone.model.base_model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"]), with_kwargs=True
    )
    theirs = [alone.step()[0] for _ in range(2)]
    assert len([ids for ids in read if len(ids) == 16 and ids.shape[1] > 1]) > 2  # they did encode it again

    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert name.startswith("time/") or one[name] == other[name], name
    for mine, other_weight in zip(shared.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(mine, other_weight)


def test_sampled_answers_are_read_once_when_they_are_judged(text_env: MakeEnv) -> None:
    """What all depths said of them and what is imagined in them are of one pass; acting fills a cache."""
    env, model = text_env(4), make_trainer(*COUNTERFACTUAL, text_env).model
    evaluator = Evaluator(env, env.examples("heldout", 4, seed=0), 1.0, seed=0)
    read: list[Tensor] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, inputs: None if inputs.get("use_cache") else read.append(inputs["input_ids"]),
        with_kwargs=True,
    )
    names, imagining = [str(token) for token in range(7)], Imagining(MTPWorldModel(model), 2, 2, seed=0)
    judged = evaluate_run(model, evaluator, evaluator.run(model), imagining, PPOConfig(), names)
    assert len(read) == 1
    assert torch.equal(read[0], judged.evaluation.sampled.input_ids)
