"""The vector env: an episode by hand in each autoreset mode, options, groups, infos, snapshots.

Ids: pad 0, EOS 1, a 2, b 3, = 4; prompts take up to 4 tokens, answers up to 4.
"""

import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from worldmtp.envs import Example, Score, TextGenVectorEnv
from worldmtp.envs.rows import batch_infos


def play(envs, prompts, columns):
    """Reset to the prompts, then step through columns of actions; all that was returned."""
    envs.reset(seed=0, options={"prompts": prompts})
    return [envs.step(np.array(column)) for column in columns]


def test_an_episode_by_hand(make_vector, words):
    envs = make_vector(3, "disabled")
    obs, infos = envs.reset(seed=0, options={"prompts": words("ab", "a", "bbb")})
    assert obs["tokens"].tolist() == [[2, 3, 4, 0, 0, 0, 0, 0], [2, 4, 0, 0, 0, 0, 0, 0], [3, 3, 3, 4, 0, 0, 0, 0]]
    assert obs["length"].tolist() == obs["prompt_length"].tolist() == [[3], [2], [4]]
    assert infos["prompt_text"].tolist() == ["ab=", "a=", "bbb="]
    assert infos["group"].tolist() == [0, 1, 2]
    assert infos["_group"].all()
    # row 0 answers "ab" EOS (right), row 1 answers "b" EOS (as long as "a": half), row 2 never ends: "aabb"
    steps = play(envs, words("ab", "a", "bbb"), [[2, 3, 2], [3, 1, 2], [1, 2, 3], [2, 2, 3]])
    rewards, terminated, truncated = ([step[index].tolist() for step in steps] for index in (1, 2, 3))
    assert rewards == [[0, 0, 0], [0, 0.5, 0], [1, 0, 0], [0, 0, 0]]
    assert terminated == [[False] * 3, [False, True, False], [True, False, False], [False] * 3]
    assert truncated == [[False] * 3, [False] * 3, [False] * 3, [False, False, True]]
    final = [step[4].get("final_info") for step in steps]
    assert final[0] is None
    assert steps[1][4]["_final_info"].tolist() == [False, True, False]
    assert {key: column[1] for key, column in final[1].items() if key not in ("components", "_components")} == {
        "text": "b",
        "score": 0.5,
        "exact": False,
        "reason": "ok",
        "num_tokens": 2,
        "prompt_text": "a=",
        "example_key": words("a")[0].key,
        "group": 1,
        **{f"_{key}": True for key in ("text", "score", "exact", "reason", "num_tokens", "prompt_text", "example_key")},
        "_group": True,
    }
    assert final[1]["components"]["length"].tolist() == [0, 1, 0]
    assert (final[2]["text"][0], final[2]["exact"][0], final[2]["num_tokens"][0]) == ("ab", True, 3)
    assert (final[3]["text"][2], final[3]["reason"][2], final[3]["num_tokens"][2]) == ("aabb", "no_eos", 4)
    # ended rows stand still
    assert steps[3][0]["tokens"].tolist() == [
        [2, 3, 4, 2, 3, 1, 0, 0],
        [2, 4, 3, 1, 0, 0, 0, 0],
        [3, 3, 3, 4, 2, 2, 3, 3],
    ]


def test_eos_on_the_last_token_of_the_budget_terminates(make_vector, words):
    steps = play(make_vector(1, "disabled"), words("aaa"), [[2], [2], [2], [1]])
    assert steps[3][2].tolist() == [True]
    assert steps[3][3].tolist() == [False]
    assert steps[3][1].tolist() == [1.0]


@pytest.mark.parametrize(("truncation_score", "paid"), [("score", 0.5), ("zero", 0.0)])
def test_what_running_out_of_budget_is_worth(make_vector, truncation_score, paid):
    envs = make_vector(1, "disabled", max_prompt=5, truncation_score=truncation_score)
    steps = play(envs, [Example("aaaa=")], [[3], [3], [3], [3]])  # "bbbb": as long as the word, so half
    assert steps[3][3].tolist() == [True]
    assert steps[3][1].tolist() == [paid]
    final = steps[3][4]["final_info"]
    assert (final["reason"][0], final["score"][0], final["num_tokens"][0]) == ("no_eos", paid, 4)
    assert envs.scorer.counters.scored == (truncation_score == "score")


def test_the_tasks_own_reason_is_kept_where_the_budget_ran_out(make_vector, echo_problem):
    class Picky(type(echo_problem["task"])):
        def score(self, example, text, ids):
            return Score(0.25, reason="ok" if text == "aaaa" else "malformed")

    envs = make_vector(2, "disabled", max_prompt=5, task=Picky())
    steps = play(envs, [Example("aaaa="), Example("abab=")], [[2, 3]] * 4)
    final = steps[3][4]["final_info"]
    assert final["reason"].tolist() == ["no_eos", "malformed"]
    assert final["score"].tolist() == [0.25, 0.25]


def test_disabled_ignores_even_impossible_actions_of_ended_rows(make_vector, words):
    envs = make_vector(2, "disabled")
    steps = play(envs, words("a", "b"), [[1, 2], [-7, 2]])
    assert steps[1][0]["tokens"][0].tolist() == [2, 4, 1, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"outside the vocabulary 0\.\.4"):
        envs.step(np.array([-7, 5]))


def test_groups_share_their_prompt(make_vector):
    envs = make_vector(6, "disabled")
    obs, infos = envs.reset(seed=1, options={"group_size": 3})
    assert infos["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (obs["tokens"][0] == obs["tokens"][1:3]).all()
    assert (obs["tokens"][3] == obs["tokens"][4:]).all()
    _, infos = envs.reset()  # the size holds
    assert infos["group"].tolist() == [2, 2, 2, 3, 3, 3]
    _, infos = envs.reset(options={"indices": [5, 9]})
    pool = envs.dataset.pool("train").examples
    assert infos["prompt_text"].tolist() == [pool[5].prompt] * 3 + [pool[9].prompt] * 3
    with pytest.raises(ValueError, match="must cover whole groups of 3 rows"):
        envs.reset(options={"reset_mask": np.array([True, True, False, False, False, False])})
    _, infos = envs.reset(options={"reset_mask": np.array([False] * 3 + [True] * 3)})
    assert infos["group"][3:].tolist() == [6, 6, 6]


def test_split_holds_until_changed_and_never_mixes(make_vector):
    envs = make_vector(4, "disabled")
    heldout = {example.prompt for example in envs.dataset.pool("heldout").examples}
    for options, expected in (({}, False), ({"split": "heldout"}, True), ({}, True), ({"split": "train"}, False)):
        _, infos = envs.reset(options=options)
        assert all((prompt in heldout) == expected for prompt in infos["prompt_text"])
    assert envs.overlap() == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": "train"}, "reset option='splits' is unknown; did you mean 'split'"),
        ({"split": "test"}, "split='test' is unknown"),
        ({"group_size": 3}, "does not divide num_envs=4"),
        ({"indices": [0, 1, 2]}, "3 prompts are named for 4 groups of 1 rows"),
        ({"indices": [0, 1, 2, 32]}, r"indices of the pool, 0\.\.31"),
        ({"indices": [0] * 4, "prompts": ["a="] * 4}, "give one of them"),
        ({"prompts": ["nope="] * 4}, "'nope=' is that of 0 questions of the pool"),
        ({"reset_mask": np.zeros(4, dtype=bool)}, "must be 4 booleans, at least one true"),
        ({"reset_mask": np.ones(3, dtype=bool)}, "must be 4 booleans"),
        ({"ends_others": 1}, "ends_others=1 must be a boolean"),
        ({"prompts": [Example("ababab=")] * 4}, "takes 7 tokens, the longest of 4, but max_prompt=4"),
        ({"prompts": [Example("")] * 4}, "has no tokens"),
        (
            {"prompts": [Example("a=", "aaaa")] * 4},
            "answer 'aaaa' to 'a=' takes 4 tokens and EOS, .* but max_new=4",
        ),
    ],
)
def test_impossible_options_are_refused(make_vector, options, message):
    envs = make_vector(4, "disabled")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.reset(options=options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoreset_mode": "samestp"}, r"autoreset_mode='samestp' is unknown; did you mean 'same_step'\?"),
        ({"group_size": 2}, "group_size=2 needs autoreset_mode='disabled'"),
        ({"max_new": 1}, "max_new >= 2"),
        ({"split": "test"}, "split='test' is unknown"),
        ({"split": "held_out"}, r"split='held_out' is unknown; did you mean 'heldout'\?"),
        ({"truncation_score": "zeros"}, r"truncation_score='zeros' is unknown; did you mean 'zero'\?"),
        ({"render_mode": "human"}, "render_mode='human' is unknown"),
        ({"on_error": "rise"}, r"on_error='rise' is unknown; did you mean 'raise'\?"),
    ],
)
def test_impossible_arguments_are_refused(make_vector, changes, message):
    with pytest.raises(ValueError, match=message):
        make_vector(4, **changes)


def test_the_order_of_calls_is_checked(make_vector):
    envs = make_vector(2)
    with pytest.raises(ResetNeeded, match="call reset before step"):
        envs.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(ResetNeeded, match="first reset must be of all rows"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be 2 integers, got int64 of shape \(3,\)"):
        envs.step(np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_bit_identical_to_single_envs(make_vector, make_single, rng, mode, assert_parity):
    assert_parity(make_vector(5, mode), [make_single() for _ in range(5)], rng, num_steps=60)


def test_batched_infos_are_gymnasiums(assert_same):
    reference = VectorEnv()
    reference.num_envs = 4
    records = [{"n": 1, "x": 0.5, "ok": True, "s": "one", "c": {"a": 1.0}}, {"n": 2, "c": {"b": 2.0}, "s": "two"}]
    expected = {}
    for row, record in zip((3, 1), records, strict=True):
        reference._add_info(expected, record, row)
    assert_same(batch_infos(records, np.array([3, 1]), 4), expected)


def test_seeds_decide_the_episodes(make_vector):
    first, second = make_vector(8), make_vector(8)
    actions = np.random.default_rng(0).integers(5, size=(30, 8))

    def episodes(envs, seed):
        prompts = [envs.reset(seed=seed)[1]["prompt_text"].tolist()]
        for column in actions:
            prompts.append(envs.step(column)[4].get("prompt_text", np.zeros(0)).tolist())
        return prompts

    assert episodes(first, 4) == episodes(second, 4) == episodes(first, 4)
    assert episodes(first, 4) != episodes(second, 5)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_snapshot_goes_on_exactly(make_vector, mode, words, assert_same):
    actions = np.random.default_rng(0).integers(5, size=(20, 4))
    original = make_vector(4, mode)
    original.reset(seed=3, options={"split": "heldout"})
    for column in actions[:6]:
        original.step(column)
    if mode is AutoresetMode.DISABLED:
        mask = np.array([True, True, False, False])
        original.reset(options={"reset_mask": mask, "prompts": words("a", "bab")})
        mask = np.array([False, False, True, False])
        original.reset(options={"reset_mask": mask, "split": "train"})  # rows of both splits
    saved = json.loads(json.dumps(original.state()))
    assert pickle.loads(pickle.dumps(original.state())) == original.state()
    resumed = make_vector(4, mode)
    obs = resumed.load_state(saved)
    rows = saved if mode is AutoresetMode.DISABLED else saved["env"]
    assert (obs["tokens"] == np.array(rows["tokens"])).all()
    for column in actions[6:]:
        one, other = original.step(column), resumed.step(column)
        assert all((one[0][key] == other[0][key]).all() for key in obs)
        assert all((one[index] == other[index]).all() for index in (1, 2, 3))
        assert_same(one[4], other[4])
    assert_same(original.reset()[1], resumed.reset()[1])
    assert vars(resumed.scorer.counters) | {"seconds": 0} == vars(original.scorer.counters) | {"seconds": 0}


def test_a_snapshot_of_another_env_is_refused(make_vector):
    envs = make_vector(4)
    with pytest.raises(ResetNeeded, match="no state before the first reset"):
        envs.state()
    envs.reset(seed=0)
    for other in (make_vector(3), make_vector(4, pool_seed=1), make_vector(4, max_new=5)):
        with pytest.raises(ValueError, match="this state does not belong to this env"):
            other.load_state(envs.state())


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_gymnasiums_episode_statistics_agree(make_vector, mode):
    envs = RecordEpisodeStatistics(make_vector(4, mode), buffer_length=1000)
    envs.reset(seed=0)
    scores, lengths = [], []
    actions = np.random.default_rng(1).integers(5, size=(40, 4))
    ended = np.zeros(4, dtype=bool)
    for column in actions:
        if mode is AutoresetMode.DISABLED and ended.any():
            envs.reset(options={"reset_mask": ended})
        _, _, terminated, truncated, infos = envs.step(column)
        ended = terminated | truncated
        for row in np.flatnonzero(ended):
            scores.append(infos["final_info"]["score"][row])
            lengths.append(infos["final_info"]["num_tokens"][row])
    assert len(scores) > 10
    assert list(envs.return_queue) == scores
    assert list(envs.length_queue) == lengths


def test_max_episode_steps_limits_the_budget(make_vector):
    assert make_vector(2, max_episode_steps=3).max_new == 3
    assert make_vector(2, max_episode_steps=99).max_new == 4


def test_a_prompt_with_two_answers_is_not_found_by_its_text():
    """RandomDigits: 1000 draws of one digit, each with a digit of its own for an answer."""
    envs = gymnasium.make_vec(
        "worldmtp/RandomDigits-v0", 1, task_kwargs={"prompt_length": 1, "answer_length": 1}, pool_size=1000
    )
    prompt = envs.dataset.pool("train").examples[0].prompt
    with pytest.raises(ValueError, match=rf"the prompt '{prompt}' is that of 10 questions of the pool of 'train'"):
        envs.reset(options={"prompts": [prompt]})


def test_a_refused_reset_changes_nothing(make_vector):
    envs = make_vector(4, "disabled")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="indices of the pool"):
        envs.reset(options={"split": "heldout", "group_size": 2, "indices": [999, 1]})
    _, infos = envs.reset()
    train = {example.prompt for example in envs.dataset.pool("train").examples}
    assert set(infos["prompt_text"]) <= train
    assert len(set(infos["group"])) == 4


def test_ids_are_stored_once_a_row():
    """256 rows of 1,024 tokens of 8 bytes are 2 MiB, a state; what is kept stays under 10 MB."""
    envs = gymnasium.make_vec("worldmtp/Copy-v0", num_envs=256, max_prompt=512, max_new=512, pool_size=256)
    envs.reset(seed=0)
    kept = [envs.unwrapped._rows.tokens, envs.dataset.pool("train").tokens]
    assert sum(array.nbytes for array in kept) < 10e6


def test_render_shows_the_rows(make_vector, words):
    envs = make_vector(2, "disabled", render_mode="ansi")
    assert envs.render() is None
    play(envs, words("a", "b"), [[3, 3], [1, 2]])
    assert envs.render() == ("a=b", "b=ba")


@pytest.mark.parametrize(
    ("actions", "text"), [([2, 0, 3, 1], "a\ufffdb"), ([2, 3, 0, 1], "ab\ufffd"), ([2, 3, 0, 0], "ab\ufffd\ufffd")]
)
def test_padding_that_the_policy_writes_makes_another_answer(make_vector, words, actions, text):
    """To "ab=" the answer is "ab"; with padding inside, before EOS or at the end of its room it is another."""
    steps = play(make_vector(1, "disabled"), words("ab"), [[action] for action in actions])
    final = steps[-1][4]["final_info"]
    assert (final["text"][0], final["exact"][0], final["num_tokens"][0]) == (text, False, 4)
    assert steps[-1][1].tolist() == [0.0]


class Fragile:
    """Breaks down at every second question, whatever the answer."""

    asked = 0

    def sample(self, rng, split):
        return Example("ab"[rng.integers(2)] + "=")

    def score(self, example, text, ids):
        self.asked += 1
        if self.asked % 2:
            raise RuntimeError("broken down")
        return Score(1.0)


def test_a_step_that_raises_changes_nothing_and_can_be_taken_again(make_vector):
    envs = make_vector(1, "disabled", task=Fragile(), on_error="raise", heldout_fraction=0.0)
    envs.reset(seed=0)
    envs.step(np.array([2]))
    before = envs.state()["tokens"]
    with pytest.raises(RuntimeError, match="broken down"):
        envs.step(np.array([1]))
    assert (envs.state()["tokens"], envs.done.tolist()) == (before, [False])
    obs, rewards, terminated, *_ = envs.step(np.array([1]))
    assert (obs["length"].tolist(), rewards.tolist(), terminated.tolist()) == ([[4]], [1.0], [True])


def test_a_budget_that_was_measured_too_small_says_so():
    """Long questions are rare, and the draw that measures had none: nobody gave the budget that is too small."""

    class Rare:
        longest = 3

        def sample(self, rng, split):
            word = "".join(rng.choice(list("abcdefghij"), size=self.longest))
            return Example(prompt=word + "=", answer=word)

        def score(self, example, text, ids):
            raise AssertionError("nothing is answered")

    def refused(**budgets):
        envs = TextGenVectorEnv(1, task=Rare(), tokenizer="char:abcdefghij=", pool_size=8, **budgets)
        envs.task.longest = 9
        with pytest.raises(ValueError, match="tokens") as caught:
            envs.reset(seed=0)
        return str(caught.value)

    told = "was left out, and measured on 512 examples, which had none as long."
    # Nine letters and "=", nine letters and EOS.
    setting = "++env.kwargs.max_prompt=10 ++env.kwargs.max_new=10 (worldmtp train), --kwargs max_prompt=10 max_new=10 "
    assert refused().endswith(
        f", the longest of 8, but max_new=4; make the task's texts shorter, or give {setting}(worldmtp envs, eval). "
        f"max_prompt and max_new {told}"
    )
    assert refused(max_prompt=10).endswith(f"eval). max_new {told}")
    assert told not in refused(max_prompt=4, max_new=99)
    assert refused(max_prompt=4).endswith(f"eval). max_new {told}")  # of the prompt nothing was left out


def test_budgets_that_are_left_out_are_measured(caplog):
    """Copy of words of 2 or 3 letters: prompts of 4 tokens with "=", answers of 3 and EOS."""
    words = {"alphabet": "ab", "min_length": 2, "max_length": 3}
    with caplog.at_level("INFO", logger="worldmtp.envs.dataset"):
        envs = TextGenVectorEnv(1, task="Copy", task_kwargs=words, tokenizer="char:ab=", pool_size=8)
    assert (envs.dataset.max_prompt, envs.dataset.max_new) == (4, 4)
    assert "max_prompt=4 and max_new=4, measured on" in caplog.text
    assert TextGenVectorEnv(1, task="Copy", task_kwargs=words, tokenizer="char:ab=", max_new=9).max_new == 9
