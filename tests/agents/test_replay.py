"""The replay of real episodes."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch

from worldmtp.agents.rollout import Rollout
from worldmtp.agents.world_learning import EpisodeReplay

MakeRollout = Callable[..., Rollout]


def numbered(make: MakeRollout, *groups: int) -> Rollout:
    """Rollouts whose episodes are told apart by their group and their only action."""
    rows = [{"prompt": [2], "actions": [g % 5 + 2], "rewards": [g], "end": "terminated", "group": g} for g in groups]
    return make(rows, steps=1, length=2)


def test_draws_are_uniform_over_episodes_not_over_rollouts(hand_rollout: MakeRollout) -> None:
    replay = EpisodeReplay(2)
    replay.add(numbered(hand_rollout, 0))
    replay.add(numbered(hand_rollout, 1, 2, 3))
    assert len(replay) == 4
    counts = replay.sample(4000, torch.Generator().manual_seed(0)).group.bincount()
    # Each expects 1000 with a standard deviation of 27: six of them, false alarm below 1e-8.
    assert bool(((counts - 1000).abs() < 164).all())
    assert len(counts) == 4


def test_an_episode_is_drawn_whole(hand_rollout: MakeRollout) -> None:
    replay = EpisodeReplay(3)
    for groups in ((0, 1), (2, 3), (4,)):
        replay.add(numbered(hand_rollout, *groups))
    drawn = replay.sample(64, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.rewards[:, 0], drawn.group.float())
    assert torch.equal(drawn.actions[:, 0], drawn.group % 5 + 2)
    assert torch.equal(drawn.input_ids[:, 1], drawn.actions[:, 0])


def test_the_oldest_is_dropped(hand_rollout: MakeRollout) -> None:
    replay = EpisodeReplay(1)
    replay.add(numbered(hand_rollout, 0, 1))
    replay.add(numbered(hand_rollout, 2, 3))
    assert set(replay.sample(50, torch.Generator().manual_seed(0)).group.tolist()) == {2, 3}


def test_a_restored_replay_draws_the_same(hand_rollout: MakeRollout) -> None:
    replay, restored = EpisodeReplay(2), EpisodeReplay(2)
    restored.add(numbered(hand_rollout, 9))
    for groups in ((0, 1, 2), (3,)):
        replay.add(numbered(hand_rollout, *groups))
    restored.load_state_dict(replay.state_dict())
    one, other = (kept.sample(8, torch.Generator().manual_seed(4)) for kept in (replay, restored))
    assert all(torch.equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Rollout))


def test_an_empty_replay_says_so() -> None:
    with pytest.raises(ValueError, match="the replay is empty; add a rollout"):
        EpisodeReplay(2).sample(1, torch.Generator())


def test_rollouts_of_unequal_lengths_are_sampled_together(hand_rollout: MakeRollout) -> None:
    rows = [{"prompt": [2], "actions": [3, 4], "rewards": [0, 1], "end": "truncated", "group": 5}]
    replay = EpisodeReplay(2)
    replay.add(numbered(hand_rollout, 0, 1))  # one step, two tokens
    replay.add(hand_rollout(rows, steps=3, length=4))
    drawn = replay.sample(32, torch.Generator().manual_seed(0))
    assert (drawn.input_ids.shape, drawn.actions.shape) == ((32, 4), (32, 3))
    short = drawn.group < 5
    assert 0 < int(short.sum()) < 32
    assert not drawn.attention_mask[short, 2:].any()
    assert not drawn.step_mask[short, 1:].any()
    assert drawn.actions[~short].unique(dim=0).tolist() == [[3, 4, 0]]
