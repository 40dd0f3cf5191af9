"""What a text environment is about: a task, its tokenizer, its prompts by split, its scorer and its budgets.

Everything of an environment but the stepping, shared by the single and the vector env.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool

from worldmtp.envs.core import TextState
from worldmtp.envs.prompts import EncodedExamples, encode_examples
from worldmtp.envs.registry import make_task
from worldmtp.envs.scoring import Scorer
from worldmtp.envs.splits import check_split, draw_examples, prompt_overlap
from worldmtp.envs.task import Example, Score, Task
from worldmtp.envs.tokenizer import Tokenizer, make_tokenizer


class TextProblem:
    """A task made ready for stepping.

    Args:
        task: name of a task (see ``make_task``), or a Task.
        task_kwargs: what the named task is made with.
        tokenizer: spec of ``make_tokenizer``, or a Tokenizer.
        max_prompt: tokens a prompt may take.
        max_new: tokens an answer may take, EOS included; at least 2.
        split: where prompts come from until ``reset(options={"split": ...})`` says otherwise.
        heldout_fraction: share of all prompts that is held out, by hash.
        pool_size: prompts drawn per split, before its first episode; they come as often as the task draws them.
        pool_seed: of these prompts. The seed of ``reset`` only chooses among them.
        truncation_score: "score" pays an answer that ran out of budget like any other, "zero" pays it nothing.
        timeout_seconds: limit for scoring one answer, in a process of its own; None is no limit.
        on_error: what a failing scorer does, "zero" or "raise".
        max_episode_steps: a further limit on ``max_new``, under gymnasium's own name.

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
        split: str = "train",
        heldout_fraction: float = 0.2,
        pool_size: int = 4096,
        pool_seed: int = 0,
        truncation_score: str = "score",
        timeout_seconds: float | None = None,
        on_error: str = "zero",
        max_episode_steps: int | None = None,
    ) -> None:
        if max_episode_steps is not None:
            max_new = min(max_new, max_episode_steps)
        if max_prompt < 1 or max_new < 2 or pool_size < 1:
            raise ValueError(
                f"expected max_prompt >= 1, max_new >= 2 (one token and EOS) and pool_size >= 1, "
                f"got {max_prompt}, {max_new}, {pool_size}."
            )
        if truncation_score not in ("score", "zero"):
            raise ValueError(f"truncation_score={truncation_score!r} is unknown; expected 'score' or 'zero'.")
        self.task = make_task(task, task_kwargs)
        self.tokenizer = make_tokenizer(tokenizer)
        self.scorer = Scorer(self.task, timeout_seconds, on_error)
        self.max_prompt, self.max_new = max_prompt, max_new
        self.split = check_split(split)
        self.heldout_fraction = heldout_fraction
        self.pool_size, self.pool_seed = pool_size, pool_seed
        self.truncation_score = truncation_score
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
                self.task, split, self.pool_size, self.pool_seed, heldout_fraction=self.heldout_fraction
            )
            self._pools[split] = self.encode(drawn)
        return self._pools[split]

    def encode(self, examples: Sequence[Example]) -> EncodedExamples:
        """Examples with the tokens of their prompts; see ``encode_examples``."""
        return encode_examples(examples, self.tokenizer, self.max_prompt, self.max_new)

    def examples(self, split: str, num_examples: int, seed: int) -> list[Example]:
        """Distinct examples of a split, for demonstrations and evaluation; more of them begin with the fewer."""
        return draw_examples(
            self.task, split, num_examples, seed, distinct=True, heldout_fraction=self.heldout_fraction
        )

    def overlap(self) -> float:
        """Share of the held-out pool's prompts that the training pool has: measured, and 0 by construction."""
        return prompt_overlap(self.pool("train").examples, self.pool("heldout").examples)

    def find(self, prompts: Sequence[str | Example], split: str) -> list[Example]:
        """Examples for prompts given by the user; a string is looked up in the pool of the split.

        Raises:
            ValueError: if a string is no prompt of the pool, since nothing could score its answer.
        """
        by_prompt = {example.prompt: example for example in self.pool(split).examples}
        examples = []
        for prompt in prompts:
            if isinstance(prompt, str) and prompt not in by_prompt:
                raise ValueError(
                    f"the prompt {prompt!r} is not among the {len(by_prompt)} of the pool of {split!r}, so nothing "
                    "knows how to score its answer; pass an Example instead of a string."
                )
            examples.append(by_prompt[prompt] if isinstance(prompt, str) else prompt)
        return examples

    def judge(
        self, state: TextState, truncated: Bool[np.ndarray, " row"], examples: Sequence[Example]
    ) -> list[dict[str, Any]]:
        """What is to be told of texts that have ended: text, score, exact, components, reason and num_tokens."""
        responses = [
            tokens[start:stop]
            for tokens, start, stop in zip(state.tokens, state.prompt_length, state.length, strict=True)
        ]
        texts = [self.tokenizer.decode(response.tolist()) for response in responses]
        paid = [index for index in range(len(texts)) if self.truncation_score == "score" or not truncated[index]]
        scores = [Score(0.0, reason="no_eos")] * len(texts)
        answers = [(examples[index], texts[index], responses[index].copy()) for index in paid]
        for index, score in zip(paid, self.scorer.score_batch(answers), strict=True):
            scores[index] = score
        return [
            {
                "text": text,
                "score": float(score.value),
                "exact": bool(score.exact),
                "components": {name: float(value) for name, value in score.components.items()},
                "reason": "no_eos" if ran_out and score.reason == "ok" else score.reason,
                "num_tokens": len(response),
            }
            for text, score, ran_out, response in zip(texts, scores, truncated.tolist(), responses, strict=True)
        ]
