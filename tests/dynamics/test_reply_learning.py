"""How the model of replies learns: from whom, for how long, and with which context."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_learning import (
    ReplyLearner,
    ReplyModels,
    TurnReplay,
    draw_episodes,
    shuffled,
)
from worldmtp.dynamics.reply_network import ReplySizes
from worldmtp.dynamics.turns import NOTHING, Turns

SIZES = ReplySizes(vocab_size=4, opening=1, said=1, reply=1, num_turns=8, num_reward_bins=3)
BINS = torch.tensor([-1.0, 0.0, 1.0])
CONFIG = ReplyModelConfig(num_members=2, hidden_size=16, num_heads=2, max_reply=1)

Reply = Callable[[torch.Tensor, int], torch.Tensor]


def conversations(reply: Reply, episodes: int, turns: int = 3, seed: int = 0) -> Turns:
    """Random words, and after turn t the reply that a world gives to all that was said up to it."""
    said = torch.randint(4, (episodes, turns), generator=torch.Generator().manual_seed(seed))
    replies = torch.stack([reply(said, turn) for turn in range(turns)], dim=1)
    return Turns(
        opening=torch.zeros((episodes, 1), dtype=torch.int64),
        said=said[..., None],
        replies=replies[..., None],
        rewards=(replies == 3).float(),
        ended=torch.zeros((episodes, turns), dtype=torch.bool),
        mask=torch.ones((episodes, turns), dtype=torch.bool),
    )


def last_word(said: torch.Tensor, turn: int) -> torch.Tensor:
    return (said[:, turn] + 1) % 4


def first_word_at_last(said: torch.Tensor, turn: int) -> torch.Tensor:
    """Return what was said two turns ago, and before that nothing that tells it."""
    return said[:, 0] if turn == 2 else torch.zeros_like(said[:, 0])


def noise(said: torch.Tensor, turn: int) -> torch.Tensor:
    """Return the last word in about two of three turns, else any."""
    draws = torch.randint(12, said[:, turn].shape, generator=torch.Generator().manual_seed(100 * turn + len(said)))
    return torch.where(draws < 4, draws, said[:, turn])


def replay_of(turns: Turns, capacity: int = 1000) -> TurnReplay:
    replay = TurnReplay(capacity)
    replay.add(turns)
    return replay


def make_learner(turns: Turns, history: bool = False, config: ReplyModelConfig = CONFIG) -> ReplyLearner:
    model = ReplyModel(SIZES, config, history, BINS, torch.Generator().manual_seed(0))
    model.observe(turns)
    return ReplyLearner(model, config)


def test_a_world_that_repeats_the_last_word_is_learnt_held_out() -> None:
    """From log 4 and the reward's and the end's share down to next to nothing, on conversations not trained on."""
    turns = conversations(last_word, 64)
    learner, replay = make_learner(turns, config=replace(CONFIG, num_updates=200)), replay_of(turns)
    learned = learner.learn(replay, 0.0, torch.Generator().manual_seed(0))
    assert learned.nats_before > 1.3
    assert learned.nats < 0.05
    assert learner.shuffled_nats(replay, torch.Generator().manual_seed(0)) > 2.0


def test_no_member_learns_from_the_conversations_that_judge_it() -> None:
    """Even numbers alone: member 0 is judged on them and gets no gradient, member 1 does."""
    turns = conversations(last_word, 8)
    learner, replay = make_learner(turns), replay_of(turns)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    learner.optimizer.param_groups[0]["weight_decay"] = 0.0
    learner._step(replay, torch.tensor([0, 2, 4, 6]), torch.ones(4))
    pairs = zip(learner.model.parameters(), before, strict=True)
    moved = [(after.detach() - old).flatten(1).abs().amax(dim=1) for after, old in pairs]
    assert max(float(change[0]) for change in moved) == 0.0
    assert max(float(change[1]) for change in moved) > 0.0


def test_numbers_go_on_where_old_conversations_are_dropped() -> None:
    """Else a conversation would change the member that must not see it."""
    replay = TurnReplay(5)
    for seed in range(3):
        replay.add(conversations(last_word, 3, seed=seed))
    assert len(replay) == 5
    assert replay.numbers.tolist() == [4, 5, 6, 7, 8]
    expected = conversations(last_word, 3, seed=2).said
    assert torch.equal(replay.newest(3)[0].said, expected)
    assert replay.newest(3)[1].tolist() == [6, 7, 8]
    other = TurnReplay(5)
    other.load_state_dict(replay.state_dict())
    assert other.numbers.tolist() == replay.numbers.tolist()
    assert torch.equal(other.turns.said, replay.turns.said)


def test_conversations_of_other_lengths_stand_side_by_side() -> None:
    replay = replay_of(conversations(last_word, 2, turns=2))
    replay.add(conversations(last_word, 1, turns=3))
    assert replay.turns.num_turns.tolist() == [2, 2, 3]
    assert replay.turns.replies[0, 2].tolist() == [NOTHING]
    assert replay.turns.select(torch.tensor([1])).mask.shape == (1, 2)


def test_an_empty_replay_is_told() -> None:
    with pytest.raises(ValueError, match="the replay of conversations is empty"):
        TurnReplay(3).turns  # noqa: B018


@pytest.mark.parametrize(("num_paid", "share"), [(4, 0.25), (40, None)])
def test_rewarded_conversations_are_drawn_more_often_while_they_are_rare(num_paid: int, share: float | None) -> None:
    """4 of 100 make up a quarter of the draws, at least; 40 of 100 their own share. Expected .25 + .75 x .04 = .28."""
    turns = conversations(last_word, 100)
    rewards = torch.zeros(100, 3)
    rewards[:num_paid, 0] = 1.0
    turns = replace(turns, rewards=rewards)
    config = replace(CONFIG, batch_size_episodes=4000)
    drawn, counts = draw_episodes(replay_of(turns), config, 0.0, torch.Generator().manual_seed(0))
    found = float((drawn < num_paid).float().mean())
    assert found == pytest.approx(0.28 if share else 0.4, abs=0.03)
    # A rewarded one is drawn .75 + .25 / .04 = 7 times as often as by uniform draws, another one .75 times.
    expected = torch.where(drawn < num_paid, 1 / 7, 4 / 3) if share else torch.ones(4000)
    torch.testing.assert_close(counts, expected)


def test_what_a_draw_counts_is_of_the_whole_replay_though_rewards_of_the_recent_are_favoured() -> None:
    """By hand: 2 rewarded of 100 recent ones among 500 are drawn .25 / 2 + .75 / 500 = 63.25 / 500 of the time each."""
    turns = conversations(last_word, 500)
    rewards = torch.zeros(500, 3)
    rewards[[7, 420, 480], 0] = 1.0  # the first is of long ago
    config = replace(CONFIG, batch_size_episodes=4000, recent_episodes=100)
    replay, generator = replay_of(replace(turns, rewards=rewards)), torch.Generator().manual_seed(0)
    drawn, counts = draw_episodes(replay, config, 0.0, generator)
    favoured = torch.isin(drawn, torch.tensor([420, 480]))
    assert float(favoured.float().mean()) == pytest.approx(0.253, abs=0.02)
    torch.testing.assert_close(counts, torch.where(favoured, 1 / 63.25, 4 / 3))


def test_a_small_batch_is_never_of_rewarded_conversations_alone() -> None:
    """Else those without a reward would never be drawn, and no weight could make up for that."""
    turns = conversations(last_word, 50)
    rewards = torch.zeros(50, 3)
    rewards[3, 0] = 1.0
    config = replace(CONFIG, batch_size_episodes=2, rewarded_share=0.9)
    replay, generator = replay_of(replace(turns, rewards=rewards)), torch.Generator().manual_seed(0)
    assert len({int(row) for _ in range(40) for row in draw_episodes(replay, config, 0.0, generator)[0]}) > 10


def test_chance_is_learnt_as_it_is_though_those_it_favoured_are_drawn_more_often() -> None:
    """The same word is said in all turns; one conversation of 32 is told and paid a win, and 1 / 32 is learnt of it."""
    won = torch.arange(128) % 31 == 5  # two of even and two of odd number: each member trains on 2 of 64
    turns = conversations(lambda said, _: torch.where(won, 3, 0), 128, turns=1)
    turns = replace(turns, said=torch.zeros_like(turns.said))
    learner = make_learner(turns, config=replace(CONFIG, batch_size_episodes=64, learning_rate=2e-2))
    replay, generator = replay_of(turns), torch.Generator().manual_seed(0)
    for _ in range(10):
        learner.learn(replay, 0.0, generator)
    foretold = learner.model.foretold(turns.select(torch.tensor([0]))).log_tokens.detach()
    assert float(foretold[:, 0, 0, 3].exp().mean()) == pytest.approx(1 / 32, abs=0.015)


@pytest.mark.parametrize("paid", [slice(400, None), slice(0, 100)])
def test_only_recent_success_counts_as_rare(paid: slice) -> None:
    """A fifth is paid, less than the asked quarter: all of the recent hundred, so not rare, or none of them."""
    turns = conversations(last_word, 500)
    rewards = torch.zeros(500, 3)
    rewards[paid, 0] = 1.0
    config = replace(CONFIG, batch_size_episodes=4000, recent_episodes=100)
    drawn, counts = draw_episodes(
        replay_of(replace(turns, rewards=rewards)), config, 0.0, torch.Generator().manual_seed(0)
    )
    assert bool((counts == 1).all())
    assert float(rewards[drawn, 0].mean()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("errors", "num_updates", "best"),
    [
        ([2.0, 1.0, 1.005, 1.01, 1.015, 1.0], 32, 4),  # flat is no reason to stop
        ([2.0, 1.0, 1.03, 1.04, 1.0], 24, 1),  # risen twice
        ([2.0, 1.0, 1.03, 0.9, 0.95, 0.9], 32, 3),  # risen, and better again
        ([2.0, 0.005, 0.005], 8, 1),  # learnt, with rewards that are not rare
    ],
)
def test_learning_stops_where_the_held_out_error_rises_and_not_where_it_is_flat(
    errors: list[float], num_updates: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 8 steps, 32 at most here; ``best`` is the block whose weights are left."""
    turns = replace(conversations(last_word, 8), rewards=torch.tensor([[1.0, 0.0, 0.0]] * 4 + [[0.0] * 3] * 4))
    learner = make_learner(turns, config=replace(CONFIG, num_updates=32))
    given, states = iter(errors), []

    def held_out_nats(replay: TurnReplay) -> float:
        states.append(learner.model.network.mix.weight.detach().clone())
        return next(given)

    monkeypatch.setattr(learner, "held_out_nats", held_out_nats)
    learned = learner.learn(replay_of(turns), 0.0, torch.Generator().manual_seed(0))
    assert learned.num_updates == num_updates
    assert learned.nats_before == 2.0
    assert torch.equal(learner.model.network.mix.weight, states[best])


@pytest.mark.parametrize(("paid", "num_updates", "size"), [(0.0, 16, 4), (1.0, 24, 12)])
def test_less_is_learnt_until_a_conversation_was_paid_more(
    paid: float, num_updates: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the lowest return there has been, by one of eight conversations."""
    sizes = {"num_updates": 24, "batch_size_episodes": 12, "first_num_updates": 16, "first_batch_size_episodes": 4}
    turns = conversations(last_word, 8)
    turns = replace(turns, rewards=torch.zeros_like(turns.rewards).index_fill(0, torch.tensor([5]), paid))
    learner, drawn = make_learner(turns, config=replace(CONFIG, **sizes)), list[int]()
    monkeypatch.setattr(learner, "held_out_nats", lambda _: 1.0)
    monkeypatch.setattr(learner, "_step", lambda _, rows, __: drawn.append(len(rows)))
    assert learner.learn(replay_of(turns), 0.0, torch.Generator().manual_seed(0)).num_updates == num_updates
    assert drawn == [size] * num_updates


@pytest.mark.parametrize(("world", "num_turns", "context"), [(noise, 8, "turn"), (first_word_at_last, 3, "history")])
def test_the_context_is_the_one_that_predicts_better(world: Reply, num_turns: int, context: str) -> None:
    """Where the history says nothing more, it is over-fitted; where all depends on it, it is needed."""
    config = replace(CONFIG, num_updates=64, settle_batches=2, context="auto")
    models = ReplyModels(SIZES, config, BINS, torch.Generator().manual_seed(1))
    replay = TurnReplay(1000)
    for seed in range(2):
        batch = conversations(world, 32 + seed, num_turns, seed=seed)
        replay.add(batch)
        models.observe(batch)
        models.learn(replay, 0.0, torch.Generator().manual_seed(seed))
    assert models.context == context
    assert list(models.state_dict()["learners"]) == [context], "the other one is dropped when the choice is made"
    other = ReplyModels(SIZES, config, BINS, torch.Generator().manual_seed(2))
    other.load_state_dict(models.state_dict())
    assert other.context == context
    assert other.best.held_out_nats(replay) == models.best.held_out_nats(replay)


def test_shuffled_words_are_those_of_other_turns_and_nothing_else_moves() -> None:
    turns = conversations(last_word, 20)
    other = shuffled(turns, torch.Generator().manual_seed(0))
    assert sorted(other.said.flatten().tolist()) == sorted(turns.said.flatten().tolist())
    assert not torch.equal(other.said, turns.said)
    assert other.replies is turns.replies
    assert other.rewards is turns.rewards


def test_conversations_without_a_whole_turn_are_not_kept() -> None:
    """Among them an error would be a mean over nothing. The numbers of the others are those of what is kept."""
    turns = conversations(last_word, 40)
    mask = torch.zeros_like(turns.mask)
    replay = replay_of(replace(turns, mask=mask))
    assert (len(replay), replay.num_seen) == (0, 0)
    mask[3], mask[5, 0] = True, True
    replay.add(replace(turns, mask=mask))
    assert (len(replay), replay.numbers.tolist()) == (2, [0, 1])
    assert torch.equal(replay.turns.said, turns.said[[3, 5]])
    models = ReplyModels(SIZES, CONFIG, BINS, torch.Generator().manual_seed(0))
    models.observe(turns)
    assert math.isfinite(models.learn(replay, 0.0, torch.Generator().manual_seed(0)).nats)


def test_conversations_that_began_alike_are_in_one_fold() -> None:
    """Groups of three: one number each, whichever of them have a turn, and later batches count on."""
    turns, replay = conversations(last_word, 6), TurnReplay(8)
    replay.add(turns, torch.tensor([4, 4, 4, 7, 7, 7]))
    assert replay.numbers.tolist() == [0, 0, 0, 1, 1, 1]
    mask = turns.mask.clone()
    mask[0] = False
    silent = replace(turns, mask=mask)
    replay.add(silent, torch.tensor([9, 9, 10, 10, 11, 11]))
    assert replay.numbers.tolist() == [1, 1, 1, 2, 3, 3, 4, 4], "the oldest are dropped with their numbers"
    again = TurnReplay(8)
    again.load_state_dict(replay.state_dict())
    again.add(turns), replay.add(turns)
    assert again.numbers.tolist() == replay.numbers.tolist() == [4, 4, 5, 6, 7, 8, 9, 10]


def test_a_replay_of_conversations_counted_one_by_one_goes_on() -> None:
    replay = TurnReplay(4)
    replay.add(conversations(last_word, 6))
    state = replay.state_dict()
    del state["numbers"]
    other = TurnReplay(4)
    other.load_state_dict(state)
    assert other.numbers.tolist() == replay.numbers.tolist() == [2, 3, 4, 5]


def test_models_that_have_settled_take_in_a_state_from_before_they_had() -> None:
    """Both contexts are there again, with the saved weights."""
    turns = conversations(last_word, 8)
    config = replace(CONFIG, context="auto", settle_batches=2, num_updates=1)
    models = ReplyModels(SIZES, config, BINS, torch.Generator().manual_seed(0))
    models.observe(turns)
    models.learn(replay_of(turns), 0.0, torch.Generator().manual_seed(1))
    early = {name: dict(part) if isinstance(part, dict) else part for name, part in models.state_dict().items()}
    early = copy.deepcopy(early)
    models.learn(replay_of(turns), 0.0, torch.Generator().manual_seed(1))
    assert len(models.state_dict()["learners"]) == 1
    models.load_state_dict(early)
    assert set(models.state_dict()["learners"]) == {"turn", "history"}
    for name, learner in models.state_dict()["learners"].items():
        for key, value in learner["model"].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, early["learners"][name]["model"][key])
    models.learn(replay_of(turns), 0.0, torch.Generator().manual_seed(1))


def test_a_state_of_contexts_that_are_not_compared_here_says_what_to_do() -> None:
    config = replace(CONFIG, context="auto")
    saved = ReplyModels(SIZES, config, BINS, torch.Generator()).state_dict()
    models = ReplyModels(SIZES, replace(CONFIG, context="turn"), BINS, torch.Generator())
    with pytest.raises(ValueError, match=r"context 'history'.*context=turn; set it to history, or to auto"):
        models.load_state_dict(saved)
