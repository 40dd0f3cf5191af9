"""Train and held-out prompts, split by the hash of the prompt.

Seeds do not separate prompts: procedural generators that seed item i with seed + i give neighbouring seeds the same
items, and small tasks repeat prompts whatever the seed. A prompt's hash puts it into the same split for every seed, run
and process, so no prompt can be in both.

Draws for different purposes come from different streams, and a seed changes every stream: the pool of reinforcement is
not the list of demonstrations over again, and two runs of different seeds train on different prompts.
"""

from collections.abc import Collection, Iterable

import numpy as np

from worldmtp.envs.task import Example, Task

SPLITS = ("train", "heldout")
PURPOSES = ("pool", "demonstrations", "evaluation")
"""What examples are drawn for; a stream each. Their order is part of every stream."""
_BUCKETS = 1000
_DRAWS_PER_QUESTION = 20
_MOST_MISSES = 1_000_000


def check_split(split: str) -> str:
    """The split itself.

    Raises:
        ValueError: if there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; expected one of {SPLITS}.")
    return split


def split_of(key: str, heldout_fraction: float = 0.2) -> str:
    """The split of the prompt with this key: its hash modulo 1000 is below 1000 times the fraction, or not."""
    return "heldout" if int(key, 16) % _BUCKETS < round(_BUCKETS * heldout_fraction) else "train"


def draw_examples(
    task: Task,
    split: str,
    num_examples: int,
    seed: int,
    *,
    purpose: str = "pool",
    distinct: bool = False,
    heldout_fraction: float = 0.2,
    max_misses: int = 1000,
    excluded: Collection[str] = (),
    fewer: bool = False,
) -> list[Example]:
    """Examples of a split; item i depends on (seed, purpose, split, i), and the longer draw begins with the shorter.

    Args:
        task: where they come from.
        split: "train" or "heldout".
        num_examples: how many.
        seed: any non-negative integer.
        purpose: one of ``PURPOSES``.
        distinct: whether each prompt comes once; else prompts come as often as the task draws them.
        heldout_fraction: share of all prompts that is held out.
        max_misses: draws in a row that may be of the other split, or repeated, before the universe is called too small;
            where the task states a ``universe_size``, at least 20 for each question, up to a million: the last new
            one of n that are equally likely is missed so long once in 500 million times.
        excluded: keys of questions that are not taken; a set.
        fewer: return what there is where the split cannot be filled, after ``max_misses`` draws in a row as given: the
            last few questions of a small universe may then be missing.

    Raises:
        ValueError: if the split cannot be filled, unless ``fewer`` is set.
    """
    split_index = SPLITS.index(check_split(split))
    if purpose not in PURPOSES:
        raise ValueError(f"purpose={purpose!r} is unknown; expected one of {PURPOSES}.")
    stream = [seed, PURPOSES.index(purpose), split_index]
    if not 0.0 <= heldout_fraction < 1.0:
        raise ValueError(f"heldout_fraction={heldout_fraction} must be in [0, 1).")
    universe_size = getattr(task, "universe_size", None)
    if universe_size is not None and not fewer:
        max_misses = max(max_misses, min(_DRAWS_PER_QUESTION * universe_size, _MOST_MISSES))
    examples: list[Example] = []
    seen: set[str] = set()
    index = 0
    while len(examples) < num_examples:
        rng = np.random.default_rng(np.random.SeedSequence([*stream, index]))
        index += 1
        for _ in range(max_misses):
            example = task.sample(rng, split)
            key = example.key
            if split_of(key, heldout_fraction) == split and key not in excluded and not (distinct and key in seen):
                break
        else:
            if fewer:
                break
            raise ValueError(
                f"{split!r} of {type(task).__name__} has no {'new ' if distinct else ''}prompt in {max_misses} draws "
                f"({len(seen)} distinct found, {num_examples} asked for, heldout_fraction={heldout_fraction}"
                f"{f', {len(excluded)} excluded' if excluded else ''}): "
                "its universe of prompts is too small"
                + (f", it has {universe_size} in all" if universe_size is not None else "")
                + "; ask for fewer, widen the task, or change heldout_fraction."
            )
        seen.add(key)
        examples.append(example)
    return examples


def prompt_overlap(seen: Iterable[Example], evaluated: Iterable[Example]) -> float:
    """Share of the distinct questions of ``evaluated`` that are also in ``seen``; 0 is no leak.

    A question is its prompt and what is hidden behind it, as in ``Example.key``.

    Raises:
        ValueError: if there is nothing to evaluate.
    """
    questions = {example.key for example in evaluated}
    if not questions:
        raise ValueError("prompt_overlap needs at least one evaluated example.")
    return len(questions & {example.key for example in seen}) / len(questions)
