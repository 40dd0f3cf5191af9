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

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from worldmtp.choices import check_choice
from worldmtp.envs.rows import Observation, VectorReset, VectorStep
from worldmtp.envs.task import Example
from worldmtp.envs.text_env import TextVectorWrapper

Potential = Callable[[Example, str], float]
"""How promising a text is that stands behind an example's prompt, the empty one included."""


def prefix_match(example: Example, text: str) -> float:
    """Return the share of the oracle's answer that the text begins with, in [0, 1].

    Raises:
        ValueError: if the example has no answer.
    """
    if not example.answer:
        raise ValueError(f"prefix_match needs an answer to {example.prompt!r}; give a potential of your own.")
    matched = 0
    for ours, oracles in zip(text, example.answer, strict=False):  # the shorter ends the match
        if ours != oracles:
            break
        matched += 1
    return matched / len(example.answer)


_POTENTIALS: dict[str, Potential] = {"prefix_match": prefix_match}


class VectorPotentialShaping(TextVectorWrapper):
    """Adds F to the rewards of a ``TextGenVectorEnv``, and tells it as ``infos["shaping"]`` of rows that ran.

    Args:
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
        if not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma={gamma} must be in (0, 1]; it is the agent's.")
        if isinstance(potential, str):
            check_choice("potential", potential, _POTENTIALS)
            potential = _POTENTIALS[potential]
        self._potential = potential
        self._gamma, self._bootstrap_truncated = gamma, bootstrap_truncated
        self._potentials = np.zeros(env.num_envs)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> VectorReset:
        """Reset the env; rows that begin have the potential of their prompt."""
        mask = (options or {}).get("reset_mask")  # read first: wrappers below may take it
        begun = np.ones(self.num_envs, dtype=bool) if mask is None else np.array(mask, dtype=bool)
        obs, infos = super().reset(seed=seed, options=options)
        for row in np.flatnonzero(begun).tolist():
            self._potentials[row] = self._of(row, obs)
        return obs, infos

    def step(self, actions: np.ndarray) -> VectorStep:
        """Step the env; F is added to the rewards of the rows that ran."""
        ran = ~self.done
        obs, rewards, terminated, truncated, infos = super().step(actions)
        shaping = np.zeros(self.num_envs)
        for row in np.flatnonzero(ran).tolist():
            is_last = terminated[row] or (truncated[row] and not self._bootstrap_truncated)
            before, after = float(self._potentials[row]), 0.0 if is_last else self._of(row, obs)
            self._potentials[row] = after
            shaping[row] = self._gamma * after - before
        return obs, rewards + shaping, terminated, truncated, infos | {"shaping": shaping, "_shaping": ran}

    def own_state(self) -> dict[str, Any]:
        """Return the potentials."""
        return {"potentials": self._potentials.tolist()}

    def load_own_state(self, state: Mapping[str, Any], obs: Observation) -> Observation:
        """Go on from there."""
        self._potentials = np.array(state["potentials"], dtype=np.float64)
        return obs

    def _of(self, row: int, obs: Mapping[str, np.ndarray]) -> float:
        response = obs["tokens"][row, obs["prompt_length"][row, 0] : obs["length"][row, 0]]
        return float(self._potential(self.example_of(row), self.tokenizer.decode(response.tolist())))
