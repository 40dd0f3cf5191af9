"""One rollout loop for the real and the imagined environment.

Batch-synchronous: every row starts at the reset and is stepped until all have ended. The environment must have
``autoreset_mode`` DISABLED, so that ended rows keep their last observation and ignore further actions.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from worldmtp.agents.action_masks import allowed_tokens
from worldmtp.agents.clock import PhaseClock
from worldmtp.agents.policies import ActingPolicy
from worldmtp.agents.trajectory import Rollout


@runtime_checkable
class BatchedTextEnv(Protocol):
    """What a rollout needs of an environment, real or imagined; see ``worldmtp.envs.TextGenVectorEnv``."""

    num_envs: int
    metadata: dict[str, Any]

    @property
    def max_new(self) -> int:
        """The longest episode, in steps."""
        ...

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Gymnasium's."""
        ...

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Gymnasium's."""
        ...


def collect_rollout(
    env: BatchedTextEnv,
    policy: ActingPolicy,
    generator: torch.Generator | None,
    options: dict[str, Any],
    clock: PhaseClock | None = None,
) -> Rollout:
    """One episode in every row of ``env``, acted by ``policy``; greedy where there is no generator.

    ``options`` goes to ``env.reset``. Time is the env's ``max_new`` steps, whatever the longest episode, so that
    rollouts of different iterations can be concatenated. Phases timed: ``env`` and ``policy``.

    Raises:
        ValueError: the environment resets rows by itself.
    """
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"autoreset_mode={mode} would mix episodes in one row; make the environment with autoreset_mode='disabled'."
        )
    clock = clock or PhaseClock()
    with clock.phase("env"):
        obs, infos = env.reset(options=options)
    recorder = _Recorder(obs, env.num_envs, env.max_new)
    while not recorder.done.all():
        with clock.phase("policy"):
            step = policy.act(obs, infos, generator)
            actions = step.actions.cpu().numpy()
        recorder.allow(allowed_tokens(infos))
        acted_at = obs["length"][:, 0].copy()
        with clock.phase("env"):
            obs, rewards, terminated, truncated, infos = env.step(actions)
        recorder.record(acted_at, actions, step.logprobs.float().cpu().numpy(), rewards, terminated, truncated, infos)
    return recorder.rollout(obs)


class _Recorder:
    """Fills the step axis while the environment runs."""

    def __init__(self, obs: dict[str, np.ndarray], num_rows: int, num_steps: int) -> None:
        shape = (num_rows, num_steps)
        self.done = np.zeros(num_rows, dtype=bool)
        self._prompt_length = obs["prompt_length"][:, 0].copy()
        self._time = np.zeros(num_rows, dtype=np.int64)
        self._action_index = np.zeros(shape, dtype=np.int64)
        self._actions = np.zeros(shape, dtype=np.int64)
        self._logprobs = np.zeros(shape, dtype=np.float32)
        self._rewards = np.zeros(shape, dtype=np.float32)
        self._terminated = np.zeros(shape, dtype=bool)
        self._truncated = np.zeros(shape, dtype=bool)
        self._step_mask = np.zeros(shape, dtype=bool)
        self._group = np.arange(num_rows, dtype=np.int64)
        self._exact = np.zeros(num_rows, dtype=bool)
        self._allowed: np.ndarray | None = None

    def allow(self, allowed: np.ndarray | None) -> None:
        """The mask of the step that is recorded next; steps that are not there allow everything."""
        if allowed is None:
            return
        if self._allowed is None:
            self._allowed = np.ones((*self._step_mask.shape, allowed.shape[1]), dtype=bool)
        live = np.nonzero(~self.done)[0]
        self._allowed[live, self._time[live]] = allowed[live]

    def record(
        self,
        acted_at: np.ndarray,
        actions: np.ndarray,
        logprobs: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: dict[str, Any],
    ) -> None:
        """One environment step; rows that ended before are left alone."""
        live = np.nonzero(~self.done)[0]
        at = (live, self._time[live])
        self._action_index[at] = acted_at[live]
        self._actions[at] = actions[live]
        self._logprobs[at] = logprobs[live]
        self._rewards[at] = rewards[live]
        self._terminated[at] = terminated[live]
        self._truncated[at] = truncated[live]
        self._step_mask[at] = True
        self._time[live] += 1
        ended = live[(terminated | truncated)[live]]
        self.done[ended] = True
        for row in ended:
            final = infos["final_info"]
            if "group" in final:
                self._group[row] = final["group"][row]
            if "exact" in final:
                self._exact[row] = final["exact"][row]

    def rollout(self, obs: dict[str, np.ndarray]) -> Rollout:
        """What was recorded, with the text as the environment kept it."""
        input_ids = torch.from_numpy(obs["tokens"].copy())
        lengths = torch.from_numpy(obs["length"][:, 0].copy())
        rollout = Rollout(
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1])[None] < lengths[:, None],
            prompt_length=torch.from_numpy(self._prompt_length),
            action_index=torch.from_numpy(self._action_index),
            actions=torch.from_numpy(self._actions),
            step_mask=torch.from_numpy(self._step_mask),
            logprobs=torch.from_numpy(self._logprobs),
            rewards=torch.from_numpy(self._rewards),
            terminated=torch.from_numpy(self._terminated),
            truncated=torch.from_numpy(self._truncated),
            group=torch.from_numpy(self._group),
            exact=torch.from_numpy(self._exact),
            allowed=None if self._allowed is None else torch.from_numpy(self._allowed),
        )
        written = rollout.input_ids.gather(1, rollout.action_index)
        if not torch.equal(written[rollout.step_mask], rollout.actions[rollout.step_mask]):
            raise ValueError(
                "the environment's text does not hold the actions at the places they were taken; a text environment "
                "must append every action as it is (token-in, token-out)."
            )
        return rollout
