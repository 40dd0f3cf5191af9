"""After the first reward: what is hardly known is paid nearly the best return, and no promise is made of that."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.imagination.episodes import EpisodeImagination
from worldmtp.agents.rollout import episode_returns
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.turns import NOTHING, Turns
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask

REPLIES = ReplyModelConfig(
    num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=2, first_num_updates=2, context="turn"
)
A, B, C = 2, 3, 4


class Purse:
    """Pays a coin for the letter of its opening, and ends with the first turn."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self.letter = "ab"[seed % 2]
        return self.letter + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "=", float(text == self.letter), True, False, {}


def make_trainer(tiny_model: Any, **fields: Any) -> ImaginationTrainer:
    env = TextGenVectorEnv(
        8,
        task=WorldTask(Purse, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=2,
        max_new=3,
        max_turn=1,
        pool_size=8,
    )
    fields = {"batch_size": 6, "exploring_batch_size": 4, "num_batches": 2, "gated": False} | fields
    imagination = ImaginationConfig(use="episodes", episodes=EpisodesConfig(num_epochs=1, **fields))
    ppo, model = PPOConfig(learning_rate=1e-3, kl_coef=0.0), WorldModelConfig(replies=REPLIES)
    return ImaginationTrainer(tiny_model(), env, RolloutConfig(4, 4, 2), ppo, model, imagination, 0)


def episodes_of(trainer: ImaginationTrainer) -> EpisodeImagination:
    assert isinstance(trainer.episodes, EpisodeImagination)
    return trainer.episodes


def seen_returns(trainer: ImaginationTrainer, lowest: float, highest: float) -> EpisodeImagination:
    episodes = episodes_of(trainer)
    episodes.heard.seen.lowest, episodes.heard.seen.highest = lowest, highest
    return episodes


def conversations(said: list[int]) -> Turns:
    """One turn each after the opening "b", with a reply to the first that no other has; NOTHING: there was none."""
    words = torch.tensor(said)[:, None, None]
    number = len(said)
    return Turns(
        opening=torch.full((number, 1), B),
        said=words,
        replies=torch.tensor([C, *[B] * (number - 1)])[:, None, None],
        rewards=torch.zeros(number, 1),
        ended=torch.ones(number, 1, dtype=torch.bool),
        mask=words[:, :, 0] != NOTHING,
    )


def test_by_hand(tiny_model: Any) -> None:
    """Of five turns three said "a" and two "c"; three quarters of the way from -1 to 3 is 2."""
    episodes = seen_returns(make_trainer(tiny_model), -1.0, 3.0)
    novelty = episodes._exploration.optimism(conversations([A, A, C, A, C, NOTHING]), "turn")
    assert novelty is not None
    assert novelty.bonus == pytest.approx(2.0)
    assert novelty.tried == {(B, NOTHING, A, NOTHING)}
    assert not novelty.pays_unheard
    assert not novelty.history
    assert novelty.threshold == EpisodesConfig().novelty_threshold
    once = seen_returns(make_trainer(tiny_model, known_after_tries=2), -1.0, 3.0)
    again = once._exploration.optimism(conversations([A, A, C, A, C, NOTHING]), "history")
    assert again is not None
    assert again.tried == {(B, NOTHING, A, NOTHING), (B, NOTHING, C, NOTHING)}
    assert again.history


def test_in_a_world_without_chance_once_is_enough(tiny_model: Any) -> None:
    """Thrice "a" was said with one reply and one reward; another reward shows chance as another reply does."""
    episodes = seen_returns(make_trainer(tiny_model), -1.0, 3.0)
    sure = conversations([C, A, A, A, NOTHING])
    lucky = replace(sure, rewards=torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.0]]))
    for turns, tried in ((sure, {C, A}), (lucky, {A}), (conversations([A, A, A, C]), {A})):
        novelty = episodes._exploration.optimism(turns, "turn")
        assert novelty is not None
        assert novelty.tried == {(B, NOTHING, said, NOTHING) for said in tried}


@pytest.mark.parametrize("fields", [{"known_after_tries": 0}, {"optimism": 0.0}])
def test_off(fields: dict[str, float], tiny_model: Any) -> None:
    episodes = seen_returns(make_trainer(tiny_model, **fields), 0.0, 1.0)
    assert episodes._exploration.optimism(conversations([A]), "turn") is None


def test_before_returns_have_differed_there_is_none(tiny_model: Any) -> None:
    episodes = seen_returns(make_trainer(tiny_model), 1.0, 1.0)
    assert episodes._exploration.optimism(conversations([A]), "turn") is None


def test_the_promise_is_of_a_batch_that_is_paid_for_nothing_but_rewards(tiny_model: Any) -> None:
    """Two batches that are paid, with half of their episodes unknown, then one that is not, and is not trained on."""
    trainer = make_trainer(tiny_model)
    episodes, imagine, update = episodes_of(trainer), episodes_of(trainer)._imagine, episodes_of(trainer)._update
    calls, sizes, trained, returns = list[bool](), list[int](), list[int](), list[float]()

    def spied(totals: dict[str, float], novelty: Any = None, **rest: Any) -> Any:
        imagined, doubt, _ = imagine(totals, novelty, **rest)
        calls.append(novelty is not None)
        sizes.append(len(imagined))
        imagined.rewards[:, 0] = torch.linspace(0.1, 0.1 + 0.1 * len(calls), len(imagined))
        returns.append(float(episode_returns(imagined).mean()))
        return imagined, doubt, 0.5 * (novelty is not None)

    episodes._imagine = spied  # type: ignore[method-assign]
    episodes._update = lambda *a, **k: trained.append(len(calls)) or update(*a, **k)  # type: ignore[method-assign,func-returns-value]
    for _ in range(6):
        metrics = trainer.step()[0]
        if metrics["imagination/explores"] == 0:
            break
        calls, sizes, trained, returns = [], [], [], []
    assert calls == [True, True, False]
    assert sizes == [6, 6, 6]
    assert trained == [1, 2]
    assert metrics["imagination/return_promised"] == pytest.approx(returns[2])
    assert metrics["imagination/unknown_fraction"] == 0.5
    assert episodes._promised == pytest.approx(returns[2])


def test_where_nothing_was_unknown_the_last_batch_promises(tiny_model: Any) -> None:
    trainer = make_trainer(tiny_model)
    episodes, imagine = episodes_of(trainer), episodes_of(trainer)._imagine
    calls = list[bool]()

    def spied(totals: dict[str, float], novelty: Any = None, **rest: Any) -> Any:
        calls.append(novelty is not None)
        return *imagine(totals, novelty, **rest)[:2], 0.0

    episodes._imagine = spied  # type: ignore[method-assign]
    for _ in range(6):
        calls.clear()
        if trainer.step()[0]["imagination/explores"] == 0:
            break
    assert calls == [True, True]


def test_a_share_beyond_the_range_is_refused() -> None:
    for share in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]: it is a share of the range of returns"):
            EpisodesConfig(optimism=share)
    with pytest.raises(ValueError, match="known_after_tries=-1 must be at least 0"):
        EpisodesConfig(known_after_tries=-1)
