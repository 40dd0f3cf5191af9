"""A checker for vector text environments, in all autoreset modes; gymnasium has none.

It plays random tokens and referees every step from the observation before it. It raises AssertionError with what was
seen and what was expected, as ``gymnasium.utils.env_checker`` does.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float64, Int64

MakeVectorEnv = Callable[[int, AutoresetMode], VectorEnv]
Observation = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Step:
    """A step and all it is judged by; ``waiting`` rows had ended before it, ``returns`` were paid before it."""

    before: Observation
    waiting: Bool[np.ndarray, " env"]
    returns: Float64[np.ndarray, " env"]
    actions: Int64[np.ndarray, " env"]
    obs: Observation
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: dict[str, Any]

    @property
    def ended(self) -> np.ndarray:
        return self.terminated | self.truncated


def check_vector_env(make: MakeVectorEnv, num_envs: int = 6, num_steps: int = 120) -> None:
    """Check spaces, seeding, fresh arrays in every call, transitions, ends, final observations and infos.

    Args:
        make: ``(num_envs, autoreset_mode) -> VectorEnv``, which has a ``tokenizer``.
        num_envs: rows.
        num_steps: random steps in each mode; at least three times the length of a row, half of them without EOS.

    Raises:
        AssertionError: what was seen and what was expected.
    """
    for mode in AutoresetMode:
        envs = make(num_envs, mode)
        assert envs.metadata.get("autoreset_mode") is mode, (
            f"metadata['autoreset_mode'] must be {mode}, as asked for; got {envs.metadata.get('autoreset_mode')}."
        )
        for name in ("observation_space", "action_space"):
            expected = batch_space(getattr(envs, f"single_{name}"), num_envs)
            assert getattr(envs, name) == expected, f"{name} must be batch_space(single_{name}): {expected}."
        check_seeding(envs)
        check_steps(envs, mode, num_steps)
        envs.close()


def check_seeding(envs: VectorEnv) -> None:
    """The same seed gives the same prompts, another seed others, and no row is its neighbour's shifted copy.

    Raises:
        AssertionError: what was seen and what was expected.
    """
    first, again, other = (_questions(*envs.reset(seed=seed)) for seed in (7, 7, 8))
    assert first == again, "reset with the same seed must give the same prompts."
    assert first != other, "reset with another seed must give other prompts."
    assert len(set(first)) > 1, "all rows show the same prompt."
    rounds = [_questions(*envs.reset(seed=7))] + [_questions(*envs.reset()) for _ in range(7)]
    shifted = [
        later[row] == earlier[row + 1]
        for earlier, later in itertools.pairwise(rounds)
        for row in range(envs.num_envs - 1)
    ]
    assert np.mean(shifted) < 0.5, "row i shows the prompts of row i + 1 one episode later: rows are seeded seed + i."


def check_steps(envs: Any, mode: AutoresetMode, num_steps: int) -> None:
    """Referee random play.

    Raises:
        AssertionError: what was seen and what was expected.
    """
    rng = np.random.default_rng(3)
    num_steps = max(num_steps, 3 * envs.single_observation_space["tokens"].shape[0])
    eos_id, vocab_size = envs.tokenizer.eos_id, envs.tokenizer.vocab_size
    kept = envs.reset(seed=11)
    before = _copied(kept[0])
    waiting, returns = np.zeros(envs.num_envs, dtype=bool), np.zeros(envs.num_envs)
    num_terminated = num_truncated = 0
    for index in range(num_steps):
        if mode is AutoresetMode.DISABLED and waiting.all():
            kept = envs.reset(options={"reset_mask": waiting.copy()})
            before, waiting = _copied(kept[0]), np.zeros(envs.num_envs, dtype=bool)
            returns = np.zeros(envs.num_envs)
        actions = rng.integers(vocab_size, size=envs.num_envs)
        actions[actions == eos_id] = (eos_id + 1) % vocab_size
        if index >= num_steps // 2:
            actions[rng.random(envs.num_envs) < 0.2] = eos_id
        returned = envs.step(actions.copy())
        assert not data_shares_objects(kept, (returned[0], returned[4])), (
            "two calls returned the same arrays; users keep what they were given, so every call must return new ones."
        )
        kept = (returned[0], returned[4])
        step = _Step(before, waiting, returns, actions, *(_copied(part) for part in returned))
        _check_ends(step, eos_id, getattr(envs, "eos_terminates", True))
        _check_waiting(step, mode)
        _check_running(step, mode)
        for array in returned[0].values():
            array += 1  # whatever users do to an observation must not reach the environment
        before = step.obs
        returns = np.where(step.ended, 0.0, returns + step.rewards)
        waiting = step.ended if mode is not AutoresetMode.DISABLED else waiting | step.ended
        if mode is AutoresetMode.SAME_STEP:
            waiting = np.zeros_like(waiting)
        num_terminated, num_truncated = num_terminated + step.terminated.sum(), num_truncated + step.truncated.sum()
    if getattr(envs, "eos_terminates", True):
        assert num_terminated > 0, "no row was terminated in random play with one EOS in five tokens."
        assert num_truncated > 0, "no row was truncated in random play without EOS."
    assert num_terminated + num_truncated > 0, f"no row ended in {num_steps} steps of random play."


def _check_ends(step: _Step, eos_id: int, eos_terminates: bool) -> None:
    assert not (step.terminated & step.truncated).any(), "a row is terminated or truncated, never both."
    if eos_terminates:
        expected = ~step.waiting & (step.actions == eos_id)
        assert (step.terminated == expected).all(), f"terminated={step.terminated}; by EOS, {expected} was expected."
    final_info = step.infos.get("_final_info", np.zeros_like(step.waiting))
    assert (final_info == step.ended).all(), f"rows {step.ended} ended, but final_info is there for {final_info}."
    for row in np.flatnonzero(step.ended).tolist():
        score, paid = step.infos["final_info"]["score"][row], step.returns[row] + step.rewards[row]
        assert abs(score - paid) < 1e-9, f"row {row}: final_info says score {score}, paid in all was {paid}."


def _check_waiting(step: _Step, mode: AutoresetMode) -> None:
    for row in np.flatnonzero(step.waiting).tolist():
        assert step.rewards[row] == 0, f"row {row} had ended: it earns 0, but was paid {step.rewards[row]}."
        assert not step.ended[row], f"row {row} had ended: it ends no more until it is reset."
        if mode is AutoresetMode.NEXT_STEP:
            _assert_fresh(step.obs, row, "the step after its end")
        else:
            _assert_same(_row(step.obs, row), _row(step.before, row), f"row {row} has ended and waits for its reset")


def _check_running(step: _Step, mode: AutoresetMode) -> None:
    final_mask = step.infos.get("_final_obs", np.zeros_like(step.waiting))
    expected_mask = step.ended if mode is AutoresetMode.SAME_STEP else np.zeros_like(step.ended)
    assert (final_mask == expected_mask).all(), f"final_obs is there for {final_mask}; in {mode} for {expected_mask}."
    for row in np.flatnonzero(~step.waiting).tolist():
        expected = _row(step.before, row)
        expected["tokens"][expected["length"][0]] = step.actions[row]
        expected["length"] += 1
        if step.infos.get("_num_written", step.waiting)[row]:
            seen = step.infos["final_obs"][row] if final_mask[row] else _row(step.obs, row)
            _take_reply(expected, seen, int(step.infos["num_written"][row]))
        if step.ended[row] and mode is AutoresetMode.SAME_STEP:
            _assert_same(step.infos["final_obs"][row], expected, f"final_obs of row {row}")
            _assert_fresh(step.obs, row, "the same step")
        else:
            _assert_same(_row(step.obs, row), expected, f"row {row} after token {step.actions[row]}")


def _take_reply(expected: Observation, seen: Observation, num_written: int) -> None:
    """What a world wrote is its own; that it wrote as many tokens as it says, and just behind the turn, is checked."""
    start = int(expected["length"][0])
    expected["tokens"][start : start + num_written] = seen["tokens"][start : start + num_written]
    expected["length"] += num_written


def _assert_fresh(obs: Observation, row: int, when: str) -> None:
    length, prompt_length = int(obs["length"][row, 0]), int(obs["prompt_length"][row, 0])
    assert length == prompt_length, (
        f"row {row} must show a new prompt in {when}; it has {length - prompt_length} tokens of a response."
    )


def _assert_same(seen: Observation, expected: Observation, what: str) -> None:
    for key, value in expected.items():
        assert np.array_equal(seen[key], value), f"{what}: {key} is {seen[key]}, expected {value}."


def _row(obs: Observation, row: int) -> Observation:
    return {key: value[row].copy() for key, value in obs.items()}


def _questions(obs: Observation, infos: dict[str, Any]) -> list[Any]:
    """What tells episodes apart: their keys, since worlds of several seeds may open alike, or else their prompts."""
    if "example_key" in infos:
        return list(infos["example_key"])
    return [row.tobytes() for row in obs["tokens"]]


def _copied(data: Any) -> Any:
    """A deep copy of arrays in dicts and object arrays."""
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    if isinstance(data, np.ndarray) and data.dtype == object:
        copy = np.empty_like(data)
        for index, value in enumerate(data):
            copy[index] = _copied(value)
        return copy
    return data.copy() if isinstance(data, np.ndarray) else data
