"""Rows of a user's own environment, each stepped by itself, as one vector environment.

The contract is that of ``TextGenVectorEnv``: the same autoreset modes, groups, options and infos. What it cannot do is
be taken up again within an episode, since nobody can look into a user's environment: ``state`` is for the moment when
no text is under way, which is when training saves.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float64, Int

from worldmtp.envs.infos import batch_infos
from worldmtp.envs.options import (
    ResetOptions,
    check_group_size,
    check_indices,
    check_num_prompts,
    count_groups,
    parse_options,
    refusal_changes_nothing,
)
from worldmtp.envs.own import MakeEnv, own_text_envs
from worldmtp.envs.problem import TextProblem
from worldmtp.envs.problem_view import ProblemView
from worldmtp.envs.scoring import ScorerCounters
from worldmtp.envs.task import Example
from worldmtp.envs.vector import parse_autoreset_mode

Observation = dict[str, np.ndarray]
_SEED_RANGE = 2**31


class StackedVectorEnv(ProblemView, VectorEnv):
    """Single environments of a user, side by side.

    Args:
        make: makes one; see ``worldmtp.envs.own`` for what it must be.
        num_envs: rows.
        autoreset_mode: "same_step", "next_step", "disabled", or gymnasium's AutoresetMode.
        group_size: consecutive rows that share a prompt; more than 1 needs "disabled".
        pool_size: prompts drawn per split, where the environment has none of its own.
        heldout_fraction: share of all prompts that is held out.

    Raises:
        ValueError: if the environment does not follow the token contract, or an argument is out of range.
    """

    def __init__(
        self,
        make: MakeEnv,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        group_size: int = 1,
        pool_size: int = 4096,
        heldout_fraction: float = 0.2,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1.")
        self.num_envs = num_envs
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.envs = own_text_envs(make, num_envs, pool_size=pool_size, heldout_fraction=heldout_fraction)
        self.problem: TextProblem = self.envs[0].problem
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._split = self.problem.split
        self._group_size = 1
        self._use(parse_options({"group_size": group_size}, num_envs))
        self._rows: list[Observation] | None = None
        self._done = np.zeros(num_envs, dtype=bool)
        self._groups = np.full(num_envs, -1, dtype=np.int64)
        self._num_groups = 0

    @property
    def eos_terminates(self) -> bool:
        """False: what ends a text of a user's own environment is its own affair."""
        return False

    def example_of(self, row: int) -> Example:
        """The question that a row answers."""
        return self.envs[row].example_of(0)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """New prompts, for all rows or those of the mask.

        Raises:
            ValueError: if an option is unknown or impossible.
        """
        with refusal_changes_nothing(self, "_split", "_group_size"):
            super().reset(seed=seed)
            asked = parse_options(options, self.num_envs)
            mask = np.ones(self.num_envs, dtype=bool) if asked.reset_mask is None else asked.reset_mask
            if self._rows is None and not mask.all():
                raise ResetNeeded("the first reset must be of all rows; call reset without a reset_mask.")
            rows = np.flatnonzero(mask)
            self._use(asked)
            choice = self._choose(rows, asked)
        if seed is not None and mask.all():
            self._num_groups = 0
        infos = self._batched(self._give_prompts(rows, choice))
        return self._observation(), infos

    def step(
        self, actions: Int[np.ndarray, " env"]
    ) -> tuple[
        Observation, Float64[np.ndarray, " env"], Bool[np.ndarray, " env"], Bool[np.ndarray, " env"], dict[str, Any]
    ]:
        """One token in every row that has not ended.

        Raises:
            ResetNeeded: before the first reset.
            ValueError: if there is not one action a row.
        """
        if self._rows is None:
            raise ResetNeeded("call reset before step.")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions must be {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}.")
        live = actions[~self._done]
        if live.size and (live.min() < 0 or live.max() >= self.tokenizer.vocab_size):
            raise ValueError(f"an action is outside the vocabulary 0..{self.tokenizer.vocab_size - 1}: {live}.")
        waiting = np.flatnonzero(self._done)
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        told: dict[int, dict[str, Any]] = {}
        final: dict[int, dict[str, Any]] = {}
        for row in np.flatnonzero(~self._done).tolist():
            obs, rewards[row], terminated[row], truncated[row], info = self.envs[row].step(int(actions[row]))
            self._rows[row] = _copied(obs)
            if terminated[row] or truncated[row]:
                final[row] = info | {"group": int(self._groups[row])}
            else:
                told[row] = info
        ended = terminated | truncated
        self._done |= ended
        rows = np.flatnonzero(ended)
        infos: dict[str, Any] = {}
        if len(rows):
            infos["final_info"], infos["_final_info"] = batch_infos(list(final.values()), rows, self.num_envs), ended
        if self.autoreset_mode is AutoresetMode.SAME_STEP and len(rows):
            infos["final_obs"], infos["_final_obs"] = np.full(self.num_envs, None), ended.copy()
            for row in rows.tolist():
                infos["final_obs"][row] = self._rows[row]
            told |= self._give_prompts(rows, self._choose(rows))
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and len(waiting):
            told |= self._give_prompts(waiting, self._choose(waiting))
        infos |= self._batched(told)
        return self._observation(), rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def state(self) -> dict[str, Any]:
        """What decides the episodes to come: the generator, the split, the groups.

        Raises:
            ValueError: if a text is under way.
        """
        if self._rows is not None and any(
            not done and obs["length"][0] > obs["prompt_length"][0]
            for done, obs in zip(self._done, self._rows, strict=True)
        ):
            raise ValueError("a text is under way, and a user's environment cannot be looked into; finish or reset it.")
        return {
            "split": self._split,
            "group_size": self._group_size,
            "num_groups": self._num_groups,
            "pool": self.problem.pool(self._split).fingerprint(),
            "np_random": self.np_random.bit_generator.state,
            "scorer": vars(self.scorer.counters).copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with a reset.

        Raises:
            ValueError: if the environment has other prompts than it had.
        """
        pool = self.problem.pool(state["split"]).fingerprint()
        if state["pool"] != pool:
            raise ValueError(
                f"this state does not belong to this env: its prompts are {state['pool']}, here they are {pool}. "
                "Make the env with the arguments it was saved with."
            )
        self._split, self._group_size, self._num_groups = state["split"], state["group_size"], state["num_groups"]
        self.np_random.bit_generator.state = state["np_random"]
        self.scorer.counters = ScorerCounters(**state["scorer"])
        self._rows = None

    def _use(self, asked: ResetOptions) -> None:
        group_size = self._group_size if asked.group_size is None else asked.group_size
        check_group_size(group_size, self.autoreset_mode)
        self._group_size = group_size
        self._split = asked.split or self._split

    def _choose(self, rows: np.ndarray, asked: ResetOptions | None = None) -> list[Example]:
        """One example a row: groups share theirs."""
        size = self._group_size
        num_groups = count_groups(rows, size)
        pool = self.problem.pool(self._split)
        if asked is not None and asked.prompts is not None:
            chosen = self.problem.find(asked.prompts, self._split)
        else:
            given = None if asked is None else asked.indices
            indices = self.np_random.integers(len(pool), size=num_groups) if given is None else given
            check_indices(indices, len(pool))
            chosen = [pool.examples[index] for index in indices.tolist()]
        check_num_prompts(len(chosen), num_groups, size)
        return [example for example in chosen for _ in range(size)]

    def _give_prompts(self, rows: np.ndarray, examples: list[Example]) -> dict[int, dict[str, Any]]:
        fresh = {}
        self._groups[rows] = self._num_groups + np.arange(len(rows)) // self._group_size
        self._num_groups += len(rows) // self._group_size
        observations: list[Observation] = [{}] * self.num_envs if self._rows is None else self._rows
        for row, example in zip(rows.tolist(), examples, strict=True):
            seed = int(self.np_random.integers(_SEED_RANGE))
            options = {"split": self._split, "prompts": [example]}
            obs, info = self.envs[row].reset(seed=seed, options=options)
            observations[row] = _copied(obs)
            fresh[row] = info | {"group": int(self._groups[row])}
        self._rows = observations
        self._done[rows] = False
        return fresh

    def _batched(self, told: dict[int, dict[str, Any]]) -> dict[str, Any]:
        return batch_infos(list(told.values()), np.array(list(told), dtype=np.int64), self.num_envs)

    def _observation(self) -> Observation:
        assert self._rows is not None
        return {key: np.stack([obs[key] for obs in self._rows]) for key in self.single_observation_space.spaces}  # type: ignore[attr-defined]


def _copied(obs: Observation) -> Observation:
    """What a user's environment shows, apart from buffers that it may go on writing into."""
    return {key: np.array(value) for key, value in obs.items()}
