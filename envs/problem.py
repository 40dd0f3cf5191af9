"""What a text environment is about: a task, its tokenizer, its prompts by split, its scorer and its budgets.

Everything of an environment but the stepping, shared by the single and the vector env.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmtp.envs.prompts import EncodedExamples, encode_examples
from worldmtp.envs.referees import AnswerReferee, ProgressReferee, Referee, Rules
from worldmtp.envs.registry import make_task
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.splits import check_split, draw_examples, prompt_overlap
from worldmtp.envs.task import DenseTask, Example, Task, TurnTask
from worldmtp.envs.tokenizer import Tokenizer, make_tokenizer
from worldmtp.envs.turns import TurnReferee


class TextProblem:
    """A task made ready for stepping.

    Args:
        task: name of a task (see ``make_task``), or a Task.
        task_kwargs: what the named task is made with.
        tokenizer: spec of ``make_tokenizer``, or a Tokenizer.
        max_prompt: tokens a prompt may take.
        max_new: tokens an answer may take, EOS included, or all turns and replies of a conversation; at least 2.
        max_turn: tokens after which a turn of a conversation is over without EOS; None is no such limit.
        split: where prompts come from until ``reset(options={"split": ...})`` says otherwise.
        heldout_fraction: share of all prompts that is held out, by hash.
        pool_size: prompts drawn per split, before its first episode; they come as often as the task draws them.
        pool_seed: of these prompts, 0 where nothing else is said. The seed of ``reset`` only chooses among them; a
            training run sets its own seed by ``choose_pools``.
        truncation_score: "score" pays an answer that ran out of budget like any other, "zero" pays it nothing.
        timeout_seconds: limit for scoring one answer, or for one reply, in processes of its own; None is no limit.
        num_scorers: how many of these processes there are; None is one for each core and at most 4.
        scorer_memory_gib: memory that each of them may take beyond its task; None is no limit.
        on_error: what a failing scorer does, "zero" or "raise".
        max_episode_steps: a lower limit on what a policy may write, rows keeping their room. ``gymnasium.make_vec``
            passes it on; ``gymnasium.make`` wraps a TimeLimit around instead, which ends texts without a score.

    Raises:
        ValueError: if a budget, the split or a choice is out of range.
    """

    def __init__(
        self,
        task: str | Task,
        task_kwargs: Mapping[str, Any] | None = None,
        tokenizer: str | Mapping[str, Any] | Tokenizer = "char",
        *,
        max_prompt: int,
        max_new: int,
        max_turn: int | None = None,
        split: str = "train",
        heldout_fraction: float = 0.2,
        pool_size: int = 4096,
        pool_seed: int = 0,
        truncation_score: str = "score",
        timeout_seconds: float | None = None,
        num_scorers: int | None = None,
        scorer_memory_gib: float | None = 4.0,
        on_error: str = "zero",
        max_episode_steps: int | None = None,
    ) -> None:
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={max_episode_steps} must be at least 1.")
        if max_prompt < 1 or max_new < 2 or pool_size < 1:
            raise ValueError(
                f"expected max_prompt >= 1, max_new >= 2 (one token and EOS) and pool_size >= 1, "
                f"got {max_prompt}, {max_new}, {pool_size}."
            )
        if truncation_score not in ("score", "zero"):
            raise ValueError(f"truncation_score={truncation_score!r} is unknown; expected 'score' or 'zero'.")
        self.task = make_task(task, task_kwargs)
        if max_turn is not None and (max_turn < 1 or not isinstance(self.task, TurnTask)):
            raise ValueError(
                f"max_turn={max_turn} must be at least 1, and limits turns of a task with worlds (make_world), which "
                f"{type(self.task).__name__} {'is' if isinstance(self.task, TurnTask) else 'is not'}."
            )
        self.tokenizer = make_tokenizer(tokenizer)
        self.scorer = Scorer(
            self.task, timeout_seconds, on_error, num_scorers=num_scorers, scorer_memory_gib=scorer_memory_gib
        )
        self.max_prompt, self.max_new, self.max_turn = max_prompt, max_new, max_turn
        self.max_steps = max_new if max_episode_steps is None else min(max_new, max_episode_steps)
        self.split = check_split(split)
        self.heldout_fraction = heldout_fraction
        self.pool_size, self.pool_seed = pool_size, pool_seed
        self.truncation_score = truncation_score
        self._excluded: frozenset[str] = frozenset()
        self._pools: dict[str, EncodedExamples] = {}

    def observation_space(self) -> spaces.Space[Any]:
        """Of one text: its tokens, right-padded, its length, and the length of its prompt."""
        length = self.max_prompt + self.max_new
        return spaces.Dict(
            tokens=spaces.Box(0, self.tokenizer.vocab_size - 1, (length,), np.int64),
            length=spaces.Box(0, length, (1,), np.int64),
            prompt_length=spaces.Box(0, length, (1,), np.int64),
        )

    def action_space(self) -> spaces.Space[Any]:
        """The next token."""
        return spaces.Discrete(self.tokenizer.vocab_size)

    def pool(self, split: str) -> EncodedExamples:
        """Prompts of a split, made when first asked for."""
        if split not in self._pools:
            drawn = draw_examples(
                self.task,
                split,
                self.pool_size,
                self.pool_seed,
                purpose="pool",
                heldout_fraction=self.heldout_fraction,
                excluded=self._excluded,
            )
            self._pools[split] = self.encode(drawn)
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
        """Examples with the tokens of their prompts; see ``encode_examples``."""
        return encode_examples(examples, self.tokenizer, self.max_prompt, self.max_new)

    def examples(
        self, split: str, num_examples: int, seed: int, purpose: str = "pool", fewer: bool = False
    ) -> list[Example]:
        """Distinct examples of a split, by the stream of a purpose; more of them begin with the fewer.

        With ``fewer`` a small task gives what it has; see ``draw_examples``.
        """
        return draw_examples(
            self.task,
            split,
            num_examples,
            seed,
            purpose=purpose,
            distinct=True,
            heldout_fraction=self.heldout_fraction,
            fewer=fewer,
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

    def referee(self, num_rows: int, first_row: int = 0) -> Referee:
        """Who rules on the steps of so many rows, by the kind of the task."""
        rules = Rules(
            self.tokenizer,
            self.scorer,
            self.max_new,
            self.max_steps,
            self.truncation_score,
            self.max_turn,
            first_row,
        )
        if isinstance(self.task, TurnTask):
            return TurnReferee(rules, num_rows)
        return ProgressReferee(rules, num_rows) if isinstance(self.task, DenseTask) else AnswerReferee(rules, num_rows)
