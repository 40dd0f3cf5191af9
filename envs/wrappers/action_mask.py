"""Infos that say which tokens may come next, and an error for those that may not.

A forbidden action is an error and not replaced: the agent would learn from a token that it did not choose. A policy
reads the mask of the infos it was given with the observation, and masks in the loss as it does in acting.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Int

from worldmtp.envs.options import token_id
from worldmtp.envs.tokenizer import Tokenizer
from worldmtp.envs.wrappers.row_clock import RowClock
from worldmtp.envs.wrappers.text_wrapper import TextVectorWrapper, text_problem
from worldmtp.envs.wrappers.token_rules import ActionRule, TokenRules


class ActionMask(gymnasium.Wrapper, RecordConstructorArgs):
    """Adds ``info["action_mask"]``, (V,) int8, as ``action_space.sample(mask)`` takes it; none once the text has ended.

    Args:
        env: a ``TextGenEnv``.
        rule: from observations with a row axis, here of one row, to a mask (1, V).
        forbid_pad: whether padding may not be written.
        min_new: EOS is allowed only behind as many tokens after the prompt.
        alphabet: characters; only tokens whose text is of these, and EOS.

    Raises:
        ValueError: if the rules are impossible; see ``TokenRules``.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        rule: ActionRule | None = None,
        *,
        forbid_pad: bool = True,
        min_new: int = 0,
        alphabet: str | None = None,
    ) -> None:
        RecordConstructorArgs.__init__(
            self, rule=rule, forbid_pad=forbid_pad, min_new=min_new, alphabet=alphabet, _disable_deepcopy=True
        )
        gymnasium.Wrapper.__init__(self, env)
        problem = text_problem(env)
        self._tokenizer = problem.tokenizer
        self._rules = TokenRules(problem, rule, forbid_pad, min_new, alphabet)
        self._allowed: Bool[np.ndarray, "1 vocab"] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As of the env, with the mask of the first token."""
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, info | self._masked(obs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of the env, with the mask of the next token.

        Raises:
            ValueError: if the action is forbidden.
        """
        if self._allowed is not None:
            token = token_id(action, self._tokenizer.vocab_size)
            check_allowed(self._allowed, np.array([token]), np.zeros(1, dtype=bool), self._tokenizer)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._allowed = None
        return obs, reward, terminated, truncated, info if terminated or truncated else info | self._masked(obs)

    def _masked(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._allowed = self._rules.allowed({key: value[None] for key, value in obs.items()}, np.zeros(1, dtype=bool))
        return {"action_mask": self._allowed[0].astype(np.int8)}


class VectorActionMask(TextVectorWrapper):
    """Adds ``infos["action_mask"]``, (N, V) int8; ``action_space.sample(tuple(mask))`` draws by it.

    Rows that have ended and wait for their reset ignore their action, so that all is allowed there.

    Args:
        env: a ``TextGenVectorEnv``.
        rule: from observations to a mask (N, V).
        forbid_pad: whether padding may not be written.
        min_new: EOS is allowed only behind as many tokens after the prompt.
        alphabet: characters; only tokens whose text is of these, and EOS.

    Raises:
        ValueError: if the rules are impossible; see ``TokenRules``.
    """

    def __init__(
        self,
        env: VectorEnv,
        rule: ActionRule | None = None,
        *,
        forbid_pad: bool = True,
        min_new: int = 0,
        alphabet: str | None = None,
    ) -> None:
        super().__init__(env)
        self._rules = TokenRules(self.problem, rule, forbid_pad, min_new, alphabet)
        self._clock = RowClock(env)
        self._allowed: Bool[np.ndarray, "row vocab"] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As of the env, with masks of the first tokens."""
        begun = self._clock.begun_by(options)
        obs, infos = self.env.reset(seed=seed, options=options)
        self._clock.begin(begun)
        return obs, infos | self._masked(obs)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As of the env, with masks of the next tokens.

        Raises:
            ValueError: if an action of a row that has not ended is forbidden.
        """
        if self._allowed is not None and np.shape(actions) == (self.num_envs,):
            check_allowed(self._allowed, np.asarray(actions), self._clock.waiting, self.tokenizer)
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        self._clock.step(terminated, truncated)
        return obs, rewards, terminated, truncated, infos | self._masked(obs)

    def own_state(self) -> dict[str, Any]:
        """Rows that wait for their reset."""
        return {"waiting": self._clock.waiting.tolist()}

    def load_own_state(self, state: Mapping[str, Any], obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Go on with the masks of ``obs``."""
        self._clock.waiting = np.array(state["waiting"], dtype=bool)
        self._masked(obs)
        return obs

    def _masked(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._allowed = allowed = self._rules.allowed(obs, self._clock.waiting)
        return {"action_mask": allowed.astype(np.int8), "_action_mask": np.ones(self.num_envs, dtype=bool)}


def check_allowed(
    allowed: Bool[np.ndarray, "row vocab"],
    actions: Int[np.ndarray, " row"],
    waiting: Bool[np.ndarray, " row"],
    tokenizer: Tokenizer,
) -> None:
    """See that no action of a row that runs is forbidden; what is outside the vocabulary is the env's to refuse.

    Raises:
        ValueError: if one is.
    """
    for row in np.flatnonzero(~waiting).tolist():
        action = int(actions[row])
        if 0 <= action < allowed.shape[1] and not allowed[row, action]:
            names = {tokenizer.eos_id: "EOS", tokenizer.pad_id: "padding"}
            raise ValueError(
                f"action {action} ({names.get(action, repr(tokenizer.decode([action])))}) of row {row} is forbidden; "
                f"{int(allowed[row].sum())} of {allowed.shape[1]} tokens are allowed there. Choose by "
                "infos['action_mask'], for example with action_space.sample(mask)."
            )
