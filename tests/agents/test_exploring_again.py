"""When imagined episodes explore: before a reward was found, and again where the way to it is lost."""

import copy
from typing import Any

import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.imagination.episodes import EpisodeImagination
from worldmtp.agents.imagination.exploring import check_bonus
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.turns import NOTHING
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask

PPO = PPOConfig(learning_rate=1e-3, kl_coef=0.0)
REPLIES = ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=2)


class Purse:
    """Pays for "a" what stands in ``Purse.holds``, and ends with the first turn."""

    holds = 0.0

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        return "ab"[seed % 2] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "=", Purse.holds, True, False, {}


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
    fields = {"batch_size": 4, "exploring_batch_size": 4} | fields
    episodes = EpisodesConfig(num_batches=1, num_epochs=1, gated=False, **fields)
    imagination = ImaginationConfig(use="episodes", episodes=episodes)
    rollout = RolloutConfig(4, 4, 2)
    return ImaginationTrainer(tiny_model(), env, rollout, PPO, WorldModelConfig(replies=REPLIES), imagination, 0)


def explores(trainer: ImaginationTrainer, pays: list[float]) -> list[float]:
    """Run an iteration for each, in which every real episode is paid so."""
    found = []
    for Purse.holds in pays:
        found.append(trainer.step()[0]["imagination/explores"])
    return found


def test_exploring_batches_have_a_size_of_their_own(tiny_model: Any) -> None:
    """An episode is one turn here: six while nothing has been found, then four."""
    trainer = make_trainer(tiny_model, exploring_batch_size=6)
    turns = []
    for Purse.holds in (0.0, 1.0):
        turns.append(trainer.step()[0]["imagination/imagined_turns"])
    assert turns == [6, 4]


def imagines(trainer: ImaginationTrainer, lost: bool) -> None:
    """Have imagined batches of the policy be lost, or not, whatever the model of replies has learnt."""
    assert trainer.episodes is not None
    trainer.episodes._is_lost = lambda _: lost  # type: ignore[method-assign]


def test_it_explores_again_where_the_reward_was_lost(tiny_model: Any) -> None:
    """Nothing, a reward, then nothing: after three batches without, once more, until it is found."""
    trainer = make_trainer(tiny_model, explores_again_after=3)
    imagines(trainer, lost=True)
    assert explores(trainer, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]) == [1, 0, 0, 0, 1, 1, 0, 0]


def test_by_default_a_single_lucky_batch_ends_no_exploration(tiny_model: Any) -> None:
    trainer = make_trainer(tiny_model)
    imagines(trainer, lost=True)
    assert explores(trainer, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]) == [1, 0, 1, 1, 0, 1]


def test_where_imagination_knows_the_way_nothing_is_lost(tiny_model: Any) -> None:
    """Real batches without a reward do not matter then: imagined ones teach the way. The look is counted, and new."""
    trainer = make_trainer(tiny_model)
    imagines(trainer, lost=False)
    explores(trainer, [0.0, 1.0])
    Purse.holds = 0.0
    usual = trainer.step()[0]
    assert usual["imagination/explores"] == 0
    assert usual["imagination/imagined_turns"] == 8, "four to look at, and the batch of four that is trained on"
    Purse.holds = 1.0
    assert trainer.step()[0]["imagination/imagined_turns"] == 4


def test_who_looks_at_the_policy_is_paid_no_bonus(tiny_model: Any) -> None:
    """Else what is new would pass for a way: nothing of the iteration before, which explored, is left."""
    trainer = make_trainer(tiny_model)
    imagines(trainer, lost=True)
    explores(trainer, [0.0, 1.0, 0.0])
    episodes, paid = trainer.episodes, list[bool]()
    assert episodes is not None
    imagine = episodes._imagine

    def spied(totals: dict[str, float], novelty: Any = None, **rest: Any) -> Any:
        paid.append(novelty is not None)
        return imagine(totals, novelty, **rest)

    episodes._imagine = spied  # type: ignore[method-assign]
    assert explores(trainer, [0.0]) == [1]
    assert paid == [False, True], "the look, and the batch that is trained on"


def test_never_again_if_it_is_told_so(tiny_model: Any) -> None:
    trainer = make_trainer(tiny_model, explores_again_after=0)
    assert explores(trainer, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]) == [1, 0, 0, 0, 0, 0]


def test_equal_returns_above_the_lowest_are_no_loss(tiny_model: Any) -> None:
    """Who earns 1 each time has found the way."""
    trainer = make_trainer(tiny_model, explores_again_after=2)
    assert explores(trainer, [0.0, 1.0, 1.0, 1.0, 1.0]) == [1, 0, 0, 0, 0]


def test_a_run_that_goes_on_remembers_how_long_the_reward_is_lost(tiny_model: Any) -> None:
    trainer, other = make_trainer(tiny_model, explores_again_after=2), make_trainer(tiny_model, explores_again_after=2)
    imagines(other, lost=True)
    explores(trainer, [0.0, 1.0, 0.0])
    other.load_state_dict(trainer.state_dict())
    assert explores(other, [0.0]) == [1]


def test_a_checkpoint_of_an_older_version_says_what_it_lacks(tiny_model: Any) -> None:
    """Those of before this state was kept; and those of a run without imagined episodes."""
    state = make_trainer(tiny_model).state_dict()
    for lacks, place in (("exploration", state["episodes"]), ("episodes", state)):
        del place[lacks]
        with pytest.raises(
            ValueError, match=rf"has no '{lacks}' for the trainer's episodes: another version of worldm"
        ):
            make_trainer(tiny_model).load_state_dict(state)


def batch_sizes(trainer: ImaginationTrainer, pays: list[float]) -> list[int]:
    """Run an iteration for each, in which every real episode is paid so; return how many there were."""
    found = []
    for Purse.holds in pays:
        found.append(len(trainer.step()[1]))
    return found


def test_real_batches_are_small_until_something_is_found(tiny_model: Any) -> None:
    """Two of four prompts, each with two episodes, up to the batch that is paid, and again after what shows a loss."""
    trainer = make_trainer(tiny_model, exploring_prompts=2, explores_again_after=2)
    imagines(trainer, lost=True)
    assert batch_sizes(trainer, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]) == [4, 4, 4, 8, 8, 4, 4, 8]
    assert trainer.totals["env/episodes"] == 44
    assert batch_sizes(make_trainer(tiny_model, exploring_prompts=2, novelty_bonus=0.0), [0.0, 0.0]) == [8, 8]
    assert batch_sizes(make_trainer(tiny_model, exploring_prompts=2, waits_for_reward=False), [0.0, 0.0]) == [8, 8]
    assert batch_sizes(make_trainer(tiny_model, exploring_prompts=9), [0.0]) == [8], "no more than there are"


def test_a_small_batch_goes_on_after_a_stop(tiny_model: Any) -> None:
    """The rows that stood still are in the state, too."""
    trainer, other = (make_trainer(tiny_model, exploring_prompts=1) for _ in range(2))
    imagines(trainer, lost=True)
    imagines(other, lost=True)
    assert batch_sizes(trainer, [0.0, 1.0, 0.0]) == [2, 2, 8], "the last of them is lost"
    other.load_state_dict(copy.deepcopy(trainer.state_dict()))
    Purse.holds, sizes = 1.0, list[int]()
    for _ in range(2):
        ours, theirs = trainer.step()[1], other.step()[1]
        assert all(torch.equal(value, vars(theirs)[name]) for name, value in vars(ours).items())
        sizes.append(len(ours))
    assert sizes == [2, 8]


def entropies(trainer: ImaginationTrainer, pays: list[float]) -> list[float | None]:
    """Run an iteration for each; return the coefficient of the entropy that its imagined batch was trained with."""
    update, given = trainer.agent.update, list[float | None]()

    def spied(*args: Any) -> dict[str, float]:
        if len(args[0]) == 4:  # an imagined batch; a real one has eight episodes
            given.append(args[6])
        return update(*args)

    trainer.agent.update = spied  # type: ignore[method-assign]
    explores(trainer, pays)
    return given


def test_while_it_explores_the_policy_is_kept_unsure(tiny_model: Any) -> None:
    """By the larger of two coefficients; where there is a reward, PPO's own holds."""
    assert entropies(make_trainer(tiny_model, novelty_ent_coef=0.3), [0.0, 0.0]) == [0.3, 0.3]
    assert entropies(make_trainer(tiny_model, novelty_ent_coef=0.0), [0.0]) == [PPO.ent_coef]
    trainer = make_trainer(tiny_model, novelty_ent_coef=0.3, least_gap=0.0)
    explores(trainer, [0.0, 1.0])
    assert entropies(trainer, [1.0, 0.0, 1.0]) == [None] * 3


def test_nothing_is_told_of_what_was_not_imagined(tiny_model: Any) -> None:
    """No reward and no bonus: no batch is imagined, and none has a return or a doubt."""
    Purse.holds = 0.0
    metrics, _ = make_trainer(tiny_model, novelty_bonus=0.0).step()
    assert metrics["imagination/imagined_turns"] == 0
    assert not {"imagination/return_promised", "imagination/disagreement"} & metrics.keys()
    metrics, _ = make_trainer(tiny_model).step()
    assert {"imagination/return_promised", "imagination/disagreement"} <= metrics.keys()


def test_what_real_conversations_said_is_tried(tiny_model: Any) -> None:
    """A key for each opening and the letter that it was answered with; nothing is said twice in this world."""
    trainer = make_trainer(tiny_model)
    Purse.holds = 0.0
    _, rollout = trainer.step()
    said = {
        (*rollout.input_ids[row, :2].tolist(), NOTHING, int(rollout.actions[row, 0]), NOTHING)
        for row in range(len(rollout))
        if rollout.actions[row, 0] != 1  # a turn of nothing but its end says nothing
    }
    assert trainer.episodes is not None
    assert trainer.episodes._what_is_new(True).tried >= said
    assert len(said) > 1


def test_a_history_is_no_reason_to_try_again_before_contexts_have_been_compared(tiny_model: Any) -> None:
    """After one batch the history may be the better context by chance; what it knows counts when it is kept alone."""
    trainer = make_trainer(tiny_model)
    explores(trainer, [0.0])
    assert trainer.episodes is not None
    models = trainer.episodes._heard.models
    models.context = "history"
    assert models.settled is None
    assert not trainer.episodes._what_is_new(True).history
    models._learners = {"history": models._learners["history"]}
    assert models.settled == "history"
    assert trainer.episodes._what_is_new(True).history


def test_a_bonus_beyond_the_range_of_returns_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match=r"novelty_bonus=3.0 lies outside model.value_range=\(0.0, 2.0\)"):
        check_bonus(3.0, (0.0, 2.0))
    check_bonus(2.0, (0.0, 2.0))
    check_bonus(0.0, (0.5, 1.0))  # off
    with pytest.raises(ValueError, match="lower the bonus"):
        make_trainer(tiny_model, novelty_bonus=1e6)


def test_a_group_is_in_one_fold(tiny_model: Any) -> None:
    """Four prompts with two episodes each have four numbers."""
    trainer = make_trainer(tiny_model)
    explores(trainer, [0.0])
    assert trainer.episodes is not None
    assert trainer.episodes._heard.replay.numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_gap_that_matters_is_a_share_of_the_range(tiny_model: Any) -> None:
    """A gap of .03 in a range of 2 is below .02 of it; in a range of 1 it is not."""
    trainer = make_trainer(tiny_model, least_gap=0.02)
    episodes = trainer.episodes
    assert isinstance(episodes, EpisodeImagination)
    low, high = trainer.model.config.value_range
    assert episodes._gap._least == pytest.approx(0.02 * (high - low))
