"""A rubric: the weighted mean of named reward functions, wherever a reward function may stand."""

import ast
import json
import pickle
import re
import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

import worldmtp
from worldmtp.envs import Example, Rubric, Score, Scorer, TextGenVectorEnv, exact_match, make_task, registry
from worldmtp.envs.rubric import load_reward
from worldmtp.envs.tasks.corpus import CorpusTask
from worldmtp.envs.tasks.data import DataTask
from worldmtp.envs.tasks.function import FunctionTask

NO_IDS = np.zeros(0, dtype=np.int64)
EXAMPLE = Example("cat=", "CAT")
SMALL = {"max_prompt": 2, "max_new": 4, "pool_size": 1, "heldout_fraction": 0.0}

REWARDS = """
from worldmtp.envs import Example, Rubric, Score, exact_match


def brevity(example, text):
    return 1 / max(1, len(text))


def num_letters(example, text):
    return float(len(text))


def judged(example, text):
    return Score(0.5, {"tone": 0.25}, reason="rude", exact=True)


def too_much(example, text):
    return 1.5


def breaks(example, text):
    return 1 / 0


def silent(example, text):
    return None


def letter(rng):
    return Example("a=", "ab")


both = Rubric([("right", exact_match, 3.0), ("short", brevity)], exact="right")
"""


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """A module of reward functions, which a path and a scoring process can name."""
    (tmp_path / "rewards_of_test_rubric.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    import rewards_of_test_rubric

    return rewards_of_test_rubric


def constant(value):
    return lambda example, text: value


def test_the_value_is_the_weighted_mean_and_names_its_parts(rewards):
    rubric = Rubric([("right", exact_match, 1.0), ("short", rewards.brevity, 0.1), ("length", rewards.num_letters, 0)])
    score = rubric(EXAMPLE, "CAT")
    assert score.value == pytest.approx((1.0 * 1 + 0.1 / 3) / 1.1, abs=1e-15)  # 0.9393...
    assert score.components == {"right": 1.0, "short": 1 / 3, "length": 3.0}
    assert (score.reason, score.exact) == ("ok", False)  # being short would have to be solved, too
    wrong = rubric(EXAMPLE, "DO")
    assert wrong.value == pytest.approx(0.05 / 1.1, abs=1e-15)
    assert wrong.components == {"right": 0.0, "short": 0.5, "length": 2.0}


def test_weights_are_one_unless_said():
    assert Rubric([("a", constant(1.0)), {"name": "b", "reward": constant(0.5)}])(EXAMPLE, "").value == 0.75


@pytest.mark.parametrize(("text", "exact"), [("CAT", True), ("C", False)])
def test_one_reward_can_decide_what_counts_as_solved(rewards, text, exact):
    parts = [("right", exact_match), ("short", rewards.brevity)]
    assert Rubric(parts, exact="right")(EXAMPLE, text).exact == exact
    assert Rubric([("right", exact_match, 0.0), parts[1]], exact="right")(EXAMPLE, text).exact == exact  # as a metric
    assert Rubric(parts, exact="short")(EXAMPLE, text).exact != exact  # one letter is as short as can be
    assert not Rubric(parts)(EXAMPLE, text).exact
    assert Rubric([("a", constant(1.0)), ("b", constant(1)), ("c", constant(0.0), 0.0)])(EXAMPLE, "").exact


def test_a_reward_that_is_a_score_brings_its_reason_its_word_on_exact_and_its_components(rewards):
    alone = Rubric([("style", rewards.judged), ("fits", constant(1.0))])(EXAMPLE, "")
    assert alone == Score(0.75, {"style": 0.5, "style.tone": 0.25, "fits": 1.0}, "rude", True)
    twice = Rubric([("a", rewards.judged), ("b", constant(Score(0.0, reason="late"))), ("c", constant(Score(0.0)))])
    assert twice(EXAMPLE, "").reason == "late+rude"
    metric = Rubric([("style", rewards.judged, 0.0), ("fits", constant(1.0))])(EXAMPLE, "")
    assert (metric.value, metric.reason) == (1.0, "ok")
    nested = Rubric([("outer", [("inner", constant(0.5))]), ("fits", constant(1.0))])(EXAMPLE, "")
    assert (nested.value, nested.components["outer.inner"]) == (0.75, 0.5)


PARTS = st.lists(
    st.tuples(st.floats(0.0, 1.0), st.one_of(st.just(0.0), st.floats(1e-3, 1e3))), min_size=1, max_size=5
).filter(lambda parts: any(weight > 0 for _, weight in parts))


def rubric_of(parts, names="abcde"):
    return Rubric([(name, constant(value), weight) for name, (value, weight) in zip(names, parts, strict=False)])


@settings(max_examples=50, deadline=None)
@given(PARTS, st.floats(1e-6, 1e6))
def test_law_only_the_ratios_of_weights_matter_and_values_stay_between_the_rewards(parts, scale):
    score = rubric_of(parts)(EXAMPLE, "")
    scaled = rubric_of([(value, scale * weight) for value, weight in parts])(EXAMPLE, "")
    assert scaled.value == pytest.approx(score.value, abs=1e-14)
    assert (scaled.components, scaled.exact) == (score.components, score.exact)
    paid = [value for value, weight in parts if weight > 0]
    assert min(paid) - 1e-14 <= score.value <= max(paid) + 1e-14
    assert 0.0 <= score.value <= 1.0


@settings(max_examples=50, deadline=None)
@given(PARTS, st.randoms(use_true_random=False))
def test_law_the_order_of_the_rewards_changes_nothing(parts, random):
    named = list(zip("abcde", parts, strict=False))
    mixed = random.sample(named, len(named))
    score = rubric_of(parts)(EXAMPLE, "")
    assert rubric_of([part for _, part in mixed], [name for name, _ in mixed])(EXAMPLE, "") == score
    assert score.components == {name: value for name, (value, _) in named}


@settings(max_examples=50, deadline=None)
@given(PARTS, st.floats(-1e9, 1e9))
def test_law_a_reward_of_weight_zero_is_a_metric_only(parts, value):
    with_metric = rubric_of([*parts, (value, 0.0)], "abcdef")(EXAMPLE, "")
    without = rubric_of(parts)(EXAMPLE, "")
    metric = pytest.approx(value, abs=1e-6)  # what misses 0 or 1 by rounding is 0 or 1, as in every score
    assert with_metric == replace(without, components=with_metric.components)
    assert with_metric.components == {**without.components, "abcdef"[len(parts)]: metric}


@pytest.mark.parametrize(
    ("rewards", "exact", "message"),
    [
        ([], None, r"the rewards \[\] of a rubric pay nothing"),
        (
            [("a", constant(1.0), 0.0)],
            None,
            r"\['a'\] of a rubric pay nothing; give at least one a positive",
        ),
        ([("a", constant(1.0)), ("a", constant(0.0))], None, r"two rewards of a rubric have one name: \['a', 'a'\]"),
        ([("right", constant(1.0))], "rihgt", "exact='rihgt' is unknown; did you mean 'right'"),
        ([("a b", constant(1.0))], None, "the name 'a b' of a reward must be letters, digits, '_' and '-'"),
        ([("a", constant(1.0), -1.0)], None, "weight=-1.0 of the reward 'a' must be a finite number of at least 0"),
        ([("a", constant(1.0), float("nan"))], None, "weight=nan of the reward 'a'"),
        ([("a", constant(1.0), "1")], None, "weight='1' of the reward 'a'"),
        (["ab"], None, r"'ab' is no reward of a rubric; expected \(name, reward, weight\)"),
        ([("a",)], None, r"\{'name': 'a'\} is no reward of a rubric"),
        ([("a", constant(1.0), 1.0, 1.0)], None, r"is no reward of a rubric"),
        ([{"name": "a", "function": "m:f"}], None, "is no reward of a rubric; expected"),
        ([{"name": "a", "reward": "m:f", "wieght": 1}], None, "is no reward of a rubric; expected"),
        ([("a", "no_such_module:f")], None, "the module 'no_such_module' cannot be imported"),
        ([("a", lambda text: 1.0)], None, r"is defined with \(text\) and called with \(example, text\)"),
    ],
)
def test_a_rubric_that_cannot_be_is_refused(rewards, exact, message):
    with pytest.raises(ValueError, match=message):
        Rubric(rewards, exact)


@pytest.mark.parametrize(
    ("name", "weight", "error", "message"),
    [
        ("breaks", 1.0, ZeroDivisionError, "This is of the reward 'odd' of a rubric"),
        ("breaks", 0.0, ZeroDivisionError, "This is of the reward 'odd' of a rubric"),
        ("silent", 1.0, TypeError, r"silent returned None of type NoneType(.|\n)*the reward 'odd' of a rubric"),
        ("too_much", 1.0, ValueError, r"1\.5 is outside \[0, 1\]; scale it, or give it weight 0(.|\n)*reward 'odd'"),
    ],
)
def test_a_reward_that_fails_is_named(rewards, name, weight, error, message):
    rubric = Rubric([("right", exact_match), ("odd", getattr(rewards, name), weight)])
    with pytest.raises(error, match=message):
        rubric(EXAMPLE, "CAT")


@pytest.mark.parametrize("timeout_seconds", [None, 60.0])
def test_a_failure_is_counted_and_shown_with_the_name_of_the_reward(rewards, timeout_seconds):
    task = FunctionTask(rewards.letter, [("right", exact_match), ("odd", rewards.breaks)])
    scorer = Scorer(task, timeout_seconds, num_scorers=timeout_seconds and 1)
    with pytest.warns(RuntimeWarning, match=r"ZeroDivisionError(.|\n)*This is of the reward 'odd' of a rubric"):
        assert scorer.score(EXAMPLE, "CAT", NO_IDS) == Score(0.0, reason="error")
    scorer.close()
    assert (scorer.counters.scored, scorer.counters.errors) == (1, 1)
    assert scorer.take_components() == {}


def test_a_rubric_stands_wherever_a_reward_function_does(rewards, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "cat=", "answer": "CAT"}))
    entries = [
        {"name": "right", "reward": "worldmtp.envs:exact_match", "weight": 3},
        {"name": "short", "reward": "rewards_of_test_rubric:brevity"},
    ]
    given = (
        rewards.both,
        "rewards_of_test_rubric:both",
        {"rewards": entries, "exact": "right"},
        {"rewards": [("right", exact_match, 3.0), ("short", rewards.brevity)], "exact": "right"},
    )
    expected = Score((3 * 1 + 1 / 3) / 4, {"right": 1.0, "short": 1 / 3}, exact=True)
    for reward in given:
        for task in (
            DataTask(tmp_path / "a.jsonl", reward),
            FunctionTask(rewards.letter, reward),
            CorpusTask(reward=reward),
            make_task("Data", {"path": str(tmp_path / "a.jsonl"), "reward": reward}),
        ):
            score = task.score(EXAMPLE, "CAT", NO_IDS)
            assert score.value == pytest.approx(expected.value)
            assert replace(score, value=expected.value) == expected
    assert not DataTask(tmp_path / "a.jsonl", entries).score(EXAMPLE, "CAT", NO_IDS).exact  # all must be solved
    assert pickle.loads(pickle.dumps(rewards.both))(EXAMPLE, "CAT") == rewards.both(EXAMPLE, "CAT")


@pytest.mark.parametrize("reward", [{"name": "a", "reward": "m:f"}, {"exact": "a"}, {}])
def test_a_mapping_that_is_no_rubric_is_told(reward):
    with pytest.raises(ValueError, match="a mapping is a rubric, with the keys 'rewards' and 'exact'"):
        load_reward(reward)


def test_means_of_components_are_taken_once_and_leave_failures_out(rewards):
    scorer = Scorer(FunctionTask(rewards.letter, lambda e, text: Score(0.0, {"a b": float(text), "n": 1.0})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer.score_batch([(EXAMPLE, text, NO_IDS) for text in ("1", "x", "4")])
    assert scorer.take_components() == {"a_b": 2.5, "n": 1.0}  # without "x", which failed
    assert scorer.take_components() == {}


def test_components_stand_in_the_record_of_an_episode(rewards):
    envs = TextGenVectorEnv(1, task=FunctionTask(rewards.letter, rewards.both), tokenizer="char:abc=", **SMALL)
    envs.reset(seed=0)
    for character in "ab":
        envs.step(np.array(envs.tokenizer.encode(character)))
    _, paid, _, _, infos = envs.step(np.array([envs.tokenizer.eos_id]))
    final = infos["final_info"]
    assert paid.tolist() == [(3 * 1 + 0.5) / 4]
    assert {name: value.tolist() for name, value in final["components"].items() if name[0] != "_"} == {
        "right": [1.0],
        "short": [0.5],
    }
    assert final["exact"].tolist() == [True]


def test_a_decorator_takes_a_rubric(rewards):
    name = "RubricOfTest"
    try:
        worldmtp.register_task(name, score=[("right", exact_match), ("short", rewards.brevity)])(rewards.letter)
        assert make_task(name).score(Example("a=", "ab"), "ab", NO_IDS).components == {"right": 1.0, "short": 0.5}
    finally:
        registry._factories.pop(name, None)
        gymnasium.registry.pop(f"worldmtp/{name}-v0", None)


def test_the_block_of_the_page_runs(project_root):
    page = (project_root / "docs" / "environments.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^### Several rewards\n(.*?)(?=^##|\Z)", page, flags=re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    code, _, shown = block.rpartition("\n>>> ")
    names = {}
    exec(compile(code, "docs/environments.md", "exec"), names)
    line, _, said = shown.partition("\n")
    score = eval(line, names)
    assert repr(score) == said.strip()


def test_the_command_of_the_page_makes_a_rubric(project_root, tmp_path, monkeypatch):
    page = (project_root / "docs" / "own_environments.md").read_text(encoding="utf-8")
    (override,) = re.findall(r"^ *'\+(env\.kwargs\.task_kwargs\.reward=.*)'$", page, flags=re.MULTILINE)
    (function,) = re.findall(r"`my_rewards.py`:\n\n```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "my_rewards.py").write_text(function)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "cat=", "answer": "CAT"}))
    monkeypatch.syspath_prepend(tmp_path)
    reward = OverridesParser.create().parse_override(override).value()
    assert reward == ast.literal_eval(repr(reward))  # plain lists and mappings, as JSON has them
    score = DataTask(tmp_path / "a.jsonl", reward).score(EXAMPLE, "CAR", NO_IDS)
    assert score.components == {"right": 0.0, "share": pytest.approx(2 / 3)}
    assert score.value == pytest.approx(0.2 * (2 / 3) / 1.2)
