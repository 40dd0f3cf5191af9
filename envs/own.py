"""A user's own gymnasium environment of one text, given what training asks besides: prompts, splits and scores.

The environment must follow the token contract and nothing more: its spaces are those of ``TextGenEnv``, a step appends
its token, it has a ``tokenizer``, and ``max_new`` (or ``max_episode_steps`` in its registration) says how many steps an
episode can have. By gymnasium's own rule the seed of ``reset`` decides the episode, so a prompt is named by a seed, its
hash says which split it is in, and the score of a text is what the environment pays for it.

An environment may tell more. Attributes: ``probe_bound`` and ``universe_size``, as of tasks. In the info of ``reset``:
``answer``, a demonstration. In the info of the last step: ``exact``, ``reason`` and ``components``. One that is or
wraps a ``TextGenEnv`` has prompts already and keeps them.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from worldmtp.envs.options import check_indices, parse_options, refusal_changes_nothing
from worldmtp.envs.problem import TextProblem
from worldmtp.envs.problem_view import ProblemView
from worldmtp.envs.seeded_task import SeededTask
from worldmtp.envs.single import TextGenEnv
from worldmtp.envs.task import Example, clamp_return, is_full_return
from worldmtp.envs.token_contract import attribute, check_contract, longest_episode
from worldmtp.envs.tokenizer import written_text

_SEED_RANGE = 2**31

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]


class OwnTextEnv(ProblemView, gymnasium.Env):
    """A user's environment with ``problem``, ``task``, ``examples`` and the reset options of ``TextGenEnv``.

    The info of the last step has ``text``, ``score``, ``exact``, ``components``, ``reason`` and ``num_tokens``, filled
    in where the environment does not tell them; ``score`` is the sum of its rewards.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], problem: TextProblem) -> None:
        self.env = env
        self.problem = problem
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.metadata, self.render_mode = {**env.metadata}, env.render_mode
        self._split = problem.split
        self._example = Example("")
        self._key = ""
        self._episode = -1
        self._paid = 0.0

    @property
    def eos_terminates(self) -> bool:
        """False: what ends a text of a user's own environment is its own affair."""
        return False

    def example_of(self, row: int = 0) -> Example:
        """The question that the text answers."""
        return self._example

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new prompt, drawn from the pool of the split or named by ``indices`` or ``prompts``.

        Raises:
            ValueError: if an option is unknown or impossible.
        """
        with refusal_changes_nothing(self):
            super().reset(seed=seed)
            asked = parse_options(options, 1)
            split = asked.split or self._split
            pool = self.problem.pool(split)
            if asked.prompts is not None:
                chosen = self.problem.find(asked.prompts, split)
            else:
                indices = self.np_random.integers(len(pool), size=1) if asked.indices is None else asked.indices
                check_indices(indices, len(pool))
                chosen = pool.select(indices).examples.tolist()
            if len(chosen) != 1:
                raise ValueError(f"one text has one prompt, but the options name {len(chosen)}.")
        self._split, self._example = split, chosen[0]
        self._key = self._example.key
        self._episode = 0 if seed is not None else self._episode + 1
        self._paid = 0.0
        obs, info = self._begin(self._example)
        return obs, info | self._prompt_info()

    def step(self, action: int | np.integer) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """The environment's own."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        paid, self._paid = self._paid, clamp_return(self._paid + float(reward))
        reward = float(reward) if self._paid == paid + float(reward) else self._paid - paid
        if terminated or truncated:
            response = obs["tokens"][int(obs["prompt_length"][0]) : int(obs["length"][0])]
            told = {
                "text": written_text(self.tokenizer, response.tolist()),
                "score": self._paid,
                "exact": is_full_return(self._paid),
                "components": {},
                "reason": "no_eos" if truncated else "ok",
                "num_tokens": len(response),
            }
            info = told | info | self._prompt_info()
        return obs, float(reward), terminated, truncated, info

    def render(self) -> Any:
        """The environment's own."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment, and the one that the problem asks."""
        self.env.close()
        self.problem.scorer.close()
        if isinstance(self.problem.task, SeededTask):
            self.problem.task.close()

    def _begin(self, example: Example) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if isinstance(self.problem.task, SeededTask):
            return self.env.reset(seed=example.meta["seed"])
        seed = int(self.np_random.integers(_SEED_RANGE))  # of what else the environment may draw
        return self.env.reset(seed=seed, options={"split": self._split, "prompts": [example]})

    def _prompt_info(self) -> dict[str, Any]:
        return {"prompt_text": self._example.prompt, "example_key": self._key, "group": self._episode}


def own_text_envs(
    make: MakeEnv, num_envs: int = 1, *, pool_size: int = 4096, heldout_fraction: float = 0.2
) -> list[OwnTextEnv]:
    """So many environments of a user, with one problem between them.

    Args:
        make: makes one.
        num_envs: how many.
        pool_size: prompts drawn per split; each is a reset of an environment.
        heldout_fraction: share of all prompts that is held out, by hash.

    Raises:
        ValueError: if the environment does not follow the token contract; the message says in what.
    """
    envs = [make() for _ in range(num_envs)]
    check_contract(envs[0])
    if isinstance(envs[0].unwrapped, TextGenEnv):
        problem = envs[0].unwrapped.problem
        for row, env in enumerate(envs[1:], start=1):
            assert isinstance(env.unwrapped, TextGenEnv)
            env.unwrapped.share(problem, row)  # its pools, which are large, and its scorer, which counts and is closed
    else:
        tokenizer = attribute(envs[0], "tokenizer", None)
        length = envs[0].observation_space["tokens"].shape[0]  # type: ignore[index]
        max_new = longest_episode(envs[0])
        assert max_new is not None  # checked above
        problem = TextProblem(
            SeededTask(make(), tokenizer),
            tokenizer=tokenizer,
            max_prompt=length - max_new,
            max_new=max_new,
            pool_size=pool_size,
            heldout_fraction=heldout_fraction,
        )
    return [OwnTextEnv(env, problem) for env in envs]
