"""A checker for vector text environments, in all autoreset modes; gymnasium has none.

It plays random tokens and checks every step from the observation before it. It raises AssertionError with what was
seen and what was expected, as ``gymnasium.utils.env_checker`` does.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Int64

from worldmtp.envs.dataset import TextDataset
from worldmtp.envs.rows import Observation
from worldmtp.envs.splits import SPLITS
from worldmtp.envs.tokenizer import Tokenizer, written_text

MakeVectorEnv = Callable[[int, AutoresetMode], VectorEnv]


class EpisodeBook:
    """What random play knows of every row from the outside: questions, returns and whose tokens are whose."""

    def __init__(self, tokenizer: Tokenizer, num_envs: int, length: int) -> None:
        self._tokenizer = tokenizer
        self._questions: list[dict[str, Any]] = [{} for _ in range(num_envs)]
        self.returns = np.zeros(num_envs)
        self._acted = np.zeros((num_envs, length), dtype=bool)

    def begin(self, infos: dict[str, Any], rows: np.ndarray) -> None:
        """These rows show a new prompt, told of in infos."""
        for key in ("prompt_text", "example_key", "group"):
            if key in infos:
                told = infos.get(f"_{key}", np.zeros(len(self.returns), dtype=bool))
                assert (told == np.isin(np.arange(len(told)), rows)).all(), (
                    f"infos tell {key} of rows {np.flatnonzero(told).tolist()}, by the mask _{key}; rows "
                    f"{rows.tolist()} were given a prompt."
                )
        for row in rows.tolist():
            self._questions[row] = {
                key: infos[key][row] for key in ("prompt_text", "example_key", "group") if key in infos
            }
        self.returns[rows] = 0.0
        self._acted[rows] = False

    def act(self, before: Observation, rows: np.ndarray, rewards: np.ndarray) -> None:
        """The policy wrote a token in these rows and was paid."""
        self._acted[rows, before["length"][rows, 0]] = True
        self.returns[rows] += rewards[rows]

    def end(self, row: int, final: Observation, told: dict[str, Any]) -> None:
        """See that what is told of an episode that ended is so."""
        info = {
            key: column[row] for key, column in told.items() if not key.startswith("_") and not isinstance(column, dict)
        }
        masks = {key: told.get(f"_{key}") for key in info}
        missing = [key for key, mask in masks.items() if mask is None or not mask[row]]
        assert not missing, f"row {row} ended, but the masks of final_info leave out its {missing}."
        score, paid = info["score"], self.returns[row]
        assert abs(score - paid) < 1e-9, f"row {row}: final_info says score {score}, paid in all was {paid}."
        for key, value in self._questions[row].items():
            assert info[key] == value, f"row {row}: final_info says {key} {info[key]!r}, it began with {value!r}."
        response = final["tokens"][int(final["prompt_length"][0]) : int(final["length"][0])]
        text, num_tokens = written_text(self._tokenizer, response.tolist()), int(self._acted[row].sum())
        assert info["text"] == text, f"row {row}: final_info says text {info['text']!r}, the row holds {text!r}."
        assert info["num_tokens"] == num_tokens, (
            f"row {row}: final_info says {info['num_tokens']} tokens, the policy wrote {num_tokens}."
        )
        if "acted" in info:
            assert (info["acted"] == self._acted[row]).all(), f"row {row}: final_info's acted is not what was acted."

    def reply(self, row: int, written: np.ndarray, reply: str, is_full: bool) -> None:
        """See that a reply is what stands in the row, as far as there was room for it."""
        told, seen = self._tokenizer.encode(reply), written.tolist()
        fits = told[: len(seen)] == seen and (is_full or len(told) == len(seen))
        assert fits, f"row {row}: infos say the reply {reply!r}, the row holds {self._tokenizer.decode(seen)!r}."


@dataclass(frozen=True)
class _Step:
    """A step and all it is checked by; ``waiting`` rows had ended before it."""

    before: Observation
    waiting: Bool[np.ndarray, " env"]
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
        if mode is AutoresetMode.DISABLED:
            check_making(envs, make(num_envs, mode))
        check_replay(envs)
        check_steps(envs, mode, num_steps)
        envs.close()


def check_seeding(envs: VectorEnv) -> None:
    """Raise unless one seed gives the same prompts, another seed others, and no row is its neighbour's shifted copy.

    Where a split is one question, by the task's own word of how many there are, all seeds give it.
    """
    first, again, other = (_questions(*envs.reset(seed=seed)) for seed in (7, 7, 8))
    assert first == again, "reset with the same seed must give the same prompts."
    if len({*first, *other}) == 1 and _is_one_question(envs):
        return
    assert len({*first, *other}) > 1, (
        f"all prompts are one question, {first[0]!r}; a task needs several, in each split, before its seeding can be "
        "checked."
    )
    assert first != other, "reset with another seed must give other prompts."
    assert len(set(first)) > 1, "all rows show the same prompt."
    rounds = [_questions(*envs.reset(seed=7))] + [_questions(*envs.reset()) for _ in range(7)]
    shifted = [
        later[row] == earlier[row + 1]
        for earlier, later in itertools.pairwise(rounds)
        for row in range(envs.num_envs - 1)
    ]
    assert np.mean(shifted) < 0.5, "row i shows the prompts of row i + 1 one episode later: rows are seeded seed + i."


def _is_one_question(envs: VectorEnv) -> bool:
    """Return whether the split has one question and the others have all the rest of those that the task states."""
    dataset: TextDataset | None = getattr(envs, "dataset", None)
    size = None if dataset is None else getattr(dataset.task, "universe_size", None)
    if dataset is None or size is None:
        return False
    found = {split: len(dataset.examples(split, size, 0, fewer=True)) for split in SPLITS}
    return found[dataset.config.split] == 1 and sum(found.values()) == size


def check_making(envs: VectorEnv, again: VectorEnv) -> None:
    """Raise unless an environment that is made once more asks the same questions."""
    first, second = (_questions(*each.reset(seed=7)) for each in (envs, again))
    again.close()
    assert first == second, (
        f"made twice with the same arguments and reset with one seed, it asks {first[0]!r} and then {second[0]!r}: the "
        "task draws from something else than the rng it is given. Use rng alone, or a run cannot be resumed."
    )


def check_replay(envs: Any) -> None:
    """The same seed and tokens give the same episodes, those after an autoreset included."""
    vocab_size, num_steps = envs.single_action_space.n, 2 * envs.single_observation_space["tokens"].shape[0]
    actions = np.random.default_rng(1).integers(vocab_size, size=(min(num_steps, 200), envs.num_envs))
    plays = []
    for _ in range(2):
        envs.reset(seed=5)
        steps = [envs.step(column.copy()) for column in actions]
        plays.append([(obs["tokens"].tobytes(), rewards.tolist()) for obs, rewards, *_ in steps])
    for index, (first, second) in enumerate(zip(*plays, strict=True)):
        assert first == second, f"step {index} after reset(seed=5) differs when the same tokens are played once more."


def check_steps(envs: Any, mode: AutoresetMode, num_steps: int) -> None:
    """Check every step of random play."""
    rng = np.random.default_rng(3)
    length = envs.single_observation_space["tokens"].shape[0]
    num_steps, eos_terminates = max(num_steps, 3 * length), getattr(envs, "eos_terminates", True)
    book = EpisodeBook(envs.tokenizer, envs.num_envs, length)
    kept = envs.reset(seed=11)
    before, waiting = copy.deepcopy(kept[0]), np.zeros(envs.num_envs, dtype=bool)
    book.begin(kept[1], np.arange(envs.num_envs))
    num_terminated = num_truncated = 0
    for index in range(num_steps):
        if mode is AutoresetMode.DISABLED and (waiting.all() or (waiting.any() and rng.random() < 0.3)):
            kept = envs.reset(options={"reset_mask": waiting.copy()})
            _check_masked_reset(before, kept[0], waiting)
            book.begin(kept[1], np.flatnonzero(waiting))
            before, waiting = copy.deepcopy(kept[0]), np.zeros(envs.num_envs, dtype=bool)
        actions = _draw(envs, rng, eos_share=0.0 if index < num_steps // 2 else 0.2)
        returned = envs.step(actions.copy())
        assert not data_shares_objects(kept, (returned[0], returned[4])), (
            "two calls returned the same arrays; users keep what they were given, so every call must return new ones."
        )
        kept = (returned[0], returned[4])
        step = _Step(before, waiting, actions, *(copy.deepcopy(part) for part in returned))
        book.act(before, np.flatnonzero(~waiting), step.rewards)
        _check_ends(step, envs.tokenizer.eos_id, eos_terminates)
        _check_waiting(step, mode)
        _check_running(step, mode, book)
        assert envs.observation_space.contains(step.obs), "an observation is outside the observation space."
        begun = {AutoresetMode.SAME_STEP: step.ended, AutoresetMode.NEXT_STEP: waiting}.get(mode)
        if begun is not None and begun.any():
            book.begin(step.infos, np.flatnonzero(begun))
        for array in returned[0].values():
            array += 1  # whatever users do to an observation must not reach the environment
        before = step.obs
        waiting = step.ended if mode is not AutoresetMode.DISABLED else waiting | step.ended
        if mode is AutoresetMode.SAME_STEP:
            waiting = np.zeros_like(waiting)
        num_terminated, num_truncated = num_terminated + step.terminated.sum(), num_truncated + step.truncated.sum()
    if eos_terminates:
        assert num_terminated > 0, "no row was terminated in random play with one EOS in five tokens."
        assert num_truncated > 0, "no row was truncated in random play without EOS."
    assert num_terminated + num_truncated > 0, f"no row ended in {num_steps} steps of random play."


def _draw(envs: Any, rng: np.random.Generator, eos_share: float) -> np.ndarray:
    eos_id, vocab_size = envs.tokenizer.eos_id, envs.tokenizer.vocab_size
    actions = rng.integers(vocab_size, size=envs.num_envs)
    actions[actions == eos_id] = (eos_id + 1) % vocab_size
    actions[rng.random(envs.num_envs) < eos_share] = eos_id
    return actions


def _check_masked_reset(before: Observation, obs: Observation, mask: np.ndarray) -> None:
    for row in range(len(mask)):
        if mask[row]:
            _assert_fresh(obs, row, "the reset whose mask names it")
        else:
            _assert_same(_row(obs, row), _row(before, row), f"row {row}, which reset_mask leaves alone")


def _check_ends(step: _Step, eos_id: int, eos_terminates: bool) -> None:
    assert not (step.terminated & step.truncated).any(), "a row is terminated or truncated, never both."
    if eos_terminates:
        expected = ~step.waiting & (step.actions == eos_id)
        assert (step.terminated == expected).all(), f"terminated={step.terminated}; by EOS, {expected} was expected."
    final_info = step.infos.get("_final_info", np.zeros_like(step.waiting))
    assert (final_info == step.ended).all(), f"rows {step.ended} ended, but final_info is there for {final_info}."


def _check_waiting(step: _Step, mode: AutoresetMode) -> None:
    for row in np.flatnonzero(step.waiting).tolist():
        assert step.rewards[row] == 0, f"row {row} had ended: it earns 0, but was paid {step.rewards[row]}."
        assert not step.ended[row], f"row {row} had ended: it ends no more until it is reset."
        if mode is AutoresetMode.NEXT_STEP:
            _assert_fresh(step.obs, row, "the step after its end")
        else:
            _assert_same(_row(step.obs, row), _row(step.before, row), f"row {row} has ended and waits for its reset")


def _check_running(step: _Step, mode: AutoresetMode, book: EpisodeBook) -> None:
    final_mask = step.infos.get("_final_obs", np.zeros_like(step.waiting))
    expected_mask = step.ended if mode is AutoresetMode.SAME_STEP else np.zeros_like(step.ended)
    assert (final_mask == expected_mask).all(), f"final_obs is there for {final_mask}; in {mode} for {expected_mask}."
    for row in np.flatnonzero(~step.waiting).tolist():
        expected = _row(step.before, row)
        expected["tokens"][expected["length"][0]] = step.actions[row]
        expected["length"] += 1
        seen = step.infos["final_obs"][row] if final_mask[row] else _row(step.obs, row)
        if step.infos.get("_num_written", step.waiting)[row]:
            written = _take_reply(expected, seen, int(step.infos["num_written"][row]))
            book.reply(row, written, step.infos["reply"][row], is_full=bool(step.truncated[row]))
        if step.ended[row] and mode is AutoresetMode.SAME_STEP:
            _assert_same(step.infos["final_obs"][row], expected, f"final_obs of row {row}")
            _assert_fresh(step.obs, row, "the same step")
        else:
            _assert_same(_row(step.obs, row), expected, f"row {row} after token {step.actions[row]}")
        if step.ended[row]:
            book.end(row, seen, step.infos["final_info"])


def _take_reply(expected: Observation, seen: Observation, num_written: int) -> np.ndarray:
    """What a world wrote is its own; that it wrote as many tokens as it says, and just behind the turn, is checked."""
    start = int(expected["length"][0])
    expected["tokens"][start : start + num_written] = seen["tokens"][start : start + num_written]
    expected["length"] += num_written
    return seen["tokens"][start : start + num_written]


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
