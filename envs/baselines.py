"""What players earn who know nothing of the question, and what its own answers earn: the ends of a task's scale.

They are played through the vector environment like a policy, token by token, so that rewards on the way, ends before
EOS and conversations count as they do in training. In a conversation a player says its text anew in every turn.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.random import Generator

from worldmtp.envs.dataset import draw_examples
from worldmtp.envs.task import Example, TurnTask
from worldmtp.envs.text_env import TextVectorEnv
from worldmtp.envs.tokenizer import Tokenizer
from worldmtp.envs.worlds.players import PlayedWorld, WorldWithMoves, own_player, play, random_player

Writer = Callable[[Generator, Example], Sequence[int]]
"""The ids of the next text, or turn, in answer to an example; EOS is added."""


@dataclass(frozen=True)
class Baseline:
    """A player and what each of its episodes was worth; ``says`` is the text of one who says the same always."""

    name: str
    scores: Float64[np.ndarray, " episode"]
    says: str | None = None


def constant_text(text: str, tokenizer: Tokenizer) -> Writer:
    """Writes ``text``, whatever the question.

    Raises:
        ValueError: if a character of it has no token.
    """
    ids = tokenizer.encode(text)
    return lambda rng, example: ids


def random_tokens(lengths: Sequence[int], tokenizer: Tokenizer) -> Writer:
    """Writes uniform tokens, neither EOS nor padding, as many as one of ``lengths`` says.

    Raises:
        ValueError: if there is no length, or no token to write.
    """
    tokens = np.setdiff1d(np.arange(tokenizer.vocab_size), [tokenizer.eos_id, tokenizer.pad_id])
    if not len(lengths) or not len(tokens):
        raise ValueError(f"expected lengths and tokens to draw from, got {len(lengths)} and {len(tokens)}.")
    return lambda rng, example: rng.choice(tokens, size=int(rng.choice(lengths))).tolist()


def own_answers(tokenizer: Tokenizer) -> Writer:
    """Writes the example's own answer."""
    return lambda rng, example: tokenizer.encode(example.answer or "")


def play_examples(
    envs: TextVectorEnv, writer: Writer, examples: Sequence[Example], rng: Generator
) -> Float64[np.ndarray, " episode"]:
    """The return of one episode an example, which is its score; ``envs`` has a row for each, "disabled".

    Raises:
        ValueError: if rows and examples differ in number, or the environment resets rows by itself.
    """
    if envs.num_envs != len(examples) or envs.metadata["autoreset_mode"].value != "Disabled":
        raise ValueError(
            f"expected a row for each of {len(examples)} examples and autoreset_mode='disabled', got {envs.num_envs} "
            f"rows and {envs.metadata['autoreset_mode']}."
        )
    obs, _ = envs.reset(options={"split": "heldout", "group_size": 1, "prompts": list(examples)})
    eos_id = envs.tokenizer.eos_id
    returns, done = np.zeros(len(examples)), np.zeros(len(examples), dtype=bool)
    pending: list[list[int]] = [[] for _ in examples]
    while not done.all():
        actions = np.full(len(examples), eos_id, dtype=np.int64)
        for row in np.flatnonzero(~done).tolist():
            pending[row] = pending[row] or [*writer(rng, examples[row]), eos_id]
            actions[row] = pending[row].pop(0)
        before = obs["length"][:, 0].copy()
        obs, rewards, terminated, truncated, _ = envs.step(actions)
        for row in np.flatnonzero(obs["length"][:, 0] > before + 1).tolist():
            pending[row] = []  # the environment has written: the turn is over, if not by EOS
        returns += rewards
        done |= terminated | truncated
    return returns


def play_baselines(make: Callable[[int], TextVectorEnv], num_episodes: int = 200, seed: int = 0) -> list[Baseline]:
    """Baselines on held-out prompts, drawn as the task draws them, the same for all.

    * majority answer: the most frequent answer of as many training prompts, the first of those as frequent;
    * random answer: uniform tokens, lengths as of those answers, or 1 to the room there is where there are none;
    * empty answer: EOS at once;
    * oracle: the task's own answers.

    The first and the last are left out where the task has no answers, and of conversations, whose answers are none.

    Args:
        make: makes the environment with so many rows, ``autoreset_mode`` "disabled".
        num_episodes: of each.
        seed: of the prompts and of what is random in the answers.

    Raises:
        ValueError: if a split cannot be filled, or an answer cannot be written.
    """
    envs = make(num_episodes)
    dataset, tokenizer = envs.dataset, envs.tokenizer
    train, heldout = (dataset.draw(split, num_episodes, seed, "evaluation") for split in ("train", "heldout"))
    answers = [example.answer for example in train if example.answer is not None]
    if isinstance(envs.task, TurnTask) or any(example.answer is None for example in heldout):
        answers = []
    lengths = [len(tokenizer.encode(answer)) for answer in answers]
    longest = min(dataset.max_new - 1, dataset.max_turn or dataset.max_new)
    writers: list[tuple[str, Writer, str | None]] = [
        ("random answer", random_tokens(lengths or range(1, longest + 1), tokenizer), None),
        ("empty answer", constant_text("", tokenizer), ""),
    ]
    if answers:
        ((majority, _),) = Counter(answers).most_common(1)
        writers.insert(0, ("majority answer", constant_text(majority, tokenizer), majority))
        writers.append(("oracle", own_answers(tokenizer), None))
    return [
        Baseline(name, play_examples(envs, writer, heldout, np.random.default_rng([seed, index])), says)
        for index, (name, writer, says) in enumerate(writers)
    ]


@dataclass(frozen=True)
class WorldEnds:
    """Between what a policy in a world is measured, one entry an episode; None where the world does not say.

    ``floor`` is of random moves, ``ceiling`` of the world's own player, ``optimum`` what the world says that the best
    player earns on average (``info["optimal_value"]`` of its reset).
    """

    floor: Float64[np.ndarray, " episode"] | None
    ceiling: Float64[np.ndarray, " episode"] | None
    optimum: Float64[np.ndarray, " episode"] | None


def play_ends(task: TurnTask, num_episodes: int = 200, seed: int = 0, *, heldout_fraction: float = 0.2) -> WorldEnds:
    """Play held-out episodes of a world by chance and by its own player, in the world itself: no token, no budget.

    Args:
        task: whose worlds; see ``worldmtp.envs.worlds.players`` for the methods they may have.
        num_episodes: of each, the same for both.
        seed: of the episodes and of the random moves.
        heldout_fraction: of the environment.

    Raises:
        ValueError: if the split cannot be filled.
    """
    examples = draw_examples(
        task, "heldout", num_episodes, seed, purpose="evaluation", heldout_fraction=heldout_fraction
    )
    world, rng = task.make_world(), np.random.default_rng([seed, num_episodes])
    seeds = [int(example.meta["seed"]) for example in examples]
    floor = ceiling = optimum = None
    if isinstance(world, WorldWithMoves):
        floor = np.array([play(world, one, random_player(world, rng)).total for one in seeds])
    if isinstance(world, PlayedWorld):
        played = [play(world, one, own_player(world)) for one in seeds]
        ceiling = np.array([episode.total for episode in played])
        if all("optimal_value" in episode.info for episode in played):
            optimum = np.array([float(episode.info["optimal_value"]) for episode in played])
    return WorldEnds(floor, ceiling, optimum)
