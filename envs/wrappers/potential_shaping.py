"""Potential-based reward shaping: denser rewards that leave the best policy the best.

With a potential Phi of states, each step pays in addition (Ng, Harada and Russell 1999, "Policy invariance under reward
transformations", https://people.eecs.berkeley.edu/~pabbeel/cs287-fa09/readings/NgHaradaRussell-shaping-ICML1999.pdf)

    F(s, s') = gamma * Phi(s') - Phi(s)

with the gamma of the agent. The terms of an episode telescope to gamma^T * Phi(s_T) - Phi(s_0), so that Phi of the last
state has to be 0 wherever nothing is added behind it (Grzes 2017, "Reward shaping in episodic reinforcement learning",
https://www.ifaamas.org/Proceedings/aamas2017/pdfs/p565.pdf): the discounted return then differs by -Phi(s_0), whatever
was written. That is so where the text terminates, and where it is truncated and its agent takes the end for an end
(``bootstrap_truncated=False``, as in ``PPOConfig``: the score was paid). An agent that bootstraps from the value of the
truncated text adds gamma^T * (V(s_T) - Phi(s_T)) itself, and is paid with the last state's own potential.

``score`` and all else of the infos stay those of the task. The text of a state is all that stands behind the prompt,
what a world replied included; it is decoded anew in each step.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from worldmtp.envs.problem import TextProblem
from worldmtp.envs.task import Example
from worldmtp.envs.wrappers.potential import Potential, make_potential
from worldmtp.envs.wrappers.row_clock import RowClock, row_observation
from worldmtp.envs.wrappers.text_wrapper import TextVectorWrapper, text_problem


class _Shaper:
    """The potentials of texts under way, in rows."""

    def __init__(
        self, problem: TextProblem, potential: str | Potential, gamma: float, bootstrap_truncated: bool, num_rows: int
    ) -> None:
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma={gamma} must be in (0, 1]; it is the agent's.")
        self._decode = problem.tokenizer.decode
        self._potential = make_potential(potential)
        self._gamma, self._bootstrap_truncated = gamma, bootstrap_truncated
        self._examples: list[Example] = [Example("")] * num_rows
        self._potentials = np.zeros(num_rows)

    def begin(self, row: int, obs: Mapping[str, np.ndarray], example: Example) -> None:
        """The row shows the prompt of this example."""
        self._examples[row] = example
        self._potentials[row] = self._of(row, obs)

    def shaping(self, row: int, obs: Mapping[str, np.ndarray], terminated: bool, truncated: bool) -> float:
        """F of the step that led here."""
        is_last = terminated or (truncated and not self._bootstrap_truncated)
        before, after = float(self._potentials[row]), 0.0 if is_last else self._of(row, obs)
        self._potentials[row] = after
        return self._gamma * after - before

    def state(self) -> dict[str, Any]:
        """Examples and potentials, JSON-able as far as the examples' ``meta`` is."""
        return {
            "examples": [vars(example).copy() for example in self._examples],
            "potentials": self._potentials.tolist(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._examples = [Example(**fields) for fields in state["examples"]]
        self._potentials = np.array(state["potentials"], dtype=np.float64)

    def _of(self, row: int, obs: Mapping[str, np.ndarray]) -> float:
        response = obs["tokens"][obs["prompt_length"][0] : obs["length"][0]]
        return float(self._potential(self._examples[row], self._decode(response.tolist())))


class PotentialShaping(gymnasium.Wrapper, RecordConstructorArgs):
    """Adds F to the rewards of a ``TextGenEnv``, and tells it as ``info["shaping"]`` of each step.

    Args:
        env: a ``TextGenEnv``.
        potential: "prefix_match" or a function of an Example and a text.
        gamma: the agent's discount.
        bootstrap_truncated: whether the agent takes truncated texts to go on in value.

    Raises:
        ValueError: if there is no such potential, or gamma is no discount.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        potential: str | Potential,
        *,
        gamma: float,
        bootstrap_truncated: bool = False,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, potential=potential, gamma=gamma, bootstrap_truncated=bootstrap_truncated, _disable_deepcopy=True
        )
        gymnasium.Wrapper.__init__(self, env)
        self._shaper = _Shaper(text_problem(env), potential, gamma, bootstrap_truncated, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As of the env."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._shaper.begin(0, obs, self.env.unwrapped.example_of())  # type: ignore[attr-defined]  # text_problem saw to it
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """As of the env, F added."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        shaping = self._shaper.shaping(0, obs, terminated, truncated)
        return obs, float(reward) + shaping, terminated, truncated, info | {"shaping": shaping}


class VectorPotentialShaping(TextVectorWrapper):
    """Adds F to the rewards of a ``TextGenVectorEnv``, and tells it as ``infos["shaping"]`` of rows that ran.

    Args:
        env: a ``TextGenVectorEnv``.
        potential: "prefix_match" or a function of an Example and a text.
        gamma: the agent's discount.
        bootstrap_truncated: whether the agent takes truncated texts to go on in value.

    Raises:
        ValueError: if there is no such potential, or gamma is no discount.
    """

    def __init__(
        self, env: VectorEnv, potential: str | Potential, *, gamma: float, bootstrap_truncated: bool = False
    ) -> None:
        super().__init__(env)
        self._shaper = _Shaper(self.problem, potential, gamma, bootstrap_truncated, env.num_envs)
        self._clock = RowClock(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """As of the env."""
        begun = self._clock.begun_by(options)
        obs, infos = self.env.reset(seed=seed, options=options)
        self._clock.begin(begun)
        self._begin(begun, obs)
        return obs, infos

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As of the env, F added."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        played = self._clock.step(terminated, truncated)
        shaping = np.zeros(self.num_envs)
        for row in np.flatnonzero(played.ran).tolist():
            last = row_observation(obs, infos, row)
            shaping[row] = self._shaper.shaping(row, last, bool(terminated[row]), bool(truncated[row]))
        self._begin(played.fresh, obs)
        return obs, rewards + shaping, terminated, truncated, infos | {"shaping": shaping, "_shaping": played.ran}

    def own_state(self) -> dict[str, Any]:
        """Examples, potentials, and rows that wait for their reset."""
        return {"shaper": self._shaper.state(), "waiting": self._clock.waiting.tolist()}

    def load_own_state(self, state: Mapping[str, Any], obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Go on from there."""
        self._shaper.load_state(state["shaper"])
        self._clock.waiting = np.array(state["waiting"], dtype=bool)
        return obs

    def _begin(self, rows: np.ndarray, obs: dict[str, np.ndarray]) -> None:
        for row in np.flatnonzero(rows).tolist():
            shown = {key: value[row] for key, value in obs.items()}
            self._shaper.begin(row, shown, self.env.unwrapped.example_of(row))  # type: ignore[attr-defined]  # as above
