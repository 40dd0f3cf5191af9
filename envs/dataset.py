"""The questions of an environment: train and held-out prompts, split by the hash of the prompt, and their tokens.

Seeds do not separate prompts: procedural generators that seed item i with seed + i give neighbouring seeds the same
items, and small tasks repeat prompts whatever the seed. A prompt's hash puts it into the same split for every seed, run
and process, so no prompt can be in both.

Draws for different purposes come from different streams, and a seed changes every stream: the pool of reinforcement is
not the list of demonstrations over again, and two runs of different seeds train on different prompts.

Prompts are made and encoded before the first step, so that a slow generator is never inside the step loop.
"""

import hashlib
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from worldmtp.choices import check_choice, env_settings
from worldmtp.envs.config import TextEnvConfig
from worldmtp.envs.registry import make_task
from worldmtp.envs.rows import object_column
from worldmtp.envs.splits import SPLITS, check_split, split_of, splitting_share
from worldmtp.envs.task import Example, Task, TurnTask
from worldmtp.envs.tokenizer import Tokenizer, alphabet_error, make_tokenizer

PURPOSES = ("pool", "demonstrations", "evaluation")
"""What examples are drawn for; a stream each. Their order is part of every stream."""
_DRAWS_PER_QUESTION = 20
_MOST_MISSES = 1_000_000
_FEW = 64  # questions, all of which are in one split of .2 and .8 once in 1.6 million tasks (.8 ** 64)
_MEASURED = 256  # examples of each split by which budgets that are left out are measured

_logger = logging.getLogger(__name__)


class SplitError(ValueError):
    """A task has fewer questions of a split than were asked for."""


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
        SplitError: if the split cannot be filled, unless ``fewer`` is set.
        ValueError: if an argument is out of range.
    """
    split_index = SPLITS.index(check_split(split))
    check_choice("purpose", purpose, PURPOSES)
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
            raise SplitError(
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


@dataclass(frozen=True)
class EncodedExamples:
    """Examples and the tokens of their prompts, right-padded; ``examples``, ``keys`` and ``prompts`` hold objects."""

    examples: Shaped[np.ndarray, " example"]
    keys: Shaped[np.ndarray, " example"]
    prompts: Shaped[np.ndarray, " example"]
    tokens: Int64[np.ndarray, "example max_prompt"]
    length: Int64[np.ndarray, " example"]

    def __len__(self) -> int:
        return len(self.examples)

    def select(self, indices: Int64[np.ndarray, " selected"]) -> "EncodedExamples":
        """Examples by index, repeats allowed."""
        return EncodedExamples(
            self.examples[indices],
            self.keys[indices],
            self.prompts[indices],
            self.tokens[indices],
            self.length[indices],
        )

    def fingerprint(self) -> str:
        """Hash of all prompts in order: what indices mean depends on it."""
        return hashlib.blake2b("".join(self.keys).encode(), digest_size=8).hexdigest()


def encode_examples(
    examples: Sequence[Example], tokenizer: Tokenizer, max_prompt: int, max_new: int
) -> EncodedExamples:
    """Encode prompts and see that they, and their answers, fit.

    Raises:
        ValueError: if a prompt is empty or longer than ``max_prompt`` tokens, or an answer and EOS than ``max_new``.
    """
    _check_alphabet(examples, tokenizer)
    encoded = [tokenizer.encode(example.prompt) for example in examples]
    for example, ids in zip(examples, encoded, strict=True):
        if not ids:
            raise ValueError(f"the prompt {example.prompt!r} has no tokens; a policy needs at least one to answer to.")
    _check_budgets(examples, encoded, tokenizer, max_prompt, max_new)
    tokens = np.full((len(encoded), max_prompt), tokenizer.pad_id, dtype=np.int64)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = ids
    length = np.array([len(ids) for ids in encoded], dtype=np.int64)
    return EncodedExamples(
        object_column(examples),
        object_column([example.key for example in examples]),
        object_column([example.prompt for example in examples]),
        tokens,
        length,
    )


def _check_alphabet(examples: Iterable[Example], tokenizer: Tokenizer) -> None:
    error = alphabet_error(tokenizer, (text for one in examples for text in (one.prompt, one.answer or "")))
    if error is not None:
        raise error


def _check_budgets(
    examples: Sequence[Example], encoded: Sequence[Sequence[int]], tokenizer: Tokenizer, max_prompt: int, max_new: int
) -> None:
    """Raise if prompts or answers do not fit, with budgets in which all of these do."""
    prompts = [len(ids) for ids in encoded]
    answers = [0 if one.answer is None else 1 + len(tokenizer.encode(one.answer)) for one in examples]
    told, needed = [], {}
    for name, lengths, budget in (("prompt", prompts, max_prompt), ("answer", answers, max_new)):
        longest = max(lengths)
        if longest > budget:
            one, option = examples[lengths.index(longest)], "max_prompt" if name == "prompt" else "max_new"
            text = repr(one.prompt) if name == "prompt" else f"{one.answer!r} to {one.prompt!r}"
            counted = f"{longest} tokens" if name == "prompt" else f"{longest - 1} tokens and EOS"
            told.append(f"the {name} {text} takes {counted}, the longest of {len(examples)}, but {option}={budget}")
            needed[option] = longest
    if needed:
        raise ValueError(f"{'; '.join(told)}; make the task's texts shorter, or give {env_settings(needed)}.")


class TextDataset:
    """A task made ready to be asked: its tokenizer, its budgets, and its prompts by split.

    ``max_prompt`` and ``max_new`` are those of the config, or measured; ``max_steps`` is what a policy may write.
    ``heldout_fraction`` is that of the config, unless all of a few questions would then be in one split.

    Raises:
        ValueError: if the split is unknown, ``max_turn`` does not fit the task, or a budget cannot be measured.
    """

    def __init__(self, config: TextEnvConfig) -> None:
        self.config = config
        self.task = make_task(config.task, config.task_kwargs)
        self.tokenizer = make_tokenizer(config.tokenizer)
        self.max_turn = config.max_turn
        self.pool_size, self.pool_seed = config.pool_size, config.pool_seed
        check_split(config.split)
        if config.max_turn is not None and (config.max_turn < 1 or not isinstance(self.task, TurnTask)):
            raise ValueError(
                f"max_turn={config.max_turn} must be at least 1, and limits turns of a task with worlds (make_world), "
                f"which {type(self.task).__name__} {'is' if isinstance(self.task, TurnTask) else 'is not'}."
            )
        self.heldout_fraction = self._share()
        self._excluded: frozenset[str] = frozenset()
        self._pools: dict[str, EncodedExamples] = {}
        self._num_measured = 0
        self.max_prompt, self.max_new = self._budgets()
        self.max_steps = min(self.max_new, config.max_episode_steps or self.max_new)

    def _share(self) -> float:
        """Return the share that is held out; few questions, by the task's own word, are looked at."""
        given, size = self.config.heldout_fraction, getattr(self.task, "universe_size", None)
        return given if size is None or size > _FEW else self.splitting_share(given, size)

    def splitting_share(self, heldout_fraction: float, num_questions: int = _FEW) -> float:
        """Return ``splitting_share`` of the questions found by draws that are the same in every run."""
        rng, keys = np.random.default_rng(0), set[str]()
        for _ in range(_DRAWS_PER_QUESTION * num_questions):
            keys.update(self.task.sample(rng, split).key for split in SPLITS)
            if len(keys) >= num_questions:
                break
        return splitting_share(keys, heldout_fraction)

    def _budgets(self) -> tuple[int, int]:
        """Return the budgets of the config; those that are left out are the longest of a draw."""
        config = self.config
        if config.max_prompt is not None and config.max_new is not None:
            return config.max_prompt, config.max_new
        drawn = [
            example
            for split in SPLITS[: 2 if self.heldout_fraction > 0 else 1]
            for example in self.draw(split, _MEASURED, self.pool_seed, fewer=True)
        ]
        if not drawn:
            raise ValueError(f"{type(self.task).__name__} has no example to measure; give max_prompt and max_new.")
        _check_alphabet(drawn, self.tokenizer)
        max_prompt = config.max_prompt or max(len(self.tokenizer.encode(example.prompt)) for example in drawn)
        answers = [example.answer for example in drawn if example.answer is not None]
        if config.max_new is None and len(answers) < len(drawn):
            raise ValueError(
                f"max_new cannot be measured, since {type(self.task).__name__} has no answers to show; give max_new, "
                "the tokens of an answer with EOS, or of all turns and replies of a conversation, such as "
                f"{env_settings({'max_new': 64})}."
            )
        self._num_measured = len(drawn)
        max_new = config.max_new or 1 + max(1, *(len(self.tokenizer.encode(answer)) for answer in answers))
        _logger.info(
            "max_prompt=%d and max_new=%d, measured on %d examples of %s; give them to change them.",
            max_prompt,
            max_new,
            len(drawn),
            type(self.task).__name__,
        )
        return max_prompt, max_new

    def pool(self, split: str) -> EncodedExamples:
        """Prompts of a split, made when first asked for."""
        if split not in self._pools:
            self._pools[split] = self.encode(self.draw(split, self.pool_size, self.pool_seed, excluded=self._excluded))
        return self._pools[split]

    def choose_pools(self, seed: int, excluded: Iterable[str] = ()) -> None:
        """Set the seed of all pools and the keys of questions they must not have, before the first is drawn.

        Raises:
            RuntimeError: if a pool has been drawn: episodes may have been played from it.
        """
        if self._pools:
            raise RuntimeError(f"the pools of {sorted(self._pools)} are drawn already; choose them before any reset.")
        self.pool_seed, self._excluded = seed, frozenset(excluded)

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """Return examples with the tokens of their prompts; see ``encode_examples``.

        Raises:
            ValueError: if a text does not fit; the message says which budgets were measured, and on how much.
        """
        try:
            return encode_examples(examples, self.tokenizer, self.max_prompt, self.max_new)
        except ValueError as error:
            budgets = {"max_prompt": self.config.max_prompt, "max_new": self.config.max_new}
            left_out = [name for name, given in budgets.items() if given is None and f"but {name}=" in str(error)]
            if not left_out:
                raise
            raise ValueError(
                f"{error} {' and '.join(left_out)} was left out, and measured on {self._num_measured} examples, which "
                "had none as long."
            ) from error

    def examples(
        self, split: str, num_examples: int, seed: int, purpose: str = "pool", fewer: bool = False
    ) -> list[Example]:
        """Distinct examples of a split, by the stream of a purpose; more of them begin with the fewer.

        With ``fewer`` a small task gives what it has; see ``draw_examples``.
        """
        return self.draw(split, num_examples, seed, purpose, distinct=True, fewer=fewer)

    def draw(self, split: str, num_examples: int, seed: int, purpose: str = "pool", **how: Any) -> list[Example]:
        """Return ``draw_examples`` of the task, held out as here, as often as the task draws them by default."""
        return draw_examples(
            self.task, split, num_examples, seed, purpose=purpose, heldout_fraction=self.heldout_fraction, **how
        )

    def overlap(self) -> float:
        """Share of the held-out pool's questions that the training pool has: 0, since a hash decides the split."""
        return prompt_overlap(self.pool("train").examples, self.pool("heldout").examples)

    def identity(self, example: Example) -> str:
        """Return all that decides what an answer to the example is worth: two that differ in it are two questions.

        A conversation is decided by its key, since ``hidden`` holds what the opening does not say; the seeds in its
        ``meta`` may differ. Any other answer may be scored by the whole example.
        """
        return (
            example.key if isinstance(self.task, TurnTask) else repr((example.key, example.answer, dict(example.meta)))
        )

    def find(self, prompts: Sequence[str | Example], split: str) -> list[Example]:
        """Examples for prompts given by the user; a string is looked up in the pool of the split.

        Raises:
            ValueError: if a string is no prompt of the pool, since nothing could score its answer, or is one of several
                questions; see ``identity``.
        """
        examples = []
        for prompt in prompts:
            if not isinstance(prompt, str):
                examples.append(prompt)
                continue
            pool = self.pool(split)
            alike = pool.examples[pool.prompts == prompt]
            found = {self.identity(example): example for example in alike}
            if len(found) != 1:
                raise ValueError(
                    f"the prompt {prompt!r} is that of {len(found)} questions of the pool of {split!r}, so nothing "
                    "knows how to score its answer; pass an Example instead of a string."
                )
            examples += found.values()
        return examples
