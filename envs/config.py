"""The config of a text environment: what is asked, in which tokens, with which budgets, and how answers are scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldmtp.choices import check_choice
from worldmtp.envs.task import Task
from worldmtp.envs.tokenizer import Tokenizer

TRUNCATION_SCORES = ("score", "zero")


@dataclass(frozen=True)
class TextEnvConfig:
    """What every environment of a task is made with, single or vector.

    Args:
        task: name of a task (see ``make_task``), or a Task.
        task_kwargs: what the named task is made with.
        tokenizer: spec of ``make_tokenizer``, or a Tokenizer.
        max_prompt: tokens a prompt may take; None measures the longest of a draw of the pools.
        max_new: tokens an answer may take, EOS included, or all turns and replies of a conversation; at least 2. None
            measures the longest answer of a draw, where the task has answers.
        max_turn: tokens after which a turn of a conversation is over without EOS; None is no such limit.
        split: where prompts come from until ``reset(options={"split": ...})`` says otherwise.
        heldout_fraction: share of all prompts that is held out, by hash; of the few of a task that states its
            ``universe_size``, the nearest that leaves some in each split.
        pool_size: prompts drawn per split, before its first episode; they come as often as the task draws them.
        pool_seed: of these prompts. The seed of ``reset`` only chooses among them; a training run sets its own seed by
            ``choose_pools``.
        truncation_score: "score" pays an answer that ran out of budget like any other, "zero" pays it nothing.
        timeout_seconds: limit for scoring one answer, or for one reply, in processes of its own; None is no limit.
        num_scorers: how many of these processes there are; None is one for each core and at most 4.
        scorer_memory_gib: memory that each of them may take beyond its task; None is no limit.
        paid_scorer: whether a score costs money, as one by a paid service does: imagined answers are then not scored.
        on_error: what a failing scorer does, "zero" or "raise".
        max_episode_steps: a lower limit on what a policy may write, rows keeping their room. ``gymnasium.make_vec``
            passes it on; ``gymnasium.make`` wraps a TimeLimit around instead, which ends texts without a score.

    Raises:
        ValueError: if a budget or a choice is out of range.
    """

    task: str | Task
    task_kwargs: Mapping[str, Any] | None = None
    tokenizer: str | Mapping[str, Any] | Tokenizer = "char"
    max_prompt: int | None = None
    max_new: int | None = None
    max_turn: int | None = None
    split: str = "train"
    heldout_fraction: float = 0.2
    pool_size: int = 4096
    pool_seed: int = 0
    truncation_score: str = "score"
    timeout_seconds: float | None = None
    num_scorers: int | None = None
    scorer_memory_gib: float | None = 4.0
    paid_scorer: bool = False
    on_error: str = "zero"
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(f"max_episode_steps={self.max_episode_steps} must be at least 1.")
        max_prompt, max_new = (1 if self.max_prompt is None else self.max_prompt), self.max_new
        if max_prompt < 1 or (max_new is not None and max_new < 2) or self.pool_size < 1:
            raise ValueError(
                f"expected max_prompt >= 1, max_new >= 2 (one token and EOS) and pool_size >= 1, "
                f"got {self.max_prompt}, {self.max_new}, {self.pool_size}."
            )
        check_choice("truncation_score", self.truncation_score, TRUNCATION_SCORES)
