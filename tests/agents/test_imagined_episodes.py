"""What a run shows of imagined episodes: beside which real ones, and whose probabilities of replies they are."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from worldmtp.agents.config import ImaginationConfig, PPOConfig, RolloutConfig, WorldModelConfig
from worldmtp.agents.episodes_config import EpisodesConfig
from worldmtp.agents.imagination.episodes import EpisodeImagination
from worldmtp.agents.policies import TrunkPolicy
from worldmtp.agents.rollout import Rollout, collect_rollout, episode_returns
from worldmtp.agents.trainer import ImaginationTrainer
from worldmtp.dynamics.reply_answers import answer_logprobs
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.turns import NOTHING
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.model import MTPModel
from worldmtp.training.imagined_episodes import imagined_episodes

MakeModel = Callable[..., MTPModel]
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


def make_trainer(model: MTPModel, backend: str = "mtp") -> ImaginationTrainer:
    replies = ReplyModelConfig(num_members=2, hidden_size=8, num_heads=2, max_reply=2, num_updates=8)
    episodes = EpisodesConfig(
        num_batches=2, batch_size=8, exploring_batch_size=8, num_epochs=1, exploring_prompts=8, gated=False
    )
    return ImaginationTrainer(
        model,
        doors_env(8),
        RolloutConfig(4, 8, 1),
        PPOConfig(learning_rate=1e-2, kl_coef=0.0, gamma=0.9),
        WorldModelConfig(backend=backend, replies=replies),
        ImaginationConfig(use="episodes", episodes=episodes),
        0,
        doors_env,
    )


@pytest.fixture
def trained(tiny_model: MakeModel) -> tuple[EpisodeImagination, Rollout]:
    """Two iterations in the world of doors, and held-out episodes of the policy."""
    trainer = make_trainer(tiny_model())
    trainer.step(), trainer.step()
    assert trainer.episodes is not None
    options = {"split": "heldout", "group_size": 1}
    real = collect_rollout(doors_env(6), TrunkPolicy(trainer.model, 1.0), torch.Generator().manual_seed(3), options)
    return trainer.episodes, real


def test_answers_are_judged_by_who_has_not_seen_them(trained: tuple[EpisodeImagination, Rollout]) -> None:
    """The newest by the member left out, held-out ones by the mean probability of both; counted among their own."""
    episodes, held_out = trained
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


def test_they_begin_alike_and_go_on_by_the_model(trained: tuple[EpisodeImagination, Rollout]) -> None:
    episodes, real = trained
    imagined = episodes.imagine_beside(real, torch.Generator().manual_seed(0))
    width = int(real.prompt_length.max())
    assert torch.equal(imagined.input_ids[:, :width], real.input_ids[:, :width])
    assert torch.equal(imagined.prompt_length, real.prompt_length)
    assert (episodes.num_turns(imagined) >= 1).all()


def test_the_artefact_holds_what_was_said_and_foretold(trained: tuple[EpisodeImagination, Rollout]) -> None:
    """A turn is one token. "a" is answered by "=a", which fills the room for replies, else by "=" and its end."""
    episodes, real = trained
    both = imagined_episodes(episodes, real, TOKENS, seed=0)
    assert both is not None
    found = both.replies
    texts = (*TOKENS, ".")
    for row in range(len(found.tokens)):
        told = [texts[token] for token in found.tokens[row] if token >= 0]
        assert told[0] in "ab"
        assert told[1] == "="
        place = 2
        for turn in range(int(found.turn_mask[row].sum())):
            assert found.is_policy[row, place]
            reply = ["=", "a"] if told[place] == "a" else ["=", "."]
            assert told[place + 1 : place + 1 + len(reply)] == reply
            assert found.depth[row, place + 1 : place + 1 + len(reply)].tolist() == list(range(1, 1 + len(reply)))
            assert found.ended[row, turn] == (told[place] == "a")
            assert found.rewards[row, turn] == float(told[place] == "a")
            place += 1 + len(reply)
        assert place == len(told)
    assert found.real_scores.shape == found.imagined_scores.shape == (6, 3)
    assert found.real_scores[:, 0].tolist() == [float(score) for score in found.real_scores[:, 2]], "a win ends it"
    assert {pair.rank for pair in found.pairs} <= {f"{name} real return" for name in ("lowest", "middle", "highest")}
    assert len({(pair.real, pair.imagined) for pair in found.pairs}) == len(found.pairs), (
        "what is the same is told once"
    )
    assert found.pairs
    for pair in found.pairs:
        assert pair.real.utterances[0] == pair.imagined.utterances[0]
    returns = [pair.real.total for pair in found.pairs]
    assert returns == sorted(returns)


def test_each_conversation_is_foretold_by_the_member_that_has_not_seen_it(
    trained: tuple[EpisodeImagination, Rollout],
) -> None:
    """Recomputed with ``nats`` of that member alone: tokens, reward and end add up to its error."""
    episodes, _ = trained
    turns, said = episodes.foretold(5)  # type: ignore[misc]  # not None: it has learnt
    replay, model = episodes._heard.replay, episodes._heard.models.best.model
    assert len(turns) == 5
    nats, folds = model.nats(turns).detach(), replay.newest(5)[1]
    expected = nats[folds[said.conversation] % 2, torch.arange(nats.shape[1])]
    tokens = torch.where(said.tokens == NOTHING, 0.0, said.logprob).sum(dim=1)
    end = torch.where(said.ended, said.end_prob, 1 - said.end_prob).log()
    # What is left is the reward's divergence. Doors pay 0 or 1 and nothing else is foretold, so the mean is the
    # probability of 1, and minus the log-probability of the real reward is the divergence from it.
    assert set(said.rewards.tolist()) == {0.0, 1.0}
    divergence = -torch.log1p(-(said.foretold_rewards - said.rewards).abs())
    torch.testing.assert_close(expected + tokens + end, divergence, rtol=0.0, atol=1e-5)
    assert not torch.allclose(nats[0], nats[1]), "the members differ, so that the wrong one would be seen"


def test_looking_changes_nothing(tiny_model: MakeModel) -> None:
    """A trainer that was looked at goes on as one that was not."""
    found = []
    for looks in (False, True):
        trainer = make_trainer(tiny_model())
        _, rollout = trainer.step()
        if looks:
            assert imagined_episodes(trainer.episodes, rollout, TOKENS, seed=1) is not None
        found.append(trainer.step()[0])
    timed = {name for name in found[0] if name.startswith("time/")}
    assert {name: found[0][name] for name in found[0].keys() - timed} == {
        name: found[1][name] for name in found[1].keys() - timed
    }


def test_the_true_world_has_no_model_to_show(tiny_model: MakeModel) -> None:
    trainer = make_trainer(tiny_model(), backend="oracle")
    _, rollout = trainer.step()
    assert imagined_episodes(trainer.episodes, rollout, TOKENS, seed=0) is None


def test_it_is_the_same_again(trained: tuple[EpisodeImagination, Rollout]) -> None:
    episodes, real = trained
    first, again = (imagined_episodes(episodes, real, TOKENS, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.replies.imagined_scores, again.replies.imagined_scores)
    np.testing.assert_array_equal(first.turns.entropy, again.turns.entropy)
    assert first.replies.pairs == again.replies.pairs
