"""The text environment for one text: the same functions and the same problem as the vector env, with n = 1."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from worldmtp.envs import core
from worldmtp.envs.options import check_indices, parse_options, refusal_changes_nothing, token_id
from worldmtp.envs.problem import TextProblem
from worldmtp.envs.problem_view import ProblemView
from worldmtp.envs.prompts import object_column
from worldmtp.envs.task import Example

Observation = dict[str, np.ndarray]


class TextGenEnv(ProblemView, gymnasium.Env):
    """Text generation, one token a step, paid as in ``TextGenVectorEnv``.

    ``info`` of ``reset`` has ``prompt_text``, ``example_key`` and ``group``, the number of the episode since the last
    seeded reset. ``info`` of the last step, the vector env's ``final_info``, has these and ``text``, ``score``,
    ``exact``, ``components``, ``reason`` and ``num_tokens``. In a conversation it has ``acted``, too, and ``info`` of a
    step in which the world replied, and of the last, ``reply`` and ``num_written``. Reset options: ``split`` (holds
    until changed), and one prompt by ``indices`` or ``prompts``.

    Args:
        render_mode: "ansi" or None.
        **problem: task, tokenizer, budgets and all else of ``TextProblem``.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - as gymnasium declares it

    def __init__(self, *, render_mode: str | None = None, **problem: Any) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode={render_mode!r} is unknown; expected 'ansi' or None.")
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata}  # what is written into an instance's does not reach the class
        self.problem = TextProblem(**problem)
        self.observation_space = self.problem.observation_space()
        self.action_space = self.problem.action_space()
        self._split = self.problem.split
        self._state: core.TextState | None = None
        self._example = Example("")
        self._key = ""
        self._episode = -1
        self._last_score: float | None = None
        self._referee = self.problem.referee(1)

    @property
    def eos_terminates(self) -> bool:
        """Whether EOS ends the text and nothing else but the budget does: not where worlds reply or tasks end texts."""
        return self._referee.eos_terminates

    def example_of(self, row: int = 0) -> Example:
        """The question that the text answers."""
        return self._example

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new prompt.

        Raises:
            ValueError: if an option is unknown or impossible.
        """
        with refusal_changes_nothing(self):
            super().reset(seed=seed)
            asked = parse_options(options, 1)
            split = asked.split or self._split
            pool = self.problem.pool(split)
            if asked.prompts is not None:
                chosen = self.problem.encode(self.problem.find(asked.prompts, split))
            elif asked.indices is not None:
                check_indices(asked.indices, len(pool))
                chosen = pool.select(asked.indices)
            else:
                chosen = pool.select(self.np_random.integers(len(pool), size=1))
            if len(chosen) != 1:
                raise ValueError(f"one text has one prompt, but the options name {len(chosen)}.")
        self._split = split
        self._example, self._key = chosen.examples[0], chosen.keys[0]
        self._state = core.initial(chosen.tokens, chosen.length, self.problem.max_new, self.tokenizer.pad_id)
        self._referee.begin(np.zeros(1, dtype=np.int64), self._state)
        self._episode = 0 if seed is not None else self._episode + 1
        self._last_score = None
        return self._observation(), self._prompt_info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One token.

        Raises:
            ResetNeeded: before the first reset, and after an end.
            ValueError: if the action is no integer, or not in the vocabulary; see ``token_id``.
        """
        before = self._state
        if before is None or before.done[0]:
            raise ResetNeeded("there is no text under way; call reset before step.")
        actions = np.array([token_id(action, self.tokenizer.vocab_size)], dtype=np.int64)
        ruling = self._referee.rule(before, core.transition(before, actions), actions, object_column([self._example]))
        self._state = ruling.state
        info = dict(ruling.replies.get(0, {}))
        if ruling.records:
            info |= {key: values[0] for key, values in ruling.records.items()} | self._prompt_info()
            self._last_score = info["score"]
        reward, terminated, truncated = ruling.rewards[0], ruling.terminated[0], ruling.truncated[0]
        return self._observation(), float(reward), bool(terminated), bool(truncated), info

    def render(self) -> str | None:
        """Prompt and response, and the score of an ended text, in "ansi" mode."""
        if self.render_mode is None or self._state is None:
            return None
        text = self.tokenizer.decode(self._state.tokens[0, : self._state.length[0]].tolist())
        return text if self._last_score is None else f"{text}    [score {self._last_score:.2f}]"

    def share(self, problem: TextProblem, row: int) -> None:
        """Take the problem of other environments, its scorer included, as their row of that number."""
        self.problem.scorer.close()
        self.problem = problem
        self._referee = problem.referee(1, first_row=row)

    def close(self) -> None:
        """End the scoring processes."""
        self.scorer.close()

    def _observation(self) -> Observation:
        assert self._state is not None
        batched = core.observation(self._state)
        return {
            "tokens": batched["tokens"][0],
            "length": batched["length"][0],
            "prompt_length": batched["prompt_length"][0],
        }

    def _prompt_info(self) -> dict[str, Any]:
        return {"prompt_text": self._example.prompt, "example_key": self._key, "group": self._episode}
