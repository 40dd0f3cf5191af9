"""Rewards of completions as TRL hands them over, by hand. Ids: pad 0, EOS 1, a 2, b 3, = 4. No trl here."""

import importlib
import subprocess
import sys

import pytest

from worldmtp.envs import CharTokenizer, Score, TextGenEnv, read_episodes
from worldmtp.envs.task import Example, Progress
from worldmtp.envs.worlds.task import WorldTask
from worldmtp.post_training import TextGenReward
from worldmtp.post_training.reward import play


class EchoTask:
    """Repeat a word of one to three letters; half of the credit for as many letters as the word has."""

    probe_bound = 0.5
    max_length = 3

    def sample(self, rng, split):
        word = "".join("ab"[index] for index in rng.integers(2, size=rng.integers(1, self.max_length + 1)))
        return Example(prompt=word + "=", answer=word)

    def score(self, example, text, ids):
        word = example.prompt[:-1]
        return Score(1.0 if text == word else 0.5 * (len(text) == len(word)), exact=text == word)


class Letters:
    """Dense: every a pays 1/4 at once, a b ends the text; the prompt is "a=" or "b="."""

    def sample(self, rng, split):
        return Example("ab"[int(rng.integers(2))] + "=", hidden=str(rng.integers(1000)))

    def progress(self, example, text, ids):
        return Progress(text.count("a") / 4, ended="b" in text)

    def score(self, example, text, ids):
        return Score(text.count("a") / 4)


class Silent:
    def reset(self, seed):
        return "=", {}

    def step(self, text):
        return "", 0.0, True, False, {}


@pytest.fixture
def echo_problem():
    """Arguments of an environment: 14 words, about half of them held out; prompts and answers of up to 4 tokens."""
    return {
        "task": EchoTask(),
        "tokenizer": CharTokenizer("ab="),
        "max_prompt": 4,
        "max_new": 4,
        "heldout_fraction": 0.5,
        "pool_size": 32,
    }


@pytest.fixture
def make_single(echo_problem):
    return lambda **changes: TextGenEnv(**(echo_problem | changes))


@pytest.fixture
def reward(make_single):
    made = TextGenReward(make_single(), name="echo")
    made.rows("train", 3, seed=0)
    return made


def asked(reward, *prompts):
    """Columns for these prompts, whatever rows there are."""
    return {"prompts": list(prompts), "completions": ["never read"] * len(prompts)}


def test_rows_are_distinct_examples_of_the_split(make_single):
    reward = TextGenReward(make_single())
    rows = reward.rows("heldout", 3, seed=1)
    examples = make_single().examples("heldout", 3, seed=1)
    assert rows == [{"prompt": example.prompt, "example_key": example.key} for example in examples]
    assert len({row["prompt"] for row in rows}) == 3


def test_rewards_are_those_of_the_env(reward):
    """The right answer pays 1, one of its length 1/2, another 0; ids are what is scored."""
    rows = reward.rows("train", 3, seed=0)
    word = rows[0]["prompt"][:-1]
    right = [{"a": 2, "b": 3}[letter] for letter in word]
    wrong = [5 - token for token in right]
    answers = [[*right, 1], [*wrong, 1], [1]]
    rewards = reward(
        **asked(reward, *[rows[0]["prompt"]] * 3), completion_ids=answers, example_key=[rows[0]["example_key"]] * 3
    )
    assert rewards == [1.0, 0.5, 0.0]
    assert reward.scorer.counters.scored == 3
    assert reward(**asked(reward, rows[0]["prompt"]), completion_ids=answers[:1]) == [1.0]  # found by its prompt alone


def test_the_name_is_the_metrics(make_single):
    assert TextGenReward("worldmtp/Copy-v0").__name__ == "Copy"
    assert TextGenReward(make_single()).__name__ == "EchoTask"
    assert TextGenReward(make_single(), name="mine").__name__ == "mine"


@pytest.mark.parametrize(("truncation_score", "paid"), [("score", 0.5), ("zero", 0.0)])
def test_no_eos_is_worth_what_it_is_in_the_env(echo_problem, make_single, truncation_score, paid):
    task = echo_problem["task"]
    task.max_length = 4
    reward = TextGenReward(make_single(truncation_score=truncation_score, max_prompt=5, max_new=5, max_episode_steps=4))
    examples = [row for row in reward.rows("train", 12, seed=0) if len(row["prompt"]) == 5]
    ids = [{"a": 3, "b": 2}[letter] for letter in examples[0]["prompt"][:-1]]
    # Four wrong letters: as long as the word, without EOS.
    assert reward(**asked(reward, examples[0]["prompt"]), completion_ids=[ids]) == [paid]


def test_a_dense_task_is_paid_to_its_own_end(echo_problem):
    reward = TextGenReward(make_dense(echo_problem))
    row = reward.rows("train", 1, seed=0)[0]
    rewards = reward(
        **asked(reward, *[row["prompt"]] * 4),
        completion_ids=[[2, 2, 1], [2, 3, 2, 2], [2, 2, 2, 2], [3, 1]],
        example_key=[row["example_key"]] * 4,
    )
    assert rewards == [0.5, 0.25, 1.0, 0.0]  # what comes behind a b earns nothing


def make_dense(problem):
    return TextGenEnv(**(problem | {"task": Letters()}))


@pytest.mark.parametrize("dense", [False, True])
def test_a_batch_is_scored_as_its_texts_one_by_one(echo_problem, make_single, dense):
    """Equal texts, texts that the budget ends, and one that a dense task ends behind a b; and as many calls."""
    one, other = [make_dense(echo_problem) if dense else make_single() for _ in range(2)]
    reward = TextGenReward(one)
    rows = reward.rows("train", 3, seed=0)
    answers = [[2, 2, 1], [2, 2, 1], [2, 2, 2, 2], [3, 1], [1], [2, 3, 1] if not dense else [2, 3]]
    batch = [(row, ids) for row in rows for ids in answers]
    rewards = reward(
        **asked(reward, *[row["prompt"] for row, _ in batch]),
        completion_ids=[ids for _, ids in batch],
        example_key=[row["example_key"] for row, _ in batch],
    )
    questions = {example.key: example for example in other.dataset.examples("train", 3, seed=0)}
    assert rewards == [play(other, questions[row["example_key"]], ids)[0] for row, ids in batch]
    assert len(set(rewards)) > 1
    assert reward.scorer.counters.scored == other.scorer.counters.scored > 0


class Varied:
    """What is paid is told by a counter, so that two equal answers differ."""

    def __init__(self):
        self.asked = 0

    def sample(self, rng, split):
        return Example("a=")

    def score(self, example, text, ids):
        self.asked += 1
        return Score(self.asked / 8)


def test_each_answer_is_asked_once_for_each_time_it_was_given(make_single):
    reward = TextGenReward(make_single(task=Varied(), heldout_fraction=0.0, pool_size=1))
    reward.rows("train", 1, seed=0)
    for first in (1, 4):  # nothing is remembered from batch to batch
        rewards = reward(**asked(reward, "a=", "a=", "a="), completion_ids=[[2, 1], [3, 1], [2, 1]])
        assert rewards == [first / 8, (first + 1) / 8, (first + 2) / 8]
    with pytest.raises(ValueError, match="stops without EOS"):
        reward(**asked(reward, "a=", "a="), completion_ids=[[2, 1], [2]])
    assert reward(**asked(reward, "a="), completion_ids=[[2, 1]]) == [1.0]  # the eighth call: the failed batch made one


MEETING = """
import time
from pathlib import Path

from worldmtp.envs import Example, Score


class Meeting:
    # Each score waits until so many are under way, and is 0 if they do not come together.

    def __init__(self, folder, number):
        self.folder, self.number = folder, number

    def sample(self, rng, split):
        return Example("ab"[int(rng.integers(2))] + "=")

    def score(self, example, text, ids):
        (Path(self.folder) / text).touch()
        deadline = time.monotonic() + 20
        while len(list(Path(self.folder).iterdir())) < self.number:
            if time.monotonic() > deadline:
                return Score(0.0)
            time.sleep(0.01)
        return Score(1.0)
"""


def test_scores_of_a_batch_are_under_way_at_once(make_single, tmp_path, monkeypatch):
    """Three texts by three processes, of which none ends before all have begun."""
    (tmp_path / "meeting_task.py").write_text(MEETING)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "begun").mkdir()
    task = importlib.import_module("meeting_task").Meeting(str(tmp_path / "begun"), 3)
    reward = TextGenReward(make_single(task=task, heldout_fraction=0.0, timeout_seconds=60.0, num_scorers=3))
    (row, *_) = reward.rows("train", 1, seed=0)
    try:
        rewards = reward(**asked(reward, *[row["prompt"]] * 3), completion_ids=[[2, 1], [3, 1], [2, 2, 1]])
    finally:
        reward.close()
    assert rewards == [1.0, 1.0, 1.0]


def test_one_prompt_of_several_questions_needs_its_key(echo_problem):
    reward = TextGenReward(make_dense(echo_problem))
    rows = [row for row in reward.rows("train", 8, seed=0) if row["prompt"] == "a="]
    assert len(rows) > 1
    with pytest.raises(ValueError, match=f"'a=' stands for {len(rows)} questions; keep the column 'example_key'"):
        reward(**asked(reward, "a="), completion_ids=[[1]])


@pytest.mark.parametrize(
    ("prompt", "ids", "message"),
    [
        ("zzz=", [1], "the prompt 'zzz=' with example_key=None is none of the 3 that rows"),
        ([{"role": "user", "content": "a="}], [1], "is no text: environments take prompts as they are"),
        (None, [2], "a completion of 1 tokens stops without EOS.*set max_completion_length=4"),
        (None, [], "a completion of 0 tokens stops without EOS"),
        (None, [2, 1, 0], r"3 tokens goes on behind EOS.*eos_token_id=1 and max_completion_length=4"),
        (None, [2, 2, 2, 2, 2], "5 tokens goes on behind max_new=4"),
        (None, [9, 1], r"action 9 is outside the vocabulary 0\.\.4"),
    ],
)
def test_what_is_no_episode_is_an_error(reward, prompt, ids, message):
    prompt = prompt or reward.rows("train", 3, seed=0)[0]["prompt"]
    with pytest.raises(ValueError, match=message):
        reward(**asked(reward, prompt), completion_ids=[ids])


def test_a_key_of_another_prompt_is_an_error(reward):
    rows = reward.rows("train", 3, seed=0)
    with pytest.raises(ValueError, match="is none of the 3 that rows"):
        reward(**asked(reward, rows[0]["prompt"]), completion_ids=[[1]], example_key=[rows[1]["example_key"]])


def test_metrics_are_logged(reward):
    logged = {}
    rows = reward.rows("train", 3, seed=0)
    word = [{"a": 2, "b": 3}[letter] for letter in rows[0]["prompt"][:-1]]
    reward(
        **asked(reward, rows[0]["prompt"], rows[0]["prompt"]),
        completion_ids=[[*word, 1], [0, 0, 0, 0]],
        log_metric=logged.__setitem__,
    )
    assert logged == {"echo/exact": 0.5, "echo/no_eos": 0.5, "echo/scorer_errors": 0.0, "echo/scorer_timeouts": 0.0}


def test_tokenizers_are_compared(reward):
    same = reward.dataset.tokenizer.to_transformers()
    reward.check_tokenizer(same)

    class WithBos:
        eos_token_id = 1

        def __call__(self, text):
            return {"input_ids": [0, *same(text=text)["input_ids"]]}

    with pytest.raises(ValueError, match=r"writes '[ab]+=' as \[0, .*without special tokens around prompts"):
        reward.check_tokenizer(WithBos())
    same.eos_token = "a"
    with pytest.raises(ValueError, match="ends texts with id 2, the environment's with 1"):
        reward.check_tokenizer(same)


def test_wrappers_see_the_episodes(make_single, tmp_path):
    reward = TextGenReward(
        make_single(text_wrappers=[{"name": "episode_recorder", "path": tmp_path / "episodes.jsonl"}])
    )
    row = reward.rows("train", 1, seed=0)[0]
    reward(**asked(reward, row["prompt"]), completion_ids=[[2, 0, 1]])
    assert [line["ids"] for line in read_episodes(tmp_path / "episodes.jsonl")] == [[2, 0, 1]]


def test_conversations_and_other_environments_are_refused(echo_problem):
    with pytest.raises(TypeError, match=r"WorldTask is a conversation.*use worldmtp\.post_training\.TextGenRollout"):
        TextGenReward(TextGenEnv(**(echo_problem | {"task": WorldTask(Silent)})))
    with pytest.raises(TypeError, match="is no environment of one text"):
        TextGenReward("CartPole-v1")


def test_no_trl_and_no_torch_is_imported():
    code = (
        "import sys; from worldmtp.post_training import TextGenReward; TextGenReward('worldmtp/Copy-v0'); "
        "print(sorted({'trl', 'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class Later:
    """One prompt; the answer is what was asked for last: a or b, by the parity of a draw."""

    def sample(self, rng, split):
        return Example("a=", "ab"[int(rng.integers(2))])

    def score(self, example, text, ids):
        return Score(float(text == example.answer))


def test_two_questions_of_one_prompt_are_refused_whichever_came_first(make_single):
    reward = TextGenReward(make_single(task=Later(), heldout_fraction=0.0, pool_size=1))
    answers = {seed: reward.dataset.examples("train", 1, seed)[0].answer for seed in range(20)}
    first, same = [seed for seed, answer in answers.items() if answer == "a"][:2]
    other = next(seed for seed, answer in answers.items() if answer == "b")
    (row,) = reward.rows("train", 1, seed=first)
    reward.rows("train", 1, seed=same)
    with pytest.raises(ValueError, match=r"Example\(prompt='a=', answer='b'.* has the prompt of .*answer='a'"):
        reward.rows("train", 1, seed=other)
    # The first question is still the one that is scored.
    assert reward(**asked(reward, "a="), completion_ids=[[2, 1]], example_key=[row["example_key"]]) == [1.0]
