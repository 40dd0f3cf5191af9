"""The text environment for one text: a vector environment of one row, with its infos and rewards as scalars."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from worldmtp.envs.config import TextEnvConfig
from worldmtp.envs.options import token_id
from worldmtp.envs.rows import Observation, row_info
from worldmtp.envs.task import Example
from worldmtp.envs.text_env import KernelView, WrapperSpec, wrap
from worldmtp.envs.vector_env import TextGenVectorEnv


class TextGenEnv(KernelView, gymnasium.Env):
    """Text generation, one token a step, paid as in ``TextGenVectorEnv``.

    ``info`` of ``reset`` has ``prompt_text``, ``example_key`` and ``group``, the number of the episode since the last
    seeded reset. ``info`` of the last step, the vector env's ``final_info``, has these and ``text``, ``score``,
    ``exact``, ``components``, ``reason`` and ``num_tokens``. In a conversation it has ``acted``, too, and ``info`` of a
    step in which the world replied, and of the last, ``reply``, ``num_written`` and ``reply_info``; ``world``, of
    ``reset`` and the last step, is what the world told of the start. Reset options: ``split`` (holds
    until changed), and one prompt by ``indices`` or ``prompts``.

    Args:
        config: the task, tokenizer and budgets; None makes it of ``fields``.
        text_wrappers: wrappers of the row, by name, innermost first; see ``wrap``.
        render_mode: "ansi" or None.
        **fields: of ``TextEnvConfig``; they go before those of ``config``.

    Raises:
        ValueError: if an argument is out of range.
    """

    kernel: TextGenVectorEnv
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - as gymnasium declares it

    def __init__(
        self,
        config: TextEnvConfig | None = None,
        *,
        text_wrappers: Sequence[WrapperSpec] = (),
        render_mode: str | None = None,
        **fields: Any,
    ) -> None:
        self.kernel = TextGenVectorEnv(1, config, render_mode=render_mode, **fields)
        """The row itself, without its wrappers."""
        self.rows = wrap(self.kernel, text_wrappers)
        """The row in its wrappers."""
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata}  # what is written into an instance's does not reach the class
        self.observation_space = self.rows.single_observation_space
        self.action_space = self.rows.single_action_space
        self._last_score: float | None = None

    @property
    def config(self) -> TextEnvConfig:
        """The task, tokenizer and budgets."""
        return self.kernel.config

    def example_of(self, row: int = 0) -> Example:
        """Return the question that the text answers."""
        return self.kernel.example_of(row)

    @property
    def _np_random(self) -> np.random.Generator | None:
        """The row's generator: gymnasium seeds and reads it by this name."""
        return self.kernel._np_random

    @_np_random.setter
    def _np_random(self, generator: np.random.Generator | None) -> None:
        self.kernel._np_random = generator

    @property
    def _np_random_seed(self) -> int | None:
        return self.kernel._np_random_seed

    @_np_random_seed.setter
    def _np_random_seed(self, seed: int | None) -> None:
        self.kernel._np_random_seed = seed

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new text.

        Raises:
            ValueError: if an option is unknown or impossible.
        """
        obs, infos = self.rows.reset(seed=seed, options=options)  # type: ignore[arg-type]  # gymnasium asks for a dict
        self._last_score = None
        return {key: value[0] for key, value in obs.items()}, row_info(infos, 0)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token.

        Raises:
            ResetNeeded: before the first reset, and after an end.
            ValueError: if the action is no integer, or not in the vocabulary; see ``token_id``.
        """
        if not self.kernel.is_begun or self.kernel.done[0]:
            raise ResetNeeded("there is no text under way; call reset before step.")
        actions = np.array([token_id(action, self.tokenizer.vocab_size)], dtype=np.int64)
        obs, rewards, terminated, truncated, infos = self.rows.step(actions)
        info = row_info(infos, 0)
        info |= info.pop("final_info", {})
        self._last_score = info.get("score")
        shown = {key: value[0] for key, value in obs.items()}
        return shown, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> str | None:
        """Return prompt and response, and the score of an ended text, in "ansi" mode."""
        texts = self.kernel.render()
        if texts is None:
            return None
        return texts[0] if self._last_score is None else f"{texts[0]}    [score {self._last_score:.2f}]"

    def close(self) -> None:
        """End the scoring processes."""
        self.rows.close()
