"""``imagination=episodes`` in the trainer: when it trains, what it leaves alone, and that it goes on after a stop."""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.text_env import TextVectorWrapper
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.action_mask import VectorActionMask
from worldmtp.model import MTPModel

MakeModel = Callable[..., MTPModel]
ROLLOUT, PPO = RolloutConfig(4, 8, 1), PPOConfig(learning_rate=1e-2, kl_coef=0.0, gamma=0.9)
REPLIES = ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=8)


class Doors:
    """Two doors: "a" pays what ``pays`` says and ends, anything else is answered with "=" and goes on, three turns."""

    def __init__(self, pays: float = 1.0) -> None:
        self._pays = pays

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._turn = 0
        return "ab"[seed % 2] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        won = text == "a"
        return "=a" if won else "=", self._pays * won, won, self._turn == 3 and not won, {}


def doors_env(num_envs: int, pays: float = 1.0, max_turn: int | None = 1) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        task=WorldTask(Doors, {"pays": pays}, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=2,
        max_new=9,
        max_turn=max_turn,
        pool_size=8,
    )


def make_trainer(
    model: MTPModel, pays: float = 1.0, backend: str = "mtp", use: str = "episodes", **fields: Any
) -> ImaginationTrainer:
    least = {"num_batches": 2, "batch_size": 8, "exploring_batch_size": 8, "num_epochs": 1, "exploring_prompts": 8}
    least |= {"gated": False}
    episodes = EpisodesConfig(**least | fields)
    world_model = WorldModelConfig(backend=backend, replies=REPLIES)
    imagination = ImaginationConfig(use=use, episodes=episodes)
    return ImaginationTrainer(
        model, doors_env(8, pays), ROLLOUT, PPO, world_model, imagination, 0, lambda rows: doors_env(rows, pays)
    )


def weights(model: MTPModel) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.parametrize("backend", ["mtp", "oracle", "shuffled", "identity"])
def test_it_imagines_batches_and_trains_on_them(backend: str, tiny_model: MakeModel) -> None:
    trainer = make_trainer(tiny_model(), backend=backend)
    metrics, rollout = trainer.step()
    assert metrics["imagination/batches_trained"] == 2
    assert metrics["imagination/imagined_turns"] == metrics["imagination/imagined_tokens"], "a turn is one token here"
    assert 16 <= metrics["imagination/imagined_turns"] <= 48, "two batches of eight episodes of one to three turns"
    assert len(rollout) == 8
    again, _ = trainer.step()
    assert again["imagination/return_imagined"] == metrics["imagination/return_promised"]
    assert again["imagination/return_realized"] == pytest.approx(again["rollout/return_mean"])


def test_without_imagined_batches_it_is_plain_ppo_to_the_bit(tiny_model: MakeModel) -> None:
    """No batch is trained on, so that weights after two iterations are those of ``off``."""
    found = []
    for use in ("off", "episodes"):
        model = tiny_model()
        trainer = make_trainer(model, use=use, num_batches=0, waits_for_reward=False)
        trainer.step(), trainer.step()
        found.append(weights(model))
    assert torch.equal(*found)


def test_nothing_is_learnt_from_equal_returns_but_to_explore(tiny_model: MakeModel) -> None:
    """A world that never pays: PPO waits, and only novelty is trained on; without its bonus, nothing at all is."""
    model = tiny_model()
    trainer = make_trainer(model, pays=0.0, novelty_bonus=0.0)
    before = weights(model)
    metrics, _ = trainer.step()
    assert torch.equal(weights(model), before)
    assert (metrics["imagination/explores"], metrics["imagination/batches_trained"]) == (0.0, 0.0)
    explorer = make_trainer(model, pays=0.0)
    metrics, _ = explorer.step()
    assert (metrics["imagination/explores"], metrics["imagination/batches_trained"]) == (1.0, 2.0)
    assert "losses/policy" not in metrics, "the real batch was not trained on"
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize(
    "shut",
    [{"max_disagreement": 0.0}, {"min_action_ratio": 1e6}, {"num_batches": 0}],
    ids=lambda shut: next(iter(shut)),
)
def test_behind_a_shut_gate_one_batch_is_imagined_and_none_trained_on(
    shut: dict[str, float], tiny_model: MakeModel
) -> None:
    """The gap to the next real batch is measured all the same."""
    trainer = make_trainer(tiny_model(), gated=True, **({"min_action_ratio": 0.0, "max_disagreement": 1.0} | shut))
    metrics, _ = trainer.step()
    assert metrics["imagination/batches_trained"] == 0
    assert metrics["imagination/imagined_turns"] > 0
    again, _ = trainer.step()
    promised, came = again["imagination/return_imagined"], again["imagination/return_realized"]
    assert promised != came
    assert again["imagination/optimism_gap"] == pytest.approx(promised - came)  # the first one: the mean of itself


def test_an_open_gate_lets_batches_through(tiny_model: MakeModel) -> None:
    trainer = make_trainer(tiny_model(), gated=True, min_action_ratio=0.0, max_disagreement=1.0)
    assert trainer.step()[0]["imagination/batches_trained"] == 2


@pytest.mark.parametrize("backend", ["mtp", "oracle"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(backend: str, tiny_model: MakeModel) -> None:
    model = tiny_model()
    trainer = make_trainer(model, backend=backend)
    trainer.step()
    saved = trainer.state_dict()
    saved["model"] = {name: value.clone() for name, value in saved["model"].items()}
    saved = torch.load(_saved(saved), weights_only=False)
    expected, _ = trainer.step()
    other_model = tiny_model(seed=5)
    other = make_trainer(other_model, backend=backend)
    other.load_state_dict(saved)
    found, _ = other.step()
    timed = {name for name in expected if name.startswith("time/")}
    assert {name: found[name] for name in found.keys() - timed} == {
        name: expected[name] for name in expected.keys() - timed
    }
    assert torch.equal(weights(other_model), weights(model))


def _saved(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


class NeverEnds(VectorActionMask):
    """EOS is forbidden for as long as ``holds`` says so: without ``max_turn`` no turn comes to its end."""

    holds = True

    def __init__(self, env: TextGenVectorEnv) -> None:
        super().__init__(env, self._all_but_eos)

    def _all_but_eos(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        mask = np.ones((len(obs["length"]), self.tokenizer.vocab_size), dtype=bool)
        mask[:, self.tokenizer.eos_id] = not self.holds
        return mask


def test_before_a_turn_has_come_to_its_end_nothing_is_imagined(tiny_model: MakeModel) -> None:
    env = NeverEnds(doors_env(8, max_turn=None))
    episodes = EpisodesConfig(
        num_batches=2, batch_size=8, exploring_batch_size=8, num_epochs=1, gated=False, waits_for_reward=False
    )
    imagination = ImaginationConfig(use="episodes", episodes=episodes)
    trainer = ImaginationTrainer(tiny_model(), env, ROLLOUT, PPO, WorldModelConfig(replies=REPLIES), imagination, 0)
    metrics, rollout = trainer.step()
    assert not (rollout.actions[rollout.step_mask] == env.tokenizer.eos_id).any()
    assert "imagination/batches_trained" not in metrics
    assert metrics["imagination/imagined_tokens"] == 0
    env.holds = False
    metrics, _ = trainer.step()
    assert metrics["imagination/batches_trained"] == 2
    assert math.isfinite(metrics["world_model/reply_nats"])


def test_where_nobody_replies_it_is_refused(text_env: Callable[[int], TextGenVectorEnv], tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="nobody replies in this environment"):
        ImaginationTrainer(
            tiny_model(), text_env(8), ROLLOUT, PPO, WorldModelConfig(), ImaginationConfig(use="episodes"), 0
        )


def test_a_reply_without_room_is_told(tiny_model: MakeModel) -> None:
    trainer = ImaginationTrainer(
        tiny_model(),
        doors_env(8),
        ROLLOUT,
        PPO,
        WorldModelConfig(replies=replace(REPLIES, max_reply=1)),
        ImaginationConfig(use="episodes"),
        0,
    )
    with pytest.raises(ValueError, match=r"raise world_model\.replies\.max_reply"):
        list(iter(trainer.step, None))  # as soon as a door is opened


def test_imagined_replies_are_not_taught_as_observed(tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"observation_coef=0\.1 with imagination=episodes: most replies are imagined"):
        ImaginationTrainer(
            tiny_model(),
            doors_env(8),
            ROLLOUT,
            replace(PPO, observation_coef=0.1),
            WorldModelConfig(),
            ImaginationConfig(use="episodes"),
            0,
        )


def test_the_oracle_needs_a_world(tiny_model: MakeModel) -> None:
    oracle, imagination = WorldModelConfig(backend="oracle"), ImaginationConfig(use="episodes")
    with pytest.raises(ValueError, match="give make_real"):
        ImaginationTrainer(tiny_model(), doors_env(8), ROLLOUT, PPO, oracle, imagination, 0)


def test_a_back_end_that_this_use_does_not_know_is_refused(tiny_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=r"world_model\.backend with imagination=episodes"):
        make_trainer(tiny_model(), backend="mtp_parallel")


class OwnMask(TextVectorWrapper):
    """A mask by other means than ``VectorActionMask``: "a" and "b" alone."""

    at_start = True

    def reset(self, **kwargs: Any) -> Any:
        obs, infos = super().reset(**kwargs)
        return obs, infos | (self._mask() if self.at_start else {})

    def step(self, actions: np.ndarray) -> Any:
        *outcome, infos = super().step(actions)
        return *outcome, infos | self._mask()

    def _mask(self) -> dict[str, np.ndarray]:
        mask = np.zeros((self.num_envs, self.tokenizer.vocab_size), dtype=np.int8)
        mask[:, self.tokenizer.encode("ab")] = 1
        return {"action_mask": mask}


def test_a_mask_that_cannot_be_put_around_imagined_rows_is_told(tiny_model: MakeModel) -> None:
    """Without the error the policy would learn in imagination from words that it may not say."""
    episodes = EpisodesConfig(
        num_batches=2, batch_size=8, exploring_batch_size=8, num_epochs=1, gated=False, waits_for_reward=False
    )
    imagination = ImaginationConfig(use="episodes", episodes=episodes)
    world_model, env = WorldModelConfig(replies=REPLIES), OwnMask(doors_env(8))
    with pytest.raises(ValueError, match=r"puts no wrapper but action_mask .*; set imagination=off\.$"):
        ImaginationTrainer(tiny_model(), env, ROLLOUT, PPO, world_model, imagination, 0)
    env.at_start = False  # the first token may be any, and later ones not: seen when it has happened
    trainer = ImaginationTrainer(tiny_model(), env, ROLLOUT, PPO, world_model, imagination, 0)
    with pytest.raises(ValueError, match="masks actions and imagined rows do not"):
        trainer.step()


@pytest.mark.parametrize(("kl_coef", "is_leashed"), [(1.0, True), (0.0, False)])
def test_imagined_updates_are_leashed_to_the_reference_as_real_ones_are(
    kl_coef: float, is_leashed: bool, tiny_model: MakeModel
) -> None:
    """In a world that never pays only imagined batches are trained on: so another reference shows in those alone."""
    found = []
    for shift in (0.0, 0.5):
        model = tiny_model()
        episodes = EpisodesConfig(num_batches=1, batch_size=8, exploring_batch_size=8, num_epochs=1, gated=False)
        trainer = ImaginationTrainer(
            model,
            doors_env(8, pays=0.0),
            ROLLOUT,
            replace(PPO, kl_coef=kl_coef),
            WorldModelConfig(replies=REPLIES),
            ImaginationConfig(use="episodes", episodes=episodes),
            0,
        )
        assert trainer.reference is not None
        with torch.no_grad():
            trainer.reference.get_input_embeddings().weight[3] += shift
        assert trainer.step()[0]["imagination/batches_trained"] == 1
        found.append(weights(model))
    assert torch.equal(*found) != is_leashed
