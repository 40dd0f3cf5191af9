"""What a run keeps of the answers of worlds: whose probabilities they are, and of which episodes."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import collect_rollout, episode_returns
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics.reply_answers import answer_logprobs
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.training.imagined_episodes import imagined_episodes

TOKENS = ["<pad>", "<eos>", *"abcd="]


class Doors:
    """The word "a" pays 1 and ends, anything else is answered with "=" and goes on, three turns."""

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._turn = 0
        return "ab"[seed % 2] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        won = text == "a"
        return "=a" if won else "=", float(won), won, self._turn == 3 and not won, {}


def doors_env(num_envs: int) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        task=WorldTask(Doors, {}, num_seeds=40),
        tokenizer=CharTokenizer("abcd="),
        max_prompt=2,
        max_new=9,
        max_turn=1,
        pool_size=8,
    )


def test_answers_are_judged_by_who_has_not_seen_them(tiny_model) -> None:
    """The newest by the member left out, held-out ones by the mean probability of both; counted among their own."""
    replies = ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=8)
    imagination = ImaginationConfig(
        use="episodes", episodes=EpisodesConfig(num_batches=1, batch_size=8, num_epochs=1, gated=False)
    )
    trainer = ImaginationTrainer(
        tiny_model(), doors_env(8), RolloutConfig(4, 8, 1), PPOConfig(kl_coef=0.0), WorldModelConfig(replies=replies),
        imagination, 0,
    )  # fmt: skip
    trainer.step(), trainer.step()
    episodes = trainer.episodes
    assert episodes is not None
    policy, generator = TrunkPolicy(trainer.model, 1.0), torch.Generator().manual_seed(3)
    held_out = collect_rollout(doors_env(6), policy, generator, {"split": "heldout", "group_size": 1})
    both = imagined_episodes(episodes, held_out, TOKENS, seed=0)
    assert both is not None
    found = both.turns

    model, turns, numbers = episodes.newest(1000)
    given = answer_logprobs(model, turns)
    for row, number in enumerate(numbers.tolist()):
        expected = (given.reply + given.end)[number % 2, row]
        assert found.newest.logprob[row] == pytest.approx(expected.numpy(), nan_ok=True)
    assert found.newest.group.tolist() == numbers.tolist()
    # A win is answered by "=a", which fills the room for replies, anything else by "=" and its end.
    assert found.num_tokens.tolist() == (2 * turns.mask).tolist()
    assert found.entropy[turns.mask.numpy()].min() >= 0
    counts = Counter(first_turns(turns)).values()
    assert found.newest.asked[:, 0].max() < max(counts), "counted in its own fold alone"

    probes, there = found.probes, turns.mask.numpy()
    earlier, later = turns.replies.clone(), turns.replies.clone()
    earlier[:, 1:], later[:, :-1] = turns.replies[:, :-1], turns.replies[:, 1:]
    for name, replies, edge in (("before", earlier, 0), ("after", later, -1)):
        found_there = np.isfinite(getattr(probes, name))
        unlike = (replies != turns.replies).any(dim=2) & turns.mask
        if name == "after":
            unlike[:, :-1] &= turns.mask[:, 1:]
        assert (found_there == unlike.numpy()).all()
        assert not found_there[:, edge].any()
        expected = answer_logprobs(model, turns, replies).reply[numbers % 2, torch.arange(len(turns))]
        assert getattr(probes, name)[found_there] == pytest.approx(expected[unlike].numpy())
    assert probes.own[there] == pytest.approx(given.reply[numbers % 2, torch.arange(len(turns))][turns.mask].numpy())
    assert probes.open_loop[:, 0] == pytest.approx(probes.own[:, 0])

    heldout, imaginable = episodes.imaginable(held_out)
    given = answer_logprobs(model, heldout)
    for row, number in torch.nonzero(heldout.mask).tolist():
        probs = (given.reply + given.end).exp()[:, row, number]
        assert found.members[row, number] == pytest.approx(probs.log().numpy())
        assert found.heldout.logprob[row, number] == pytest.approx(math.log(float(probs.mean())))
    assert imaginable.all()
    assert found.real_returns.tolist() == episode_returns(held_out).tolist()
    assert found.heldout.asked[:, 0].sum() >= len(heldout)


def first_turns(turns) -> list[tuple[int, int]]:
    return [(int(turns.opening[row, 0]), int(turns.said[row, 0, 0])) for row in range(len(turns))]
