"""``TextGenReward``: an environment as a reward function of TRL's trainers.

TRL generates the answers and passes the ids that it sampled. They are played through the environment as if a policy had
chosen them, so a reward here is the sum of an episode's rewards there, whatever the task and its wrappers. Text is what
the environment's tokenizer decodes, and is never encoded again. A batch is scored together, by as many processes as the
environment has, before it is played text by text. This module imports neither trl nor torch.

Left out: conversations, since TRL would write the world's replies itself. ``TextGenRollout`` plays them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

from worldmtp.envs.dataset import TextDataset
from worldmtp.envs.rows import TextRows, object_column
from worldmtp.envs.task import Example, TurnTask
from worldmtp.envs.vector_env import TextGenVectorEnv


class TextGenReward:
    """Score TRL's completions; pass it as ``reward_funcs=`` of GRPOTrainer or RLOOTrainer, with its rows as data set.

    ::

        reward = TextGenReward("worldmtp/Copy-v0")
        trainer = GRPOTrainer(
            model,
            reward_funcs=reward,
            args=GRPOConfig(..., max_completion_length=reward.max_new),
            train_dataset=Dataset.from_list(reward.rows("train", 256, seed=0)),
            processing_class=...,  # a tokenizer with the environment's ids; see check_tokenizer
        )

    Args:
        env: a gymnasium id, or an environment of one text, such as ``TextGenEnv``; it is this reward's from now on.
        name: what the trainer's metrics are called by, ``rewards/<name>/mean``; by default that of the id, or of the
            task's class.
        **env_kwargs: what ``gymnasium.make`` is given with an id.

    Raises:
        TypeError: if the environment is none of text, or its task is a conversation.
    """

    def __init__(self, env: str | gymnasium.Env[Any, Any], name: str | None = None, **env_kwargs: Any) -> None:
        made = gymnasium.make(env, disable_env_checker=True, **env_kwargs) if isinstance(env, str) else env
        kernel = getattr(made.unwrapped, "kernel", None)
        if not isinstance(made, gymnasium.Env) or not isinstance(kernel, TextGenVectorEnv):
            raise TypeError(f"{made} is no environment of one text; expected a TextGenEnv or its gymnasium id.")
        if isinstance(kernel.task, TurnTask):
            raise TypeError(
                f"{type(kernel.task).__name__} is a conversation, whose replies TRL's own generation cannot write; "
                "use worldmtp.post_training.TextGenRollout as rollout_func of GRPOTrainer."
            )
        self.env, self.dataset, self.scorer = made, kernel.dataset, kernel.scorer
        self._kernel = kernel
        self.__name__ = name or (made.spec.name if made.spec is not None else type(kernel.task).__name__)
        self._by_key: dict[str, Example] = {}
        self._keys_of_prompt: dict[str, set[str]] = {}

    @property
    def max_new(self) -> int:
        """Return the trainer's ``max_completion_length``: the most tokens of an answer, EOS included."""
        return self.dataset.max_steps

    def rows(self, split: str, num_examples: int, seed: int) -> list[dict[str, str]]:
        """Return distinct examples as rows of ``prompt`` and ``example_key``; their answers can be scored from now on.

        Raises:
            ValueError: if an earlier call gave another question under the same prompt.
        """
        return self.rows_of(self.dataset.examples(split, num_examples, seed))

    def rows_of(self, examples: Sequence[Example]) -> list[dict[str, str]]:
        """Return examples of your own choice as ``rows`` does; each question once.

        Raises:
            ValueError: if another question has been given under the same prompt.
        """
        self.dataset.encode(examples)  # that they fit is seen before training
        for example in examples:
            known = self._by_key.setdefault(example.key, example)
            if self.dataset.identity(known) != self.dataset.identity(example):
                raise ValueError(
                    f"{example} has the prompt of {known}, which an earlier rows() gave, and is another question, so a "
                    "completion could be scored by either; ask for all rows of a split at once, which gives each "
                    "prompt once, or make the prompts differ."
                )
            self._keys_of_prompt.setdefault(example.prompt, set()).add(example.key)
        return [{"prompt": example.prompt, "example_key": example.key} for example in examples]

    def close(self) -> None:
        """Close the environment and its scoring processes, which otherwise end with the program."""
        self.env.close()

    def check_tokenizer(self, processing_class: Any) -> None:
        """Raise if a trainer's tokenizer encodes the prompts of the rows, or the end of a text, in another way.

        Raises:
            ValueError: it does; a BOS token in front of prompts is the usual reason.
        """
        ours = self.dataset.tokenizer
        if processing_class.eos_token_id != ours.eos_id:
            raise ValueError(
                f"the trainer's tokenizer ends texts with id {processing_class.eos_token_id}, the environment's with "
                f"{ours.eos_id}; use the same tokenizer in both."
            )
        for prompt in self._keys_of_prompt:
            theirs = list(processing_class(text=prompt)["input_ids"])
            if theirs != ours.encode(prompt):
                raise ValueError(
                    f"the trainer's tokenizer writes {prompt!r} as {theirs}, the environment's as "
                    f"{ours.encode(prompt)}; use the same tokenizer in both, without special tokens around prompts."
                )

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        example_key: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return what the environment pays for each completion.

        Raises:
            ValueError: if a prompt is unknown, or a completion is no episode of the environment.
        """
        keys: Sequence[str | None] = [None] * len(prompts) if example_key is None else example_key
        examples = [self._find(prompt, key) for prompt, key in zip(prompts, keys, strict=True)]
        batch = list(zip(examples, completion_ids, strict=True))
        with self.scorer.asked_ahead(lambda: self._score(batch)):
            played = [play(self.env, example, ids) for example, ids in batch]
        self._log([info for _, info in played], columns.get("log_metric"))
        return [reward for reward, _ in played]

    def _score(self, batch: Sequence[tuple[Example, Sequence[int]]]) -> None:
        """Ask for all scores that playing the batch needs; ``play`` refuses what is not an episode.

        Where only the end of an answer is scored, all answers are put one token before it, and end together.
        """
        dataset, tokenizer = self.dataset, self.dataset.tokenizer
        batch = [(example, [int(token) for token in ids]) for example, ids in batch]
        batch = [(example, ids) for example, ids in batch if ids and 0 <= min(ids) <= max(ids) < tokenizer.vocab_size]
        if not batch:
            return
        examples, texts = object_column([example for example, _ in batch]), [list(ids) for _, ids in batch]
        prompts, everyone = dataset.encode([example for example, _ in batch]), np.arange(len(batch))
        rows = TextRows(len(batch), dataset.max_prompt + dataset.max_new, tokenizer.pad_id)
        rows.begin(everyone, prompts.tokens, prompts.length)
        rewards = self._kernel.new_rewards(len(batch))
        rewards.begin(everyone, prompts.length)
        written = [0] * len(batch)
        if rewards.eos_terminates:
            last = [ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids) - 1 for ids in texts]
            written = [min(number, dataset.max_steps - 1) for number in last]
            for row, (ids, number) in enumerate(zip(texts, written, strict=True)):
                rows.write(row, ids[:number])
        while not rows.done.all():
            live = ~rows.done
            actions = np.array([ids[number] for ids, number in zip(texts, written, strict=True)], dtype=np.int64)
            acting = np.flatnonzero(live)
            rows.append(acting, actions[acting])
            result = rewards.step(rows, live, actions, examples)
            over = np.array([number + 1 == len(ids) for ids, number in zip(texts, written, strict=True)])
            rows.done |= result.terminated | result.truncated | over
            written = [min(number + 1, len(ids) - 1) for ids, number in zip(texts, written, strict=True)]

    def _log(self, infos: Sequence[dict[str, Any]], log_metric: Callable[[str, float], None] | None) -> None:
        if log_metric is None:
            return
        counters = self.scorer.counters
        log_metric(f"{self.__name__}/exact", float(np.mean([info["exact"] for info in infos])))
        log_metric(f"{self.__name__}/no_eos", float(np.mean([info["reason"] == "no_eos" for info in infos])))
        log_metric(f"{self.__name__}/scorer_errors", float(counters.errors))
        log_metric(f"{self.__name__}/scorer_timeouts", float(counters.timeouts))

    def _find(self, prompt: Any, key: str | None) -> Example:
        if not isinstance(prompt, str):
            raise ValueError(
                f"prompt {prompt!r} is no text: environments take prompts as they are, without roles and templates."
            )
        known = self._keys_of_prompt.get(prompt, set())
        if key is None and len(known) > 1:
            raise ValueError(
                f"the prompt {prompt!r} stands for {len(known)} questions; keep the column 'example_key' in the data "
                "set, with remove_unused_columns=False."
            )
        if not known or (key is not None and key not in known):
            raise ValueError(
                f"the prompt {prompt!r} with example_key={key!r} is none of the {len(self._by_key)} that rows() gave; "
                "train on rows of this very object, their prompts unchanged."
            )
        return self._by_key[next(iter(known)) if key is None else key]


def play(env: gymnasium.Env[Any, Any], example: Example, ids: Sequence[int]) -> tuple[float, dict[str, Any]]:
    """Return the sum of rewards, and the last info, of the episode in which these ids were chosen.

    A dense task may end a text before its last id; the rest earns nothing.

    Raises:
        ValueError: an id is not in the vocabulary, or ids go on after EOS or the budget, or stop before both.
    """
    dataset: TextDataset = env.unwrapped.dataset  # type: ignore[attr-defined]  # TextGenReward saw to it
    env.reset(options={"prompts": [example]})
    total = 0.0
    for num_played, token in enumerate(ids, start=1):
        _, reward, terminated, truncated, info = env.step(int(token))
        total += float(reward)
        if terminated or truncated:
            behind = (
                "EOS" if token == dataset.tokenizer.eos_id else f"max_new={dataset.max_steps}" if truncated else None
            )
            if num_played < len(ids) and behind is not None:
                raise ValueError(
                    f"a completion of {len(ids)} tokens goes on behind {behind}, where the episode is over; the "
                    f"trainer needs eos_token_id={dataset.tokenizer.eos_id} and "
                    f"max_completion_length={dataset.max_steps}."
                )
            return total, info
    raise ValueError(
        f"a completion of {len(ids)} tokens stops without EOS, but the episode goes on up to "
        f"max_new={dataset.max_steps}; set max_completion_length={dataset.max_steps} in the trainer's config."
    )
