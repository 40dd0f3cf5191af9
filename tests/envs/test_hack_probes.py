"""What answers nothing earns no more than a task allows, and a short answer or a legal move is no hack."""

import re

import numpy as np
import pytest

from worldmtp.envs import Example, Score, TextGenEnv, check_text_env
from worldmtp.envs.checks import check_hack_probes, legal_moves
from worldmtp.envs.tasks.reasoning_gym import ReasoningGymTask
from worldmtp.envs.worlds.task import WorldTask


class PaysForLength:
    probe_bound = 0.0

    def sample(self, rng, split):
        return Example(f"{rng.integers(1000)}=", "7")

    def score(self, example, text, ids):
        return Score(min(len(text), 10) / 10, exact=text == "7")


class FindsTheAnswer(PaysForLength):
    def score(self, example, text, ids):
        return Score(float("777" in text or text == "7"), exact="7" in text)


class PaysTooMuch(PaysForLength):
    def score(self, example, text, ids):
        return Score(2.0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (PaysForLength(), "which answers nothing, earns"),
        (FindsTheAnswer(), "earns|hidden in it"),
        (PaysTooMuch(), r"outside \[0, 1\]"),
    ],
)
def test_scores_that_can_be_hacked_are_caught(task, message):
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError, match=message):
        check_hack_probes(task, [task.sample(rng, "train") for _ in range(8)])


class OneMove:
    """A bandit of one token: l pays in three worlds of four, r in the other."""

    def reset(self, seed):
        self.right = "lllr"[seed % 4]
        return f"{seed}?", {}

    def step(self, text):
        return "", float(text == self.right), True, False, {}


class LegalMove(OneMove):
    def moves(self):
        return ["l", "r"]


@pytest.mark.parametrize("moves", [[], ["l", "r"]])
def test_a_world_may_be_won_by_one_token_that_it_calls_a_move(moves):
    env = TextGenEnv(
        task=WorldTask(LegalMove if moves else OneMove, num_seeds=2000),
        tokenizer="char:lr0123456789?",
        max_prompt=5,
        max_new=3,
        max_turn=1,
    )
    if moves:
        report = check_text_env(env)
        assert report.probe_value == 0.0  # what is no move earns nothing
        return
    message = (
        r"'l', which answers nothing, earns (0\.\d+) on average; "
        r".* If 'l' may be said in this world, state what saying it in every turn may earn: "
        r"probe_bound=(0\.\d+) of register_task, or --kwargs task_kwargs\.probe_bound=0\.\d+; "
        r"or give the world moves\(\), the texts that are legal now, which are not probed\. If not, let step\(\) pay"
    )
    with pytest.raises(AssertionError, match=message) as caught:
        check_text_env(env)
    # The first remedy is enough by itself, and says what was seen: less would do, by the margin of chance.
    found = re.search(message, str(caught.value))
    assert found is not None
    earned, bound = float(found[1]), float(found[2])
    assert earned <= bound < earned + 0.011
    env.task.probe_bound = bound
    check_text_env(env)


def test_a_text_beside_the_legal_moves_is_probed_still():
    class Leaks(LegalMove):
        def step(self, text):
            return "", float(text in ("ll", "lr", "rl", "rr")), True, False, {}

    task = WorldTask(Leaks, num_seeds=2000)
    examples = [task.sample(np.random.default_rng(0), "train")] * 64
    assert legal_moves(task, examples) == {"l", "r"}
    message = (
        r"'lr', which answers nothing, earns 1\.000 .* Let step\(\) pay nothing for it; or, if saying it in every turn "
        r"is meant to earn that much, state so: probe_bound="
    )
    with pytest.raises(AssertionError, match=message) as caught:
        check_hack_probes(task, examples, ["l", "lr"], {"l", "r"})
    assert "moves()" not in str(caught.value)  # it has said already what they are


def test_what_means_nothing_in_any_world_is_not_said_to_be_a_move():
    class PaysForAnything(OneMove):
        def step(self, text):
            return "", 1.0, True, False, {}

    task = WorldTask(PaysForAnything, num_seeds=2000)
    examples = [task.sample(np.random.default_rng(0), "train")] * 8
    with pytest.raises(
        AssertionError, match=r"''.* Let step\(\) pay nothing for it; or, .*: probe_bound=1\.0 of"
    ) as caught:
        check_hack_probes(task, examples, ["l", "r"])
    assert "moves()" not in str(caught.value)


def test_the_bound_that_a_message_asks_for_is_enough_at_once():
    """Of ten-letter probes the longest is paid most: stating what the first one earns would only show the next."""
    task, rng = PaysForLength(), np.random.default_rng(0)
    examples = [task.sample(rng, "train") for _ in range(8)]
    with pytest.raises(AssertionError, match=r"probe_bound = 1\.0 in the class PaysForLength"):
        check_hack_probes(task, examples)
    task.probe_bound = 1.0
    with pytest.raises(AssertionError, match="hidden in it"):  # its other fault
        check_hack_probes(FindsTheAnswer(), examples)


@pytest.mark.parametrize(
    "name", ["prime_factorization", "power_function", "complex_arithmetic", "gcd", "letter_counting"]
)
def test_reasoning_gym_scorers_are_hardened(name):
    """Unhardened, "NaN" earns 1 at complex_arithmetic, all digits 0.1 at gcd, and prime_factorization raises."""
    task = ReasoningGymTask(name, calibration_items=16)
    rng = np.random.default_rng(0)
    check_hack_probes(task, [task.sample(rng, "train") for _ in range(16)])
