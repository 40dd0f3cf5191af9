"""Curricula of reasoning-gym, and slow items kept on disk: the same items with and without."""

import numpy as np
import pytest

from worldmtp.envs import draw_examples
from worldmtp.envs.tasks.reasoning_gym import ReasoningGymTask
from worldmtp.envs.tasks.reasoning_gym_datasets import CACHE_VARIABLE, ItemCache


def config(**arguments):
    return ReasoningGymTask("chain_sum", calibration_items=2, **arguments)._dataset.config


def test_a_level_sets_the_options_of_all_attributes():
    # the curriculum's levels: 2..12 terms and 1..10 digits, from the lowest to the level's own
    lowest, third = config(level=0), config(level=2)
    assert (lowest.min_terms, lowest.max_terms, lowest.min_digits, lowest.max_digits) == (2, 2, 1, 1)
    assert (third.min_terms, third.max_terms, third.min_digits, third.max_digits) == (2, 4, 1, 3)
    highest = config(level=10)  # digits have ten levels only
    assert (highest.max_terms, highest.max_digits) == (12, 10)


def test_levels_by_attribute_leave_the_others_at_their_default():
    one = config(level={"num_terms": 3})
    assert (one.min_terms, one.max_terms, one.min_digits, one.max_digits) == (2, 5, 1, 1)
    assert config(level={"num_terms": 1}, allow_negation=True).allow_negation


def test_a_level_shows_in_the_items():
    for level in (0, 2):
        task = ReasoningGymTask("chain_sum", calibration_items=8, level=level, drop=" ")
        rng = np.random.default_rng(0)
        terms = {1 + sum(map(prompt.count, "+-")) for prompt in (task.sample(rng, "train").prompt for _ in range(40))}
        assert terms == ({2} if level == 0 else {2, 3, 4})


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (
            "chain_sum",
            {"level": 11},
            r"level=11 of chain_sum must lie in 0\.\.10; .*\{'num_terms': 11, 'num_digits': 10\}",
        ),
        ("chain_sum", {"level": -1}, r"level=-1 of chain_sum must lie in 0\.\.10"),
        ("chain_sum", {"level": {"num_term": 1}}, "no attribute 'num_term'; did you mean 'num_terms'"),
        ("chain_sum", {"level": {"num_digits": 10}}, r"level\['num_digits'\]=10 of chain_sum must lie in 0\.\.9"),
        ("chain_sum", {"level": 1, "max_terms": 3}, r"level=1 of chain_sum decides \['max_terms'\] too; leave one"),
        ("list_functions", {"level": 1}, "list_functions has no curriculum, so level=1 says nothing"),
        (
            "caesar_cipher",
            {"level": 2},
            r"level=2 of caesar_cipher means .*which it refuses: rotation must be in range",
        ),
    ],
)
def test_impossible_levels_are_refused(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        ReasoningGymTask(dataset, calibration_items=2, **arguments)


def test_items_are_the_same_with_and_without_a_cache_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("worldmtp.envs.tasks.reasoning_gym_datasets.SLOW_SECONDS", 0.0)
    arguments = {"calibration_items": 4, "min_word_len": 3}
    plain = ReasoningGymTask("spell_backward", **arguments)
    expected = draw_examples(plain, "heldout", 20, seed=0)
    assert plain._cache.path is None
    first = ReasoningGymTask("spell_backward", cache_dir=tmp_path, **arguments)
    assert draw_examples(first, "heldout", 20, seed=0) == expected
    assert first._cache.num_made > 20
    second = ReasoningGymTask("spell_backward", cache_dir=tmp_path, **arguments)
    assert draw_examples(second, "heldout", 20, seed=0) == expected
    assert second._cache.num_made == 0
    assert (second._prefix, second._suffix, second._floor) == (plain._prefix, plain._suffix, plain._floor)
    other = ReasoningGymTask("spell_backward", cache_dir=tmp_path, calibration_items=4, min_word_len=4)
    assert other._cache.path != first._cache.path  # other options, other items
    assert other._cache.num_made == 4


def test_the_cache_is_off_unless_a_directory_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    cache = ItemCache(None, "name", "identity", 0.0)
    assert [cache.get(1, lambda index: {"index": index}) for _ in range(2)] == [{"index": 1}] * 2
    assert cache.path is None
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert ItemCache(None, "name", "identity").path.parent == tmp_path


ITEM = {"question": "a\n\u2603'\"", "metadata": {"pair": (1, 2.5), 3: {4}, "none": None, "bytes": b"\x00\n"}}


def refuse(index):
    raise AssertionError(f"item {index} is made again")


def test_an_item_comes_back_with_its_types_in_an_object_of_its_own(tmp_path):
    ItemCache(tmp_path, "name", "identity", 0.0).get(7, lambda index: ITEM)
    cache = ItemCache(tmp_path, "name", "identity", 0.0)
    again = cache.get(7, refuse)
    assert again == ITEM
    assert repr(again) == repr(ITEM)
    again["metadata"].clear()
    assert cache.get(7, refuse) == ITEM
    with pytest.raises(AssertionError, match="item 7 is made again"):
        ItemCache(tmp_path, "name", "another identity", 0.0).get(7, refuse)


@pytest.mark.parametrize(
    "item",
    [{"number": np.int64(3)}, {"nan": float("nan")}, {"object": object()}, {"type": int}, {"array": np.zeros(2)}],
    ids=["numpy", "nan", "object", "type", "array"],
)
def test_what_would_not_come_back_the_same_is_not_kept(tmp_path, item):
    cache = ItemCache(tmp_path, "name", "identity", 0.0)
    assert cache.get(1, lambda index: item) is item
    assert not cache.path.exists()


def test_quick_items_are_not_kept(tmp_path):
    cache = ItemCache(tmp_path, "name", "identity", slow_seconds=60.0)
    cache.get(1, lambda index: {"index": index})
    assert not cache.path.exists()


def test_a_line_that_was_cut_short_or_changed_is_made_anew(tmp_path):
    cache = ItemCache(tmp_path, "name", "identity", 0.0)
    for index in (1, 2, 3):
        cache.get(index, lambda index: {"index": index})
    lines = cache.path.read_bytes().split(b"\n")
    # the second item is changed, the third cut short by the end of its process, and another process went on
    cache.path.write_bytes(b"\n".join([lines[0], lines[1].replace(b"{'index': 2}", b"{'index': 5}"), lines[2][:-4]]))
    other = ItemCache(tmp_path, "name", "identity", 0.0)
    assert [other.get(index, lambda index: {"index": index}) for index in (1, 2, 3)] == [
        {"index": index} for index in (1, 2, 3)
    ]
    assert other.num_made == 2
