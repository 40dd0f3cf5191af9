"""Imagined conversations: with an exact model of the replies they are the real ones; and what is their own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from worldmtp.dynamics.replies import ReplyModel
from worldmtp.dynamics.reply_config import ReplyModelConfig
from worldmtp.dynamics.reply_network import ReplySizes
from worldmtp.dynamics.turns import NOTHING, ImaginedReplies, Turns
from worldmtp.envs import CharTokenizer, TextGenVectorEnv
from worldmtp.envs.imagined_world import ImaginedWorldVectorEnv, Novelty, turn_limit
from worldmtp.envs.make import make_text_vec
from worldmtp.envs.task import Example, Progress, Score
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.action_mask import VectorActionMask, same_masks

ALPHABET = "abcd=!"


class Ladder:
    """A deterministic world that the words alone decide, with replies of zero to two letters.

    Each "a" climbs, "b" falls, anything else stands still and is answered with nothing; five steps up pay 1 and end,
    falling below the ground ends. The reply is "=" on an even rung, "!" and the last letter on an odd one.
    """

    def reset(self, seed: int) -> tuple[str, dict[str, Any]]:
        self.rung = 0
        return "abcd"[seed % 4] + "=", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.rung += text.count("a") - text.count("b")
        reply = "" if not set(text) & set("ab") else "=" if self.rung % 2 == 0 else "!" + text[-1]
        paid = 0.125 * (text == "a") + 0.5 * (self.rung >= 3)
        return reply, paid, self.rung >= 3 or self.rung < 0, False, {}


class ExactReplies:
    """What the ladder replies, told from the start each time; doubt is what it is given."""

    max_reply = 3

    def __init__(self, tokenizer: CharTokenizer, doubt: float = 0.0, unheard: bool = False) -> None:
        self._tokenizer, self._doubt, self._unheard = tokenizer, doubt, unheard

    def imagine(self, turns: Turns, turn: torch.Tensor, generator: torch.Generator) -> ImaginedReplies:
        replies = torch.full((len(turns), self.max_reply), NOTHING)
        rewards, ended = torch.zeros(len(turns)), torch.zeros(len(turns), dtype=torch.bool)
        for row in range(len(turns)):
            world = Ladder()
            world.reset(0)
            for number in range(int(turn[row]) + 1):
                said = [token for token in turns.said[row, number].tolist() if token != NOTHING]
                text = self._tokenizer.decode(said).strip()
                reply, reward, terminated, _, _ = world.step(text)
                if number < int(turn[row]):
                    heard = [token for token in turns.replies[row, number].tolist() if token != NOTHING]
                    assert self._tokenizer.decode(heard) == reply, "a reply was not kept as it was"
            ids = torch.tensor(self._tokenizer.encode(reply), dtype=torch.int64)
            replies[row, : len(ids)], rewards[row], ended[row] = ids, reward, terminated
        shape = (len(turns),)
        return ImaginedReplies(
            replies, rewards, ended, torch.full(shape, self._doubt), torch.full(shape, self._unheard)
        )


def ladder_env(num_envs: int, max_turn: int | None = 2, max_new: int = 14, **fields: Any) -> TextGenVectorEnv:
    return TextGenVectorEnv(
        num_envs,
        task=WorldTask(Ladder, num_seeds=40),
        tokenizer=CharTokenizer(ALPHABET),
        max_prompt=3,
        max_new=max_new,
        max_turn=max_turn,
        pool_size=8,
        **fields,
    )


def imagined_of(
    real: TextGenVectorEnv, num_envs: int, doubt: float = 0.0, unheard: bool = False, **kwargs: Any
) -> ImaginedWorldVectorEnv:
    kwargs = {"max_turns": 20, "generator": torch.Generator().manual_seed(0)} | kwargs
    model = ExactReplies(real.tokenizer, doubt, unheard)  # type: ignore[arg-type]
    return ImaginedWorldVectorEnv(real, model, num_envs, **kwargs)


def openings_of(obs: Mapping[str, np.ndarray]) -> np.ndarray:
    inside = np.arange(obs["tokens"].shape[1]) < obs["prompt_length"]
    return np.where(inside, obs["tokens"], NOTHING)[:, : int(obs["prompt_length"].max())]


@pytest.mark.parametrize(
    ("max_turn", "truncation_score"), [(1, "score"), (2, "score"), (None, "score"), (1, "zero"), (2, "zero")]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_an_exact_model_imagined_conversations_are_the_real_ones(
    max_turn: int | None, truncation_score: str, seed: int
) -> None:
    """Text, rewards and ends after every token, whatever is said: shifting any of the three by a step would show."""
    real = ladder_env(16, max_turn, truncation_score=truncation_score)
    rng = np.random.default_rng(seed)
    obs, _ = real.reset(seed=seed)
    imagined = imagined_of(real, 16)
    twin, _ = imagined.reset(options={"openings": openings_of(obs)})
    paid, promised, taken_back = np.zeros(16), np.zeros(16), 0
    for _ in range(real.max_new + 1):
        for key, values in obs.items():
            np.testing.assert_array_equal(twin[key], values, err_msg=key)
        actions = rng.choice(len(ALPHABET) + 2, size=16, p=[0.02, 0.3, 0.38, 0.1, 0.05, 0.05, 0.05, 0.05])
        actions = np.where(actions == real.tokenizer.pad_id, real.tokenizer.eos_id, actions)
        obs, rewards, terminated, truncated, infos = real.step(actions)
        twin, own, ended, cut, told = imagined.step(actions)
        np.testing.assert_allclose(own, rewards)
        np.testing.assert_array_equal(ended, terminated)
        np.testing.assert_array_equal(cut, truncated)
        paid, promised, taken_back = paid + rewards, promised + own, taken_back + int((rewards < 0).sum())
        for row in np.flatnonzero(terminated | truncated):
            assert told["final_info"]["score"][row] == pytest.approx(infos["final_info"]["score"][row])
            assert told["final_info"]["num_tokens"][row] == infos["final_info"]["num_tokens"][row]
    assert real.done.all()
    assert imagined.done.all()
    assert paid.max() >= 0.5, "some have reached the top, else nothing was compared"
    assert (taken_back > 0) == (truncation_score == "zero")
    np.testing.assert_allclose(promised, paid)


def begun(imagined: Any, real: TextGenVectorEnv) -> dict[str, Any]:
    obs, infos = imagined.reset(options={"openings": openings_of(real.reset(seed=0)[0])})
    return {"obs": obs, "infos": infos}


def test_a_conversation_is_cut_off_after_its_last_turn() -> None:
    """Two turns of "c", which change nothing: truncated with the second, and not before."""
    real = ladder_env(1, max_turn=1)
    imagined = imagined_of(real, 1, max_turns=2)
    begun(imagined, real)
    action = np.array(real.tokenizer.encode("c"))
    assert [bool(imagined.step(action)[3][0]) for _ in range(3)] == [False, True, False]


def test_what_is_not_known_is_paid_for_and_ends() -> None:
    """With a doubt of .4 above the threshold of .3 the turn earns the bonus; below one of .5 it is as it was.

    A reply that was never heard earns it whatever the doubt.
    """
    real = ladder_env(1, max_turn=1)
    action = np.array(real.tokenizer.encode("a"))
    for threshold, unheard, paid, reason in (
        (0.3, False, 0.7, "novel"),
        (0.5, False, 0.125, None),
        (0.5, True, 0.7, "novel"),
    ):
        imagined = imagined_of(real, 1, doubt=0.4, unheard=unheard, novelty=Novelty(threshold, 0.7))
        begun(imagined, real)
        _, rewards, terminated, _, infos = imagined.step(action)
        assert rewards[0] == pytest.approx(paid)
        assert bool(terminated[0]) == (reason is not None)
        if reason is not None:
            assert infos["final_info"]["reason"][0] == reason
        assert imagined.disagreement == pytest.approx(0.4)
        assert imagined.num_turns == 1


def test_words_said_there_before_are_not_new() -> None:
    """Openings "a=" and "b=", both answered with "a": doubt pays where it was not said before, the unheard anyway."""
    real = ladder_env(2, max_turn=1)
    a, b, equals = real.tokenizer.encode("ab=")
    tried = frozenset({(a, equals, NOTHING, a, NOTHING)})
    openings = np.array([[a, equals], [b, equals]])
    for unheard, paid in ((False, [0.125, 0.7]), (True, [0.7, 0.7])):
        imagined = imagined_of(real, 2, doubt=0.4, unheard=unheard, novelty=Novelty(0.3, 0.7, tried))
        imagined.reset(options={"openings": openings})
        np.testing.assert_allclose(imagined.step(np.array([a, a]))[1], paid)


def test_once_a_reward_was_found_the_unheard_is_not_paid_for() -> None:
    """Of two rows with a doubt of .4 the tried one is believed, however unheard its reply."""
    real = ladder_env(2, max_turn=1)
    a, b, equals = real.tokenizer.encode("ab=")
    tried = frozenset({(a, equals, NOTHING, a, NOTHING)})
    novelty = Novelty(0.3, 0.7, tried, pays_unheard=False)
    imagined = imagined_of(real, 2, doubt=0.4, unheard=True, novelty=novelty)
    imagined.reset(options={"openings": np.array([[a, equals], [b, equals]])})
    np.testing.assert_allclose(imagined.step(np.array([a, a]))[1], [0.125, 0.7])
    assert imagined.num_novel == 1
    assert imagined.believed_disagreement == pytest.approx(0.4)
    imagined.reset(options={"openings": np.array([[b, equals], [b, equals]])})
    assert imagined.num_novel == 0
    imagined.step(np.array([a, a]))
    assert imagined.believed_disagreement == 0.0, "nothing was believed"


def test_with_the_history_the_same_words_are_new_after_others() -> None:
    """Saying "a" after silence is not new; if whole conversations are told apart, after this opening it is."""
    real = ladder_env(1, max_turn=1)
    c, a, equals = real.tokenizer.encode("ca=")
    for history, paid in ((False, 0.125), (True, 0.7)):
        # The ladder is silent after "c", so that the text heard last is nothing.
        tried = frozenset({(a, equals, NOTHING, c, NOTHING), (NOTHING, a, NOTHING)})
        imagined = imagined_of(real, 1, doubt=0.4, novelty=Novelty(0.3, 0.7, tried, history))
        imagined.reset(options={"openings": np.array([[a, equals]])})
        assert imagined.step(np.array([c]))[1] == 0, "it was said after this opening"
        assert imagined.step(np.array([a]))[1] == pytest.approx(paid)


def test_masks_of_the_real_rows_hold_in_imagined_ones() -> None:
    real = ladder_env(2, max_turn=1)
    masked = VectorActionMask(real, alphabet="ab")
    imagined = same_masks(masked, imagined_of(real, 2))
    _, expected = masked.reset(seed=0)
    found = begun(imagined, real)["infos"]
    np.testing.assert_array_equal(found["action_mask"], expected["action_mask"])
    with pytest.raises(ValueError, match="is forbidden"):
        imagined.step(np.array(real.tokenizer.encode("cc")))


def test_a_refused_reset_and_a_step_before_it_are_told() -> None:
    real = ladder_env(2)
    imagined = imagined_of(real, 2)
    with pytest.raises(ResetNeeded, match="call reset before step"):
        imagined.step(np.array([1, 1]))
    for openings in (np.zeros((1, 2)), np.full((2, 2), NOTHING), np.zeros((2, 9))):
        with pytest.raises(ValueError, match="expected 2 rows of 1 to 3 token ids"):
            imagined.reset(options={"openings": openings.astype(np.int64)})
    with pytest.raises(ValueError, match="num_envs=0 and max_turns=20 must be at least 1"):
        imagined_of(real, 0)


def test_where_nobody_replies_there_is_nothing_to_imagine() -> None:
    with pytest.raises(ValueError, match="has no world that replies"):
        turn_limit(make_text_vec("worldmtp/Reverse-v0", 1))


class TwoLetters:
    """A dense task: the text ends with its second letter, and nobody replies."""

    def sample(self, rng: np.random.Generator, split: str) -> Example:
        return Example(prompt="abcd"[int(rng.integers(4))] + "=", answer="aa")

    def score(self, example: Example, text: str, ids: np.ndarray) -> Score:
        return Score(value=float(text == "aa"))

    def progress(self, example: Example, text: str, ids: np.ndarray) -> Progress:
        return Progress(value=float(text == "aa"), ended=len(text) == 2)


def test_a_task_that_ends_texts_itself_is_no_world_that_replies() -> None:
    env = TextGenVectorEnv(1, task=TwoLetters(), tokenizer=CharTokenizer(ALPHABET), max_prompt=2, max_new=4)
    assert not env.eos_terminates
    with pytest.raises(ValueError, match="has no world that replies"):
        turn_limit(env)


def test_a_turn_has_no_more_tokens_than_an_episode() -> None:
    """Twenty tokens a turn in an episode of at most six: what is said has room for six, as in a model of replies."""
    real = ladder_env(1, max_turn=20, max_new=6)
    sizes = ReplySizes(real.tokenizer.vocab_size, opening=3, said=6, reply=3, num_turns=6, num_reward_bins=3)
    bins, generator = torch.tensor([-1.0, 0.0, 1.0]), torch.Generator().manual_seed(0)
    model = ReplyModel(sizes, ReplyModelConfig(num_members=2), False, bins, generator)
    imagined = ImaginedWorldVectorEnv(real, model, 1, 6, generator)
    begun(imagined, real)
    imagined.step(np.array([real.tokenizer.eos_id]))
    assert imagined.num_turns == 1
