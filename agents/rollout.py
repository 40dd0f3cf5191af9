"""Real experience: the ``Rollout`` that travels between rooms, and the one loop that collects it.

Two axes index an episode. Their order and their alignment are written here, once:

* ``time`` runs over the tokens of the text, prompt first, right-padded: ``input_ids[:, i]``;
* ``step`` runs over the policy's own decisions: ``actions[:, t]`` is the token chosen in state ``s_t``, the prefix
  ``input_ids[:, :action_index[:, t]]``. Hence ``input_ids[b, action_index[b, t]] == actions[b, t]`` and the trunk's
  hidden state that chose it stands at ``action_index[b, t] - 1``.

Tokens that the environment writes are on the ``time`` axis only. ``rewards[:, t]``, ``terminated[:, t]`` and
``truncated[:, t]`` belong to ``actions[:, t]`` (Gymnasium); ``values`` has one entry more, the last the bootstrap.

         time     0    1    2    3    4    5
         text     p    p    p    a    a    EOS
         step                    0    1    2
         reward                  0    0    1        <- of the action above it

Collecting is batch-synchronous: every row starts at the reset and is stepped until all have ended. The environment must
have ``autoreset_mode`` DISABLED, so that ended rows keep their last observation and ignore further actions.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldmtp.agents.action_masks import allowed_tokens
from worldmtp.agents.policies import ActingPolicy

_Batch = TypeVar("_Batch", bound="TensorBatch")


@dataclass(frozen=True)
class TensorBatch:
    """Tensors that share their first axis; indexing and moving act on all of them."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def select(self: _Batch, rows: Tensor) -> _Batch:
        """Return these rows of every field, in the order asked for."""
        rows = rows.to(next(iter(vars(self).values())).device, non_blocking=True)
        return type(self)(**{name: values[rows] for name, values in vars(self).items()})

    def to(self: _Batch, device: torch.device | str) -> _Batch:
        """Return the same batch on another device."""
        # To the device the host need not wait; from it, it would read what has not arrived.
        goes_on = torch.device(device).type == "cuda"
        return type(self)(**{name: values.to(device, non_blocking=goes_on) for name, values in vars(self).items()})

    @classmethod
    def cat(cls: type[_Batch], parts: Sequence[_Batch]) -> _Batch:
        """Return the rows of all parts, in their order."""
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Rollout(TensorBatch):
    """Episodes of one policy version; each token id is stored once, so memory is O(time) per episode.

    ``logprobs`` are log pi_old of every action exactly as it was sampled. Where something else than the policy chose,
    such as a search of what would follow, ``behaviour_logprobs`` are by what did; else they are the same. ``group``
    numbers the prompt an episode answers, so that episodes of one group share their prompt. ``terminated`` and
    ``truncated`` are never both true.
    ``allowed[:, t]`` are the tokens that the environment's action mask let the policy choose from; where there is no
    mask, which is the default, its last axis is empty.
    """

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"]
    prompt_length: Int[Tensor, " batch"]
    action_index: Int[Tensor, "batch step"]
    actions: Int[Tensor, "batch step"]
    step_mask: Bool[Tensor, "batch step"]
    logprobs: Float[Tensor, "batch step"]
    rewards: Float[Tensor, "batch step"]
    terminated: Bool[Tensor, "batch step"]
    truncated: Bool[Tensor, "batch step"]
    group: Int[Tensor, " batch"]
    exact: Bool[Tensor, " batch"]
    allowed: Bool[Tensor, "batch step known_vocab"] | None = None
    behaviour_logprobs: Float[Tensor, "batch step"] | None = None

    def __post_init__(self) -> None:
        if self.behaviour_logprobs is None:
            object.__setattr__(self, "behaviour_logprobs", self.logprobs)
        if self.allowed is None:
            nothing = torch.ones((*self.actions.shape, 0), dtype=torch.bool, device=self.actions.device)
            object.__setattr__(self, "allowed", nothing)

    @property
    def is_masked(self) -> bool:
        """Whether the environment restricts which actions are allowed."""
        return self.allowed is not None and self.allowed.shape[-1] > 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens the policy generated."""
        return int(self.step_mask.sum())


def state_index(rollout: Rollout) -> Int[Tensor, "batch step_plus_1"]:
    """Return where on the time axis the last token of s_0 .. s_T stands; after the last step, the end of the text."""
    last = rollout.attention_mask.sum(dim=1, keepdim=True) - 1
    before = torch.where(rollout.step_mask, rollout.action_index - 1, last)
    return torch.cat([before, last], dim=1)


def action_mask(rollout: Rollout) -> Bool[Tensor, "batch time"]:
    """Return which tokens the policy chose."""
    # Steps that are not there write False to index 0, a prompt token.
    return torch.zeros_like(rollout.attention_mask).scatter(1, rollout.action_index, rollout.step_mask)


def reply_mask(rollout: Rollout) -> Bool[Tensor, "batch time"]:
    """Return which tokens the world wrote in reply: after the prompt, and not the policy's."""
    places = torch.arange(rollout.input_ids.shape[1], device=rollout.input_ids.device)
    return rollout.attention_mask & (places >= rollout.prompt_length[:, None]) & ~action_mask(rollout)


def episode_returns(rollout: Rollout) -> Float[Tensor, " batch"]:
    """Return the undiscounted sum of each episode's rewards, added up in double precision: ten times .1 are 1."""
    paid = torch.where(rollout.step_mask, rollout.rewards, 0.0)
    return paid.double().sum(dim=1).to(paid.dtype)


def trimmed(rollout: Rollout) -> Rollout:
    """Return the rollout without the padding that all of its episodes have: less to compute, nothing else.

    Only rollouts that are kept apart can be trimmed: those of different lengths do not concatenate.
    """
    time = int(rollout.attention_mask.sum(dim=1).max())
    step = max(1, int(rollout.step_mask.sum(dim=1).max()))
    on_time = {name: getattr(rollout, name)[:, :time] for name in ("input_ids", "attention_mask")}
    on_step = {name: getattr(rollout, name)[:, :step] for name in (*_STEP_COLUMNS, "allowed")}
    return replace(rollout, **on_time, **on_step)


def padded(rollout: Rollout, num_tokens: int, num_steps: int) -> Rollout:
    """Return the rollout with axes of at least these lengths: rollouts of unequal ones concatenate when padded alike.

    What is added holds no text and no step.
    """
    time, step = rollout.input_ids.shape[1], rollout.actions.shape[1]
    if time >= num_tokens and step >= num_steps:
        return rollout

    def lengthened(values: Tensor, length: int, fill: Any) -> Tensor:
        added = max(0, length - values.shape[1])
        return torch.cat([values, values.new_full((len(values), added, *values.shape[2:]), fill)], dim=1)

    on_time = {name: lengthened(getattr(rollout, name), num_tokens, 0) for name in ("input_ids", "attention_mask")}
    on_step = {name: lengthened(getattr(rollout, name), num_steps, 0) for name in _STEP_COLUMNS}
    assert rollout.allowed is not None  # __post_init__ saw to it
    return replace(rollout, **on_time, **on_step, allowed=lengthened(rollout.allowed, num_steps, True))


class Stopwatch:
    """Adds up the wall-clock seconds spent inside it."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._start

    def take(self) -> float:
        """Return the sum so far and start over."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class PhaseClock:
    """Adds up wall-clock seconds per named phase; phases may nest, and each counts its own whole time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block under ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """Return the sums so far and start over."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


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
        """Start an episode in every row, as gymnasium does."""
        ...

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one action a row, as gymnasium does."""
        ...


def collect_rollout(
    env: BatchedTextEnv,
    policy: ActingPolicy,
    generator: torch.Generator | None,
    options: dict[str, Any],
    clock: PhaseClock | None = None,
) -> Rollout:
    """Return one episode of every row that begins, acted by ``policy``; greedy where there is no generator.

    ``options`` goes to ``env.reset``. Where it has a ``reset_mask``, the other rows stand still (``ends_others``), as
    nobody acts in an episode that is not recorded. The step axis has ``env.max_new`` entries, however long the
    episodes are, so that rollouts of different iterations can be concatenated. Phases timed: ``env`` and ``policy``.

    Raises:
        ValueError: the environment resets rows by itself.
    """
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise ValueError(
            f"autoreset_mode={mode} would mix episodes in one row; make the environment with autoreset_mode='disabled'."
        )
    clock = clock or PhaseClock()
    begins = np.ones(env.num_envs, dtype=bool)
    if options.get("reset_mask") is not None:
        begins, options = np.asarray(options["reset_mask"]), options | {"ends_others": True}
    with clock.phase("env"):
        obs, infos = env.reset(options=options)
    recorder = _Recorder(obs, begins, env.max_new)
    while not recorder.done.all():
        with clock.phase("policy"):
            step = policy.act(obs, infos, generator)
            actions = step.actions.cpu().numpy()
        chosen_by = step.logprobs if step.behaviour_logprobs is None else step.behaviour_logprobs
        recorder.allow(allowed_tokens(infos))
        acted_at = obs["length"][:, 0].copy()
        with clock.phase("env"):
            obs, rewards, terminated, truncated, infos = env.step(actions)
        recorder.record(
            infos,
            action_index=acted_at,
            actions=actions,
            logprobs=step.logprobs.float().cpu().numpy(),
            behaviour_logprobs=chosen_by.float().cpu().numpy(),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
        )
    rollout = recorder.rollout(obs)
    return rollout if begins.all() else rollout.select(torch.from_numpy(np.flatnonzero(begins)))


_STEP_COLUMNS: dict[str, type[np.generic]] = {
    "action_index": np.int64,
    "actions": np.int64,
    "logprobs": np.float32,
    "behaviour_logprobs": np.float32,
    "rewards": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "step_mask": np.bool_,
}
"""Fields of a ``Rollout`` along the step axis, but for the action masks."""


class _Recorder:
    """Fills the step axis while the environment runs."""

    def __init__(self, obs: dict[str, np.ndarray], begins: Bool[np.ndarray, " row"], num_steps: int) -> None:
        self.done, num_rows = ~begins, len(begins)
        self._prompt_length = obs["prompt_length"][:, 0].copy()
        self._num_taken = np.zeros(num_rows, dtype=np.int64)
        self._columns: dict[str, np.ndarray] = {
            name: np.zeros((num_rows, num_steps), dtype) for name, dtype in _STEP_COLUMNS.items()
        }
        self._group = np.arange(num_rows, dtype=np.int64)
        self._exact = np.zeros(num_rows, dtype=bool)
        self._allowed: np.ndarray | None = None

    def allow(self, allowed: np.ndarray | None) -> None:
        """Keep the mask of the step that is recorded next; steps that are not there allow everything."""
        if allowed is None:
            return
        if self._allowed is None:
            self._allowed = np.ones((*self._columns["step_mask"].shape, allowed.shape[1]), dtype=bool)
        live = np.nonzero(~self.done)[0]
        self._allowed[live, self._num_taken[live]] = allowed[live]

    def record(self, infos: dict[str, Any], **columns: np.ndarray) -> None:
        """Record one environment step; rows that ended before are left alone."""
        live = np.nonzero(~self.done)[0]
        at = (live, self._num_taken[live])
        for name, values in columns.items():
            self._columns[name][at] = values[live]
        self._columns["step_mask"][at] = True
        self._num_taken[live] += 1
        ended = live[(columns["terminated"] | columns["truncated"])[live]]
        self.done[ended] = True
        for row in ended:
            final = infos["final_info"]
            if "group" in final:
                self._group[row] = final["group"][row]
            if "exact" in final:
                self._exact[row] = final["exact"][row]

    def rollout(self, obs: dict[str, np.ndarray]) -> Rollout:
        """Return what was recorded, with the text as the environment kept it."""
        input_ids = torch.from_numpy(obs["tokens"].copy())
        lengths = torch.from_numpy(obs["length"][:, 0].copy())
        rollout = Rollout(
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1])[None] < lengths[:, None],
            prompt_length=torch.from_numpy(self._prompt_length),
            group=torch.from_numpy(self._group),
            exact=torch.from_numpy(self._exact),
            allowed=None if self._allowed is None else torch.from_numpy(self._allowed),
            **{name: torch.from_numpy(values) for name, values in self._columns.items()},
        )
        written = rollout.input_ids.gather(1, rollout.action_index)
        if not torch.equal(written[rollout.step_mask], rollout.actions[rollout.step_mask]):
            raise ValueError(
                "the environment's text does not hold the actions at the places they were taken; a text environment "
                "must append every action as it is (token-in, token-out)."
            )
        return rollout
