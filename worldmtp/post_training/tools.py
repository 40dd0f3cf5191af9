"""``env_factory``: any registered id as an environment of TRL's ``environment_factory``, whose model calls tools.

There a world is no stream of tokens: the model writes whole messages, and calls what the environment offers. A
conversation offers ``say(text) -> reply``, a question ``answer(text)``. What is said is encoded with the environment's
own tokenizer and played token by token, so that rewards are those of its episodes. For a policy whose tokens are the
actions use ``TextGenRollout``. This module imports neither trl nor torch.

Left out: starts that the environment would draw by itself. TRL's groups compare completions of one question.
"""

from typing import Any, ClassVar

import numpy as np

from worldmtp.envs.fates import DICE_RANGE, with_dice
from worldmtp.envs.make import find_spec, make_text_vec
from worldmtp.envs.rows import row_info
from worldmtp.envs.task import Example, TurnTask
from worldmtp.envs.text_env import TextVectorEnv

RECEIVED = "The answer was received."


class TextTools:
    """What the classes of ``env_factory`` share; TRL takes their other public functions for tools."""

    _id: ClassVar[str]
    _env_kwargs: ClassVar[dict[str, Any]]
    _examples: ClassVar[dict[str, Example]]
    _source: ClassVar[np.random.Generator]
    _env: TextVectorEnv
    _total = 0.0
    _over = True

    def __init__(self) -> None:
        self._env = make_text_vec(self._id, 1, **self._env_kwargs)

    @classmethod
    def rows(cls, split: str, num_examples: int, seed: int) -> list[dict[str, Any]]:
        """Return distinct examples as rows for TRL; the text of a prompt comes from ``reset``."""
        examples = cls()._env.examples(split, num_examples, seed)
        cls._examples |= {example.key: example for example in examples}
        return [{"prompt": [{"role": "user", "content": ""}], "example_key": example.key} for example in examples]

    def reset(self, example_key: str | None = None, **row: Any) -> str:
        """Begin the episode of a row and return its opening text.

        Raises:
            ValueError: the row is none of ``rows``.
        """
        example = self._examples.get(example_key or "")
        if example is None:
            raise ValueError(
                f"example_key={example_key!r} is none of the {len(self._examples)} that {type(self).__name__}.rows() "
                "gave; train on rows of this very class: rows of one group must be of one question."
            )
        if getattr(self._env.dataset.task, "has_dice", False):
            example = with_dice(example, int(self._source.integers(DICE_RANGE)))
        self._env.reset(options={"prompts": [example]})
        self._total, self._over = 0.0, False
        return example.prompt

    def get_reward(self) -> float:
        """Return the sum of the episode's rewards so far."""
        return self._total

    def _play(self, text: str) -> str | None:
        """Write a text and its end, and return what the world replied to it."""
        if self._over:
            raise ValueError("the episode is over.")
        tokenizer = self._env.tokenizer
        for token in (*tokenizer.encode(text), tokenizer.eos_id):
            _, rewards, terminated, truncated, infos = self._env.step(np.array([token]))
            info = row_info(infos, 0)
            info |= info.pop("final_info", {})
            self._total += float(rewards[0])
            self._over = bool(terminated[0] or truncated[0])
            if self._over or "reply" in info:
                reply: str | None = info.get("reply")
                return reply
        return None


class _Conversation(TextTools):
    def say(self, text: str) -> str:
        """Say something and read the reply.

        Args:
            text: What to say.

        Returns:
            The reply.
        """
        return self._play(text) or ""


class _Question(TextTools):
    def answer(self, text: str) -> str:
        """Give the answer to the question; it can be given once.

        Args:
            text: The answer, and nothing else.

        Returns:
            That it was received.
        """
        self._play(text)
        return RECEIVED


def env_factory(env_id: str, *, name: str | None = None, seed: int = 0, **env_kwargs: Any) -> type[TextTools]:
    """Return a class for TRL's ``environment_factory``, each of whose instances plays one episode at a time.

    ::

        Guess = env_factory("worldmtp/GuessNumber-v0")
        trainer = MTPGRPOTrainer(
            model,
            reward_funcs=[],
            args=...,
            train_dataset=Dataset.from_list(Guess.rows("train", 256, seed=0)),
            processing_class=...,  # with a chat template that TRL can call tools with
            environment_factory=Guess,
        )

    Args:
        env_id: a gymnasium id, or ``<module>:<id>``.
        name: of the class, by which TRL calls its reward; by default the id's. Two of one id need two names.
        seed: of the dice, where a task has such; a resumed run throws them anew.
        **env_kwargs: what the environment is made with; see ``make_text_vec``.

    Raises:
        MakingError: if there is no such id, or what it makes is no environment of text.
    """
    probe = make_text_vec(env_id, 1, **env_kwargs)
    kind = _Conversation if isinstance(probe.dataset.task, TurnTask) else _Question
    probe.close()
    fields = {
        "__doc__": f"Tools of {env_id}.",
        "_id": env_id,
        "_env_kwargs": env_kwargs,
        "_examples": {},
        "_source": np.random.default_rng(seed),
    }
    return type(name or find_spec(env_id).name, (kind,), fields)
