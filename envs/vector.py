"""The fast text environment: all rows in one set of numpy buffers.

One step of a row, with t counting the row's own tokens::

    obs      tokens (N, L) int64, right-padded, L = max_prompt + max_new; length (N, 1); prompt_length (N, 1)
    action   the next token, (N,)
    reward   0 until the answer ends, then its score; of a dense task what the token added to it
    end      terminated: the action was EOS.  truncated: it was not, and the budget of max_new tokens is used up.

In a conversation EOS ends a turn: the world writes its reply behind it in the same step, pays the turn, and terminates
or truncates the text; a full row is truncated. A dense task may terminate a text before EOS. The rewards of an episode
always add up to its ``score``.

**Infos.** Every key comes with a mask ``_key`` of the rows that have it, all arrays are new in each call.

* Of rows that were given a prompt, in ``reset`` and in steps that reset: ``prompt_text``, ``example_key`` (str objects)
  and ``group`` (int64: groups are numbered on, from 0 at a seeded reset of all rows).
* Of rows that ended with this step, **in every autoreset mode**: ``final_info``, a dict of arrays ``text`` (str
  objects, without special tokens), ``score`` (float64, what was paid), ``exact`` (bool), ``components`` (a dict of
  float64 arrays), ``reason`` (str objects: "ok", "no_eos", "error", "timeout" or the task's own), ``num_tokens``
  (int64, those of the policy, EOS included), ``prompt_text``, ``example_key`` and ``group``; of conversations also
  ``acted``, (N, L) bool, which tokens the policy wrote, and ``reply`` and ``num_written`` of the last step. So
  ``infos["final_info"]["score"][row]`` where ``infos["_final_info"][row]``.
* Of rows in which a world replied with this step: ``reply`` (str objects) and ``num_written`` (int64), its tokens.

**When a row has ended**, by ``autoreset_mode``:

* ``"same_step"`` (default): it is reset in the same step; the observation is the new prompt's, the ended text's stands
  in ``infos["final_obs"][row]``.
* ``"next_step"``: the observation is the ended text's; the next step ignores the row's action, pays 0, ends nothing and
  shows the new prompt.
* ``"disabled"``: the observation is the ended text's, and stays so; the row ignores actions, pays 0 and ends no more
  (both flags false) until ``reset`` without a mask or with ``options={"reset_mask": ...}``. Its ``final_info`` comes
  once, at the step where it ended. This is the mode for generating batch by batch, and the only one with groups: rows
  of a group end at different times.

**Reset options** (of ``reset(seed=..., options={...})``): ``split`` and ``group_size`` hold until changed; ``indices``
(into the pool of the split) and ``prompts`` (Examples, or prompts of the pool) name one prompt a group for this reset;
``reset_mask`` resets these rows only. One generator serves all rows: no row has a seed of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float64, Int

from worldmtp.envs import core
from worldmtp.envs.infos import Columns, batch_columns, batch_infos
from worldmtp.envs.options import (
    ResetOptions,
    check_group_size,
    check_indices,
    check_num_prompts,
    count_groups,
    parse_options,
    refusal_changes_nothing,
)
from worldmtp.envs.problem import TextProblem
from worldmtp.envs.problem_view import ProblemView
from worldmtp.envs.prompts import EncodedExamples, object_column
from worldmtp.envs.scoring import ScorerCounters
from worldmtp.envs.task import Example

Observation = dict[str, np.ndarray]
_STATE_VERSION = 2


def parse_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    """The mode of a name such as "same_step" or "SameStep".

    Raises:
        ValueError: if there is no such mode.
    """
    if isinstance(mode, AutoresetMode):
        return mode
    for known in AutoresetMode:
        if mode.lower() in (known.name.lower(), known.value.lower()):
            return known
    raise ValueError(f"autoreset_mode={mode!r} is unknown; expected 'same_step', 'next_step' or 'disabled'.")


class TextGenVectorEnv(ProblemView, VectorEnv):
    """Text generation in ``num_envs`` rows; the module's docstring is the contract.

    Args:
        num_envs: rows.
        autoreset_mode: "same_step", "next_step", "disabled", or gymnasium's AutoresetMode.
        group_size: consecutive rows that share a prompt; more than 1 needs "disabled".
        render_mode: "ansi" or None.
        **problem: task, tokenizer, budgets and all else of ``TextProblem``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        group_size: int = 1,
        render_mode: str | None = None,
        **problem: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs} must be at least 1.")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode={render_mode!r} is unknown; expected 'ansi' or None.")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["ansi"], "render_fps": 4, "autoreset_mode": self.autoreset_mode}
        self.problem = TextProblem(**problem)
        self.single_observation_space = self.problem.observation_space()
        self.single_action_space = self.problem.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._split = self.problem.split
        self._group_size = 1
        self._use(parse_options({"group_size": group_size}, num_envs))
        self._state: core.TextState | None = None
        self._examples, self._keys, self._prompts, self._splits = (np.full(num_envs, None) for _ in range(4))
        self._indices = np.full(num_envs, -1, dtype=np.int64)
        self._groups = np.full(num_envs, -1, dtype=np.int64)
        self._num_groups = 0
        self._referee = self.problem.referee(num_envs)

    @property
    def eos_terminates(self) -> bool:
        """Whether EOS ends the text and nothing else but the budget does: not where worlds reply or tasks end texts."""
        return self._referee.eos_terminates

    def example_of(self, row: int) -> Example:
        """The question that a row answers."""
        example: Example = self._examples[row]
        return example

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
            if self._state is None and asked.reset_mask is not None and not asked.reset_mask.all():
                raise ResetNeeded("the first reset must be of all rows; call reset without a reset_mask.")
            mask = np.ones(self.num_envs, dtype=bool) if asked.reset_mask is None else asked.reset_mask
            rows = np.flatnonzero(mask)
            self._use(asked)
            choice = self._choose(rows, asked)
        if seed is not None and mask.all():
            self._num_groups = 0
        self._give_prompts(rows, choice)
        assert self._state is not None
        return core.observation(self._state), self._prompt_infos(rows)

    def step(
        self, actions: Int[np.ndarray, " env"]
    ) -> tuple[
        Observation, Float64[np.ndarray, " env"], Bool[np.ndarray, " env"], Bool[np.ndarray, " env"], dict[str, Any]
    ]:
        """One token in every row that has not ended.

        Raises:
            ValueError: if the actions have the wrong shape, or one for a running row is not in the vocabulary.
            ResetNeeded: before the first reset.
        """
        before = self._state
        if before is None:
            raise ResetNeeded("call reset before step.")
        actions = self._checked(actions, before)
        ruling = self._referee.rule(before, core.transition(before, actions), actions, self._examples)
        self._state = ruling.state
        infos: dict[str, Any] = {}
        if ruling.replies:
            infos |= batch_infos(list(ruling.replies.values()), np.array(list(ruling.replies)), self.num_envs)
        if ruling.records:
            ended = ruling.terminated | ruling.truncated
            rows = np.flatnonzero(ended)
            records = {**ruling.records, **self._prompt_columns(rows)}
            infos["final_info"] = batch_columns(records, rows, self.num_envs)
            infos["_final_info"] = ended.copy()
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos["final_obs"] = self._final_observations(rows)
                infos["_final_obs"] = ended.copy()
                infos |= self._reset_rows(rows)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and before.done.any():
            infos |= self._reset_rows(np.flatnonzero(before.done))
        return core.observation(self._state), ruling.rewards, ruling.terminated, ruling.truncated, infos

    def render(self) -> tuple[str, ...] | None:
        """The rows' texts, prompt and response, in "ansi" mode."""
        if self.render_mode is None or self._state is None:
            return None
        rows = zip(self._state.tokens.tolist(), self._state.length.tolist(), strict=True)
        return tuple(self.tokenizer.decode(tokens[:length]) for tokens, length in rows)

    def close_extras(self, **kwargs: Any) -> None:
        """End the scoring processes."""
        self.scorer.close()

    def state(self) -> dict[str, Any]:
        """A JSON-able snapshot of all that decides the future, generator included.

        (Of prompts given as Examples, their ``meta`` must be JSON-able for the snapshot to be; it pickles in any case.)
        """
        if self._state is None:
            raise ResetNeeded("there is no state before the first reset.")
        given = [None if index >= 0 else example for index, example in zip(self._indices, self._examples, strict=True)]
        return {
            "version": _STATE_VERSION,
            "rules": self._rules(),
            "split": self._split,
            "splits": self._splits.tolist(),
            "pools": {split: self.problem.pool(split).fingerprint() for split in sorted({self._split, *self._splits})},
            "group_size": self._group_size,
            "num_groups": self._num_groups,
            "groups": self._groups.tolist(),
            "indices": self._indices.tolist(),
            "examples": [
                e and {"prompt": e.prompt, "answer": e.answer, "meta": dict(e.meta), "hidden": e.hidden} for e in given
            ],
            "tokens": self._state.tokens.tolist(),
            "length": self._state.length.tolist(),
            "prompt_length": self._state.prompt_length.tolist(),
            "done": self._state.done.tolist(),
            "referee": self._referee.state(),
            "np_random": self.np_random.bit_generator.state,
            "np_random_seed": self._np_random_seed,
            "scorer": vars(self.scorer.counters).copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> Observation:
        """Go on from a snapshot of an env with the same arguments; returns the observation there.

        Raises:
            ValueError: if the snapshot is of another version, size, vocabulary or set of prompts.
        """
        shape = (self.num_envs, self.problem.max_prompt + self.problem.max_new)
        tokens = np.array(state["tokens"], dtype=np.int64)
        pools = {split: self.problem.pool(split).fingerprint() for split in state["pools"]}
        found = state["version"], state.get("rules"), tokens.shape, state["pools"]
        expected = _STATE_VERSION, self._rules(), shape, pools
        if found != expected:
            raise ValueError(
                f"this state does not belong to this env: version, rules, shape of tokens and prompts are {found}; "
                f"expected {expected}. Make the env with the arguments it was saved with."
            )
        self._split, self._group_size = state["split"], state["group_size"]
        self._num_groups = state["num_groups"]
        self._groups = np.array(state["groups"], dtype=np.int64)
        self._indices = np.array(state["indices"], dtype=np.int64)
        examples = [
            self.problem.pool(split).examples[index] if given is None else Example(**given)
            for split, index, given in zip(state["splits"], state["indices"], state["examples"], strict=True)
        ]
        self._splits, self._examples = object_column(state["splits"]), object_column(examples)
        self._keys = object_column([example.key for example in examples])
        self._prompts = object_column([example.prompt for example in examples])
        self._state = core.TextState(
            tokens,
            np.array(state["length"], dtype=np.int64),
            np.array(state["prompt_length"], dtype=np.int64),
            np.array(state["done"], dtype=bool),
        )
        self._referee.load_state(state["referee"])
        self.np_random.bit_generator.state = state["np_random"]
        self._np_random_seed = state["np_random_seed"]
        self.scorer.counters = ScorerCounters(**state["scorer"])
        return core.observation(self._state)

    def _rules(self) -> dict[str, Any]:
        problem = self.problem
        return {
            "autoreset_mode": self.autoreset_mode.value,
            "referee": type(self._referee).__name__,
            "max_steps": problem.max_steps,
            "max_turn": problem.max_turn,
            "truncation_score": problem.truncation_score,
        }

    def _use(self, asked: ResetOptions) -> None:
        group_size = self._group_size if asked.group_size is None else asked.group_size
        check_group_size(group_size, self.autoreset_mode)
        self._group_size = group_size
        self._split = asked.split or self._split

    def _choose(self, rows: np.ndarray, asked: ResetOptions | None = None) -> tuple[EncodedExamples, np.ndarray]:
        """One example a row, and its index in the pool or -1."""
        size = self._group_size
        num_groups = count_groups(rows, size)
        pool = self.problem.pool(self._split)
        if asked is not None and asked.prompts is not None:
            chosen = self.problem.encode(self.problem.find(asked.prompts, self._split))
            indices = np.full(len(chosen), -1, dtype=np.int64)
        else:
            given = None if asked is None else asked.indices
            indices = self.np_random.integers(len(pool), size=num_groups) if given is None else given
            check_indices(indices, len(pool))
            chosen = pool.select(indices)
        check_num_prompts(len(chosen), num_groups, size)
        repeats = np.repeat(np.arange(num_groups), size)
        return (chosen if size == 1 else chosen.select(repeats)), indices[repeats]

    def _give_prompts(self, rows: np.ndarray, choice: tuple[EncodedExamples, np.ndarray]) -> None:
        chosen, indices = choice
        fresh = core.initial(chosen.tokens, chosen.length, self.problem.max_new, self.tokenizer.pad_id)
        self._state = fresh if self._state is None else core.replace_rows(self._state, rows, fresh)
        self._referee.begin(rows, self._state)
        self._examples[rows], self._keys[rows], self._prompts[rows] = chosen.examples, chosen.keys, chosen.prompts
        self._splits[rows] = self._split
        self._indices[rows] = indices
        self._groups[rows] = self._num_groups + np.arange(len(rows)) // self._group_size
        self._num_groups += len(rows) // self._group_size

    def _reset_rows(self, rows: np.ndarray) -> dict[str, Any]:
        self._give_prompts(rows, self._choose(rows))
        return self._prompt_infos(rows)

    def _prompt_columns(self, rows: np.ndarray) -> Columns:
        return {
            "prompt_text": self._prompts[rows],
            "example_key": self._keys[rows],
            "group": self._groups[rows].tolist(),
        }

    def _prompt_infos(self, rows: np.ndarray) -> dict[str, Any]:
        return batch_columns(self._prompt_columns(rows), rows, self.num_envs)

    def _final_observations(self, rows: np.ndarray) -> np.ndarray:
        assert self._state is not None
        state, final = self._state, np.full(self.num_envs, None)
        parts = zip(state.tokens[rows], state.length[rows, None], state.prompt_length[rows, None], strict=True)
        for row, (tokens, length, prompt_length) in zip(rows.tolist(), parts, strict=True):
            final[row] = {"tokens": tokens, "length": length, "prompt_length": prompt_length}
        return final

    def _checked(self, actions: np.ndarray, state: core.TextState) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions must be {self.num_envs} integers, got {actions.dtype} of shape {actions.shape}; "
                "one token id for each row."
            )
        live = actions if not state.done.any() else actions[~state.done]
        if live.size and (live.min() < 0 or live.max() >= self.tokenizer.vocab_size):
            raise ValueError(f"an action is outside the vocabulary 0..{self.tokenizer.vocab_size - 1}: {live}.")
        return actions.astype(np.int64)
