"""The questions of rows with the dice of their episodes: thrown for each, saved, and found again.

The dice stand in ``meta["dice"]`` of a row's own Example and are no part of what the question is: its key stays.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from worldmtp.envs.dataset import EncodedExamples
from worldmtp.envs.rows import object_column
from worldmtp.envs.task import Example

DICE_RANGE = 2**31
"""Dice are integers from 0 up to below this."""


def dice_of(example: Example) -> int | None:
    """Return the seed of an episode's dice; None where its world's seed decides them."""
    return example.meta.get("dice")


def with_dice(example: Example, dice: int | None) -> Example:
    """Return the question with the dice of an episode; None leaves it as it is."""
    return example if dice is None else replace(example, meta={**example.meta, "dice": dice})


def with_new_dice(chosen: EncodedExamples, generator: np.random.Generator) -> EncodedExamples:
    """Return the questions, each with dice of its own."""
    dice = generator.integers(DICE_RANGE, size=len(chosen)).tolist()
    thrown = [with_dice(example, seed) for example, seed in zip(chosen.examples, dice, strict=True)]
    return replace(chosen, examples=object_column(thrown))


def saved_examples(
    examples: Shaped[np.ndarray, " row"], indices: Int64[np.ndarray, " row"]
) -> list[dict[str, Any] | None]:
    """Return the questions that were given as Examples, for a snapshot; None where the pool has them."""
    return [
        None
        if index >= 0
        else {"prompt": one.prompt, "answer": one.answer, "meta": dict(one.meta), "hidden": one.hidden}
        | ({"info": dict(one.info)} if one.info else {})
        for index, one in zip(indices.tolist(), examples, strict=True)
    ]


def loaded_examples(
    state: Mapping[str, Any], pool: Callable[[str], Shaped[np.ndarray, " example"]]
) -> Shaped[np.ndarray, " row"]:
    """Return the questions of a snapshot; one from before there were dice goes on with those of its worlds' seeds."""
    rows = zip(state["splits"], state["indices"], state["examples"], strict=True)
    found = [pool(split)[index] if given is None else Example(**given) for split, index, given in rows]
    dice = state.get("dice", [None] * len(found))
    return object_column([with_dice(*one) for one in zip(found, dice, strict=True)])
