"""Prompts are split by their hash, whatever the seed."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldmtp.envs import Example, TextGenVectorEnv, draw_examples, make_task, prompt_overlap, register_task, split_of
from worldmtp.envs.splits import splitting_share
from worldmtp.envs.tasks.strings import Copy


def test_the_key_is_the_hash_of_the_prompt_and_nothing_else():
    expected = hashlib.blake2b(b"12+3=", digest_size=8).hexdigest()
    assert Example("12+3=", "15").key == expected
    assert Example("12+3=", None, {"seed": 1}).key == expected


def test_the_split_is_the_hash_modulo_a_thousand():
    # 0x3e8 = 1000 -> bucket 0; 0xc7 = 199 and 0xc8 = 200 are either side of 0.2 * 1000
    assert [split_of(key, 0.2) for key in ("3e8", "c7", "c8")] == ["heldout", "heldout", "train"]
    assert split_of("0", 0.0) == "train"


def test_the_held_out_share_is_the_fraction():
    """Of 20,000 keys the share is 0.2 +- 4 * sqrt(0.16 / 20000) = 0.0113; it fails by chance once in 15,000 times."""
    keys = [Example(f"prompt {index}").key for index in range(20_000)]
    share = np.mean([split_of(key, 0.2) == "heldout" for key in keys])
    assert abs(share - 0.2) < 0.0113


def test_splits_share_no_prompt_at_any_seed():
    task = Copy(alphabet="abc", min_length=2, max_length=5)  # 360 prompts: draws repeat a lot
    train = draw_examples(task, "train", 500, seed=0)
    heldout = draw_examples(task, "heldout", 500, seed=1)
    assert prompt_overlap(train, heldout) == 0.0
    assert len({example.prompt for example in heldout}) < 120  # about a fifth of 360: it is the universe that is split


def test_reasoning_gym_seeds_overlap_and_our_splits_do_not():
    """What the library itself does: seed + index, so that seeds 42 and 43 share all items but one."""
    import reasoning_gym

    config = {"min_terms": 2, "max_terms": 3, "max_digits": 2}
    items = [
        [
            Example(entry["question"])
            for entry in reasoning_gym.create_dataset("chain_sum", size=100, seed=seed, **config)
        ]
        for seed in (42, 43)
    ]
    assert prompt_overlap(items[0], items[1]) > 0.98  # 99 of 100 items; as prompts, 97 of 98
    task = make_task("chain_sum", config)
    train = draw_examples(task, "train", 600, seed=42)
    heldout = draw_examples(task, "heldout", 200, seed=43)
    assert prompt_overlap(train, heldout) == 0.0
    # with neighbouring seeds of one split, repeats are chance: two draws of 200 share fewer than half their prompts
    other = draw_examples(task, "heldout", 200, seed=44)
    assert prompt_overlap(heldout, other) < 0.5


def test_item_i_depends_on_seed_split_and_i_alone():
    task = Copy()
    assert draw_examples(task, "train", 5, seed=3) == draw_examples(task, "train", 20, seed=3)[:5]
    assert draw_examples(task, "train", 5, seed=3) != draw_examples(task, "train", 5, seed=4)


def keys(examples):
    return {example.key for example in examples}


def test_purposes_seeds_and_splits_have_streams_of_their_own():
    """Copies of 12 letters repeat by chance once in 26^12 pairs: any common prompt is a common stream."""
    task = Copy(min_length=12, max_length=12)
    drawn = [
        keys(draw_examples(task, split, 50, seed, purpose=purpose))
        for split in ("train", "heldout")
        for seed in (0, 1, 2)
        for purpose in ("pool", "demonstrations", "evaluation")
    ]
    assert len(set.union(*drawn)) == 50 * len(drawn)
    with pytest.raises(ValueError, match=r"purpose='acting' is unknown; choose from \['pool', 'demonstrations', "):
        draw_examples(task, "train", 1, 0, purpose="acting")


def test_excluded_questions_are_not_drawn_and_the_others_are():
    task = Copy(alphabet="ab", min_length=1, max_length=3)  # 14 prompts
    everything = keys(draw_examples(task, "train", 14, seed=0, distinct=True, heldout_fraction=0.0))
    excluded = set(sorted(everything)[:9])
    drawn = keys(draw_examples(task, "train", 200, seed=0, heldout_fraction=0.0, excluded=excluded))
    assert drawn == everything - excluded  # one of 5 is missed in 200 draws once in 10^19 times
    with pytest.raises(ValueError, match=r"no prompt in 1000 draws \(0 distinct found, .*, 14 excluded\)"):
        draw_examples(task, "train", 1, seed=0, heldout_fraction=0.0, excluded=everything)


def test_a_small_task_gives_what_it_has_where_fewer_will_do():
    task = Copy(alphabet="ab", min_length=1, max_length=3)
    drawn = draw_examples(task, "train", 100, seed=0, distinct=True, heldout_fraction=0.0, fewer=True)
    assert len(keys(drawn)) == len(drawn) == 14
    assert draw_examples(task, "train", 5, seed=0, distinct=True, heldout_fraction=0.0, fewer=True) == drawn[:5]
    assert draw_examples(task, "heldout", 5, seed=0, heldout_fraction=0.0, fewer=True) == []


def test_distinct_examples_are_distinct_and_all_of_a_small_universe():
    task = Copy(alphabet="ab", min_length=1, max_length=3)  # 2 + 4 + 8 = 14 prompts
    universe = {"a", "b", "aa", "ab", "ba", "bb", "aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"}
    expected = {word + "=" for word in universe if split_of(Example(word + "=").key, 0.5) == "train"}
    drawn = draw_examples(task, "train", len(expected), seed=0, distinct=True, heldout_fraction=0.5)
    assert {example.prompt for example in drawn} == expected
    with pytest.raises(ValueError, match=rf"no new prompt in 1000 draws \({len(expected)} distinct found"):
        draw_examples(task, "train", len(expected) + 1, seed=0, distinct=True, heldout_fraction=0.5)


def test_a_split_that_cannot_be_filled_is_an_error():
    with pytest.raises(
        ValueError, match=r"'heldout' of Copy has no prompt in 1000 draws .*universe of prompts is too small"
    ):
        draw_examples(Copy(), "heldout", 1, seed=0, heldout_fraction=0.0)
    with pytest.raises(ValueError, match=r"split='test' is unknown; choose from \['train', 'heldout'\]"):
        draw_examples(Copy(), "test", 1, seed=0)
    with pytest.raises(ValueError, match=r"heldout_fraction=1.0 must be in \[0, 1\)"):
        draw_examples(Copy(), "train", 1, seed=0, heldout_fraction=1.0)


def test_overlap_counts_distinct_prompts():
    seen = [Example("a"), Example("b")]
    assert prompt_overlap(seen, [Example("a"), Example("a"), Example("c"), Example("d")]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least one"):
        prompt_overlap(seen, [])


def test_items_that_draw_from_global_generators_repeat():
    task = make_task("list_functions", {"calibration_items": 4})
    first = draw_examples(task, "train", 20, seed=0)
    random.random()
    assert draw_examples(task, "train", 20, seed=0) == first


def test_of_few_prompts_the_nearest_share_fills_both_splits():
    # Buckets are the keys modulo 1000. Of 500 and 700 none is below 200: from 501 on one is held out.
    assert splitting_share([f"{500:x}", f"{1700:x}"], 0.2) == 0.501
    # Of 100 and 150 none trains: at 150 the second one does.
    assert splitting_share([f"{100:x}", f"{150:x}"], 0.2) == 0.15
    assert splitting_share([f"{100:x}", f"{700:x}"], 0.2) == 0.2  # both are filled as it is
    assert splitting_share([f"{500:x}"], 0.2) == 0.2  # no share puts one prompt on both sides
    assert splitting_share([f"{500:x}", f"{700:x}"], 0.0) == 0.0  # none held out, as asked


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=6), st.integers(1, 999))
def test_no_split_is_empty_where_one_share_fills_both_and_a_share_that_does_stays(numbers, thousandths):
    keys, given_share = [f"{number:x}" for number in numbers], thousandths / 1000
    share = splitting_share(keys, given_share)
    if {split_of(key, given_share) for key in keys} == {"train", "heldout"}:
        assert share == given_share
    elif len({number % 1000 for number in numbers}) > 1:
        assert {split_of(key, share) for key in keys} == {"train", "heldout"}


@pytest.mark.parametrize("names", [("dog=", "hen="), ("cat=", "cow=")])
def test_a_task_of_two_questions_has_one_in_each_split_whatever_the_seed(names):
    """By .2 both of the first pair would train, and both of the second be held out."""
    assert len({split_of(Example(name).key) for name in names}) == 1

    class Two(Copy):
        universe_size = 2

        def sample(self, rng, split):
            return Example(names[int(rng.integers(2))], "a")

    register_task("Two", max_prompt=4, max_new=4)(Two)
    for seed in (0, 1):
        envs = TextGenVectorEnv(1, task="Two", max_prompt=4, max_new=4, pool_size=4, pool_seed=seed)
        pools = [{example.prompt for example in envs.dataset.pool(split).examples} for split in ("train", "heldout")]
        assert sorted(map(len, pools)) == [1, 1]
        assert set.union(*pools) == set(names)
        assert envs.dataset.overlap() == 0.0
