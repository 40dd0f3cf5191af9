"""The tasks: their answers, their credit, and what their scorers refuse."""

import math

import numpy as np
import pytest

from worldmtp.envs import Example, Score, TextGenEnv, make_task
from worldmtp.envs.tasks.reasoning_gym import ReasoningGymTask, shared_affixes
from worldmtp.envs.tasks.reasoning_gym_datasets import dataset_names
from worldmtp.envs.tasks.strings import Copy, RandomDigits, Reverse, match_score, position_match

NO_IDS = np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("abcd", "abcd", 1.0),
        ("abcd", "abxd", 0.75),
        ("abcd", "ab", 0.5),  # two of four
        ("abcd", "abcdabcd", 0.5),  # four of eight: padding is not free
        ("abcd", "bcd", 0.0),
        ("ab", "", 0.0),
        ("", "", 1.0),
    ],
)
def test_position_match(answer, text, expected):
    assert position_match(answer, text) == expected


def test_exact_reward_is_all_or_nothing():
    partial, full = match_score("abcd", "abcx", "exact"), match_score("abcd", "abcd", "exact")
    assert (partial.value, partial.exact, partial.components) == (0.0, False, {"position_match": 0.75})
    assert (full.value, full.exact) == (1.0, True)


def test_copy_and_reverse_answer_their_prompts():
    rng = np.random.default_rng(0)
    for task, turn in ((Copy(alphabet="xyz"), 1), (Reverse(alphabet="xyz"), -1)):
        example = task.sample(rng, "train")
        word = example.prompt.removesuffix("=")
        assert set(word) <= set("xyz")
        assert 3 <= len(word) <= 8
        assert example.answer == word[::turn]


def test_random_digits_are_independent_of_the_prompt():
    """A digit comes n / 10 +- 4 * sqrt(0.09 n) times; ten digits at 4 sigma fail by chance once in 1,500 times."""
    task = RandomDigits(prompt_length=1, answer_length=1)
    rng = np.random.default_rng(0)
    answers = [int(e.answer) for e in (task.sample(rng, "train") for _ in range(20_000)) if e.prompt == "7="]
    counts = np.bincount(answers, minlength=10)
    assert abs(counts - len(answers) / 10).max() < 4 * math.sqrt(len(answers) * 0.09)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copy(min_length=3, max_length=2), "1 <= min_length <= max_length"),
        (lambda: Copy(reward="exactly"), r"reward='exactly' is unknown; did you mean 'exact'\?"),
        (lambda: RandomDigits(answer_length=0), "lengths must be positive"),
        (lambda: ReasoningGymTask("chain_sums"), r"no dataset 'chain_sums'; did you mean 'chain_sum'"),
        (lambda: ReasoningGymTask("chain_sum", max_term=3), "no option 'max_term'; did you mean 'max_terms'"),
        (lambda: ReasoningGymTask("chain_sum", seed=3), r"\['seed'\] of chain_sum belong to the environment"),
        (lambda: ReasoningGymTask("chain_sum", calibration_items=1), "must be 2 or more"),
        (lambda: Score(value=float("nan")), "must be finite"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_shared_affixes_are_cut_to_whole_words():
    questions = ["Add: 12 now please.", "Add: 13 now please.", "Add: 19 now please."]
    # "Add: 1" and " now please." are shared; the 1 is the items' own
    assert shared_affixes(questions) == ("Add: ", " now please.")
    assert shared_affixes(["same", "same"]) == ("", "")
    # a bracket that these items happen to share belongs to them
    assert shared_affixes(["Solve (1 + 2)?", "Solve (3 * 4)?"]) == ("Solve ", "?")
    # what the prefix took, the suffix cannot take again
    assert shared_affixes(["a b. ", "a b. "]) == ("a b. ", "")


def test_compact_prompts_keep_what_differs():
    task = ReasoningGymTask("chain_sum", min_terms=2, max_terms=2, max_digits=1, drop=" ")
    example = task.sample(np.random.default_rng(0), "train")
    assert example.meta["entry"]["question"].startswith("State the final answer")
    expression = example.meta["entry"]["metadata"]["expression"]
    assert example.prompt == expression.replace(" ", "") + "="
    left, operator, right = expression.split()
    assert int(example.answer) == int(left) + (int(right) if operator == "+" else -int(right))
    verbose = ReasoningGymTask("chain_sum", compact=False, separator="", min_terms=2, max_terms=2, max_digits=1)
    assert verbose.sample(np.random.default_rng(0), "train").prompt == example.meta["entry"]["question"]


def chain_sum_example(answer):
    return Example("q=", answer, {"entry": {"question": "q", "answer": answer, "metadata": {}}})


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("15", 1.0, "ok"),
        (" 15\n", 1.0, "ok"),  # the library pays 2/4 for blanks around it; we strip
        ("015", 1.0, "ok"),  # the same number, which the library pays in full
        ("15.", 1.0, "ok"),
        ("+15.00", 1.0, "ok"),
        ("(15)", 0.0, "containment"),  # the library pays 2/4
        ("1,5", 1.0, "ok"),  # the library strips commas, and the oracle is not inside
        ("0123456789", 0.0, "ok"),
        ("2150", 0.0, "containment"),  # the library pays 2/4
        ("the answer is 15", 0.0, "containment"),
        ("", 0.0, "ok"),
        ("\u0661\u0665", 1.0, "ok"),  # Arabic-Indic digits are the same number to Python's Decimal
    ],
)
def test_credit_for_containing_the_answer_is_removed(text, value, reason):
    task = ReasoningGymTask("chain_sum")
    score = task.score(chain_sum_example("15"), text, NO_IDS)
    assert (score.value, score.reason, score.exact) == (value, reason, value == 1.0)


def test_partial_credit_of_the_dataset_is_paid_or_not():
    entry = {"question": "q", "answer": "nus", "metadata": {"word": "sun"}}
    example = Example("sun=", "nus", {"entry": entry})
    # two of three positions are right: the dataset's own partial credit is 2/3
    assert ReasoningGymTask("spell_backward").score(example, "nux", NO_IDS).value == pytest.approx(2 / 3)
    exact_only = ReasoningGymTask("spell_backward", reward="exact").score(example, "nux", NO_IDS)
    assert (exact_only.value, exact_only.exact) == (0.0, False)
    assert exact_only.components["raw_score"] == pytest.approx(2 / 3)


def test_what_a_constant_earns_everywhere_is_no_credit():
    """The library pays 1.0 to any text for game_of_life_halting, and 0.25 to "zz" for propositional_logic."""
    task = ReasoningGymTask("game_of_life_halting", calibration_items=4)
    example = task.sample(np.random.default_rng(0), "train")
    assert task.score(example, "zz", NO_IDS) == Score(0.0, {"raw_score": 1.0}, "floor", False)
    assert task.score(example, example.answer, NO_IDS).exact


def test_an_example_of_another_task_is_refused():
    with pytest.raises(ValueError, match="has no reasoning-gym entry"):
        ReasoningGymTask("chain_sum").score(Example("1+1=", "2"), "2", NO_IDS)


def test_datasets_that_prepare_their_items_are_sampled_within_them():
    task = ReasoningGymTask("list_functions", calibration_items=4)
    rng = np.random.default_rng(0)
    assert len({task.sample(rng, "train").prompt for _ in range(20)}) > 15


def test_names_resolve_and_typos_suggest():
    assert "chain_sum" in dataset_names()
    for name in ("chain_sum", "reasoning_gym:chain_sum"):
        assert isinstance(make_task(name, {"max_terms": 3}), ReasoningGymTask)
    assert isinstance(make_task("Copy"), Copy)
    assert isinstance(make_task("worldmtp.envs.tasks.strings:Reverse"), Reverse)
    with pytest.raises(ValueError, match=r"task 'Copyy' is not registered; did you mean 'Copy'"):
        make_task("Copyy")
    with pytest.raises(ValueError, match="cannot be imported"):
        make_task("worldmtp.envs.tasks.strings:Revers")
    with pytest.raises(ValueError, match="already made"):
        make_task(Copy(), {"min_length": 3})
    with pytest.raises(TypeError, match="without the methods sample and score"):
        make_task("worldmtp.envs.tokenizer:CharTokenizer")


def test_padding_inside_a_copy_is_not_exact():
    env = TextGenEnv(task="Copy", tokenizer="char:abcdefghij=", max_prompt=9, max_new=9)
    env.reset(seed=0, options={"prompts": [Example("abc=", "abc")]})
    for action in (2, 0, 0, 3, 4, 1):  # a PAD PAD b c EOS
        _, reward, terminated, _, info = env.step(action)
    assert terminated
    assert (info["text"], info["exact"]) == ("a\ufffd\ufffdbc", False)
    assert reward == pytest.approx(1 / 5)  # one letter in its place, of five
