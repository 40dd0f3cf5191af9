"""Checks of worlds: they are decided by their seed and by what is said to them, and by nothing else."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from worldmtp.envs.task import Example, TextWorld, TurnTask
from worldmtp.envs.tokenizer import Tokenizer


def check_worlds(task: TurnTask, examples: list[Example], words: Sequence[str]) -> None:
    """Worlds are decided by seed and texts, whatever was played before in them or is played beside them.

    Args:
        task: whose worlds.
        examples: their episodes.
        words: what is said, in random order, until an episode is over or for 50 turns.

    Raises:
        AssertionError: if a world that has been played, or is played in turns with another, tells another story than a
            fresh one.
    """
    rng = np.random.default_rng(0)
    played, beside = task.make_world(), task.make_world()
    for example, other in zip(examples, [*examples[1:], *examples[:1]], strict=True):
        said = [words[index] for index in rng.integers(len(words), size=50)]
        seed, name = example.meta["seed"], type(played).__name__
        story = list(_story(task.make_world(), seed, said))
        assert story[0] == example.prompt, f"the world opens with {story[0]!r}, the example says {example.prompt!r}."
        list(_story(played, other.meta["seed"], said[::-1]))
        again = list(_story(played, seed, said))
        assert story == again, (
            f"{name} of seed {seed} tells another story when it has been played before; {_difference(story, again)} "
            "reset(seed) must clear all that was, and nothing but the seed may decide."
        )
        pairs = itertools.zip_longest(
            _story(task.make_world(), seed, said), _story(beside, other.meta["seed"], said[::-1])
        )
        interleaved = [event for event, _ in pairs if event is not None]
        assert story == interleaved, (
            f"{name} of seed {seed} tells another story when another world is played in between; "
            f"{_difference(story, interleaved)} make_world must make worlds that share nothing."
        )


def _difference(story: list[Any], other: list[Any]) -> str:
    turn, (one, two) = next(
        (turn, pair) for turn, pair in enumerate(itertools.zip_longest(story, other)) if pair[0] != pair[1]
    )
    return f"in turn {turn} it says {two} and not {one}."


def words_of(tokenizer: Tokenizer) -> list[str]:
    """The texts of single tokens, of 64 at most, and of random pairs of them."""
    ids = [i for i in range(tokenizer.vocab_size) if i not in (tokenizer.pad_id, tokenizer.eos_id)]
    rng = np.random.default_rng(0)
    singles = [tokenizer.decode([ids[index]]).strip() for index in rng.permutation(len(ids))[:64]]
    return [*singles, *(first + second for first, second in rng.choice(singles, size=(16, 2)).tolist())]


def _story(world: TextWorld, seed: int, said: Sequence[str]) -> Iterator[Any]:
    yield world.reset(seed)[0]
    for text in said:
        reply, reward, terminated, truncated, _ = world.step(text)
        yield reply, float(reward), bool(terminated), bool(truncated)
        if terminated or truncated:
            break
