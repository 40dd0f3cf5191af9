"""The checkers pass what is registered, and catch faults planted in envs and scorers."""

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmtp.envs import (
    Example,
    Score,
    TextGenEnv,
    TextGenVectorEnv,
    check_text_env,
    check_vector_env,
    hack_probes,
)
from worldmtp.envs.checks import check_worlds
from worldmtp.envs.text_env import TextVectorView
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.envs.wrappers.autoreset import with_autoreset

SMALL = {"pool_size": 256}


def test_probes_hide_an_answer_among_others():
    assert {"", " ", "zz", "0123456789", "1" * 200} <= set(hack_probes())
    assert any(not probe.isascii() for probe in hack_probes())
    assert all("42" in probe and probe != "42" for probe in hack_probes("42"))


class Planted(TextVectorView):
    """Rows of Copy; faults are planted in subclasses."""

    def __init__(self, num_envs, autoreset_mode):
        super().__init__(gymnasium.make_vec("worldmtp/Copy-v0", num_envs, autoreset_mode=autoreset_mode, **SMALL))


class ReusesBuffers(Planted):
    buffer = None

    def step(self, actions):
        obs, *rest = super().step(actions)
        self.buffer = self.buffer or {key: value.copy() for key, value in obs.items()}
        for key, value in obs.items():
            self.buffer[key][:] = value
        return self.buffer, *rest


class ShowsItsState(Planted):
    def step(self, actions):
        obs, *rest = super().step(actions)
        return obs | {"tokens": self.unwrapped._rows.tokens}, *rest


class SeedsPlusIndex(Planted):
    """Row i draws its n-th prompt as number seed + i + n, as several libraries do."""

    def reset(self, *, seed=None, options=None):
        self.first = 100 * seed if seed is not None else self.first + 1
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        indices = (self.first + np.flatnonzero(mask)) % 256
        return super().reset(seed=seed, options={"indices": indices, "reset_mask": mask})


class IgnoresSeeds(Planted):
    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


class OnePrompt(Planted):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            options = {"indices": [seed] * self.num_envs}
        return super().reset(seed=seed, options=options)


class LosesFinalObs(Planted):
    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        for row in np.flatnonzero(infos.get("_final_obs", [])):
            infos["final_obs"][row] = {key: value[row].copy() for key, value in obs.items()}
        return obs, rewards, terminated, truncated, infos


class DropsFinalObs(Planted):
    def step(self, actions):
        *rest, infos = super().step(actions)
        return *rest, {key: value for key, value in infos.items() if "final_obs" not in key}


class DropsFinalInfo(Planted):
    def step(self, actions):
        *rest, infos = super().step(actions)
        return *rest, {key: value for key, value in infos.items() if "final_info" not in key}


class WrongScore(Planted):
    def step(self, actions):
        obs, rewards, *rest = super().step(actions)
        return obs, rewards + (rest[0] | rest[1]), *rest


class AlwaysSameStep(Planted):
    """Says whatever mode it is asked for, and resets in the same step."""

    def __init__(self, num_envs, autoreset_mode):
        super().__init__(num_envs, AutoresetMode.SAME_STEP)
        self.metadata = self.metadata | {"autoreset_mode": autoreset_mode}


class SaysAnotherMode(Planted):
    def __init__(self, num_envs, autoreset_mode):
        super().__init__(num_envs, autoreset_mode)
        self.metadata = self.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}


class BothFlags(Planted):
    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        return obs, rewards, terminated, truncated | terminated, infos


class TruncationIsTermination(Planted):
    def step(self, actions):
        obs, rewards, terminated, truncated, infos = super().step(actions)
        return obs, rewards, terminated | truncated, np.zeros_like(truncated), infos


class ShiftsTokens(Planted):
    def step(self, actions):
        return super().step(np.where(actions > 2, actions - 1, actions))


class PaysTheWaiting(Planted):
    def step(self, actions):
        waiting = self.done
        obs, rewards, *rest = super().step(actions)
        return obs, rewards + waiting, *rest


class WrongSpace(Planted):
    def __init__(self, num_envs, autoreset_mode):
        super().__init__(num_envs, autoreset_mode)
        self.action_space = self.single_action_space


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (ReusesBuffers, "two calls returned the same arrays"),
        (ShowsItsState, "two calls returned the same arrays"),
        (SeedsPlusIndex, r"rows are seeded seed \+ i"),
        (IgnoresSeeds, "the same seed must give the same prompts"),
        (OnePrompt, "all rows show the same prompt"),
        (LosesFinalObs, "final_obs of row"),
        (DropsFinalObs, "final_obs is there for"),
        (DropsFinalInfo, "final_info is there for"),
        (WrongScore, "final_info says score"),
        (AlwaysSameStep, "final_obs is there for"),
        (SaysAnotherMode, "metadata"),
        (BothFlags, "never both"),
        (TruncationIsTermination, "by EOS"),
        (ShiftsTokens, "after token"),
        (PaysTheWaiting, "it earns 0"),
        (WrongSpace, "action_space must be batch_space"),
    ],
)
def test_planted_faults_are_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_vector_env(fault, num_steps=30)


def test_without_a_fault_nothing_is_caught():
    check_vector_env(Planted)


class TwoWords:
    """Asks for one of two words, of which a split gets one; says how many there are, which may be wrong."""

    def __init__(self, universe_size):
        self.universe_size = universe_size

    def sample(self, rng, split):
        word = str(rng.choice(["a", "b"]))
        return Example(prompt=word + "=", answer=word)

    def score(self, example, text, ids):
        return Score(float(text == example.answer), {}, exact=text == example.answer)


def test_one_question_for_all_seeds_is_a_fault_unless_there_are_no_more(make_vector):
    check_vector_env(lambda n, mode: make_vector(n, mode, task=TwoWords(2)), num_steps=30)
    with pytest.raises(AssertionError, match="all prompts are one question"):
        check_vector_env(lambda n, mode: make_vector(n, mode, task=TwoWords(3)), num_steps=30)


def test_gymnasiums_own_vectorisation_of_the_single_env_differs_only_in_where_infos_stand():
    """SyncVectorEnv puts the infos of ended rows at the top in two modes; the checker says so, and nothing else."""

    def make(num_envs, mode):
        kwargs = gymnasium.spec("worldmtp/Copy-v0").kwargs | SMALL
        envs = SyncVectorEnv([lambda: TextGenEnv(**kwargs)] * num_envs, autoreset_mode=mode)
        envs.tokenizer = envs.envs[0].tokenizer
        return envs

    with pytest.raises(AssertionError, match="final_info is there for"):
        check_vector_env(make)


class Unfaithful(TextGenEnv):
    """A single env with a fault of its own."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated or terminated, info


def test_a_single_env_with_a_fault_is_caught():
    kwargs = gymnasium.spec("worldmtp/Copy-v0").kwargs | SMALL
    check_text_env(TextGenEnv(**kwargs), num_examples=8)
    with pytest.raises(AssertionError, match="never both"):
        check_text_env(Unfaithful(**kwargs), num_examples=8)


class Undecided:
    """Opens with another number each time, whatever its seed."""

    def __init__(self):
        self.count = 0

    def reset(self, seed):
        self.count += 1
        return f"go{self.count % 100}:", {}

    def step(self, text):
        return "r", 0.0, True, False, {}


class BreaksOnAll:
    """A task whose scorer divides by zero."""

    def sample(self, rng, split):
        return Example(f"{rng.integers(1000)}=", "1")

    def score(self, example, text, ids):
        return Score(1 / 0)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (
            WorldTask(Undecided),
            r"scoring .* for the prompt .* failed: ValueError: Undecided\.reset\(\d+\) said 'go.*; a world must be "
            r"decided by its seed\. \(File .*scoring\.py\", line \d+, in tell\)",
        ),
        (
            BreaksOnAll(),
            r"scoring '.*' for the prompt '\d+=' failed: ZeroDivisionError: division by zero \(File "
            r"\".*test_checks\.py\", line \d+, in score\)",
        ),
    ],
    ids=["world", "scorer"],
)
def test_what_a_scorer_warns_of_is_an_assertion_with_its_reason(task, reason):
    env = TextGenEnv(task=task, tokenizer="char", max_prompt=8, max_new=8, pool_size=16)
    with pytest.raises(AssertionError, match=f"^gymnasium's check_env met a warning: {reason}$"):
        check_text_env(env, 8)


class DrawsElsewhere:
    """A task that draws from a count of its own and not from the generator it is given."""

    drawn = itertools.count()

    def sample(self, rng, split):
        return Example(f"{next(self.drawn)}=", "1")

    def score(self, example, text, ids):
        return Score(0.0)


def test_a_task_that_draws_from_something_else_is_caught():
    def make(num_envs, autoreset_mode):
        rows = TextGenVectorEnv(num_envs, task=DrawsElsewhere(), max_prompt=8, max_new=4, pool_size=64)
        return with_autoreset(rows, autoreset_mode)

    with pytest.raises(AssertionError, match="draws from something else than the rng it is given"):
        check_vector_env(make, num_steps=30)


class Stepping:
    """A world whose step returns what it is made with."""

    def __init__(self, returned):
        self.returned = returned

    def reset(self, seed):
        return "go", {}

    def step(self, text):
        return self.returned


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            ("a", 1.0, True),
            r"Stepping\.step returned \('a', 1\.0, True\); expected \(text, reward, terminated, truncated",
        ),
        (("a", "won", True, False, {}), r"Stepping\.step said 'a' and paid 'won'; expected a str and a finite number"),
        (("a", "1", True, False, {}), r"Stepping\.step said 'a' and paid '1'; expected a str and a finite number"),
        (("a", None, True, False, {}), r"Stepping\.step said 'a' and paid None; expected a str and a finite number"),
        ((7, 1.0, True, False, {}), r"Stepping\.step said 7 and paid 1\.0; expected a str and a finite number"),
    ],
)
def test_a_wrong_step_is_told_in_the_worlds_own_words(returned, message):
    task = WorldTask(Stepping, {"returned": returned})
    with pytest.raises(ValueError, match=message):
        check_worlds(task, [task.sample(np.random.default_rng(seed), "train") for seed in range(2)], ["a"])
    with pytest.raises(ValueError, match=message):
        task.score(task.sample(np.random.default_rng(0), "train"), "a", np.zeros(0, dtype=np.int64))
